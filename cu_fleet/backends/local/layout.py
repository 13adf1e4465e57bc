"""Where a desktop's files lie. All of it follows from the desktop's id, so nothing is lost with a handle.

desktops/ID/state/{home,tmp}   what the desktop may write and a snapshot keeps
desktops/ID/slot               seen inside as ~/Shared
desktops/ID/run                seen inside as /run/cu-fleet: sockets and the log; the inside may put anything there
desktops/ID/etc, init          made anew for each start; read-only inside
desktops/ID/alive              a byte of it is locked for as long as a process of the desktop lives
desktops/ID/cgroups            which cgroups it has
desktops/ID/frozen             which processes we stopped, where no cgroup can
desktops/.uids/N               a link that says whose host uid N is
"""

import fcntl
import os
import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cu_fleet.backends.base import Place
from cu_fleet.backends.tree import wipe
from cu_fleet.backends.uids import Uids
from cu_fleet.model.names import NAME, check_name


@dataclass(frozen=True)
class Desk:
    """The files of one desktop."""

    id: str
    dir: Path
    marker: str  # in the arguments of every process that holds the desktop from outside

    @property
    def state(self) -> Path:
        return self.dir / "state"

    @property
    def slot(self) -> Path:
        return self.dir / "slot"

    @property
    def run(self) -> Path:
        return self.dir / "run"

    @property
    def frozen(self) -> Path:
        return self.dir / "frozen"

    @property
    def cgroups(self) -> Path:
        return self.dir / "cgroups"

    @property
    def alive(self) -> Path:
        return self.dir / "alive"

    def make(self) -> bool:
        """Make its folder. False if there was one, and with it there may be more."""
        try:
            self.dir.mkdir(mode=0o711, parents=True)
        except FileExistsError:
            return False
        return True

    def lock(self) -> int:
        """An open descriptor that locks a byte, beside those who still hold others; whoever inherits it does too."""
        fd = os.open(self.alive, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(secrets.randbits(62), 1))
        return fd

    def is_locked(self, but: int | None = None) -> bool:
        """Whether any process holds a lock, but those who have this one. Only looks, and so disturbs nobody."""
        if but is not None:
            return _conflicts(but)
        try:
            fd = os.open(self.alive, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return _conflicts(fd)
        finally:
            os.close(fd)


def _conflicts(fd: int) -> bool:
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock())
    return bool(struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK)


def _flock(start: int = 0, length: int = 0) -> bytes:
    """struct flock for writing; without a length it goes to the end of all files."""
    return struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)


class Layout:
    def __init__(self, place: Place) -> None:
        self.fleet = place.fleet
        self.desktops = place.home / "desktops"
        self.snapshots = place.home / "snapshots"
        self._uids = Uids(self.desktops / ".uids", place.fleet)

    def desk(self, desktop: str) -> Desk:
        check_name("desktop", desktop)
        return Desk(desktop, self.desktops / desktop, f"cu-fleet/{self.fleet}/{desktop}")

    def known(self) -> Iterator[str]:
        """All desktops that left anything here."""
        try:
            names = {path.name for path in self.desktops.iterdir() if NAME.fullmatch(path.name)}
        except FileNotFoundError:
            return
        yield from sorted(names | set(self._uids.owners().values()))

    def uid(self, desktop: str) -> int | None:
        """The host uid this desktop has; None if it has none of its own, as when we are an ordinary user."""
        return self._uids.of(desktop)

    def take_uid(self, desktop: str) -> int | None:
        """A host uid that no other desktop of this fleet has."""
        return self._uids.take(desktop)

    def uids(self) -> set[int]:
        """Whose processes can be ours: root starts what then becomes a uid of the fleet's range."""
        return {os.geteuid(), *self._uids.range} if os.geteuid() == 0 else {os.geteuid()}

    def free_uid(self, desktop: str) -> None:
        self._uids.free(desktop)

    def remove(self, desk: Desk) -> None:
        """Remove all files of a desktop that has ended, and then forget its uid."""
        try:
            parent = os.open(self.desktops, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            wipe(parent, desk.id)
        finally:
            os.close(parent)
        self.free_uid(desk.id)


def write(path: Path, text: str | bytes, mode: int = 0o644) -> None:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
