"""Trees of files that somebody hostile made: surveyed, built, dressed and removed without ever following a link.

A *manifest* says everything about a tree that must come back exactly: names, kinds, modes, times, hard links, link
targets, extended attributes, and a digest of each file's content. So a copy need not look like its source to be
kept: `build` makes names and contents only, plain and private, and `dress` gives them what the manifest says. A
second survey then proves the result.

Every name is opened relative to its folder's descriptor with O_NOFOLLOW, and only a few descriptors are open at
once however deep the tree is. Attributes that act on the host (`security.*`) are not carried.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from cu_fleet.backends.content import copy_content, digest
from cu_fleet.model.errors import BrokenError, ConflictError, InvalidError, UnsupportedError

MAX_ENTRIES = 500_000
MAX_DEPTH = 256
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Entry(NamedTuple):
    """One name of a tree. Paths and targets are file system strings: odd bytes are kept as surrogates."""

    mode: int  # as in st_mode, with the kind
    size: int = 0
    mtime: int = 0
    atime: int = 0  # given back, but never compared: looking changes it
    twin: str = ""  # the first path of the same file, if this one is a further hard link
    target: str = ""
    rdev: int = 0
    attributes: tuple[tuple[str, str], ...] = ()  # values as Latin-1
    digest: str = ""


Manifest = dict[str, Entry]  # parents before children, and a folder's names together


class Tree:
    """A tree below one folder. `lend` lets an ordinary user look where the owner's own modes forbid it.

    What was lent is taken back when the tree is closed.
    """

    def __init__(self, root: str | os.PathLike[str], *, lend: bool = False) -> None:
        self.root = os.open(root, _FOLDER)
        self._lend = lend and os.geteuid() != 0
        self._lent: list[tuple[int, int]] = []
        self._at: tuple[str, int] = ("", self.root)
        self.used = 0  # bytes on disk, as of the last survey

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._leave()
        for fd, mode in reversed(self._lent):
            _through(fd).chmod(mode)
            os.close(fd)
        os.close(self.root)

    def _leave(self) -> None:
        if self._at[1] != self.root:
            os.close(self._at[1])
        self._at = ("", self.root)

    def folder(self, path: str) -> int:
        """A descriptor of a folder, good until the next one is asked for."""
        if self._at[0] == path:
            return self._at[1]
        self._leave()
        if not path:
            return self.root
        if path.count("/") >= MAX_DEPTH:
            raise InvalidError(f"folders are nested more than {MAX_DEPTH} deep", code="too_deep")
        fd = self.root
        for name in path.split("/"):
            try:
                inner = self.open(fd, name, _FOLDER)
            finally:
                if fd != self.root:
                    os.close(fd)
            fd = inner
        self._at = (path, fd)
        return fd

    def place(self, path: str) -> tuple[int, str]:
        """The folder's descriptor and the name in it."""
        folder, _, name = path.rpartition("/")
        return self.folder(folder), name

    def open(self, folder: int, name: str, flags: int = _FILE) -> int:
        try:
            return os.open(name, flags, dir_fd=folder)
        except PermissionError:
            if not self._lend:
                raise
        self.lend(folder, name)
        return os.open(name, flags, dir_fd=folder)

    def lend(self, folder: int, name: str) -> None:
        if len(self._lent) >= MAX_DEPTH:
            raise InvalidError(f"more than {MAX_DEPTH} files and folders are closed to their owner", code="too_closed")
        fd = os.open(name, _PATH, dir_fd=folder)
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        self._lent.append((fd, mode))
        _through(fd).chmod(mode | 0o700)

    def survey(self, *, digests: bool = True, skip: Callable[[str], bool] = lambda path: False) -> Manifest:
        """What is there, without the top itself."""
        manifest: Manifest = {}
        twins: dict[tuple[int, int], str] = {}
        folders = [""]
        self.used = 0
        while folders:
            inside = folders.pop()
            fd = self.folder(inside)
            for name in _names(fd, MAX_ENTRIES - len(manifest)):
                path = f"{inside}/{name}" if inside else name
                if skip(path):
                    continue
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                twin = ""
                if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                    twin = twins.setdefault((found.st_dev, found.st_ino), path)
                if twin and twin != path:
                    manifest[path] = manifest[twin]._replace(twin=twin, digest="")
                    continue
                self.used += found.st_blocks * 512
                manifest[path] = self._entry(fd, name, found, digests)
                if stat.S_ISDIR(found.st_mode):
                    folders.append(path)
        return manifest

    def _entry(self, fd: int, name: str, found: os.stat_result, digests: bool) -> Entry:
        kind = stat.S_IFMT(found.st_mode)
        if kind in (stat.S_IFBLK, stat.S_IFCHR) and found.st_rdev:
            raise UnsupportedError(f"{name!r} is a device, and those are not kept", code="device")
        regular, plain = kind == stat.S_IFREG, kind in (stat.S_IFREG, stat.S_IFDIR)
        return Entry(
            mode=found.st_mode,
            size=found.st_size if regular else 0,
            mtime=found.st_mtime_ns,
            atime=found.st_atime_ns,
            target=os.readlink(name, dir_fd=fd) if kind == stat.S_IFLNK else "",
            rdev=found.st_rdev,
            attributes=self._attributes(fd, name) if plain else (),
            digest=self._digest(fd, name) if digests and regular else "",
        )

    def _attributes(self, folder: int, name: str) -> tuple[tuple[str, str], ...]:
        where = _below(folder, name)
        names = sorted(a for a in os.listxattr(where, follow_symlinks=False) if a.startswith(("user.", "system.posix")))
        if not names:
            return ()
        try:
            values = [os.getxattr(where, a, follow_symlinks=False) for a in names]
        except PermissionError:
            if not self._lend:
                raise
            self.lend(folder, name)
            values = [os.getxattr(where, a, follow_symlinks=False) for a in names]
        return tuple((a, v.decode("latin-1")) for a, v in zip(names, values, strict=True))

    def _digest(self, folder: int, name: str) -> str:
        fd = self.open(folder, name)
        try:
            return digest(fd)
        finally:
            os.close(fd)

    def build(self, manifest: Manifest, fill: Callable[[str, Entry, int], None]) -> None:
        """Make all names, private and bare; `fill` writes the content of each regular file that is not empty."""
        for path, entry in manifest.items():
            fd, name = self.place(path)
            kind = stat.S_IFMT(entry.mode)
            if entry.twin:
                self._link(entry.twin, path)
            elif kind == stat.S_IFDIR:
                os.mkdir(name, 0o700, dir_fd=fd)
            elif kind == stat.S_IFLNK:
                os.symlink(entry.target, name, dir_fd=fd)
            elif kind == stat.S_IFREG:
                new = os.open(name, _NEW, 0o600, dir_fd=fd)
                try:
                    if entry.size:
                        fill(path, entry, new)
                finally:
                    os.close(new)
            else:
                os.mknod(name, kind | 0o600, entry.rdev, dir_fd=fd)

    def _link(self, old: str, new: str) -> None:
        fd, name = self.place(old)
        kept = os.dup(fd)
        try:
            to, new_name = self.place(new)
            os.link(name, new_name, src_dir_fd=kept, dst_dir_fd=to, follow_symlinks=False)
        finally:
            os.close(kept)

    def take(self, path: str, entry: Entry, to: int) -> None:
        """Copy a file's content out of this tree, which must lie still meanwhile."""
        folder, name = self.place(path)
        fd = self.open(folder, name)
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode) or before.st_size != entry.size:
                raise ConflictError(f"{path!r} was changed while it was copied", code="changed")
            copy_content(fd, to, entry.size)
            after = os.fstat(fd)
            if (before.st_mtime_ns, before.st_ctime_ns) != (after.st_mtime_ns, after.st_ctime_ns):
                raise ConflictError(f"{path!r} was changed while it was copied", code="changed")
        finally:
            os.close(fd)

    def dress(self, manifest: Manifest, owner: int | None) -> None:
        """Give everything its owner, attributes, mode and times: children first, so that folders' times stay."""
        for path, entry in reversed(manifest.items()):
            if entry.twin:
                continue
            fd, name = self.place(path)
            if owner is not None:
                os.chown(name, owner, owner, dir_fd=fd, follow_symlinks=False)
            for attribute, value in entry.attributes:
                os.setxattr(_below(fd, name), attribute, value.encode("latin-1"), follow_symlinks=False)
            if not stat.S_ISLNK(entry.mode):
                os.chmod(name, stat.S_IMODE(entry.mode), dir_fd=fd)
            os.utime(name, ns=(entry.atime, entry.mtime), dir_fd=fd, follow_symlinks=False)

    def strangers(self, manifest: Manifest, owner: int) -> list[str]:
        """The paths that belong to anybody else than `owner`."""

        def theirs(path: str) -> bool:
            fd, name = self.place(path)
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            return (found.st_uid, found.st_gid) != (owner, owner)

        return [path for path in manifest if theirs(path)]


