"""The one wire into a virtual machine: a serial port, over which commands run and the machine learns who it is.

Root runs this inside, and nobody else can open the port; the desktop itself belongs to an ordinary user. It brings the
desktop up, carries each command to the door of the desktop's own init, and gives a machine that woke from a saved
state an identity of its own. The machine ends when its desktop does.

A wire survives what speaks over it: a controller killed in the middle of a frame, a machine saved in the middle of
another. So frames end with a byte that occurs nowhere else, and whoever connects says hello first: what ran for the
one before is ended, and what comes before the answer to this very hello is nobody's. A frame is a channel's number, a
letter and data; on channel 0 they speak of the machine, on each other one of one command. Of every stream, no more
than a window is under way that its reader has not taken.
"""

# By descriptors and plain names, as these are what is spoken of here:
# ruff: noqa: PTH101, PTH103, PTH123, PTH208

import contextlib
import fcntl
import importlib.util
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable

RUN, SETUP = "/run/cu-fleet", "/run/cu-fleet-init"
PORT = "/dev/virtio-ports/cu-fleet"
END, ESCAPE = b"\x7e", b"\x7d"
WINDOW = 256 << 10
MOST = 32 << 10  # bytes of data in a frame
_MOST_FRAME = 4 * MOST
_MOST_REQUEST = 2 << 20
_MOST_TOLD = 16 << 10
_VT_ACTIVATE, _VT_WAITACTIVE, _KDSETMODE, _KDSKBMODE = 0x5606, 0x5607, 0x4B3A, 0x4B45
_GRAPHICS, _OFF, _VT = 1, 4, 7
_RESEED, _ADD_ENTROPY = 0x5207, 0x40085203
_BEGIN = f"""exec 8<>{RUN}/status 9</dev/null >>{RUN}/log 2>&1 </dev/null
umask 022
"$@" 8>&- 9>&- & screen=$!
tar --extract --file={SETUP}/state.tar --directory=/ --preserve-permissions --no-overwrite-dir || exit
mkdir -p ~/Shared
exec /usr/bin/python3 -I -S {SETUP}/init.py $screen"""


def frame(channel: int, kind: str, data: bytes = b"") -> bytes:
    body = struct.pack(">H", channel) + kind.encode() + data
    return body.replace(ESCAPE, b"\x7d\x5d").replace(END, b"\x7d\x5e") + END


class Frames:
    """Frames out of a stream. What is broken, as at the first bytes of a connection, is left out."""

    def __init__(self) -> None:
        self._left = b""

    def feed(self, data: bytes) -> list[tuple[int, str, bytes]]:
        *whole, left = (self._left + data).split(END)
        self._left = left if len(left) <= _MOST_FRAME else b""
        bodies = [one.replace(b"\x7d\x5e", END).replace(b"\x7d\x5d", ESCAPE) for one in whole]
        return [(int.from_bytes(one[:2], "big"), chr(one[2]), one[3:]) for one in bodies if len(one) >= 3]


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
        self.told = 0  # bytes of lines about it, of which there are few unless somebody has taken init's place

    def say(self, kind: str, data: bytes = b"") -> None:
        self.port.send(frame(self.number, kind, data))

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
            leave(lambda: self.port.files(argv))
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


