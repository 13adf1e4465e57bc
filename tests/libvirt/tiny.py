"""An image of somebody else's: the smallest Linux that UEFI starts from a disk, and that says what it is asked.

A FAT file system without partitions, with systemd-boot, Debian's cloud kernel (fetched by apt, installed nowhere) and
busybox, made without mounting anything. It is up within seconds under emulation; its screen is the firmware's, with
Linux's console and a shell on it; and who connects to its serial line has another.
"""

import socket
import subprocess
import time
from pathlib import Path

from tests.rfb.qemu import VIRTIO, guest

_BOOT = Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
_MODULES = ("efivarfs", *VIRTIO, "virtio_blk", "evdev", "virtio_input")
_ENTRY = "title tiny\nlinux /vmlinuz\ninitrd /initrd\noptions console=ttyS0 quiet panic=-1\n"
_INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/sbin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
for module in /lib/*; do insmod $module; done
mount -t efivarfs vars /sys/firmware/efi/efivars
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty raw -echo
printf '\033[?25l' >/dev/tty1  # a pointer that blinks would make every picture another one
setsid sh -c 'exec sh </dev/tty1 >/dev/tty1 2>&1' &
while :; do
  read -r words
  eval "$words"
  echo "done $?"
done
"""
_SECONDS = 180.0


def make(folder: Path, *, modules: tuple[str, ...] = (), first: str = "") -> Path:
    """The image, as raw as it is. It may have more drivers, and do something when they are there."""
    kernel, files = guest(_INIT.replace("exec </dev/ttyS0", f"{first}exec </dev/ttyS0", 1), (*_MODULES, *modules))
    disk, entry, loader = folder / "tiny.img", folder / "tiny.conf", folder / "loader.conf"
    entry.write_text(_ENTRY)
    loader.write_text("timeout 0\n")
    with disk.open("wb") as file:
        file.truncate(48 << 20)
    _tool("mformat", "-i", disk, "-F", "::")
    _tool("mmd", "-i", disk, "::/EFI", "::/EFI/BOOT", "::/loader", "::/loader/entries")
    for source, target in (
        (_BOOT, "EFI/BOOT/BOOTX64.EFI"),
        (loader, "loader/loader.conf"),
        (entry, "loader/entries/tiny.conf"),
        (kernel, "vmlinuz"),
        (files, "initrd"),
    ):
        _tool("mcopy", "-i", disk, source, f"::/{target}")
    disk.chmod(0o444)
    return disk


def _tool(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


class Shell:
    """The guest's serial line. One speaks at a time; what it said before is not heard."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(_SECONDS)
        self._sock.connect(str(path))

    def __enter__(self) -> "Shell":
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def ask(self, words: str) -> str:
        mark = f"said-{time.monotonic_ns()}"
        self._sock.sendall(f"echo {mark}; {words}\n".encode())
        said = b""
        while not (said.partition(mark.encode() + b"\n")[1] and said.endswith(b"done 0\n")):
            more = self._sock.recv(65536)
            assert more, f"the guest hung up; it said {said!r}"
            said += more
            assert not said.endswith(b"done 1\n"), said
        return said.decode().partition(mark + "\n")[2].removesuffix("done 0\n").strip()
