"""QEMU's own VNC server, and behind it the smallest Linux that says what it gets and draws what it is told.

The guest is Debian's cloud kernel (fetched by apt, installed nowhere), busybox and the script below. It boots in some
four seconds without KVM, and has what a virtual machine has without further ado: a PS/2 keyboard (or a virtio one, with
`keyboard="virtio"`), a virtio tablet, and the standard VGA, 1280x800 at first.

    with qemu() as vm:               # options: password=, keyboard=, vnc= (",lossy=on": words added to QEMU's -vnc)
        screen = await vm.screen()   # a Screen; vm.connect() is the bare socket, vm.path where it is
        vm.draw(7)                   # when this returns the whole screen shows number 7 (of 0 to 262,143)
        drawn(frame.pixels)          # 7; an AssertionError if it shows two numbers, or none
        vm.mode(800, 600)            # the guest changes the size of its screen
        vm.events()                  # what the kernel delivered, see below
        vm.qmp("query-vnc")          # QEMU's own control
        vm.kill(); vm.start()        # the machine dies, and comes again at the same path

`events()` gives all input events since it was last called, oldest first, as (kind, code, value) with Linux's numbers.
"key" is keys and buttons (272 left, 273 right, 274 middle): 1 down, 0 up. "abs" is the tablet's place (0 x, 1 y), from
0 to 32,767 over the screen; "rel" is the wheel (8; 1 is up). Repetitions by the guest's keyboard driver are left out.
Of what QEMU has read from the socket nothing is missing: two marks that VNC cannot send are put in after it, and
waited for. QEMU lets 10 ms pass between two keys, but none between a key and the pointer, which so overtakes
keys; not on a machine with `vnc=",key-delay-ms=0"`.
"""

import atexit
import contextlib
import functools
import json
import lzma
import os
import queue
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cu_fleet.rfb.screen import Screen

WIDTH, HEIGHT = 1280, 800
_DEADLINE = 90.0  # seconds for any answer; emulation on a loaded machine is slow
VIRTIO = ("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci")
_MODULES = (*VIRTIO, "evdev", "virtio_input")
_META = "linux-image-cloud-amd64"
_MARKS = (275, 143)  # the tablet's side button and the keyboard's wake-up key
_KINDS = {1: "key", 2: "rel", 3: "abs"}
_REPEATED = 2

_PICTURE = 0xFD000000  # where the firmware puts it

# read(0, mmap(_PICTURE of file 3), 16 MB): busybox has nothing that writes to a device's memory otherwise.
_PAINT = bytes.fromhex(
    "b809000000 31ff be00000001 ba03000000 41ba01000000 41b803000000"  # 9 (mmap), 0, 16 MB, read and write, shared, 3,
    f"41b9{_PICTURE.to_bytes(4, 'little').hex()} 0f05"  # at _PICTURE
    "4889c6 31c0 31ff ba00000001 0f05"  # 0 (read), 0, there, 16 MB
    "b83c000000 31ff 0f05"  # 60 (exit), 0
)

_INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/sbin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty raw -echo
trap '' INT
echo 0 >/proc/sys/kernel/ctrl-alt-del
for module in /lib/*; do insmod $module; done

bars=$(dirname "$(grep -l 0x030000 /sys/bus/pci/devices/*/class)")/resource
bar() { sed -n "$1s/ .*//p" $bars; }
[ $(bar 1) = $(printf 0x%016x PICTURE) ] || echo "the picture is at $(bar 1)"
registers=$(bar 3)
register() { devmem $((registers + 0x500 + 2 * $1)) 16 $2; }
mode() { register 4 0; register 1 $1; register 2 $2; register 3 32; register 4 0x41; pixels=$(($1 * $2)); }
draw() {
  yes "$(printf "$1").@@@" | head -c 65536 >/part
  cat $(yes /part | head -n $((pixels / 16384 + 1))) >/picture
  paint </picture 3<>/dev/mem
}