class Port:
    def __init__(self, setup: dict[str, object], fd: int, files: Callable[[list[str]], None]) -> None:
        self.uid, self.home, self.files = int(str(setup["uid"])), str(setup["home"]), files
        self.boot, self.stage = str(setup["boot"]), "booting"
        self.poll = select.poll()
        self.calls: dict[int, Callable[[], None]] = {}
        self.channels: dict[int, Channel] = {}
        self.frames = Frames()
        self.fd = fd
        self.out = bytearray()
        self.heard = False  # whoever is at the other end has said hello

    def watch(self, fd: int, events: int, call: Callable[[], None]) -> None:
        self.calls[fd] = call
        self.poll.register(fd, events)

    def forget(self, fd: int) -> None:
        if self.calls.pop(fd, None):
            self.poll.unregister(fd)

    def send(self, data: bytes) -> None:
        self.out += data
        self.flush()

    def flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.out:
                del self.out[: os.write(self.fd, self.out[:65536])]
        self.poll.register(self.fd, select.POLLIN | (select.POLLOUT if self.out else 0))

    def state(self) -> bytes:
        processes = sum(name.isdigit() for name in os.listdir("/proc"))
        return json.dumps({"boot": self.boot, "stage": self.stage, "processes": processes}).encode()

    def serve(self) -> None:
        self.flush()
        while True:
            for fd, event in self.poll.poll():
                if fd != self.fd:
                    if call := self.calls.get(fd):
                        call()
                elif event & select.POLLHUP:
                    self.left_alone()
                else:
                    self.flush()
                    self.listen()

    def left_alone(self) -> None:
        """Nobody is at the other end, which the kernel says again and again until somebody is."""
        self.reset()
        time.sleep(0.02)

    def reset(self) -> None:
        for channel in list(self.channels.values()):
            channel.close()
        self.frames, self.heard = Frames(), False
        self.out.clear()

    def listen(self) -> None:
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return
        for channel, kind, body in self.frames.feed(data):
            try:
                self.obey(channel, kind, body)
            except (OSError, ValueError, KeyError) as e:
                self.send(frame(channel, "l" if channel else "!", f"error {e}\n".encode()))

    def obey(self, channel: int, kind: str, body: bytes) -> None:
        if not channel and kind == "h":
            self.reset()
            self.heard = True
            self.out += END
            self.send(frame(0, "h", body + b" " + self.state()))
        elif not self.heard:
            return
        elif not channel and kind == "p":
            self.send(frame(0, "p", self.state()))
        elif not channel and kind == "b":
            self.become(json.loads(body))
            self.send(frame(0, "p", self.state()))
        elif channel:
            if channel not in self.channels and kind in "Rrf":
                self.channels[channel] = Channel(self, channel)
            if known := self.channels.get(channel):
                known.do(kind, body)

    def become(self, who: dict[str, str]) -> None:
        """An identity of its own, for a machine that others woke up as, too: nothing that was one's name stays.

        One that goes on as itself after it stood still has only its clock to set.
        """
        seed = bytes.fromhex(who["seed"])
        with open("/dev/urandom", "wb") as random:
            fcntl.ioctl(random, _ADD_ENTROPY, struct.pack("ii", 8 * len(seed), len(seed)) + seed)
            fcntl.ioctl(random, _RESEED)
        time.clock_settime(time.CLOCK_REALTIME, float(who["time"]))
        if "boot" in who:
            identify(who)
            self.boot = who["boot"]

    def hear_of_desktop(self, status: int) -> None:
        for line in os.read(status, 4096).decode(errors="replace").splitlines():
            if line.startswith(("screen ", "ready ")):
                self.stage = line
                if self.heard:
                    self.send(frame(0, "p", self.state()))


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


def identify(who: dict[str, str]) -> None:
    socket.sethostname(who["hostname"])
    for path, text in {
        "/etc/hostname": who["hostname"],
        "/etc/machine-id": who["machine_id"],
        "/etc/hosts": f"127.0.0.1\tlocalhost {who['hostname']}\n::1\tlocalhost",
    }.items():
        with open(path, "w") as f:
            f.write(text + "\n")


def bring_up(setup: dict[str, list[str]], uid: int) -> tuple[int, int]:
    """Start the desktop as its user. Returns where it says how far it is, and a descriptor of its process."""
    clear_console(uid)
    env = dict(word.split("=", 1) for word in setup["env"])
    for folder, mode in ((RUN, 0o755), (f"/run/user/{uid}", 0o700), (env["HOME"], 0o700)):
        os.makedirs(folder, exist_ok=True)
        os.chmod(folder, mode)
        os.chown(folder, uid, uid)
    os.mkfifo(f"{RUN}/status", 0o600)
    status = os.open(f"{RUN}/status", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)  # while nobody else can reach it
    os.chown(f"{RUN}/status", uid, uid)
    desktop = subprocess.Popen(
        ["/bin/sh", "-c", _BEGIN, "cu-fleet", *setup["argv"]],
        env=env,
        cwd="/",
        user=uid,
        group=uid,
        extra_groups=["input", "video"],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
    )
    return status, os.pidfd_open(desktop.pid)


def clear_console(uid: int) -> None:
    """The screen and the keyboard are the X server's alone, which as an ordinary user could not see to that itself."""
    tty = os.open(f"/dev/tty{_VT}", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    os.fchown(tty, uid, -1)
    for request, value in (_VT_ACTIVATE, _VT), (_VT_WAITACTIVE, _VT), (_KDSETMODE, _GRAPHICS), (_KDSKBMODE, _OFF):
        fcntl.ioctl(tty, request, value)


def over() -> None:
    """The desktop has ended; its last words are for whoever reads the machine's console."""
    for log in (f"{RUN}/Xorg.log", f"{RUN}/log"):
        with contextlib.suppress(OSError), open(log, "rb") as f:
            print(f"{log}:", f.read()[-1500:].decode(errors="replace"), file=sys.stderr)
    sys.exit("cu-fleet: the desktop has ended")


def main() -> None:
    with open(f"{SETUP}/desktop.json") as f:
        setup = json.load(f)
    identify(setup)
    status, desktop = bring_up(setup, setup["uid"])
    spec = importlib.util.spec_from_file_location("files", f"{SETUP}/files.py")
    assert spec
    assert spec.loader
    files = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(files)
    port = Port(setup, os.open(PORT, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC), files.main)
    port.watch(status, select.POLLIN, lambda: port.hear_of_desktop(status))
    port.watch(desktop, select.POLLIN, over)
    port.serve()


if __name__ == "__main__":
    main()
