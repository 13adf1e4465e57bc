"""The first program of a desktop: brings the screen up, and is the door through which commands come in.

A shell has started Xvnc and then became this very process, so Xvnc boots while Python does, and is our child. The
window manager is started as soon as the X server takes connections, which is before it answers any. When it does, we
paint the root window, say `screen` on a pipe, and from then on serve: each connection to `exec.sock` is one command.
When the window manager manages we say `ready`. The D-Bus session begins with the first connection to its socket.
The desktop ends when Xvnc or we end: then bubblewrap leaves, and takes the whole process namespace along.

A request is a length (4 bytes) and fields ended by NUL, with three descriptors (stdin, stdout, stderr) beside its
first byte; the answers are lines: `pid N`, then `exit N`. Closing the connection, or a `k`, kills the command with
all it has started, except what left its process tree and session on purpose.

Every desktop pays for what is imported here: `socket`, `signal` and `json` would take 2 MB more than these modules.
"""

# pathlib and contextlib are among what would cost:
# ruff: noqa: PTH108, PTH123, PTH208, SIM105

import _socket
import os
import select
import struct
import sys
import time

from cu_fleet.guest.backdrop import Screen

RUN = "/run/cu-fleet"
SETUP = "/run/cu-fleet-init"  # our own files, read-only
STATUS_FD, TETHER_FD = 8, 9
MOST_REQUEST = 2 << 20
MOST_COMMANDS = 256
MOST_LOG = 1 << 20
_SIGKILL = 9
_LISTENS = "00010000"  # of a socket's flags, as /proc has them
_RESET = range(1, 32)  # shells ignore SIGINT for what runs in the background; programs must not inherit that
# The window manager reads no keys as text, and so needs none of the table of how they compose, which takes 10 ms.
_NO_COMPOSING = {"XCOMPOSEFILE": "/dev/null"}
_BUS = "export LISTEN_FDS=1 LISTEN_PID=$$; exec dbus-daemon --session --nofork --nopidfile --address=systemd:"
_TROUBLE = (127, 126)  # as shells say it: no such program, cannot be run


def pack(lists: list[list[str]]) -> bytes:
    """Lists of strings as bytes: of each list its length, then its items, all ended by NUL."""
    words = [word for one in lists for word in (str(len(one)), *one)]
    return b"".join(os.fsencode(word) + b"\0" for word in words)


def unpack(data: bytes) -> list[list[str]]:
    words = [os.fsdecode(word) for word in data.split(b"\0")[:-1]]
    lists, at = [], 0
    while at < len(words):
        end = at + 1 + int(words[at])
        lists.append(words[at + 1 : end])
        at = end
    return lists


def spawn(argv: list[str], env: dict[str, str], fds: tuple[int, ...] = (), cwd: str = "/") -> int:
    """Start a program in a session of its own; the memory killer prefers it to the desktop's own programs."""
    actions = [(os.POSIX_SPAWN_DUP2, fd, n) for n, fd in enumerate(fds)]
    os.chdir(cwd)
    try:
        pid = os.posix_spawnp(argv[0], argv, env, file_actions=actions, setsid=True, setsigmask=(), setsigdef=_RESET)
    finally:
        os.chdir("/")
    try:
        with open(f"/proc/{pid}/oom_score_adj", "w") as f:
            f.write("500")
    except OSError:
        pass  # it has ended already
    return pid


def tree_of(leader: int) -> set[int]:
    """The processes of a command: its session, and all that descend from it."""
    parents, ours = {}, {leader}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as f:
                    fields = f.read().rpartition(b")")[2].split()
            except OSError:
                continue
            parents[int(name)] = int(fields[1])
            if int(fields[3]) == leader:
                ours.add(int(name))
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in ours} - ours
        ours |= more
        grown = bool(more)
    return ours & (parents.keys() | {leader})


def kill_all(leader: int) -> None:
    """End a command whose leader has not been reaped, so that its number is still its own."""
    for _ in range(20):  # bounded, in case it forks faster than we look
        found = tree_of(leader)
        for pid in sorted(found, key=leader.__ne__):  # it first: it could end by itself when it loses a child
            try:
                os.kill(pid, _SIGKILL)
            except OSError:
                found = found - {pid}
        if found <= {leader}:
            return


def _accepted(door: _socket.socket) -> int | None:
    try:
        fd, _ = door._accept()  # type: ignore[attr-defined]  # noqa: SLF001  # `accept` is Python's own
    except BlockingIOError:
        return None
    return int(fd)


def _listened_at(path: str) -> bool:
    with open("/proc/net/unix") as f:
        return any(line.endswith(f" {path}\n") and line.split()[3] == _LISTENS for line in f)