def differences(expected: Manifest, actual: Manifest) -> list[str]:
    """What is not as it should be, for people; nothing if the trees are the same."""
    found = [f"{path!r} is missing" for path in expected.keys() - actual.keys()]
    found += [f"{path!r} should not be there" for path in actual.keys() - expected.keys()]
    for path, entry in expected.items():
        other = actual.get(path, entry)._replace(atime=entry.atime)
        if other != entry:
            fields = [f for f in Entry._fields if getattr(entry, f) != getattr(other, f)]
            found.append(f"{path!r} differs in {', '.join(fields)}")
    return found


def _through(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}")


def _below(fd: int, name: str) -> str:
    """A path for calls that take no folder descriptor; its last part is not followed by our callers."""
    return f"/proc/self/fd/{fd}/{name}"


def _names(fd: int, most: int) -> list[str]:
    names: list[str] = []
    with os.scandir(fd) as entries:
        for entry in entries:
            names.append(entry.name)
            if len(names) > most:
                raise InvalidError(f"there are more than {MAX_ENTRIES} files and folders", code="too_many_files")
    return sorted(names)


def wipe(parent: int, name: str) -> None:
    """Remove `name` with all in it, whatever it is and however deep: every folder met is first moved to the top.

    Somebody else may be removing the same.
    """
    for _ in range(1000):
        if _unlink(parent, name):
            return
        with contextlib.suppress(FileNotFoundError), _unless_filled():
            top = _open_wide(parent, name)
            try:
                _empty(top)
            finally:
                os.close(top)
            os.rmdir(name, dir_fd=parent)
    raise BrokenError("a folder that is being removed is filled again and again", code="not_removed")


