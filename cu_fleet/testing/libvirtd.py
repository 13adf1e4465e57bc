"""A private libvirtd for tests, of this machine's own packages: with configuration, state and sockets of its own.

It lives in namespaces of its own (mounts, processes), with its machines: see `private`. The folders that every
privileged libvirtd uses are empty ones of ours in there.
"""

import os
import socket

from cu_fleet.testing.private import PATH, Enclosed, lacking, refuse

_NEEDED = {
    "libvirtd": "libvirt-daemon-system",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "unshare": "util-linux",
}
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
    return lacking(_NEEDED) or ("" if os.geteuid() == 0 else "a libvirtd of its own needs root")


def need_libvirtd() -> None:
    """For a test that needs one: a failure in CI, a skip with the reason elsewhere."""
    if reason := missing():
        refuse(reason)


class PrivateLibvirt(Enclosed):
    """`with PrivateLibvirt() as one: backend = LibvirtBackend(place, one.uri, store=one.folder / "store")`"""

    name, code, spaces = "libvirtd", "no_hypervisor", ("--mount",)

    def __init__(self) -> None:
        super().__init__("cf-virt-")
        self.folder.chmod(0o711)
        (self.folder / "sockets").mkdir()
        (self.folder / "qemu.conf").write_text(_QEMU)
        (self.folder / "libvirtd.conf").write_text(_DAEMON.format(folder=self.folder))

    @property
    def uri(self) -> str:
        return f"qemu+unix:///system?socket={self.folder}/sockets/libvirt-sock"

    def _prepare(self) -> None:
        self._hold(_HOLD, str(self.folder))

    def start(self) -> None:
        options = [f"--config={self.folder}/libvirtd.conf", f"--pid-file={self.folder}/pid"]
        self._begin(self.beside("nice", "-n", "5", "libvirtd", *options), {"PATH": PATH, "HOME": "/root"})

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(f"{self.folder}/sockets/libvirt-sock")
            except OSError:
                return False
        return True
