"""What belongs to a desktop in a virtual machine: its domain's name and UUID, and its files.

Where a hypervisor runs machines as users of their own, as root's does, those must reach the files, and a fleet's home
is closed to everybody. So machines have a place of their own, `STORE` or what the settings say, with one folder for
each fleet; for an ordinary user it is in the home.

images/NAME/            golden images: what `cu-fleet image build` made
warm/KEY/               one of these booted, its desktop up, saved with its memory: what clean desktops are forks of
FLEET/desktops/ID/      the disk, and `run` with the sockets of the screen, the port and the console
FLEET/snapshots/ID/     disk and memory

A domain is ours if it bears the UUID that follows from its name and this home's key, which nobody else can know.
"""

import hmac
import os
import secrets
import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cu_fleet.backends.base import Place
from cu_fleet.backends.libvirt.firmware import NVRAM
from cu_fleet.backends.uids import Uids
from cu_fleet.model.names import NAME, check_name

STORE = Path("/var/lib/cu-fleet")
_LONGEST_SOCKET = 107


@dataclass(frozen=True)
class Desk:
    """The files and names of one machine."""

    id: str
    dir: Path
    name: str  # of its domain
    uuid: str

    @property
    def run(self) -> Path:
        return self.dir / "run"

    @property
    def disk(self) -> Path:
        return self.dir / "disk.qcow2"

    @property
    def nvram(self) -> Path:
        return self.dir / NVRAM

    @property
    def port(self) -> Path:
        return self.run / "port"

    @property
    def screen(self) -> Path:
        return self.run / "vnc"

    @property
    def console(self) -> Path:
        return self.run / "tty"

    @property
    def tpm(self) -> Path:
        return self.run / "tpm"

    @property
    def net(self) -> Path:
        """The folder of its network, if it has one."""
        return self.run / "net"


class Layout:
    def __init__(self, place: Place, store: Path | None = None, kind: str = "libvirt") -> None:
        """`kind` is the backend's name; what one made is not found by the other."""
        self.fleet = place.fleet if kind == "libvirt" else f"{place.fleet}-{kind}"
        self.kind = kind
        self.profile_dirs = place.profile_dirs
        self.store = store or place.machines or (STORE if os.geteuid() == 0 else place.home / "libvirt")
        self.home = place.home
        self.own = place.home / f"{kind}-own"
        self.uids = Uids(self.own / "uids", f"{place.fleet}/{kind}")

    @property
    def used(self) -> bool:
        """Whether this fleet ever had a machine."""
        return (self.own / "key").exists()

    @property
    def images(self) -> Path:
        return self.store / "images"

    @property
    def warm(self) -> Path:
        return self.store / ("warm" if self.kind == "libvirt" else f"warm-{self.kind}")

    @property
    def desktops(self) -> Path:
        return self.store / self.fleet / "desktops"

    @property
    def snapshots(self) -> Path:
        return self.store / self.fleet / "snapshots"

    def desk(self, desktop: str) -> Desk:
        check_name("desktop", desktop)
        name = f"cu-fleet-{self.fleet}-{desktop}"
        return Desk(desktop, self.desktops / desktop, name, self.uuid(name))

    def warming(self, key: str, folder: Path) -> Desk:
        """The machine that becomes a warm state."""
        name = f"cu-fleet-{self.fleet}-warm-{key}"
        return Desk(f"warm-{key}", folder, name, self.uuid(name))

    def snapshot(self, snapshot: str) -> Path:
        check_name("snapshot", snapshot)
        return self.snapshots / snapshot

    def uuid(self, name: str) -> str:
        return str(uuid.UUID(bytes=hmac.digest(self._key(), name.encode(), "sha256")[:16], version=4))

    def known(self) -> set[str]:
        """All desktops that left files or a uid here."""
        found = set(self.uids.owners().values())
        with suppress(FileNotFoundError):
            found |= {path.name for path in self.desktops.iterdir() if NAME.fullmatch(path.name)}
        return found

    def _key(self) -> bytes:
        path = self.own / "key"
        if not path.exists():
            self.own.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = self.own / f".key.{secrets.token_hex(4)}"
            fresh.touch(0o600)
            fresh.write_bytes(secrets.token_bytes(32))
            try:
                with suppress(FileExistsError):
                    os.link(fresh, path)
            finally:
                fresh.unlink()
        return path.read_bytes()

    def folder(self, path: Path) -> Path:
        """Make a folder of the store, through which machines find their files but see no others."""
        if path.is_relative_to(self.home):
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)  # where tokens will lie
        for one in (*reversed([p for p in path.parents if p.is_relative_to(self.store)]), path):
            with suppress(FileExistsError):
                one.mkdir(parents=True)
                one.chmod(0o711)  # whatever the umask
        return path

    def make(self, desk: Desk, uid: int | None) -> None:
        """The desktop's folders; the machine may make its sockets in one of them, and nothing else."""
        self.folder(desk.dir)
        desk.run.mkdir(mode=0o700)
        if uid is not None:
            os.chown(desk.run, uid, uid)

    def remove(self, desk: Desk) -> None:
        """Remove all files of a desktop whose machine is gone, and then forget its uid."""
        drop(desk.dir)
        self.uids.free(desk.id)


def drop(folder: Path) -> None:
    """Remove a folder that only we and our hypervisor write to."""
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)


def fits_a_socket(desk: Desk) -> bool:
    return len(os.fsencode(desk.screen)) <= _LONGEST_SOCKET
