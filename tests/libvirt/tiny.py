"""An image of somebody else's: the smallest Linux that starts from a disk, and that says what it is asked.

A FAT file system without partitions, with systemd-boot for UEFI or syslinux for BIOS, Debian's cloud kernel, busybox,
made without mounting anything; what is not here anyway is fetched by apt, and installed nowhere. It is up within
seconds under emulation; its screen is the firmware's, with Linux's console and a shell on it; and who connects to its
serial line has another. With `agent` the real qemu-guest-agent runs in it, and there is a user besides root.
"""

import re
import socket
import subprocess
import time
from pathlib import Path

from tests.rfb.qemu import VIRTIO, fetched, guest

_BOOT = Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
_MODULES = ("efivarfs", *VIRTIO, "virtio_blk", "evdev", "virtio_input", "virtio_console")
_WORDS = "console=ttyS0 quiet panic=-1"
_ENTRY = f"title tiny\nlinux /vmlinuz\ninitrd /initrd\noptions {_WORDS}\n"
_BIOS_ENTRY = f"DEFAULT tiny\nLABEL tiny\n  LINUX vmlinuz\n  INITRD initrd\n  APPEND {_WORDS}\n"
_SIGNED_ENTRY = f"""
if chainloader /unsigned.efi; then set was=taken; else set was=refused; fi
linux /vmlinuz {_WORDS} unsigned=$was
initrd /initrd
boot
"""
_INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/sbin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
for module in /lib/*; do insmod $module; done
mount -t efivarfs vars /sys/firmware/efi/efivars
mkdir -p /run /tmp /etc /root /home/me; ln -s /bin/busybox /sbin/hwclock
chmod 1777 /tmp; chown 1000:1000 /home/me
printf 'root::0:0::/root:/bin/sh\nme::1000:1000::/home/me:/bin/sh\n' >/etc/passwd
if [ -e /sbin/qemu-ga ]; then
  port=$(grep -l guest_agent /sys/class/virtio-ports/*/name)
  LD_LIBRARY_PATH=/lib64 qemu-ga -m virtio-serial -p /dev/$(basename ${port%/name}) -t /run >/dev/null 2>&1 &
fi
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


def make(
    folder: Path, *, bios: bool = False, agent: bool = False, modules: tuple[str, ...] = (), first: str = ""
) -> Path:
    """The image, as raw as it is. It may have more drivers, and do something as soon as they are there."""
    init = _INIT.replace("exec </dev/ttyS0", f"{first}exec </dev/ttyS0", 1)
    kernel, initrd = guest(init, (*_MODULES, *modules), _agent() if agent else ())
    disk, entry, loader = folder / "tiny.img", folder / "tiny.conf", folder / "loader.conf"
    entry.write_text(_BIOS_ENTRY if bios else _ENTRY)
    loader.write_text("timeout 0\n")
    with disk.open("wb") as file:
        file.truncate(48 << 20)
    _tool("mformat", "-i", disk, "-F", "::")
    files = {"vmlinuz": kernel, "initrd": initrd}
    if bios:
        files |= {"syslinux.cfg": entry}
        _tool(fetched("syslinux") / "usr/bin/syslinux", "--install", disk)
    else:
        _tool("mmd", "-i", disk, "::/EFI", "::/EFI/BOOT", "::/loader", "::/loader/entries")
        files |= {"EFI/BOOT/BOOTX64.EFI": _BOOT, "loader/loader.conf": loader, "loader/entries/tiny.conf": entry}
    for target, source in files.items():
        _tool("mcopy", "-i", disk, source, f"::/{target}")
    disk.chmod(0o444)
    return disk


def make_signed(folder: Path) -> Path:
    """One that Secure Boot starts: Debian's shim, loader and kernel, each signed with a key that the one before has.

    The loader's first choice is a program that nobody signed. It says on the kernel's command line what became of that.
    """
    disk = make(folder)
    disk.chmod(0o644)
    menu = folder / "grub.cfg"
    menu.write_text(_SIGNED_ENTRY)
    _tool("mmd", "-i", disk, "::/EFI/debian")
    loader = fetched("grub-efi-amd64-signed") / "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"
    shim = fetched("shim-signed") / "usr/lib/shim/shimx64.efi.signed"
    files = {
        "EFI/BOOT/BOOTX64.EFI": shim,
        "EFI/BOOT/grubx64.efi": loader,
        "EFI/debian/grub.cfg": menu,
        "unsigned.efi": _BOOT,
    }
    for target, source in files.items():
        _tool("mcopy", "-o", "-i", disk, source, f"::/{target}")
    disk.chmod(0o444)
    return disk


def _agent() -> tuple[tuple[str, Path], ...]:
    """The real one, and the libraries that it needs."""
    program = fetched("qemu-guest-agent") / "usr/sbin/qemu-ga"
    said = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    assert "not found" not in said, said
    libraries = [Path(one) for one in sorted(set(re.findall(r"(/lib\S+) \(", said)))]
    return (("sbin/qemu-ga", program), *((f"lib64/{one.name}", one) for one in libraries))


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