@contextlib.contextmanager
def _unless_filled() -> Iterator[None]:
    """For `rmdir`: a folder that is not empty yet is met again."""
    try:
        yield
    except OSError as e:
        if e.errno != errno.ENOTEMPTY:
            raise


def _unlink(folder: int, name: str) -> bool:
    """Remove a name that is no folder. False if it is one."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return True
    except OSError as e:
        if e.errno in (errno.EISDIR, errno.EPERM) and _is_folder(folder, name):
            return False
        raise
    return True


def _is_folder(folder: int, name: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return True  # it was one


def _open_wide(parent: int, name: str) -> int:
    """Open a folder that is to be removed, whatever its owner's mode for it."""
    if os.geteuid() != 0:
        fd = os.open(name, _PATH | os.O_DIRECTORY, dir_fd=parent)
        try:
            _through(fd).chmod(0o700)
        finally:
            os.close(fd)
    return os.open(name, _FOLDER, dir_fd=parent)


def _empty(top: int) -> None:
    moved = 0
    for _ in range(1 << 20):  # each pass takes away one level; a bound, in case somebody still fills it
        seen = False
        with os.scandir(top) as entries:
            for entry in entries:
                seen = True
                if not _unlink(top, entry.name):
                    with contextlib.suppress(FileNotFoundError):
                        moved = _flatten(top, entry.name, moved)
        if not seen:
            return
    raise BrokenError("a folder that is being removed is filled again and again", code="not_removed")


def _flatten(top: int, name: str, moved: int) -> int:
    """Remove a folder of the top; folders in it become further folders of the top."""
    inner = _open_wide(top, name)
    try:
        with os.scandir(inner) as entries:
            for entry in entries:
                if not _unlink(inner, entry.name):
                    if os.geteuid() != 0:
                        os.close(_open_wide(inner, entry.name))
                    moved += 1
                    os.rename(entry.name, f".{moved}.{os.urandom(6).hex()}", src_dir_fd=inner, dst_dir_fd=top)
    finally:
        os.close(inner)
    with _unless_filled():
        os.rmdir(name, dir_fd=top)
    return moved
