"""What lies in the store of machines and nobody needs, removed.

Disks rest on disks: a desktop's and a snapshot's on that of a warm state, this one's on an image's. What anything rests
on stays, whichever fleet it belongs to. Of the rest goes: an image whose name stands for another by now, and its warm
states; one that is damaged, or that no desktop began from for a week, as its profile or QEMU is another now; and what
a maker that was killed has left, once it is certain that nobody is at work on it.
"""

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path

from cu_fleet.backends.libvirt.images import discard
from cu_fleet.backends.libvirt.layout import Layout

log = logging.getLogger(__name__)
_UNUSED = 7 * 86400.0  # seconds after which a warm state that nobody began from is forgotten
_LEFT = 86400.0  # seconds after which what was begun, and is not held by a lock, was left
_EVERY = 3600.0
_MOST = 20  # things that are removed in one go
_QCOW2 = b"QFI\xfb"


class Tidy:
    """All of it blocks."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._next = 0.0

    def if_due(self) -> list[str]:
        if time.monotonic() < self._next or not self.layout.store.is_dir():
            return []
        self._next = time.monotonic() + _EVERY
        return self.now()

    def now(self) -> list[str]:
        """Remove it; returns what that was."""
        removed = []
        for path in islice(chain(self._states(), self._begun(), self._images()), _MOST):
            log.info("removing %s, which nothing needs", path)
            path.unlink() if path.is_symlink() or path.is_file() else discard(path)
            removed.append(str(path.relative_to(self.layout.store)))
        for folder in (*self.layout.store.glob("*/desktops"), *self.layout.store.glob("*/snapshots")):
            if _age(folder) > _LEFT:
                with suppress(OSError):  # it is not empty
                    folder.rmdir()
                    folder.parent.rmdir()
        return removed

    def _states(self) -> Iterator[Path]:
        """A state first stops being one; whoever was about to use it is told so, and makes it anew."""
        used = self._rested_on()
        for folder in _plain(self.layout.warm):
            about = folder / "about.json"
            if folder.resolve() in used:
                continue
            if not about.exists() or _age(folder) > (_EVERY if self._outlived(folder) else _UNUSED):
                about.unlink(missing_ok=True)
                yield folder

    def _outlived(self, folder: Path) -> bool:
        """Whether a state is of an image of ours that has its name no more."""
        image = backing(folder / "disk.qcow2").parent.resolve()
        return image.parent == self.layout.images.resolve() and image not in self._named()

    def _named(self) -> set[Path]:
        named = [path for path in _plain(self.layout.images) if path.is_symlink() or "." not in path.name]
        return {path.resolve() for path in named}

    def _rested_on(self) -> set[Path]:
        """The folders of warm states that a desktop's disk or a snapshot's rests on."""
        found: set[Path] = set()
        for path in self.layout.store.glob("*/desktops/*/about.json"):
            with suppress(OSError, ValueError, KeyError):
                found.add(Path(json.loads(path.read_text("utf-8"))["base"]).parent.resolve())
        for path in self.layout.store.glob("*/snapshots/*/base"):
            with suppress(OSError):
                found.add(Path(path.read_text()).parent.resolve())
        return found

    def _begun(self) -> Iterator[Path]:
        """What was being made, by nobody who is still alive."""
        for folder in self.layout.warm.glob(".*.new"):
            with _held(folder.with_name(folder.name.removesuffix("new") + "lock")) as ours:
                if ours and _age(folder) > _LEFT:
                    yield folder
        for path in (*self.layout.store.glob(".trial.*"), *self.layout.images.glob(".*")):
            if _age(path) > _LEFT:
                yield path
        for slot in self.layout.store.glob("*/desktops/.*.slot*"):
            if _age(slot) > _LEFT and not slot.with_name(slot.name.split(".")[1]).exists():
                yield slot

    def _images(self) -> Iterator[Path]:
        """What had a name once."""
        used = {backing(path).parent.resolve() for path in self.layout.warm.glob("*/disk.qcow2")}  # or is being warmed
        used |= self._named()
        for folder in _plain(self.layout.images):
            if "." in folder.name and folder.resolve() not in used and _age(folder) > _EVERY:
                yield folder


def backing(disk: Path) -> Path:
    """What a qcow2 disk rests on, as its head says."""
    with suppress(OSError), disk.open("rb") as file:
        head = file.read(20)
        if head[:4] == _QCOW2 and (at := int.from_bytes(head[8:16], "big")):
            file.seek(at)
            return Path(os.fsdecode(file.read(min(4096, int.from_bytes(head[16:20], "big")))))
    return Path("/")


def _plain(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if not path.name.startswith(".")) if folder.is_dir() else []


def _age(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0


@contextmanager
def _held(lock: Path) -> Iterator[bool]:
    """Whether nobody makes what this lock is for; while the context lasts, nobody begins to."""
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(fd)
