"""A private Docker engine for tests, of this machine's own packages: in a temporary folder, on a unix socket only.

It lives in namespaces of its own (processes, mounts, network), held by one process that ends with whoever started it:
so the engine, its containers, their mounts and its rules for packets vanish together, and no other engine here is
touched. The engine itself can be killed and begun anew while its containers run on, as in an accident.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from cu_fleet.model.errors import UnavailableError

DEADLINE = 60.0  # seconds to start or stop
_NEEDED = {"dockerd": "docker.io", "unshare": "util-linux", "nsenter": "util-linux", "iptables": "iptables"}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# 192.0.2.1 stands for the outside world. A shell that waits reaps whatever is left to it.
# What images and volumes need of a file system, memory has since Linux 6.6; there they come and go at once.
_HOLD = """if [ "$1" = memory ]; then mount -t tmpfs -o "mode=711$2" tmpfs "$0/data" || exit; fi
ip link set lo up && ip addr add 192.0.2.1/32 dev lo && echo up && while :; do sleep 3600 & wait $!; done"""


def missing() -> str:
    """What keeps an engine from being started here, in words; empty if nothing does."""
    lacking = sorted({package for program, package in _NEEDED.items() if shutil.which(program, path=_PATH) is None})
    if lacking:
        return f"not installed: {' '.join(lacking)}"
    return "" if os.geteuid() == 0 else "an engine of its own needs root"


def need_engine() -> None:
    """For a test that needs one: a failure in CI, a skip with the reason elsewhere."""
    if reason := missing():
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def _data() -> str:
    """Where an engine's data should lie: "memory" if there is enough and it keeps users' attributes, else "disk"."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with tempfile.TemporaryFile(dir="/dev/shm") as probe:  # nothing is left there
            os.setxattr(probe.fileno(), "user.probe", b"")
    except OSError:
        return "disk"
    return "memory" if free > 4 << 30 else "disk"


def _child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


class PrivateDocker:
    """`with PrivateDocker() as engine: backend = DockerBackend(place, engine.host)`"""

    def __init__(self, listen: socket.socket | None = None, room: str = "", **options: str) -> None:
        """Beside its unix socket it may serve a listening one of any network, and have further options of dockerd.

        `room` is all the disk there is for it, which then is memory.
        """
        self._listen, self._room, self._more = listen, room, options
        self.folder = Path(tempfile.mkdtemp(prefix="cf-docker-"))
        (self.folder / "data").mkdir()
        self._group = f"/{self.folder.name}"
        self._holder: subprocess.Popen[bytes] | None = None
        self._engine: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._hold()
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @property
    def host(self) -> str:
        return f"unix://{self.folder}/sock"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text("utf-8", "replace")

    @property
    def pid(self) -> int:
        """Of the engine itself, as seen here."""
        assert self._engine
        return _child(self._engine.pid)

    def beside(self, *command: str) -> list[str]:
        """The command that runs another where the engine is, such as in its network."""
        return [*self._enter(), *command]

    def _hold(self) -> None:
        """From a thread that lasts: the kernel ends the holder when the thread that started it ends."""
        spaces = ["--net", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"]
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", "unshare", *spaces, "sh", "-c", _HOLD, *self._place()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={"PATH": _PATH},
        )
        assert self._holder.stdout
        if self._holder.stdout.readline() != b"up\n":
            raise UnavailableError("namespaces for a Docker engine cannot be made here", code="no_engine")

    def _place(self) -> list[str]:
        return [str(self.folder), "memory", f",size={self._room}"] if self._room else [str(self.folder), _data(), ""]

    def _enter(self) -> list[str]:
        assert self._holder
        held = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()[0]
        return ["nsenter", f"--target={held}", "--mount", "--net", "--pid"]

    def start(self) -> None:
        options = {
            "--host": self.host,
            "--data-root": str(self.folder / "data"),
            "--exec-root": str(self.folder / "exec"),
            "--pidfile": str(self.folder / "pid"),
            "--cgroup-parent": self._group,
            "--bridge": "none",
            "--storage-driver": "overlay2",
            **{f"--{name.replace('_', '-')}": value for name, value in self._more.items()},
        }
        words = ["dockerd", *(f"{name}={value}" for name, value in options.items())]
        if self._listen:  # handed over as systemd does it
            take = f'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&{self._listen.fileno()}'
            words = ["bash", "-c", take, "bash", *words, "--host=fd://"]
        (self.folder / "pid").unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._engine = subprocess.Popen(
                self.beside(*words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": _PATH},
                pass_fds=[self._listen.fileno()] if self._listen else [],
            )
        self._await_answer(time.monotonic() + DEADLINE)

    def _await_answer(self, deadline: float) -> None:
        assert self._engine
        while not self._answers():
            if self._engine.poll() is not None or time.monotonic() > deadline:
                raise UnavailableError(f"dockerd did not start: {self.log[-2000:]}", code="no_engine")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._engine.wait(0.05)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            try:
                sock.connect(self.host.removeprefix("unix://"))
                sock.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return b" 200 " in sock.recv(100)
            except OSError:
                return False

    def stop(self) -> None:
        """End it as its administrator does, and its containers with it."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the engine alone, as an accident does; its containers run on."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        process, self._engine = self._engine, None
        if process and process.poll() is None:
            os.kill(_child(process.pid), how)  # nsenter waits for it
            try:
                process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def remove(self) -> None:
        """End all of it and remove its files."""
        self._end(signal.SIGKILL)
        if self._holder:
            self._holder.kill()
            self._holder.communicate()
        until = time.monotonic() + DEADLINE
        while left := self._left():
            if time.monotonic() > until:
                raise UnavailableError(f"a Docker engine's groups are still in use: {left[0]}", code="not_removed")
            time.sleep(0.02)
        shutil.rmtree(self.folder)

    def _left(self) -> list[Path]:
        """Its control groups that cannot be removed yet."""
        tops = [*Path("/sys/fs/cgroup").glob(f"*{self._group}"), *Path("/sys/fs/cgroup").glob(self._group[1:])]
        left = []
        for top in tops:
            for folder, _, _ in os.walk(top, topdown=False):
                try:
                    Path(folder).rmdir()
                except OSError:
                    left.append(Path(folder))
        return left