class Command:
    """One connection, and the command it asked for."""

    def __init__(self, fd: int) -> None:
        self.link = _socket.socket(fileno=fd)
        self.link.setblocking(False)
        self.data = b""
        self.fds: list[int] = []
        self.pid = 0
        self.pidfd = -1

    def say(self, line: str) -> None:
        try:
            self.link.send(line.encode("utf-8", "replace") + b"\n")
        except OSError:
            pass  # nobody listens any more; its closing will be seen by `poll`

    def close(self) -> None:
        if self.pid:
            kill_all(self.pid)
            os.waitpid(self.pid, 0)
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.close_fds()
        self.link.close()

    def close_fds(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


class Init:
    def __init__(self, xvnc: int, seen: str = f"{RUN}/rfb.sock") -> None:
        with open(f"{SETUP}/config", "rb") as f:
            (self.boot, self.dpi, layout, variant), *self.autostart = unpack(f.read())
        self.keyboard = ["-layout", layout, *(["-variant", variant] if variant else [])] if layout != "us" else []
        self.env = dict(os.environ)
        self.xvnc = xvnc
        self.seen = seen  # where its screen is served; nowhere inside, if it is a machine's
        self.manager = 0
        self.managed_since = 0.0
        self.screen: Screen | None = None  # until the window manager is up
        self.sign = 0  # the property by which it says so
        self.size = ""
        self.poll = select.poll()
        self.door = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        self.bus = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        self.bus_daemon = 0
        self.commands: dict[int, Command] = {}  # by the descriptor of their connection, and of their process
        self.programs: dict[int, int] = {}  # those that come with the desktop: pidfd and pid

    def watch(self, pid: int) -> None:
        fd = os.pidfd_open(pid)
        self.programs[fd] = pid
        self.poll.register(fd, select.POLLIN)

    def bring_up(self) -> None:
        self.watch(self.xvnc)
        self.screen = screen = self.wait_for_screen()
        self.manage()
        screen.greet()
        self.size = f"{screen.width}x{screen.height}"
        self.sign = screen.atom(b"_NET_SUPPORTING_WM_CHECK")
        screen.dress(self.dpi)
        self.poll.register(screen.x.fileno(), select.POLLIN)
        while self.seen and not _listened_at(self.seen):  # by a program of its own it is served a little later
            self.wait_a_little()
        os.write(STATUS_FD, f"screen {self.size}\n".encode())
        if self.keyboard:
            os.waitpid(spawn(["setxkbmap", *self.keyboard], self.env), 0)
        if screen.has(self.sign):
            self.settle(screen)

    def settle(self, screen: Screen) -> None:
        """The desktop is ready: its window manager has said that it manages."""
        self.poll.unregister(screen.x.fileno())
        screen.x.close()
        self.screen = None
        self.start_programs()
        os.write(STATUS_FD, f"ready {self.size}\n".encode())
        os.close(STATUS_FD)

    def wait_for_screen(self) -> Screen:
        """The X server takes connections long before it answers, and the window manager can load meanwhile."""
        while True:
            try:
                return Screen()
            except (FileNotFoundError, ConnectionRefusedError):
                self.wait_a_little()

    def wait_a_little(self) -> None:
        if os.waitpid(self.xvnc, os.WNOHANG)[0]:
            sys.exit("cu-fleet: the X server ended at once")
        time.sleep(0.002)

    def manage(self) -> None:
        openbox = ["openbox", "--sm-disable", "--config-file", f"{SETUP}/openbox.xml"]
        self.manager = spawn(openbox, self.env | _NO_COMPOSING)
        self.managed_since = time.monotonic()
        self.watch(self.manager)

    def listen(self) -> None:
        for door, path in (self.door, f"{RUN}/exec.sock"), (self.bus, f"/run/user/{os.getuid()}/bus"):
            if os.path.lexists(path):
                os.unlink(path)
            door.bind(path)
            door.listen(64)
            door.setblocking(False)
            self.poll.register(door.fileno(), select.POLLIN)

    def start_bus(self) -> None:
        """Somebody wants the session bus, and is served by the daemon, which takes the socket over."""
        self.poll.unregister(self.bus.fileno())
        self.bus_daemon = spawn(["/bin/sh", "-c", _BUS], self.env, (0, 1, 2, self.bus.fileno()))
        self.watch(self.bus_daemon)

    def start_programs(self) -> None:
        for argv in self.autostart:
            try:
                self.watch(spawn(argv, self.env, cwd=self.env["HOME"]))
            except OSError as e:
                print(f"cu-fleet: autostart of {argv[0]} failed: {e.strerror}", file=sys.stderr, flush=True)

    def serve(self) -> None:
        while True:
            for fd, _ in self.poll.poll(30_000) or self.keep_log_short():
                if fd == self.door.fileno():
                    self.accept()
                elif fd == self.bus.fileno():
                    self.start_bus()
                elif self.screen and fd == self.screen.x.fileno():
                    if self.screen.hears_of(self.sign):
                        self.settle(self.screen)
                elif fd in self.programs:
                    self.ended(fd)
                elif fd in self.commands:
                    self.attend(fd, self.commands[fd])

    def keep_log_short(self) -> list[tuple[int, int]]:
        with open(f"{RUN}/log", "r+b") as f:
            if f.seek(0, 2) > MOST_LOG:
                f.seek(-MOST_LOG // 8, 2)
                tail = f.read()
                f.truncate(0)  # everybody else appends
                f.seek(0)
                f.write(tail)
        return []

    def ended(self, fd: int) -> None:
        pid = self.programs.pop(fd)
        self.poll.unregister(fd)
        os.close(fd)
        status = os.waitpid(pid, 0)[1]
        if pid == self.xvnc:
            sys.exit(
                f"cu-fleet: the X server ended with status {os.waitstatus_to_exitcode(status)}, and the desktop with it"
            )
        if pid == self.bus_daemon:
            self.turn_away(self.bus)  # or a daemon that cannot start would be started without end
            self.poll.register(self.bus.fileno(), select.POLLIN)
        if pid == self.manager and self.screen:
            sys.exit("cu-fleet: the window manager ended at once")
        if pid == self.manager and time.monotonic() - self.managed_since > 1:
            print("cu-fleet: the window manager ended, and is started again", file=sys.stderr, flush=True)
            self.manage()

    def turn_away(self, door: _socket.socket) -> None:
        while (fd := _accepted(door)) is not None:
            os.close(fd)

    def accept(self) -> None:
        if (fd := _accepted(self.door)) is None:
            return
        if len(self.commands) >= 2 * MOST_COMMANDS:
            os.close(fd)
            return
        self.commands[fd] = Command(fd)
        self.poll.register(fd, select.POLLIN)

    def attend(self, fd: int, command: Command) -> None:
        try:
            if fd == command.pidfd:
                self.finish(command)
            elif command.pid:
                self.interrupt(command)
            else:
                self.hear(command)
        except BlockingIOError:
            pass
        except (OSError, ValueError, IndexError) as e:
            command.say(f"error {e}")
            self.drop(command)

    def interrupt(self, command: Command) -> None:
        """The caller asks for its end, which is then reported like any other; or has gone, which means the same."""
        if command.link.recv(16):
            kill_all(command.pid)
        else:
            self.drop(command)

    def hear(self, command: Command) -> None:
        data, beside, _, _ = command.link.recvmsg(65536, _socket.CMSG_SPACE(16), _socket.MSG_CMSG_CLOEXEC)
        for _, _, packed in beside:
            command.fds += struct.unpack(f"{len(packed) // 4}i", packed[: len(packed) // 4 * 4])
        command.data += data
        size = int.from_bytes(command.data[:4], "big") if len(command.data) >= 4 else 0
        if not data or size > MOST_REQUEST or len(command.data) > size + 4 > 4:
            self.drop(command)
        elif len(command.data) == size + 4 > 4:
            self.begin(command, unpack(command.data[4:]))

    def begin(self, command: Command, request: list[list[str]]) -> None:
        command.data = b""
        if request[0][0] == "ping":
            command.say(f"boot {self.boot} {self.size}")
            self.drop(command)
            return
        (_, cwd), env, argv = request
        if len(command.fds) < 3:
            raise ValueError("three descriptors must come with a request")
        wanted = self.env | dict(word.split("=", 1) for word in env)
        try:
            command.pid = spawn(argv, wanted, tuple(command.fds[:3]), cwd or self.env["HOME"])
        except OSError as e:
            os.write(command.fds[2], f"cu-fleet: {e.filename or argv[0]}: {e.strerror}\n".encode())
            command.say(f"exit {_TROUBLE[not isinstance(e, FileNotFoundError)]}")
            self.drop(command)
            return
        command.close_fds()
        command.pidfd = os.pidfd_open(command.pid)
        self.commands[command.pidfd] = command
        self.poll.register(command.pidfd, select.POLLIN)
        command.say(f"pid {command.pid}")

    def finish(self, command: Command) -> None:
        code = os.waitstatus_to_exitcode(os.waitpid(command.pid, 0)[1])
        command.pid = 0
        command.say(f"exit {code if code >= 0 else 128 - code}")
        self.drop(command)

    def drop(self, command: Command) -> None:
        for fd in (command.link.fileno(), command.pidfd):
            if self.commands.get(fd) is command:
                del self.commands[fd]
                self.poll.unregister(fd)
        command.close()


def main() -> None:
    for fd in (STATUS_FD, TETHER_FD):
        os.set_inheritable(fd, False)
    init = Init(int(sys.argv[1]), *sys.argv[2:])
    init.listen()
    init.bring_up()
    init.serve()


if __name__ == "__main__":
    main()
