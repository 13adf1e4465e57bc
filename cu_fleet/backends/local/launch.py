"""How a desktop is started so that it is nobody's child, and findable from the very first moment.

A lock on `alive` is taken here and inherited: by the shell that joins the cgroups, by bubblewrap, whose process
inside holds it to the end, by slirp4netns. So the lock is held from before the fork until the last of them is gone,
and a controller killed at any instruction leaves nothing that `stop` cannot tell. The marker is in the arguments of
each, the host's paths in none: those travel through a descriptor.

Joining cgroups waits for the whole kernel, 16 ms here. So the shell does that first of all, while what ran before
still ends and the desktop's files are made ready, and then waits for a word. Until then it starts nothing: those who
end may hold all processes that the desktop is allowed. As root, a mount namespace that the controller keeps shows the
desktops' folder at /mnt, because the desktop's own uid, which bubblewrap runs under, may not walk through the fleet's
home.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cu_fleet.backends import slirp
from cu_fleet.backends.door import read_log
from cu_fleet.backends.local import demands, seccomp, walls
from cu_fleet.backends.local.cgroups import Groups
from cu_fleet.backends.local.layout import Desk
from cu_fleet.guest.init import STATUS_FD, TETHER_FD
from cu_fleet.model.errors import UnavailableError
from cu_fleet.model.profile import Profile

_ARGS, _SECCOMP, _SYNC, _INFO, _GO = 3, 4, 5, 6, 7  # one digit each: more is not portable in shells
_MOST_SAID = 64 << 10
_NAP = 0.001
_MNT = Path("/mnt")
_ENV = {"PATH": demands.PATH, "LANG": "C.UTF-8"}
# $0 is the marker. Two forks make the rest an orphan at once; `echo 0` enters the process that writes it.
_LAUNCH = """( cd /; umask 022; ulimit -c 0; { echo 200 >/proc/self/oom_score_adj; } 2>/dev/null
while [ "$1" != -- ]; do echo 0 >"$1/cgroup.procs" || $insist; shift; done; shift; exec "$@" ) &"""
_WAIT = 'exec >&2; read go <&7 && exec "$@"'  # when whoever would say so is gone, it goes too
_SHOW = 'mount --bind "$1" /mnt && echo && read done'
_SIGNALS = range(1, 32)  # Python ignores SIGPIPE; what it starts must not


class Pipes:
    """What the pieces say while they start. Reads as it comes, keeps a bounded part, ends nothing."""

    def __init__(self) -> None:
        self.said: dict[str, bytes] = {}
        self._open: dict[str, int] = {}
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def add(self, name: str) -> int:
        """A new pipe; returns its writing end, which the caller closes."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reading, False)
        os.set_blocking(writing, True)
        self.said[name], self._open[name] = b"", reading
        self._loop.add_reader(reading, self._read, name)
        return writing

    def _read(self, name: str) -> None:
        try:
            data = os.read(self._open[name], 65536)
        except BlockingIOError:
            return
        self.said[name] = (self.said[name] + data)[-_MOST_SAID:]
        if not data:
            self._forget(name)
        self._news.set()

    def _forget(self, name: str) -> None:
        fd = self._open.pop(name)
        self._loop.remove_reader(fd)
        os.close(fd)

    def ended(self, name: str) -> bool:
        return name not in self._open

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news.clear()
            await self._news.wait()

    def close(self) -> None:
        for name in list(self._open):
            self._forget(name)


