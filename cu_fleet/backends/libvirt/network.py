"""A network for machines whose profile says `full`: what a `local` desktop has, and with the same walls.

User-mode networks that speak to a guest directly, QEMU's own as well as passt, connect to whatever address its packets
bear: a guest whose root writes 127.0.0.1 into them is at this machine's loopback, whatever options say of the router
(tried with both). So a guest's router runs in a network namespace that has no other link than slirp4netns', which lets
nobody at the loopback; what it connects to there is what that namespace's own kernel can reach, and its loopback is
empty. Guests are all alike in that: one address, one router, one name server, which is this machine's, wherever that
listens and whatever it is by then. Neighbours have no road to each other. (passt of Debian 12 is no router to be had:
behind the same walls it broke off one in ten connections to a server that was busy, and QEMU's none.)

When QEMU hangs up, its router ends, the namespace with it, and slirp4netns with that. A router turns away whoever else
connects, which is how it is proved that QEMU did. What is begun bears a mark, and `end` ends all who bear it.
"""

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement

from cu_fleet.backends import slirp
from cu_fleet.backends.libvirt import processes, router
from cu_fleet.backends.libvirt.layout import Desk
from cu_fleet.model.errors import ConflictError, UnavailableError

QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
# as both QEMU's network and slirp4netns lay it out
PLACE = {"address": "10.0.2.15", "netmask": "255.255.255.0", "gateway": "10.0.2.2", "resolver": "10.0.2.3"}
PACKAGES = {"slirp4netns": "slirp4netns", "bwrap": "bubblewrap", "qemu-system-x86_64": "qemu-system-x86"}
TUN = Path("/dev/net/tun")
_PYTHON = "/usr/bin/python3"  # ours may lie where the desktop's own user cannot read it
_ROUTER = Path(router.__file__).read_text("utf-8")
_CARD = "02:00:00:00:00:01"  # until a machine is told its own
_SECONDS = 30.0
_SECONDS_TO_SHUT = 20.0
_NAP = 0.01
_MOST_SAID = 64 << 10
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


def need() -> None:
    """Refuse where machines can have no network."""
    if lacking := [package for program, package in PACKAGES.items() if shutil.which(program, path=_PATH) is None]:
        raise UnavailableError(
            f"machines need {' and '.join(lacking)} for a network, which this machine does not have",
            remedy=f"apt-get install {' '.join(lacking)}; or say network: none",
            code="missing_program",
        )
    if not TUN.exists() or (os.geteuid() and not os.access(TUN, os.R_OK | os.W_OK)):
        raise UnavailableError(
            f"machines need {TUN} for a network, which is not there or closed to you",
            remedy=f"as root: modprobe tun && chmod 0666 {TUN}; or say network: none",
            code="no_tun",
        )


# the machine's side


def add_card(top: Element, model: str, desk: Desk) -> None:
    """libvirt knows no such network, so QEMU is told directly."""
    line = SubElement(top, f"{{{QEMU}}}commandline")
    card = f"{model},netdev=cu-fleet,mac={_CARD},bus=pcie.0,addr=0x10,romfile="
    for word in ("-netdev", _netdev(desk), "-device", card):
        SubElement(line, f"{{{QEMU}}}arg", value=word)


def _netdev(desk: Desk) -> str:
    return f"stream,id=cu-fleet,server=off,addr.type=unix,addr.path={str(desk.net / 'link').replace(',', ',,')}"


def cards(top: Element) -> list[Element]:
    """Where a machine's description says which network it has."""
    words = top.iterfind(f"{{{QEMU}}}commandline/{{{QEMU}}}arg")
    return [word for word in words if word.get("value", "").startswith("stream,id=cu-fleet,")]


def rename(top: Element, desk: Desk) -> None:
    for word in cards(top):
        word.set("value", _netdev(desk))


def must_be(top: Element, wanted: bool, desk: Desk) -> None:
    """A saved machine keeps the cards it has, so it can be no desktop of a profile that says otherwise by now."""
    if bool(cards(top)) != wanted:
        has, says = ("none", "full") if wanted else ("full", "none")
        raise ConflictError(
            f"what desktop {desk.id} was to wake from has network: {has}, and its profile says {says}",
            remedy="restore it with the profile as it was",
            code="other_network",
        )


def place(desk: Desk) -> dict[str, str]:
    """What a machine of ours is told of its network, and of itself in there."""
    return {"mac": "02:" + ":".join(desk.uuid.replace("-", "")[at : at + 2] for at in range(0, 10, 2)), **PLACE}


# this machine's side


def begin(desk: Desk, uid: int | None) -> None:
    """Returns when QEMU can connect."""
    need()
    desk.net.mkdir(mode=0o700)
    if uid is not None:
        os.chown(desk.net, uid, uid)
    with _Start(desk, uid) as start:
        start.connect(start.enclose())
        start.serve()


def prove(desk: Desk) -> None:
    """That QEMU has connected: whoever comes after it is turned away."""
    until = time.monotonic() + _SECONDS
    while (answer := _knock(desk)) is None and time.monotonic() < until:
        time.sleep(_NAP)
    if answer != b"":
        raise UnavailableError(
            f"the machine of desktop {desk.id} runs, but did not connect to its network",
            remedy="see whether AppArmor or SELinux keeps QEMU from it; or say network: none",
            code="no_network",
        )


