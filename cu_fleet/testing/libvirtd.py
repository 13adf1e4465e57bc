"""A private libvirtd for tests, of this machine's own packages: with configuration, state and sockets of its own.

It lives in namespaces of its own (mounts, processes), in which the folders every privileged libvirtd uses are empty
ones of ours; one process that ends with whoever started it holds them. So the daemon and its machines vanish together,
and the machine's own libvirtd, if there is one, is untouched. The daemon alone can be killed and begun anew while its
machines run on, as in an accident.
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
_NEEDED = {
    "libvirtd": "libvirt-daemon-system",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "unshare": "util-linux",
}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_OWN = ("/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt", "/run/libvirt")
# What machines write their log to would be one more daemon; and nobody else is in here whom they should be kept from.
_QEMU = """stdio_handler = "file"
security_driver = "none"
namespaces = []
remember_owner = 0
"""
_DAEMON = """unix_sock_dir = "{folder}/sockets"
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_group = "root"
"""
# A /dev/kvm that opens and does not work has libvirt examine QEMU anew before everything it does, which takes seconds.
# Here it is never there: tests are the same on every machine.
_HOLD = f"""for one in {" ".join(_OWN)} /mnt; do mkdir -p $one && mount -t tmpfs -o mode=755 tmpfs $one || exit; done
for one in full null random tty urandom zero; do cp -a /dev/$one /mnt || exit; done
mkdir /mnt/pts /mnt/shm && mount --rbind /dev/pts /mnt/pts && ln -s pts/ptmx /mnt && ln -s /proc/self/fd /mnt || exit
mount --move /mnt /dev && cp "$0/qemu.conf" /etc/libvirt && echo up && while :; do sleep 3600 & wait $!; done"""


def missing() -> str:
    """What keeps a daemon from being started here, in words; empty if nothing does."""
    lacking = sorted({package for program, package in _NEEDED.items() if shutil.which(program, path=_PATH) is None})
    if lacking:
        return f"not installed: {' '.join(lacking)}"
    return "" if os.geteuid() == 0 else "a libvirtd of its own needs root"


def need_libvirtd() -> None:
    """For a test that needs one: a failure in CI, a skip with the reason elsewhere."""
    if reason := missing():
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


class PrivateLibvirt:
    """`with PrivateLibvirt() as one: backend = LibvirtBackend(place, one.uri, store=one.folder / "store")`"""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cf-virt-"))
        self.folder.chmod(0o711)
        (self.folder / "sockets").mkdir()
        (self.folder / "qemu.conf").write_text(_QEMU)
        (self.folder / "libvirtd.conf").write_text(_DAEMON.format(folder=self.folder))
        self._holder: subprocess.Popen[bytes] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None

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
    def uri(self) -> str:
        return f"qemu+unix:///system?socket={self.folder}/sockets/libvirt-sock"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text("utf-8", "replace")

    def beside(self, *command: str) -> list[str]:
        """The command that runs another where the daemon is."""
        assert self._holder
        held = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()[0]
        return ["nsenter", f"--target={held}", "--mount", "--pid", *command]

    def _hold(self) -> None:
        """From a thread that lasts: the kernel ends the holder when the thread that started it ends."""
        spaces = ["--mount", "--pid", "--mount-proc", "--fork", "--kill-child"]
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", "unshare", *spaces, "sh", "-c", _HOLD, str(self.folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={"PATH": _PATH},
        )
        assert self._holder.stdout
        if self._holder.stdout.readline() != b"up\n":
            raise UnavailableError("namespaces for a libvirtd cannot be made here", code="no_hypervisor")

    def start(self) -> None:
        options = [f"--config={self.folder}/libvirtd.conf", f"--pid-file={self.folder}/pid"]
        with (self.folder / "log").open("ab") as log:
            self._daemon = subprocess.Popen(
                self.beside("nice", "-n", "5", "libvirtd", *options),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": _PATH, "HOME": "/root"},
            )
        until = time.monotonic() + DEADLINE
        while not self._answers():
            if self._daemon.poll() is not None or time.monotonic() > until:
                raise UnavailableError(f"libvirtd did not start: {self.log[-2000:]}", code="no_hypervisor")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._daemon.wait(0.05)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(f"{self.folder}/sockets/libvirt-sock")
            except OSError:
                return False
        return True

    def kill(self) -> None:
        """End the daemon alone, as an accident does; its machines run on."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        process, self._daemon = self._daemon, None
        if process and process.poll() is None:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(children[0]), how)  # nsenter waits for it
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
        shutil.rmtree(self.folder)
