"""The one wire into a virtual machine: a serial port, over which commands run and the machine learns who it is.

Root runs this inside, and nobody else can open the port; the desktop itself belongs to an ordinary user. It brings the
desktop up, carries each command to the door of the desktop's own init, and gives a machine that woke from a saved
state an identity of its own. The machine ends when its desktop does.

A wire survives what speaks over it: a controller killed in the middle of a frame, a machine saved in the middle of
another. So frames end with a byte that occurs nowhere else, and whoever connects says hello first: what ran for the
one before is ended, and what comes before the answer to this very hello is nobody's. A frame is a channel's number, a
letter and data; on channel 0 they speak of the machine, on each other one of one command. Of every stream, no more
than a window is under way that its reader has not taken.
"""

# By descriptors and plain names, as these are what is spoken of here:
# ruff: noqa: PTH101, PTH102, PTH103, PTH104, PTH110, PTH123, PTH208, PTH211

import contextlib
import fcntl
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable

from cu_fleet.guest import files, network
from cu_fleet.guest.channel import RUN, Channel
from cu_fleet.guest.frames import END, Frames, frame

SETUP = "/run/cu-fleet-init"
PORT = "/dev/virtio-ports/cu-fleet"
POINTER = "@pointer@"  # in the X server's settings, for what is known only in here
OWN = "/run/cu-fleet-own"  # who this machine is
MARKS = "/var/tmp"  # on the disk, and nobody's but who made a file there  # noqa: S108
KNOWS = "pbsmt"  # what can be asked of the machine
_VT_ACTIVATE, _VT_WAITACTIVE, _KDSETMODE, _KDSKBMODE = 0x5606, 0x5607, 0x4B3A, 0x4B45
_GRAPHICS, _OFF, _VT = 1, 4, 7
_GRACE, _GLANCE = 0.2, 0.05
_RESEED, _ADD_ENTROPY = 0x5207, 0x40085203
_BEGIN = f"""exec 8<>{RUN}/status 9</dev/null >>{RUN}/log 2>&1 </dev/null
umask 022
"$@" 8>&- 9>&- & screen=$!
tar --extract --file={SETUP}/state.tar --directory=/ --preserve-permissions --no-overwrite-dir || exit
mkdir -p ~/Shared
exec /usr/bin/python3 -I -S {SETUP}/init.py $screen ''"""