def _knock(desk: Desk) -> bytes | None:
    """None while others stand at the door; b"" if it is shut in one's face."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_SECONDS_TO_SHUT)
        try:
            sock.connect(str(desk.net / "link"))
            return sock.recv(1)
        except BlockingIOError:
            return None
        except OSError:
            return b"open"


def end(desk: Desk) -> None:
    """For one whose machine never came to use it; the others end by themselves, which is waited for."""
    if not desk.net.exists():
        return
    processes.end(_mark(desk))


def _mark(desk: Desk) -> bytes:
    return os.fsencode(f"cu-fleet-network:{desk.net}")


class _Pipe:
    def __init__(self) -> None:
        out, into = os.pipe2(os.O_CLOEXEC)
        self.out, self.into = FileIO(out), FileIO(into, "w")

    def close(self) -> None:
        self.out.close()
        self.into.close()


class _Start:
    """A network under way. When whoever makes it dies, what there is of it ends, or bears the mark."""

    def __init__(self, desk: Desk, uid: int | None) -> None:
        self.desk, self.uid, self._marker = desk, uid, os.fsdecode(_mark(desk))
        self.until = time.monotonic() + _SECONDS
        self._held = contextlib.ExitStack()
        self.go, self.errors, self.tether, self.info, self.said, self.ready = (self._pipe() for _ in range(6))

    def _pipe(self) -> _Pipe:
        pipe = _Pipe()
        self._held.callback(pipe.close)
        return pipe

    def __enter__(self) -> "_Start":
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def enclose(self) -> int:
        """A namespace, in which the router waits for a word; returns its first process.

        bubblewrap tells of that one while it is still at work on the namespace, and suffers nobody beside it there.
        """
        resolver = self.desk.net / "resolv.conf"
        resolver.write_text(f"nameserver {PLACE['resolver']}\n")  # slirp4netns'
        resolver.chmod(0o644)
        walls = ["--unshare-user", "--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
        for path in map(Path, ("/usr", "/bin", "/sbin", "/lib", "/lib64")):
            if path.exists():
                walls += ["--symlink", str(path.readlink())] if path.is_symlink() else ["--ro-bind", str(path)]
                walls += [str(path)]
        walls += [
            "--ro-bind-try",
            "/etc/ld.so.cache",
            "/etc/ld.so.cache",
            "--ro-bind",
            str(resolver),
            "/etc/resolv.conf",
        ]
        walls += ["--dev", "/dev", "--proc", "/proc", "--bind", str(self.desk.net), "/tmp"]  # noqa: S108  # inside
        given = {"--info-fd": self.info.into, "--sync-fd": self.tether.into}
        walls += [word for name, file in given.items() for word in (name, str(file.fileno()))]
        serve = [_PYTHON, "-I", "-S", "-c", _ROUTER]
        bwrap = slirp.named(self._marker, ["bwrap", *walls, "--", *serve])
        self._spawn([*slirp.dropped(self.uid), *bwrap], *given.values(), hears=self.go.out, says=self.said.into)
        try:
            pid = int(json.loads(self._heard(self.info, b"}"))["child-pid"])
        except (ValueError, KeyError):
            pid = 0
        if not (self._heard(self.said, b"here\n") and pid):
            raise self._failed("bubblewrap could not enclose it")
        return pid

    def connect(self, pid: int) -> None:
        """Give the namespace its one link, by a process that ends when the first one in there does."""
        try:
            net = self._held.enter_context(FileIO(f"/proc/{pid}/ns/net"))
        except FileNotFoundError:
            raise self._failed("bubblewrap has ended") from None
        user = self._held.enter_context(FileIO(slirp.owner(net.fileno())))
        ready, tether = self.ready.into, self.tether.out
        fds = slirp.Ends(net.fileno(), user.fileno(), ready.fileno(), tether.fileno())
        self._spawn(slirp.command(fds, self._marker, self.uid), net, user, ready, tether)
        if not self._heard(self.ready, b"1"):
            raise self._failed("slirp4netns could not connect it")

    def serve(self) -> None:
        """Let the router listen."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, and said why
            self.go.into.write(b"\n")
        if not self._heard(self.said, b"up\n"):
            raise self._failed("its router did not come up")

    def _spawn(
        self, argv: Sequence[str], *given: FileIO, hears: FileIO | None = None, says: FileIO | None = None
    ) -> None:
        """Start what is nobody's child, and let it have these. That nobody hears it any more does not end it."""
        subprocess.run(
            ["setsid", "--fork", *argv],
            pass_fds=[file.fileno() for file in given],
            stdin=hears or subprocess.DEVNULL,
            stdout=says or self.errors.into,
            stderr=self.errors.into,
            env={"PATH": _PATH, "LANG": "C.UTF-8"},
            cwd="/",
            umask=0o077,
            restore_signals=False,
            check=True,
        )
        for file in (*given, hears, says):
            if file:
                file.close()

    def _heard(self, pipe: _Pipe, word: bytes) -> bytes:
        """What comes until this word, the end, or no more in time."""
        said = b""
        while word not in said and (more := self._more(pipe, self.until - time.monotonic())):
            said += more
        return said

    def _more(self, pipe: _Pipe, seconds: float) -> bytes | None:
        """What is there to be read, b"" at the end; None if nothing comes in time."""
        waiting = select.poll()
        waiting.register(pipe.out, select.POLLIN)
        return pipe.out.read(4096) if waiting.poll(max(seconds, 0) * 1000) else None

    def _failed(self, why: str) -> UnavailableError:
        for pipe in (self.go, self.tether):
            pipe.close()
        self.errors.into.close()
        self.until = min(self.until, time.monotonic() + 1)  # those who end say why, and then end
        words = self._heard(self.errors, b"\0")[-_MOST_SAID:].decode("utf-8", "replace").strip()[-1500:]
        return UnavailableError(
            f"desktop {self.desk.id} has no network: {why}" + (f"; it said: {words}" if words else ""),
            remedy="see what is missing: cu-fleet doctor",
            code="no_network",
        )
