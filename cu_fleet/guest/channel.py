"""One command that came over the wire: handed to the desktop's own init, or served by a child, with its three streams.

Root runs this. What answers at the door may not be init but what somebody has put there: it gets pipes, and is
believed nothing but lines that go no further than to whoever asked.
"""

# By descriptors and plain names, as these are what is spoken of here:

import contextlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable

from cu_fleet.guest import files
from cu_fleet.guest.frames import MOST, WINDOW, frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cu_fleet.guest.port import Port

RUN = "/run/cu-fleet"
_MOST_REQUEST = 2 << 20
_MOST_TOLD = 16 << 10


class Channel:
    """One command: its link to the desktop's door, its three pipes, and how much of each stream is under way."""

    def __init__(self, port: "Port", number: int) -> None:
        self.port, self.number = port, number
        self.request = b""
        self.link: socket.socket | None = None
        self.child, self.pidfd = 0, -1
        self.stdin = -1
        self.waiting = b""  # for its standard input
        self.closing = False
        self.outputs: dict[int, int] = {}
        self.room = {1: WINDOW, 2: WINDOW}
        self.kept: list[tuple[str, bytes]] = []  # what it said while it was nobody's
        self.told = 0  # bytes of lines about it, of which there are few unless somebody has taken init's place

    def say(self, kind: str, data: bytes = b"") -> None:
        if self.number:
            self.port.send(frame(self.number, kind, data))
        else:
            self.kept.append((kind, data))

    def lives(self) -> bool:
        """Whether one that is nobody's yet still runs."""
        said = b"".join(data for kind, data in self.kept if kind == "l")
        return said.startswith(b"pid ") and b"exit " not in said

    def belong(self, number: int) -> None:
        self.number = number
        for kind, data in self.kept:
            self.say(kind, data)
        self.kept.clear()

    def begin(self, start: Callable[[list[int]], None]) -> None:
        """Start it with three pipes that the desktop's user may open anew."""
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
        self.stdin, self.outputs = pipes[0][1], {1: pipes[1][0], 2: pipes[2][0]}
        try:
            for fd in theirs:
                os.fchown(fd, self.port.uid, self.port.uid)
            for fd in (self.stdin, *self.outputs.values()):
                os.set_blocking(fd, False)
            start(theirs)
        finally:
            for fd in theirs:
                os.close(fd)
        self.request = b""
        for number, fd in self.outputs.items():
            self.port.watch(fd, select.POLLIN, lambda n=number: self.carry(n))  # type: ignore[misc]

    def ask_init(self, fds: list[int]) -> None:
        """A command is the desktop's own init's affair."""
        self.link = link = socket.socket(socket.AF_UNIX)
        link.settimeout(10)
        link.connect(f"{RUN}/exec.sock")
        socket.send_fds(link, [len(self.request).to_bytes(4, "big")], fds)
        link.sendall(self.request)
        link.setblocking(False)
        self.port.watch(link.fileno(), select.POLLIN, self.hear)

    def serve_files(self, fds: list[int]) -> None:
        """Files of the slot, by a child that becomes the desktop's user: a program would take longer to start."""
        argv = json.loads(self.request)
        self.child = os.fork()
        if not self.child:
            become_user(self.port.uid, self.port.home, fds)
            leave(lambda: files.main(argv))
        self.pidfd = os.pidfd_open(self.child)
        self.port.watch(self.pidfd, select.POLLIN, self.reap)
        self.say("l", b"pid %d\n" % self.child)

    def reap(self) -> None:
        code = os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])
        self.child = 0
        self.port.forget(self.pidfd)
        self.say("l", b"exit %d\n" % (code if code >= 0 else 128 - code))

    def hear(self) -> None:
        """What init says of the command; at the end of it, that it is lost unless it said so before."""
        assert self.link
        try:
            said = self.link.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        self.told += len(said)
        if self.told > _MOST_TOLD:
            said = b""
        self.say("l", said)
        if not said:
            self.port.forget(self.link.fileno())

    def carry(self, number: int) -> None:
        """The next of an output, as much as there is room for."""
        fd = self.outputs[number]
        try:
            data = os.read(fd, min(MOST, self.room[number]))
        except BlockingIOError:
            return
        self.say(str(number), data)
        self.room[number] -= len(data)
        if not data:
            del self.outputs[number]
            self.port.forget(fd)
            os.close(fd)
        elif not self.room[number]:
            self.port.forget(fd)

    def taken(self, number: int, size: int) -> None:
        if number in self.outputs and not self.room[number]:
            self.port.watch(self.outputs[number], select.POLLIN, lambda: self.carry(number))
        self.room[number] += size

    def feed(self, data: bytes) -> None:
        self.waiting += data[: WINDOW - len(self.waiting)]
        self.push()

    def push(self) -> None:
        """Write to the command what it takes; what it does not want any more is taken by nobody."""
        if self.stdin < 0:
            return
        try:
            size = os.write(self.stdin, self.waiting) if self.waiting else 0
        except BlockingIOError:
            size = 0
        except OSError:
            self.waiting, self.closing = b"", True
            self.say("y")
            size = 0
        self.waiting = self.waiting[size:]
        if size:
            self.say("a", str(size).encode())
        if self.waiting:
            self.port.watch(self.stdin, select.POLLOUT, self.push)
        else:
            self.port.forget(self.stdin)
            if self.closing:
                os.close(self.stdin)
                self.stdin = -1

    def do(self, kind: str, data: bytes) -> None:
        if kind in "Rrf" and self.stdin < 0 and len(self.request) + len(data) <= _MOST_REQUEST:
            self.request += data
            if kind != "R":
                self.begin(self.ask_init if kind == "r" else self.serve_files)
        elif kind == "0":
            self.feed(data)
        elif kind == "z":
            self.closing = True
            self.push()
        elif kind == "a":
            number, _, size = data.partition(b" ")
            self.taken(int(number), int(size))
        elif kind == "k" and self.child:
            os.kill(self.child, signal.SIGKILL)
        elif kind == "k" and self.link:
            with contextlib.suppress(OSError):
                self.link.send(b"k")
        elif kind == "x":
            self.close()

    def close(self) -> None:
        self.port.channels.pop(self.number, None)
        for fd in (self.stdin, self.pidfd, *self.outputs.values(), *([self.link.fileno()] if self.link else [])):
            if fd >= 0:
                self.port.forget(fd)
        if self.child:
            os.kill(self.child, signal.SIGKILL)
            os.waitpid(self.child, 0)
        for fd in (self.stdin, self.pidfd, *self.outputs.values()):
            if fd >= 0:
                os.close(fd)
        if self.link:
            self.link.close()  # which ends the command


def become_user(uid: int, home: str, fds: list[int]) -> None:
    """Nothing but these three descriptors, and no right of root's."""
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    os.closerange(3, 1 << 16)
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    os.umask(0o022)
    os.environ["HOME"] = home


def leave(work: Callable[[], None]) -> None:
    """Do this, and end as a program of its own would."""
    code = 1
    try:
        work()
        sys.stdout.flush()
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    except BaseException as e:  # noqa: BLE001  # what is above this is the parent's
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
    finally:
        os._exit(code)