@dataclass
class Launch:
    """A start under way: its pipes, and the descriptors that must be closed in the end."""

    desk: Desk
    pipes: Pipes
    uid: int | None = None
    fds: list[int] = field(default_factory=list)
    lock: int = -1
    _said: dict[int, int] = field(default_factory=dict)  # what the desktop says on which of its descriptors
    _go: int = -1
    _tether: int = -1
    _args: int = -1
    session: int = 0  # of what waits, in the host's numbers
    pid: int = 0  # of the first process inside, in the host's numbers
    namespaces: dict[str, int] = field(default_factory=dict)

    async def __aenter__(self) -> Self:
        for number, name in ((_INFO, "info"), (STATUS_FD, "status"), (2, "errors")):
            self._said[number] = self.holding(self.pipes.add(name))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.pipes.close()
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()

    def holding(self, fd: int) -> int:
        self.fds.append(fd)
        return fd

    def let_go(self, fd: int) -> None:
        self.fds.remove(fd)
        os.close(fd)

    def begin(self, profile: Profile, label: str, groups: Groups, uid: int | None, shown: int | None) -> None:
        """Start what will become the desktop, and leave it waiting. Its parent is to be reaped."""
        self.uid = uid
        self.lock = self.holding(self.desk.lock())
        go, self._go = map(self.holding, os.pipe2(os.O_CLOEXEC))
        self._tether, tether = map(self.holding, os.pipe2(os.O_CLOEXEC))
        self._args = self.holding(_memory(b""))
        fds = {_ARGS: self._args, _SYNC: self.lock, _GO: go, TETHER_FD: tether, **self._said}
        if (code := seccomp.program()) is not None:
            fds[_SECCOMP] = self.holding(_memory(code))
        bwrap = ["bwrap", "--args", str(_ARGS), "--", *walls.command(self.desk, profile, label)]
        joins = [str(folder) for folder in groups.joins]
        insist = demands.options(profile).require_limits
        wait = ["/bin/sh", "-c", _WAIT, self.desk.marker, *bwrap]
        if shown is not None:
            wait = ["nsenter", "--mount=/proc/self/fd/1", f"--setgid={uid}", f"--setuid={uid}", *wait]
        self.session = self._spawn([*joins, "--", *wait], fds | ({} if shown is None else {1: shown}), insist=insist)
        for fd in set(fds.values()) - {self.lock, self._args}:
            self.let_go(fd)

    async def go(self, profile: Profile, label: str, etc: Path) -> None:
        """Let it go on, and return when its first process runs and has its network."""
        seen = self.desk.dir.parent if self.uid is None else _MNT
        options = walls.arguments(seen / self.desk.id, seen / etc.relative_to(self.desk.dir.parent), profile, label)
        options += ["--sync-fd", str(_SYNC), "--info-fd", str(_INFO), "--block-fd", str(_GO)]
        options += ["--seccomp", str(_SECCOMP)] if seccomp.program() is not None else []
        os.pwrite(self._args, b"".join(word.encode() + b"\0" for word in options), 0)
        self._say(b"go\n" if profile.network == "full" else b"go\n\n")  # bubblewrap waits for a word, too
        await self._read_info()
        if profile.network == "full":
            await self._connect()
            self._say(b"\n")

    def _say(self, word: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # `ready` will say why it has ended
            os.write(self._go, word)

    def _spawn(self, words: Sequence[str], fds: dict[int, int], *, insist: bool = False) -> int:
        """Returns the session of what was started: its leader leaves at once, and is to be reaped."""
        script = f"insist={'exit' if insist else 'true'}; {_LAUNCH}"
        return _posix_spawn(["/bin/sh", "-c", script, self.desk.marker, *words], fds)

    def reap(self) -> None:
        os.waitpid(self.session, 0)

    async def _read_info(self) -> None:
        await self.pipes.until(lambda: b"}" in self.pipes.said["info"] or self.pipes.ended("info"))
        try:
            info = json.loads(self.pipes.said["info"])
            self.pid = int(info["child-pid"])
        except (ValueError, KeyError):
            raise await self.failed("bubblewrap could not make it") from None
        self.namespaces = {name: value for name, value in info.items() if name.endswith("-namespace")}

    async def screen(self) -> str:
        """Wait until init says that the screen answers; returns its size as the X server itself has it."""
        return await self._word(b"screen")

    async def ready(self) -> None:
        """Wait until init says that the window manager is up too."""
        await self._word(b"ready")

    async def _word(self, word: bytes) -> str:
        def found() -> bytes | None:
            whole = self.pipes.said["status"].split(b"\n")[:-1]
            return next((line for line in whole if line.startswith(word)), None)

        await self.pipes.until(lambda: found() is not None or self.pipes.ended("status"))
        if (line := found()) is None:
            raise await self.failed("its screen or window manager did not come up")
        return line.decode("ascii", "replace").partition(" ")[2]

    async def failed(self, why: str) -> UnavailableError:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):  # those who end say why, and then end
                await self.pipes.until(lambda: self.pipes.ended("errors"))
        said = self.pipes.said.get("errors", b"").decode("utf-8", "replace").strip()
        tail = "\n".join(filter(None, (said[-1500:], read_log(self.desk, 1500).strip())))
        return UnavailableError(
            f"desktop {self.desk.id} did not start: {why}" + (f"; it said: {tail}" if tail else ""),
            remedy="see what is missing: cu-fleet doctor",
            code="start_failed",
            log=tail,
        )

    async def _connect(self) -> None:
        """Give the desktop's network namespace a way out, by a process that ends when init's end of a pipe closes."""
        await self._loopback()
        net = self.holding(os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        user = self.holding(slirp.owner(net))
        said = self.holding(self.pipes.add("network"))
        errors = self.holding(self.pipes.add("slirp"))
        command = slirp.command(slirp.Ends(net=6, user=7, ready=3, tether=4), self.desk.marker, self.uid)
        pid = self._spawn(["--", *command], {2: errors, 3: said, 4: self._tether, 5: self.lock, 6: net, 7: user})
        await asyncio.to_thread(os.waitpid, pid, 0)
        for fd in (said, errors):
            self.let_go(fd)
        await self.pipes.until(lambda: bool(self.pipes.said["network"]) or self.pipes.ended("network"))
        if not self.pipes.said["network"]:
            self.pipes.said["errors"] += self.pipes.said["slirp"]
            raise await self.failed("slirp4netns could not connect it to the network")

    async def _loopback(self) -> None:
        """Wait until bubblewrap has brought it up, which slirp4netns does too: who comes second may fail at it."""
        table = Path(f"/proc/{self.pid}/net/fib_trie")
        try:
            while b" 127.0.0.1\n" not in table.read_bytes():  # noqa: ASYNC110, ASYNC240  # of the kernel's, which tells nobody
                await asyncio.sleep(_NAP)
        except OSError:
            raise await self.failed("bubblewrap has ended") from None


def show(desktops: Path) -> int:
    """A mount namespace, by a descriptor, in which the desktops' folder is at /mnt."""
    script = ["/bin/sh", "-c", _SHOW, "cu-fleet", str(desktops)]
    command = ["unshare", "--mount", "--propagation", "slave", *script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_ENV) as process:
        assert process.stdout
        if process.stdout.readline():
            return os.open(f"/proc/{process.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    raise UnavailableError(f"{desktops} could not be mounted at /mnt", remedy="cu-fleet doctor", code="no_mount")


def _memory(data: bytes) -> int:
    fd = os.memfd_create("cu-fleet", os.MFD_CLOEXEC)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _posix_spawn(argv: list[str], fds: dict[int, int]) -> int:
    """Start a program with exactly these descriptors, a clean environment, and no signal ignored."""
    high = {number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for number, fd in fds.items()}
    try:
        actions: list[tuple[int, int] | tuple[int, int, int] | tuple[int, int, str, int, int]] = [
            (os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable() if fd > 2
        ]
        actions.append((os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0))
        actions += [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in sorted(({1: high[2]} | high).items())]
        return os.posix_spawn(argv[0], argv, _ENV, file_actions=actions, setsid=True, setsigmask=(), setsigdef=_SIGNALS)
    finally:
        for fd in high.values():
            os.close(fd)


def _inheritable() -> list[int]:
    """Our descriptors that some library has opened without close-on-exec."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.get_inheritable(int(path.name)):
                found.append(int(path.name))
    return found