class Port:
    def __init__(self, setup: dict[str, object], fd: int) -> None:
        self.uid, self.home = int(str(setup["uid"])), str(setup["home"])
        self.boot, self.stage, self.asked = str(setup["boot"]), "booting", ""
        self.poll = select.epoll()
        self.calls: dict[int, Callable[[], None]] = {}
        self.channels: dict[int, Channel] = {}
        self.frames = Frames()
        self.fd, self.minded = fd, 0
        self.left: float | None = None  # when to see whether nobody has come back
        self.out = bytearray()
        self.standing: Channel | None = None  # a program that is ready, for whoever asks for it first
        self.program = ""  # which one
        self.marks: set[str] = set()  # left in memory, too, which a rollback takes away as well
        self.heard = False  # whoever is at the other end has said hello
        self.random = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)

    def watch(self, fd: int, events: int, call: Callable[[], None]) -> None:
        change = self.poll.modify if fd in self.calls else self.poll.register
        self.calls[fd] = call
        change(fd, events)

    def forget(self, fd: int) -> None:
        if self.calls.pop(fd, None):
            self.poll.unregister(fd)

    def send(self, data: bytes) -> None:
        self.out += data
        self.flush()

    def flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.out:
                del self.out[: os.write(self.fd, self.out[:65536])]
        self.mind(0)

    def mind(self, how: int) -> None:
        """Wait for what comes over the port, and for room if there is something to say."""
        events = how | select.EPOLLIN | (select.EPOLLOUT if self.out else 0)
        if events != self.minded:
            change = self.poll.modify if self.minded else self.poll.register
            self.minded = events
            change(self.fd, events)

    def state(self, **more: object) -> bytes:
        stands = self.program if self.standing and self.standing.lives() else ""
        known = {"asked": self.asked, "boot": self.boot, "stage": self.stage, "knows": KNOWS, "stands": stands}
        return json.dumps({**known, **more}).encode()

    def serve(self) -> None:
        self.flush()
        while True:
            for fd, event in self.poll.poll(None if self.left is None else max(0.0, self.left - time.monotonic())):
                if fd != self.fd:
                    if call := self.calls.get(fd):
                        call()
                elif event & select.POLLHUP:
                    self.left_alone()
                else:
                    self.flush()
                    self.listen()
            if self.left is not None and self.left <= time.monotonic():
                self.left = None
                if self.is_alone():
                    self.reset()

    def left_alone(self) -> None:
        """Nobody is at the other end, which the kernel would say again and again; now only what changes is told.

        Or nobody was: the kernel hears of it on another way, and later than what the next one has said already.
        """
        self.left = time.monotonic() + _GRACE
        self.mind(select.EPOLLET)

    def is_alone(self) -> bool:
        here = select.poll()
        here.register(self.fd, 0)
        return bool(here.poll(0))

    def reset(self) -> None:
        for channel in list(self.channels.values()):
            channel.close()
        self.heard = False
        self.out.clear()

    def listen(self) -> None:
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return
        for channel, kind, body in self.frames.feed(data):
            try:
                self.obey(channel, kind, body)
            except (OSError, ValueError, KeyError, subprocess.SubprocessError) as e:
                self.send(frame(channel, "l" if channel else "!", f"error {e}\n".encode()))

    def obey(self, channel: int, kind: str, body: bytes) -> None:
        if not channel and kind == "h":
            self.reset()
            self.heard = True
            self.out += END
            self.send(frame(0, "h", body + b" " + self.state()))
        elif not self.heard:
            return
        elif not channel and kind in KNOWS:
            token, _, about = body.partition(b" ")
            more = self.answer(kind, about)
            self.asked = token.decode()
            self.send(frame(0, "p", self.state(**more)))
        elif channel and kind == "H":
            self.hand_over(channel, body.decode())
        elif channel:
            if channel not in self.channels and kind in "Rrf":
                self.channels[channel] = Channel(self, channel)
            if known := self.channels.get(channel):
                known.do(kind, body)

    def stand_by(self, program: str, request: str) -> None:
        """Have a program ready that takes seconds to begin where all is emulated: it is in the saved state, too."""
        self.program, standing = program, Channel(self, 0)
        try:
            standing.do("r", request.encode())
        except OSError:
            return  # whoever wants it begins it
        self.standing = standing
        standing.feed(b'{"id": 0, "do": "hello"}\n')  # which connects it to the X server

    def hand_over(self, number: int, program: str) -> None:
        standing = self.standing
        if standing is None or not standing.lives() or program != self.program or number in self.channels:
            raise ValueError("no such program stands by")
        self.channels[number], self.standing = standing, None
        self.send(frame(0, "p", self.state()))
        standing.belong(number)

    def answer(self, kind: str, about: bytes) -> dict[str, object]:
        """No program is started for these, which takes long in a machine that is emulated and has just woken."""
        if kind == "p":
            return {"processes": processes()}
        if kind == "b":
            return self.become(json.loads(about))
        if kind == "s":
            return {"slot": files.few(self.home)}
        path = f"{MARKS}/.cu-fleet-{about.decode()}"
        if kind == "m":
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            self.marks.add(path)
        return {"there": path in self.marks or os.path.lexists(path)}

    def become(self, who: dict[str, str]) -> dict[str, object]:
        """An identity of its own, for a machine that others woke up as, too: nothing that was one's name stays.

        One that goes on as itself after it stood still has only its clock to set. Somebody waits for this, and an
        emulated machine that has just woken takes long for whatever it has not done since: so it is done plainly.
        """
        seed = bytes.fromhex(who["seed"])
        fcntl.ioctl(self.random, _ADD_ENTROPY, struct.pack("ii", 8 * len(seed), len(seed)) + seed)
        fcntl.ioctl(self.random, _RESEED)
        time.clock_settime(time.CLOCK_REALTIME, float(who["time"]))
        was = self.boot
        if "boot" in who:
            identify(who)
            if "mac" in who:
                network.connect(who)
            self.boot = who["boot"]
        return {"was": was}

    def hear_of_desktop(self, status: int, standing: list[str]) -> None:
        for line in os.read(status, 4096).decode(errors="replace").splitlines():
            if line.startswith(("screen ", "ready ")):
                self.stage = line
                if line.startswith("ready ") and not self.program:
                    self.stand_by(*standing)
                if self.heard:
                    self.send(frame(0, "p", self.state()))


