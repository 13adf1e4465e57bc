"""Folders of this machine in a desktop's slot for a time, where programs on both sides write.

Where we are root, a desktop has a user of its own. All in the folder becomes that user's, but for the folder itself and
its `.git`, by whose owner git judges whether it is safe; and an access list, which new files inherit, lets that user
write what programs on this side make there later. Where we are an ordinary user, desktop and host are one user anyway.
"""

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from cu_fleet.backends.slot import Slot
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import ConflictError, UnavailableError, UnsupportedError
from cu_fleet.threads import in_thread

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NOBODY = 0xFFFFFFFF
_KEPT = ".git"
_NO_LISTS = (errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # on a file system that has no access lists
Inode = tuple[int, int]


class SlotLending:
    """The Lending ability of a backend whose desktops have slots on this machine."""

    def __init__(self, slot: Callable[[Handle], object]) -> None:
        self._slot = slot

    async def lend(self, handle: Handle, name: str, folder: Path, inode: Inode) -> Path:
        return await in_thread(_lend, self._here(handle), name, folder, inode)

    async def fetch(self, handle: Handle, name: str, folder: Path, inode: Inode) -> bool:
        slot = self._here(handle)
        return slot.root.is_dir() and await in_thread(_fetch, slot, name, folder, inode)

    def _here(self, handle: Handle) -> Slot:
        slot = self._slot(handle)
        if not isinstance(slot, Slot):
            raise UnsupportedError(
                "the desktop is on another machine: no folder of this one can lie in its slot", code="far_desktop"
            )
        return slot


def _lend(slot: Slot, name: str, folder: Path, inode: Inode) -> Path:
    with _slot(slot) as top:
        if _known(top, inode):
            return slot.root / name  # it was moved before
        if slot.owner is not None:
            _hand_over(folder, slot.owner)
        if _exists(top, name):
            raise ConflictError(f"{name!r} is in the slot already", remedy="remove it there", code="in_the_way")
        try:
            os.rename(folder, name, dst_dir_fd=top)
        except OSError as e:
            raise _failed(folder, e) from None
    return slot.root / name


def _fetch(slot: Slot, name: str, folder: Path, inode: Inode) -> bool:
    with _slot(slot) as top:
        found = _known(top, inode) or (name if _is_folder(top, name) else None)
        if found is None:
            return False
        try:
            _rename(top, found, folder)
        except FileNotFoundError:
            return False
        except OSError as e:
            raise _failed(folder, e) from None
    return True


def _rename(top: int, name: str, folder: Path) -> None:
    try:
        os.rename(name, folder, src_dir_fd=top)
    except PermissionError:  # its owner closed it, and we are that user
        _unlock(name, top)
        os.rename(name, folder, src_dir_fd=top)


def _known(top: int, inode: Inode) -> str | None:
    """What the folder is called in the slot now."""
    with os.scandir(top) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                found = os.stat(entry.name, dir_fd=top, follow_symlinks=False)
                if (found.st_dev, found.st_ino) == inode and stat.S_ISDIR(found.st_mode):
                    return entry.name
    return None


def _exists(top: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=top, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _is_folder(top: int, name: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _failed(folder: Path, e: OSError) -> UnavailableError:
    why = "they are on two file systems" if e.errno == errno.EXDEV else e.strerror
    return UnavailableError(f"{folder} could not be moved between the home and the slot: {why}", code="not_moved")


@contextlib.contextmanager
def _slot(slot: Slot) -> Iterator[int]:
    try:
        fd = os.open(slot.root, _FOLDER)
    except PermissionError:
        _unlock(slot.root)
        fd = os.open(slot.root, _FOLDER)
    with _opened(fd):
        yield fd


def _unlock(name: str | Path, folder: int | None = None) -> None:
    with _opened(os.open(name, _LOOK | os.O_DIRECTORY, dir_fd=folder)) as look:
        Path(f"/proc/self/fd/{look}").chmod(0o700)


@contextlib.contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _hand_over(folder: Path, uid: int) -> None:
    """Nobody but us is in there yet."""
    lists = True
    for path, _, _, fd in os.fwalk(folder, follow_symlinks=False):
        top = path == str(folder)
        lists = lists and _open_to(fd, uid)
        if not (top and lists):
            os.fchown(fd, uid, uid)
        with os.scandir(fd) as entries:
            files = [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]
        for name in files:
            if not (top and lists and name == _KEPT):
                os.chown(name, uid, uid, dir_fd=fd, follow_symlinks=False)


def _open_to(folder: int, uid: int) -> bool:
    """Let this user write here, and in all that is made here later."""
    entries = [(0x01, 7, _NOBODY), (0x02, 7, uid), (0x04, 5, _NOBODY), (0x10, 7, _NOBODY), (0x20, 5, _NOBODY)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        for kind in ("access", "default"):
            os.setxattr(folder, f"system.posix_acl_{kind}", value)
    except OSError as e:
        if e.errno not in _NO_LISTS:
            raise
        return False
    return True
