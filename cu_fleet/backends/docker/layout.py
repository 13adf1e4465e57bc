"""What belongs to a desktop in a container: its names and labels on the engine, its files in the fleet's home.

docker/key              made once; every label that says "ours" is signed with it
docker/ID/init          made anew for each start; read-only inside
docker/ID/run           seen inside as /run/cu-fleet: sockets, the log; the inside may put anything there
docker/ID/slot          seen inside as ~/Shared
docker/ID/far           instead of these three, where the engine does not see our files; see `far`
docker/.uids/N          a link that says whose host uid N is

All names follow from the desktop's id, and what bears no signature of this home's key is not ours, whatever it is
called: it is never used, changed or removed.
"""

import contextlib
import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cu_fleet.backends.base import Place
from cu_fleet.backends.tree import wipe
from cu_fleet.backends.uids import Uids
from cu_fleet.model.names import NAME, check_name

FLEET, DESKTOP, SNAPSHOT, BOOT, SIGN = (f"cu-fleet.{word}" for word in ("fleet", "desktop", "snapshot", "boot", "sign"))
MOST = "cu-fleet.snapshot-most"  # bytes a snapshot of this desktop may take
SCREEN = "cu-fleet.screen"  # of an image: what serves its desktops' screens, if that is not TigerVNC
FAR = "far"  # the mark of a desktop whose engine does not see our files
SNAPSHOTS = "cu-fleet/snapshot"  # the repository of their images


@dataclass(frozen=True)
class Desk:
    """The files and names of one desktop."""

    id: str
    dir: Path
    name: str  # of its container and its network; its volumes' begin with it

    @property
    def run(self) -> Path:
        return self.dir / "run"

    @property
    def slot(self) -> Path:
        return self.dir / "slot"

    @property
    def init(self) -> Path:
        return self.dir / "init"

    @property
    def far(self) -> bool:
        """Whether its engine is where our files are not seen."""
        return (self.dir / FAR).exists()

    @property
    def counting(self) -> str:
        """The name of the container that counts what desktops have written, when it is begun for this one."""
        return f"{self.name}-count"

    @property
    def door(self) -> str:
        """The name of the container through which the screen of an image that is not ours is reached."""
        return f"{self.name}-door"

    @property
    def slot_volume(self) -> str:
        """What a far one has for a slot."""
        return f"{self.name}-slot"

    @property
    def volumes(self) -> dict[str, str]:
        """What the desktop may write and a snapshot keeps: each volume's name, and where it is seen."""
        return {f"{self.name}-home": "/home", f"{self.name}-tmp": "/tmp"}  # noqa: S108  # its own


class Layout:
    def __init__(self, place: Place, backend: str = "docker") -> None:
        self.fleet = place.fleet
        self.top = place.home / backend
        self.uids = Uids(self.top / ".uids", f"{place.fleet}/{backend}")

    @property
    def used(self) -> bool:
        """Whether this fleet ever had anything on an engine."""
        return (self.top / "key").exists()

    def desk(self, desktop: str) -> Desk:
        check_name("desktop", desktop)
        return Desk(desktop, self.top / desktop, f"cu-fleet-{self.fleet}-{desktop}")

    def snapshot_name(self, snapshot: str) -> str:
        return f"{self.fleet}-{check_name('snapshot', snapshot)}"

    def uid(self, desktop: str) -> int:
        """Who the desktop's programs are on the engine's machine, and own what they make."""
        own = self.uids.of(desktop)
        return os.geteuid() if own is None else own

    def known(self) -> set[str]:
        """All desktops that left files or a uid here."""
        with contextlib.suppress(FileNotFoundError):
            names = {path.name for path in self.top.iterdir() if path.is_dir() and NAME.fullmatch(path.name)}
            return names | set(self.uids.owners().values())
        return set()

    def labels(self, desktop: str, **more: str) -> dict[str, str]:
        labels = {FLEET: self.fleet, DESKTOP: desktop, **more}
        return {**labels, SIGN: self._sign(labels)}

    def is_ours(self, labels: Mapping[str, str] | None) -> bool:
        """Whether these labels were given by this fleet: they say so, and bear its signature."""
        labels = labels or {}
        if labels.get(FLEET) != self.fleet or not self.used:
            return False
        return hmac.compare_digest(labels.get(SIGN, ""), self._sign(labels))

    def is_our_container(self, one: Mapping[str, Any]) -> bool:
        """Of a container it takes its name too: what somebody runs of our snapshots' images inherits their labels."""
        labels = one.get("Labels") or {}
        if not self.is_ours(labels):
            return False
        if snapshot := labels.get(SNAPSHOT):
            names = {self.worker(snapshot), self.worker(snapshot, labels.get(DESKTOP, ""))}
        else:
            desk = self.desk(labels[DESKTOP])
            names = {desk.name, desk.counting, desk.door}
        return any(name.removeprefix("/") in names for name in one.get("Names") or ())

    def worker(self, snapshot: str, desktop: str = "") -> str:
        """The name of the container that saves a snapshot, or that holds it while a desktop gets it."""
        return "-".join(filter(None, ("cu-fleet", self.snapshot_name(snapshot), desktop)))

    def _sign(self, labels: Mapping[str, str]) -> str:
        return self.derived(*(labels.get(name, "") for name in (FLEET, DESKTOP, SNAPSHOT))).hex()[:32]

    def derived(self, *words: str) -> bytes:
        """What only this home can make of these words, and makes of them each time."""
        return hmac.new(self._key(), "\0".join(words).encode(), hashlib.sha256).digest()

    def _key(self) -> bytes:
        path = self.top / "key"
        if not path.exists():
            self.top.mkdir(mode=0o711, parents=True, exist_ok=True)
            fresh = self.top / f".key.{secrets.token_hex(4)}"
            write(fresh, secrets.token_bytes(32), 0o600)
            try:
                with contextlib.suppress(FileExistsError):
                    os.link(fresh, path)
            finally:
                fresh.unlink()
        return path.read_bytes()

    def remove(self, desk: Desk) -> None:
        """Remove all files of a desktop whose container is gone, and then forget its uid."""
        with contextlib.suppress(FileNotFoundError):
            parent = os.open(self.top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                wipe(parent, desk.id)
            finally:
                os.close(parent)
        self.uids.free(desk.id)


def write(path: Path, data: bytes, mode: int = 0o644) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        os.fchmod(fd, mode)