def processes() -> int:
    return sum(name.isdigit() for name in os.listdir("/proc"))


def identify(who: dict[str, str]) -> None:
    socket.sethostname(who["hostname"])
    for name, text in {
        "hostname": who["hostname"],
        "machine-id": who["machine_id"],
        "hosts": f"127.0.0.1\tlocalhost {who['hostname']}\n::1\tlocalhost",
    }.items():
        fd = os.open(f"{OWN}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
        os.write(fd, text.encode() + b"\n")
        os.close(fd)


def names_in_memory() -> None:
    """What is written anew at every waking is no affair of a disk's."""
    os.mkdir(OWN)
    for name in ("hostname", "machine-id", "hosts"):
        os.symlink(f"{OWN}/{name}", f"/etc/{name}.new")
        os.rename(f"/etc/{name}.new", f"/etc/{name}")


def bring_up(setup: dict[str, list[str]], uid: int) -> tuple[int, int]:
    """Start the desktop as its user. Returns where it says how far it is, and a descriptor of its process."""
    clear_console(uid)
    env = dict(word.split("=", 1) for word in setup["env"])
    for folder, mode in ((RUN, 0o755), (f"/run/user/{uid}", 0o700), (env["HOME"], 0o700)):
        os.makedirs(folder, exist_ok=True)
        os.chmod(folder, mode)
        os.chown(folder, uid, uid)
    os.mkfifo(f"{RUN}/status", 0o600)
    status = os.open(f"{RUN}/status", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)  # while nobody else can reach it
    os.chown(f"{RUN}/status", uid, uid)
    desktop = subprocess.Popen(
        ["/bin/sh", "-c", _BEGIN, "cu-fleet", *setup["argv"]],
        env=env,
        cwd="/",
        user=uid,
        group=uid,
        extra_groups=["input", "video"],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
    )
    return status, os.pidfd_open(desktop.pid)


def clear_console(uid: int) -> None:
    """The screen and the keyboard are the X server's alone, which as an ordinary user could not see to that itself."""
    tty = os.open(f"/dev/tty{_VT}", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    os.fchown(tty, uid, -1)
    for request, value in (_VT_ACTIVATE, _VT), (_VT_WAITACTIVE, _VT), (_KDSETMODE, _GRAPHICS), (_KDSKBMODE, _OFF):
        fcntl.ioctl(tty, request, value)


def name_pointer() -> None:
    """Tell the X server where its pointer is, which it then calls by another name; see `backends.libvirt.seed`."""
    while (known := tablet()) is None:
        time.sleep(_GLANCE)
    with open(f"{SETUP}/xorg.conf", "r+") as f:
        text = f.read().replace(POINTER, known)
        f.seek(0)
        f.write(text)
        f.truncate()


def tablet() -> str | None:
    """Its file, once udev knows what it is."""
    for name in os.listdir("/sys/class/input"):
        if name.startswith("event"):
            with open(f"/sys/class/input/{name}/device/name") as f, open(f"/sys/class/input/{name}/dev") as g:
                called, number = f.read(), g.read().strip()
            if "Tablet" in called and os.path.exists(f"/run/udev/data/c{number}"):
                return f"/dev/input/{name}"
    return None


def over() -> None:
    """The desktop has ended; its last words are for whoever reads the machine's console."""
    for log in (f"{RUN}/Xorg.log", f"{RUN}/log"):
        with contextlib.suppress(OSError), open(log, "rb") as f:
            print(f"{log}:", f.read()[-1500:].decode(errors="replace"), file=sys.stderr)
    sys.exit("cu-fleet: the desktop has ended")


def main() -> None:
    with open(f"{SETUP}/desktop.json") as f:
        setup = json.load(f)
    names_in_memory()
    identify(setup)
    if setup["network"]:
        network.bring_up_card()
    name_pointer()
    status, desktop = bring_up(setup, setup["uid"])
    port = Port(setup, os.open(PORT, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
    port.watch(status, select.POLLIN, lambda: port.hear_of_desktop(status, setup["standing"]))
    port.watch(desktop, select.POLLIN, over)
    port.serve()
