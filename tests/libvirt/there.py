"""Another host, as far as one machine can be two: an sshd whose users have other files, beside a hypervisor of theirs.

It lives in the namespaces of a private libvirtd, where the folder of whoever connects is hidden, and where it has a
home and a place for machines that nobody outside sees.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Self

from cu_fleet.testing.libvirtd import PrivateLibvirt
from tests.acceptance.home import TOP

_SSHD = """HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
SetEnv HOME={folder}/own/home PYTHONPATH={top} PATH={folder}/bin:/usr/sbin:/usr/bin:/sbin:/bin
"""
_OWN = """mount -t tmpfs -o mode=711 tmpfs "$1" && mkdir -p "$1/home/.local/share/cu-fleet" "$1/machines" || exit
chmod 700 "$1/home/.local/share/cu-fleet"
echo "machines: ${2:-$1/machines}" >"$1/home/.local/share/cu-fleet/config.yaml"
"""


class There:
    def __init__(self, libvirtd: PrivateLibvirt, hidden: Path, machines: Path | None = None) -> None:
        """`hidden` is what is not to be seen over there; `machines` a place for theirs, if not a fresh one."""
        self.libvirtd, self.hidden, self.machines = libvirtd, hidden, machines
        self.folder = Path(tempfile.mkdtemp(prefix="cf-there-"))
        self.folder.chmod(0o711)
        for name in ("own", "bin"):
            (self.folder / name).mkdir()
        self.install(f'exec "{sys.executable}" -m cu_fleet "$@"')
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name], check=True)
        self.configure()
        Path("/run/sshd").mkdir(exist_ok=True)
        self.port = 0
        self._door: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._sshds: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self.run("mount", "-t", "tmpfs", "tmpfs", str(self.hidden))
        self.run("sh", "-c", _OWN, "sh", str(self.folder / "own"), str(self.machines or ""))
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        for path in (self.hidden, self.folder / "own"):
            self.run("umount", "--lazy", str(path))
        subprocess.run(["rm", "-rf", "--one-file-system", self.folder], check=True)

    def configure(self, *more: str) -> None:
        """The server's rules, for whoever connects next; the first of several words on one thing counts."""
        text = "".join(f"{line}\n" for line in more) + _SSHD.format(folder=self.folder, top=TOP)
        (self.folder / "sshd").write_text(text)

    def install(self, script: str) -> None:
        """What `cu-fleet` is over there."""
        (self.folder / "bin/cu-fleet").write_text(f"#!/bin/sh\n{script}\n")
        (self.folder / "bin/cu-fleet").chmod(0o755)

    def run(self, *command: str) -> str:
        done = subprocess.run(self.libvirtd.beside(*command), capture_output=True, text=True, check=True)
        return done.stdout

    @property
    def uri(self) -> str:
        return f"qemu+ssh://there/system?socket={self.libvirtd.folder}/sockets/libvirt-sock"

    def befriend(self, home: Path, *, known: bool = True) -> None:
        """Let a user with this home know the host by name, and have a key for it."""
        folder = home / ".ssh"
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / "config").write_text(
            f"Host there\n  HostName 127.0.0.1\n  Port {self.port}\n  User root\n"
            f"  IdentityFile {self.folder}/user\n  IdentityAgent none\n  HostKeyAlias there\n"
        )
        (folder / "known_hosts").write_text(f"there {(self.folder / 'host.pub').read_text()}" if known else "")

    # the server

    def listen(self) -> None:
        """Also again, at the same port."""
        self._door = socket.create_server(("127.0.0.1", self.port))
        self.port = self._door.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, args=(self._door,), name="sshd")
        self._thread.start()

    def _accept(self, door: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                client, _ = door.accept()
                words = self.libvirtd.beside("/usr/sbin/sshd", "-i", "-e", "-f", f"{self.folder}/sshd")
                with client, (self.folder / "log").open("ab") as log:
                    self._sshds.append(subprocess.Popen(words, stdin=client, stdout=client, stderr=log))

    def cut(self) -> None:
        """Kill all of it; nobody listens any more."""
        if self._door and self._thread:
            self._door.shutdown(socket.SHUT_RDWR)
            self._door.close()
            self._thread.join()
        self._door = None
        while self._sshds:
            _kill(self._sshds.pop())


def _kill(sshd: subprocess.Popen[bytes]) -> None:
    """What was started is nsenter, which begins it and waits for it."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{sshd.pid}/task/{sshd.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
    sshd.kill()
    sshd.wait(20)