mode 1280 800
for device in /dev/input/event*; do
  hexdump -v -e '"event " 4/4 "%u " " " 2/2 "%u " " " 1/4 "%d\n"' $device &
done
echo ready
while read -r words; do $words 2>/dev/null; echo done; done
"""


class Qemu:
    def __init__(self, folder: Path, *, password: str | None = None, keyboard: str = "ps2", vnc: str = "") -> None:
        self.path = folder / "rfb"
        self._folder = folder
        login = [] if password is None else ["-object", f"secret,id=login,data={password}"]
        vnc = f"unix:{self.path}" + (",password-secret=login" if login else "") + vnc
        kernel, files = guest()
        self._command = [
            *("qemu-system-x86_64", "-accel", "tcg", "-m", "128", "-nodefaults", "-no-user-config", "-no-reboot"),
            *("-kernel", str(kernel), "-initrd", str(files), "-append", "console=ttyS0 quiet panic=-1"),
            *("-vga", "std", "-device", "virtio-tablet-pci"),
            *(("-device", "virtio-keyboard-pci") if keyboard == "virtio" else ()),
            *("-serial", "stdio", "-qmp", f"unix:{folder}/qmp,server=on,wait=off", *login, "-vnc", vnc),
        ]
        self.start()

    def start(self) -> None:
        """Return when the guest is up."""
        self.process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._said: queue.Queue[str] = queue.Queue()  # in answer
        self._events: queue.Queue[list[int]] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, name="serial line of a guest", daemon=True)
        self._listener.start()
        try:
            self._hear("ready")
            self._control = socket.socket(socket.AF_UNIX)
            self._control.settimeout(_DEADLINE)
            self._control.connect(f"{self._folder}/qmp")
            self._replies = self._control.makefile("r")
            self._replies.readline()  # the greeting
            self.qmp("qmp_capabilities")
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._listener.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()
        if hasattr(self, "_control"):
            self._replies.close()
            self._control.close()

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.path))
        return sock

    async def screen(self, **more: Any) -> Screen:
        return await Screen.open(self.connect(), **more)

    def draw(self, number: int) -> None:
        letters = (0x40 | number >> shift & 63 for shift in (12, 6, 0))
        self._tell("draw " + "".join(f"\\{letter:03o}" for letter in letters))

    def mode(self, width: int, height: int) -> None:
        self._tell(f"mode {width} {height}")

    def events(self) -> list[tuple[str, int, int]]:
        for down in (True, False):
            self.qmp("input-send-event", events=[{"type": "btn", "data": {"button": "side", "down": down}}])
        self.qmp("send-key", keys=[{"type": "qcode", "data": "wake"}], **{"hold-time": 1})
        missing = {(code, down) for code in _MARKS for down in (0, 1)}
        came = []
        while missing:
            seconds, _, microseconds, _, kind, code, value = self._next(self._events)
            if code in _MARKS:
                missing.discard((code, value))
            elif kind in _KINDS and value != _REPEATED:
                came.append(((seconds, microseconds), (_KINDS[kind], code, value)))
        return [event for _, event in sorted(came, key=lambda event: event[0])]

    def qmp(self, command: str, **arguments: Any) -> Any:
        self._control.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while "event" in (reply := json.loads(self._replies.readline())):
            pass  # told unasked
        assert "return" in reply, reply
        return reply["return"]

    def _tell(self, words: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(words.encode() + b"\n")
        self.process.stdin.flush()
        self._hear("done")

    def _hear(self, answer: str) -> None:
        said = []
        while not said or said[-1] != answer:
            said.append(self._next(self._said, said))

    def _next(self, of: "queue.Queue[Any]", said: object = "") -> Any:
        try:
            return of.get(timeout=_DEADLINE)
        except queue.Empty:
            raise AssertionError(f"the guest says no more ({self.process.poll()}); it said {said}") from None

    def _listen(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            words = line.decode("utf-8", "replace").split()
            if words[:1] == ["event"] and len(words) == 8:
                self._events.put([int(word) for word in words[1:]])
            else:
                self._said.put(" ".join(words))


def drawn(pixels: bytes) -> int:
    """The one number that a picture of the guest's screen shows."""
    number, stripe = pixels[:3], pixels[4:7]
    assert stripe == b"@@@", f"no number is drawn: {pixels[:8].hex()}"
    for at, part in ((0, number[:1]), (1, number[1:2]), (2, number[2:]), (4, b"@"), (5, b"@"), (6, b"@")):
        assert pixels[at::8] == part * (len(pixels) // 8), "two numbers are drawn, or a part of one"
    return sum((byte & 63) << shift for byte, shift in zip(number, (12, 6, 0), strict=True))


@contextlib.contextmanager
def qemu(**options: Any) -> Iterator[Qemu]:
    with tempfile.TemporaryDirectory(prefix="rfb-") as folder:
        server = Qemu(Path(folder), **options)
        try:
            yield server
        finally:
            server.kill()


@functools.cache
def guest(
    init: str = _INIT, modules: tuple[str, ...] = _MODULES, more: tuple[tuple[str, Path], ...] = ()
) -> tuple[Path, Path]:
    """A guest's kernel and its files; `more` are others of this machine's, by the names they have there."""
    home = fetched(_package())
    [kernel] = home.glob("boot/vmlinuz-*")
    return kernel, _initramfs(home, init, modules, more)


def fetched(package: str) -> Path:
    """What is in a package of the distribution's, which is installed nowhere, but kept with the user's caches."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cu-fleet-tests" / package
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent) as folder:
            _run("apt-get", "download", package, cwd=folder)
            [archive] = Path(folder).glob("*.deb")
            _run("dpkg-deb", "-x", str(archive), f"{folder}/files")
            with contextlib.suppress(FileExistsError, OSError):  # another was faster
                Path(folder, "files").rename(home)
    return home


def _package() -> str:
    """The kernel's, by the name that has its version in it."""
    try:
        said = _run("apt-cache", "depends", _META)
    except AssertionError:  # no lists here yet
        _run("apt-get", "update")
        said = _run("apt-cache", "depends", _META)
    [name] = re.findall(r"Depends: (linux-image-\S+)", said)
    return str(name)


def _initramfs(home: Path, init: str, modules: tuple[str, ...], more: tuple[tuple[str, Path], ...]) -> Path:
    """A cpio archive, as Linux wants it."""
    files = {"init": init.replace("PICTURE", hex(_PICTURE)).encode(), "sbin/paint": _program(_PAINT)}
    files["bin/busybox"] = Path("/bin/busybox").read_bytes()
    for number, module in enumerate(modules):
        [path] = home.glob(f"lib/modules/*/kernel/**/{module}.ko*")
        data = path.read_bytes()
        files[f"lib/{number:02}{module}"] = lzma.decompress(data) if path.suffix == ".xz" else data
    files |= {name: path.read_bytes() for name, path in more}
    entries = [(folder, 0o40755, b"") for folder in ("bin", "sbin", "lib", "lib64", "dev", "proc", "sys")]
    entries += [(name, 0o100755, data) for name, data in files.items()] + [("TRAILER!!!", 0, b"")]
    archive = bytearray()
    for name, mode, data in entries:
        fields = [0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        for part in (b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0", data):
            archive += part
            archive += bytes(-len(archive) % 4)
    place = Path(tempfile.mkdtemp(prefix="guest-")) / "initramfs"
    place.write_bytes(archive)
    atexit.register(shutil.rmtree, place.parent)
    return place


def _program(code: bytes) -> bytes:
    """An ELF file that is one loaded segment."""
    base, head = 0x400000, 64 + 56
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 62, 1, base + head, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = head + len(code)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096) + code


def _run(*command: str, cwd: str | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
