"""A desktop's slot seen from outside: a folder that the desktop, at this very moment, may be changing to trick us.

Every part of a path is opened relative to the folder before it, never following a link, so whatever is renamed or
linked meanwhile, we stay inside. A file is looked at before it is opened for reading (a fifo would hang us, and only
plain files are read), is written beside its place and renamed into it, and belongs to the desktop's own user. What
is removed is first moved out of the desktop's reach.
"""

import asyncio
import contextlib
import errno
import os
import secrets
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from cu_fleet.backends.base import FileInfo
from cu_fleet.backends.tree import wipe
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import ConflictError, FleetError, InvalidError, NotFoundError, UnavailableError

T = TypeVar("T")
MAX_LISTED = 10_000
_CHUNK = 256 << 10
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def parts(path: str) -> list[str]:
    """The names of a path below the slot, or a refusal in words. An empty path is the slot itself."""
    names = path.split("/") if path else []
    if path.startswith("/"):
        raise InvalidError(f"{path!r} is absolute", remedy="give a path below ~/Shared", code="bad_path", path=path)
    if any(name in ("", ".", "..") for name in names):
        raise InvalidError(f"{path!r} has empty, . or .. parts", remedy="leave them out", code="bad_path", path=path)
    if "\0" in path or len(names) > 100 or any(len(os.fsencode(name)) > 255 for name in names):
        raise InvalidError(f"{path[:80]!r} cannot be the path of a file", code="bad_path", path=path[:300])
    return names


