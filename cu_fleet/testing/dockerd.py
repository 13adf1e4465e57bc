"""A private Docker engine for tests, of this machine's own packages: in a temporary folder, on a unix socket only.

It lives in namespaces of its own (processes, mounts, network), with its containers, their mounts and its rules for
packets: see `private`.
"""

import os
import signal
import socket
import tempfile
import time
from pathlib import Path

from cu_fleet.model.errors import UnavailableError
from cu_fleet.testing.private import PATH, Enclosed, lacking, refuse

_NEEDED = {"dockerd": "docker.io", "unshare": "util-linux", "nsenter": "util-linux", "iptables": "iptables"}
# 192.0.2.1 stands for the outside world. A shell that waits reaps whatever is left to it.
# What images and volumes need of a file system, memory has since Linux 6.6; there they come and go at once.
_HOLD = """if [ "$1" = memory ]; then mount -t tmpfs -o "mode=711$2" tmpfs "$0/data" || exit; fi
ip link set lo up && ip addr add 192.0.2.1/32 dev lo && echo up && while :; do sleep 3600 & wait $!; done"""


def missing() -> str:
    """What keeps an engine from being started here, in words; empty if nothing does."""
    return lacking(_NEEDED) or ("" if os.geteuid() == 0 else "an engine of its own needs root")


def need_engine() -> None:
    """For a test that needs one: a failure in CI, a skip with the reason elsewhere."""
    if reason := missing():
        refuse(reason)


def _data() -> str:
    """Where an engine's data should lie: "memory" if there is enough and it keeps users' attributes, else "disk"."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with tempfile.TemporaryFile(dir="/dev/shm") as probe:  # nothing is left there
            os.setxattr(probe.fileno(), "user.probe", b"")
    except OSError:
        return "disk"
    return "memory" if free > 4 << 30 else "disk"


class PrivateDocker(Enclosed):
    """`with PrivateDocker() as engine: backend = DockerBackend(place, engine.host)`"""

    name, code, spaces = "dockerd", "no_engine", ("--net", "--mount")

    def __init__(self, listen: socket.socket | None = None, room: str = "", **options: str) -> None:
        """Beside its unix socket it may serve a listening one of any network, and have further options of dockerd.

        `room` is all the disk there is for it, which then is memory.
        """
        super().__init__("cf-docker-")
        self._listen, self._room, self._more = listen, room, options
        (self.folder / "data").mkdir()
        self._group = f"/{self.folder.name}"

    @property
    def host(self) -> str:
        return f"unix://{self.folder}/sock"

    def _prepare(self) -> None:
        where = ["memory", f",size={self._room}"] if self._room else [_data(), ""]
        self._hold(_HOLD, str(self.folder), *where)

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
        self._begin(self.beside(*words), {"PATH": PATH}, [self._listen.fileno()] if self._listen else [])

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

    def _leave(self) -> None:
        until = time.monotonic() + self.deadline
        while left := self._left():
            if time.monotonic() > until:
                raise UnavailableError(f"a Docker engine's groups are still in use: {left[0]}", code="not_removed")
            time.sleep(0.02)

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