class Slot:
    """Files in and out of one slot. `uid` owns what is put in, where we are root."""

    def __init__(self, root: Path, uid: int | None) -> None:
        self.root = root
        self.owner = uid if os.geteuid() == 0 else None

    async def put(self, path: str, data: AsyncIterator[bytes], *, mode: int = 0o644) -> int:
        names = parts(path)
        if not names:
            raise InvalidError("a file needs a name", code="bad_path", path=path)
        new = _Writing(path, names[-1], self.owner)
        try:
            await _thread(new.begin, lambda: self._folder(path, names[:-1], make=True))
            async for chunk in data:
                await _thread(new.write, chunk)
            return await _thread(new.finish, mode & 0o777)
        finally:
            await _thread(new.close)

    async def get(self, path: str) -> AsyncIterator[bytes]:
        opened: list[int] = []
        try:
            left = await _thread(self._open, path, opened)
            while left > 0 and (chunk := await _thread(os.read, opened[0], min(_CHUNK, left))):
                left -= len(chunk)
                yield chunk
        finally:
            for fd in opened:
                os.close(fd)

    def _open(self, path: str, opened: list[int]) -> int:
        """Open for reading; returns how much there is now: a file that grows for ever is not read for ever."""
        names = parts(path)
        with _words(path):
            found, look = self._look(path, names)
            try:
                if not stat.S_ISREG(found.st_mode):
                    raise InvalidError(f"{path!r} is a {_kind(found)}, not a file", code="not_a_file", path=path)
                opened.append(os.open(f"/proc/self/fd/{look}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
                return found.st_size
            finally:
                os.close(look)

    async def listing(self, path: str = "") -> list[FileInfo]:
        return await _thread(self._listing, path)

    def _listing(self, path: str) -> list[FileInfo]:
        names = parts(path)
        with _words(path):
            found, look = self._look(path, names)
            os.close(look)
            if not stat.S_ISDIR(found.st_mode):
                return [_info(path, found)]
            fd = self._folder(path, names)
            try:
                return _list(fd, path)
            finally:
                os.close(fd)

    async def remove(self, path: str) -> None:
        await _thread(self._remove, path)

    def _remove(self, path: str) -> None:
        names = parts(path)
        with _words(path), contextlib.suppress(FileNotFoundError):
            fd = self._folder(path, names[:-1])
            try:
                self._take_out(fd, [names[-1]] if names else [entry.name for entry in os.scandir(fd)])
            finally:
                os.close(fd)

    def _take_out(self, folder: int, names: list[str]) -> None:
        """Move names beside the slot, where its desktop does not reach, and remove them there."""
        trash = f".{self.root.name}.trash.{secrets.token_hex(8)}"
        parent = os.open(self.root.parent, _FOLDER)
        try:
            os.mkdir(trash, 0o700, dir_fd=parent)
            out = os.open(trash, _FOLDER, dir_fd=parent)
            try:
                for name in names:
                    with contextlib.suppress(FileNotFoundError):
                        self._move(folder, name, out)
            finally:
                os.close(out)
                wipe(parent, trash)
        finally:
            os.close(parent)

    def _move(self, folder: int, name: str, out: int) -> None:
        try:
            os.rename(name, name, src_dir_fd=folder, dst_dir_fd=out)
        except OSError as e:
            if e.errno not in (errno.EXDEV, errno.EACCES, errno.EPERM):
                raise
            wipe(folder, name)  # another file system, or a folder its owner closed: removed where it is

    def _folder(self, path: str, names: list[str], *, make: bool = False) -> int:
        fd = self._top()
        for name in names:
            try:
                inner = self._step(fd, name, path, make)
            finally:
                os.close(fd)
            fd = inner
        return fd

    def _top(self) -> int:
        try:
            return os.open(self.root, _FOLDER)
        except PermissionError:  # we are an ordinary user, and the desktop has closed its slot
            look = os.open(self.root, _LOOK)
            try:
                Path(f"/proc/self/fd/{look}").chmod(0o700)
            finally:
                os.close(look)
            return os.open(self.root, _FOLDER)

    def _step(self, fd: int, name: str, path: str, make: bool) -> int:
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=fd)
                if self.owner is not None:
                    os.chown(name, self.owner, self.owner, dir_fd=fd, follow_symlinks=False)
        try:
            return os.open(name, _FOLDER, dir_fd=fd)
        except NotADirectoryError:
            what = _kind(os.stat(name, dir_fd=fd, follow_symlinks=False))
            raise InvalidError(f"{name!r} in {path!r} is a {what}, not a folder", code="bad_path", path=path) from None

    def _look(self, path: str, names: list[str]) -> tuple[os.stat_result, int]:
        if not names:
            look = os.open(self.root, _LOOK)
        else:
            fd = self._folder(path, names[:-1])
            try:
                look = os.open(names[-1], _LOOK, dir_fd=fd)
            finally:
                os.close(fd)
        return os.fstat(look), look


class AnySlot(Protocol):
    """A slot, wherever it lies."""

    async def put(self, path: str, data: AsyncIterator[bytes], *, mode: int = 0o644) -> int: ...

    def get(self, path: str) -> AsyncIterator[bytes]: ...

    async def listing(self, path: str = "") -> list[FileInfo]: ...

    async def remove(self, path: str) -> None: ...


class SlotFiles:
    """The Files ability of a backend whose desktops have such slots."""

    def __init__(self, slot: Callable[[Handle], AnySlot]) -> None:
        self._slot = slot

    async def put(self, handle: Handle, path: str, data: AsyncIterator[bytes], *, mode: int = 0o644) -> int:
        return await self._slot(handle).put(path, data, mode=mode)

    def get(self, handle: Handle, path: str) -> AsyncIterator[bytes]:
        return self._slot(handle).get(path)

    async def listing(self, handle: Handle, path: str = "") -> list[FileInfo]:
        return await self._slot(handle).listing(path)

    async def remove(self, handle: Handle, path: str) -> None:
        await self._slot(handle).remove(path)


class _Writing:
    """A file being written beside its place."""

    def __init__(self, path: str, name: str, owner: int | None) -> None:
        self.path, self.name, self.owner = path, name, owner
        self.part = f".{secrets.token_hex(8)}.part"
        self.folder = self.fd = -1
        self.moved = False

    def begin(self, folder: Callable[[], int]) -> None:
        with _words(self.path):
            self.folder = folder()
            self._refuse_other_kinds()
            self.fd = os.open(self.part, _NEW, 0o600, dir_fd=self.folder)

    def _refuse_other_kinds(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode):
                raise ConflictError(
                    f"{self.path!r} is a {_kind(found)} already",
                    remedy="remove it or choose another name",
                    code="not_a_file",
                    path=self.path,
                )

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        with _words(self.path):
            while rest:
                rest = rest[os.write(self.fd, rest) :]

    def finish(self, mode: int) -> int:
        with _words(self.path):
            if self.owner is not None:
                os.fchown(self.fd, self.owner, self.owner)
            os.fchmod(self.fd, mode)
            os.rename(self.part, self.name, src_dir_fd=self.folder, dst_dir_fd=self.folder)
            self.moved = True
            return os.fstat(self.fd).st_size

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            if not self.moved:
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    os.unlink(self.part, dir_fd=self.folder)
        if self.folder >= 0:
            os.close(self.folder)


def _list(fd: int, path: str) -> list[FileInfo]:
    found: list[FileInfo] = []
    with os.scandir(fd) as entries:
        for entry in entries:
            if len(found) >= MAX_LISTED:
                raise InvalidError(f"{path or 'the slot'} has more than {MAX_LISTED} entries", code="too_many_files")
            with contextlib.suppress(FileNotFoundError):
                inside = f"{path}/{entry.name}" if path else entry.name
                found.append(_info(inside, os.stat(entry.name, dir_fd=fd, follow_symlinks=False)))
    return sorted(found, key=lambda info: info.path)


def _info(path: str, found: os.stat_result) -> FileInfo:
    readable = os.fsencode(path).decode("utf-8", "backslashreplace")  # a name that is not UTF-8 is shown, not usable
    kind = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link"}.get(stat.S_IFMT(found.st_mode), "other")
    return FileInfo(readable, kind, found.st_size, found.st_mtime, stat.S_IMODE(found.st_mode))


def _kind(found: os.stat_result) -> str:
    names = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link", stat.S_IFIFO: "pipe"}
    return names.get(stat.S_IFMT(found.st_mode), "special file")


@contextlib.contextmanager
def _words(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise in_words(path, e) from e


def in_words(path: str, e: OSError) -> FleetError:
    if e.errno == errno.ENOENT:
        return NotFoundError(f"there is no {path!r} in the slot", code="no_file", path=path)
    if e.errno == errno.ELOOP:
        return InvalidError(f"{path!r} leads over a link, and links are not followed", code="bad_path", path=path)
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return UnavailableError(
            f"{path!r} could not be written: the disk is full", remedy="make room", code="disk_full"
        )
    if e.errno == errno.EISDIR:
        return ConflictError(f"{path!r} is a folder already", code="not_a_file", path=path)
    return UnavailableError(f"{path!r} could not be used: {e.strerror}", code="file_failed", path=path)


async def _thread(work: Callable[..., T], *args: object) -> T:
    """Run in a thread, and even when cancelled not return before it is done: descriptors must not close under it."""
    job = asyncio.get_running_loop().run_in_executor(None, partial(work, *args))
    cancelled: asyncio.CancelledError | None = None
    while not job.done():
        try:
            await asyncio.wait([job])
        except asyncio.CancelledError as e:
            cancelled = e
    if cancelled:
        job.exception()  # seen, so that the loop does not complain of it
        raise cancelled
    return job.result()
