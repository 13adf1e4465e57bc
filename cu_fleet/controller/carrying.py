"""Files between a tree of git's and a folder that an agent may be changing at this very moment.

git itself never looks at the folder. Every name is opened relative to its folder's descriptor and no link is followed;
what is no plain file, folder or link is left out, and so is what git would take for something of its own: a nested
repository is files like any other, without its `.git`. What is left out is told. Bytes are carried as they are: no
attribute turns them into anything else, no filter runs, files of LFS stay the pointers that they are in the tree.
"""

import contextlib
import hashlib
import itertools
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from cu_fleet.model.errors import InvalidError, UnavailableError

MARK = b".cu-fleet"  # a folder of ours at the top, which says whose worktree it is; it ignores itself
MAX_NAMES = 300_000
MAX_FILE = 100 << 20  # bytes of one changed file
MAX_ALL = 1 << 30  # of all that changed
MAX_DEPTH = 200
MAX_LINK = 4096
MAX_IGNORE = 1 << 20
_MOST_TOLD = 100
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PLAIN, _PROGRAM, _LINK, _MODULE = b"100644", b"100755", b"120000", b"160000"
_UNSEEN = re.compile("[\u200c-\u200f\u202a-\u202e\u206a-\u206f\ufeff]")  # what some file systems read over
_GITS = re.compile(r"(\.git|git~\d+)[ .]*(:.*)?", re.IGNORECASE | re.DOTALL)
_STEERING = (b".gitmodules", b".gitattributes", b".gitignore", b".mailmap")  # git refuses these as links


class Blob(NamedTuple):
    mode: bytes
    oid: bytes
    size: int


Tree = dict[bytes, Blob]


class Blobs(Protocol):
    """What files hold, by its hash."""

    def chunks(self, oid: bytes) -> Iterator[bytes]: ...


Name = tuple[bytes, os.stat_result]
Ignored = Callable[[bytes, bytes, list[Name]], list[bool]]  # of a folder, its .gitignore, and what is in it


def gits_own(name: bytes) -> bool:
    """Whether git, on whatever file system, would take this name for its own folder."""
    return bool(_GITS.fullmatch(_UNSEEN.sub("", name.decode("utf-8", "replace"))))


# from a tree into a folder


def write_out(tree: Tree, blobs: "Blobs", top: Path) -> None:
    """Fill an empty folder."""
    root = os.open(top, _FOLDER)
    at: tuple[bytes, int] = (b"", root)
    try:
        for path, blob in tree.items():
            folder, _, name = path.rpartition(b"/")
            if any(part in (b"", b".", b"..") or gits_own(part) for part in path.split(b"/")):
                raise InvalidError(f"the tree has a file {path!r}, which no folder can hold", code="bad_path")
            if folder != at[0]:
                if at[1] != root:
                    os.close(at[1])
                at = (b"", root)
                at = (folder, _made(root, folder) if folder else root)
            _write(at[1], name, blob, blobs)
    finally:
        if at[1] != root:
            os.close(at[1])
        os.close(root)


def _made(root: int, path: bytes) -> int:
    fd = os.dup(root)
    for name in path.split(b"/"):
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o777, dir_fd=fd)
        try:
            inner = os.open(name, _FOLDER, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


def _write(folder: int, name: bytes, blob: Blob, blobs: "Blobs") -> None:
    if blob.mode == _MODULE:
        os.mkdir(name, 0o777, dir_fd=folder)
    elif blob.mode == _LINK:
        if not 0 < blob.size < MAX_LINK:
            raise InvalidError(f"the tree has a link {name!r} that no folder can hold", code="bad_path")
        os.symlink(b"".join(blobs.chunks(blob.oid)), name, dir_fd=folder)
    else:
        fd = os.open(name, _NEW, 0o777 if blob.mode == _PROGRAM else 0o666, dir_fd=folder)
        with _opened(fd):
            for chunk in blobs.chunks(blob.oid):
                _write_all(fd, chunk)


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


# from a folder into a tree


@dataclass
class Taken:
    """What a folder holds beside what its tree had, as `git fast-import` reads it."""

    changed: int = 0
    bytes: int = 0
    left_out: list[str] = field(default_factory=list)  # and why
    strange: list[str] = field(default_factory=list)  # what a person should look at twice


def take_in(top: Path, tree: Tree, ignored: Ignored, out: IO[bytes], hash_name: str) -> Taken:
    """Write to `out` what makes this tree what the folder holds: removals first, since a folder may stand where a file
    was.
    """
    with tempfile.TemporaryFile(dir=top.parent) as changes:
        walk = _Walk(tree, ignored, changes, hash_name)
        with _opened(os.open(top, _FOLDER)) as fd:
            walk.folder(fd, b"", 0, hidden=False)
        for path in walk.missing():
            out.write(b"D " + _quoted(path) + b"\n")
        changes.seek(0)
        shutil.copyfileobj(changes, out, 1 << 20)
    return walk.taken


class _Walk:
    def __init__(self, tree: Tree, ignored: Ignored, out: IO[bytes], hash_name: str) -> None:
        self.tree, self.ignored, self.out = tree, ignored, out
        self.taken = Taken()
        self._hash = hash_name
        self._folders = {path[:n] for path in tree for n, c in enumerate(path) if c == ord("/")}
        self._seen: set[bytes] = set()
        self._names = 0

    def missing(self) -> list[bytes]:
        gone = [path for path, blob in self.tree.items() if path not in self._seen and blob.mode != _MODULE]
        self.taken.changed += len(gone)
        return gone

    def folder(self, fd: int, inside: bytes, depth: int, *, hidden: bool) -> None:
        """`hidden`: it is ignored, and only what the tree had in it counts."""
        if depth > MAX_DEPTH:
            self._leave(inside, f"folders nested more than {MAX_DEPTH} deep")
            return
        names = list(self._listed(fd, inside))
        hide = [True] * len(names) if hidden else self.ignored(inside, _ignore_file(fd), names)
        for (name, found), hid in zip(names, hide, strict=True):
            with contextlib.suppress(FileNotFoundError):  # somebody still changes it: it counts as removed
                self._one(fd, name, found, _joined(inside, name), depth, hid)

    def _listed(self, fd: int, inside: bytes) -> Iterator[Name]:
        with os.scandir(fd) as entries:
            names = sorted(os.fsencode(entry.name) for entry in itertools.islice(entries, MAX_NAMES))
        self._names += len(names)
        if self._names >= MAX_NAMES:
            raise InvalidError(f"there are more than {MAX_NAMES} files and folders", code="too_many_files")
        for name in names:
            if not inside and name in (MARK, b".git"):
                continue
            if gits_own(name):
                self._leave(_joined(inside, name), "git keeps this name to itself; a repository inside is plain files")
                continue
            with contextlib.suppress(FileNotFoundError):
                yield name, os.stat(name, dir_fd=fd, follow_symlinks=False)

    def _leave(self, path: bytes, why: str) -> None:
        if len(self.taken.left_out) < _MOST_TOLD:
            self.taken.left_out.append(f"{_shown(path)}: {why}")

    def _one(self, fd: int, name: bytes, found: os.stat_result, path: bytes, depth: int, hidden: bool) -> None:
        had = self.tree.get(path)
        if had and had.mode == _MODULE:
            self._seen.add(path)
            if stat.S_ISDIR(found.st_mode) and _filled(fd, name):
                self._leave(path, "what is in a submodule")
        elif stat.S_ISDIR(found.st_mode):
            if not hidden or path in self._folders:
                with _opened(_open(fd, name, _FOLDER)) as inner:
                    self.folder(inner, path, depth + 1, hidden=hidden)
        elif hidden and had is None:
            return
        elif stat.S_ISREG(found.st_mode):
            self._file(fd, name, path, had)
        elif stat.S_ISLNK(found.st_mode):
            self._link(fd, name, path, had)
        else:
            self._leave(path, "neither a file nor a folder")

    def _file(self, fd: int, name: bytes, path: bytes, had: Blob | None) -> None:
        with _opened(_open(fd, name, _FILE)) as inner:
            now = os.fstat(inner)
            if not stat.S_ISREG(now.st_mode):
                return
            self._seen.add(path)
            mode = _PROGRAM if now.st_mode & 0o100 else _PLAIN
            if had and had.size == now.st_size and had.mode in (_PLAIN, _PROGRAM):
                if self._hashed(inner, now.st_size) == had.oid:
                    if mode != had.mode:
                        self._put(path, mode, had.oid, None)
                    return
                os.lseek(inner, 0, os.SEEK_SET)
            if now.st_size > MAX_FILE:
                self._leave(path, f"{now.st_size} bytes; at most {MAX_FILE} are taken")
                return
            self._put(path, mode, None, _read(inner, MAX_FILE))

    def _link(self, fd: int, name: bytes, path: bytes, had: Blob | None) -> None:
        if name.lower() in _STEERING:
            self._leave(path, "git takes no link of this name")
            return
        target = os.readlink(name, dir_fd=fd)
        self._seen.add(path)
        if had and had.mode == _LINK and self._digest(target) == had.oid:
            return
        leads_out = target.startswith(b"/") or b".." in target.split(b"/")
        if leads_out and len(self.taken.strange) < _MOST_TOLD:
            self.taken.strange.append(f"{_shown(path)} is a link to {_shown(target)}"[:500])
        self._put(path, _LINK, None, target)

    def _put(self, path: bytes, mode: bytes, oid: bytes | None, data: bytes | None) -> None:
        self.taken.changed += 1
        if data is None:
            self.out.write(b"M " + mode + b" " + (oid or b"") + b" " + _quoted(path) + b"\n")
            return
        self.taken.bytes += len(data)
        if self.taken.bytes > MAX_ALL:
            raise InvalidError(f"more than {MAX_ALL} bytes were changed", code="too_large")
        self.out.write(b"M " + mode + b" inline " + _quoted(path) + b"\ndata %d\n" % len(data))
        self.out.write(data)
        self.out.write(b"\n")

    def _hashed(self, fd: int, size: int) -> bytes:
        digest = hashlib.new(self._hash, b"blob %d\0" % size, usedforsecurity=False)
        while chunk := os.read(fd, 1 << 20):
            digest.update(chunk)
        return digest.hexdigest().encode()

    def _digest(self, data: bytes) -> bytes:
        return hashlib.new(self._hash, b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest().encode()


def _joined(inside: bytes, name: bytes) -> bytes:
    return inside + b"/" + name if inside else name


def _ignore_file(folder: int) -> bytes:
    """What is in its .gitignore, if that is a file."""
    try:
        fd = os.open(b".gitignore", _FILE, dir_fd=folder)
    except OSError:
        return b""
    with _opened(fd):
        return _read(fd, MAX_IGNORE) if stat.S_ISREG(os.fstat(fd).st_mode) else b""


@contextlib.contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _open(folder: int, name: bytes, flags: int) -> int:
    """Whatever its owner's mode for it: an agent's folder is not closed to us."""
    try:
        return os.open(name, flags, dir_fd=folder)
    except PermissionError:
        with _opened(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)) as look:
            mode = os.fstat(look).st_mode
            Path(f"/proc/self/fd/{look}").chmod(stat.S_IMODE(mode) | (0o700 if stat.S_ISDIR(mode) else 0o600))
        return os.open(name, flags, dir_fd=folder)


def _read(fd: int, most: int) -> bytes:
    chunks, left = [], most
    while left > 0 and (chunk := os.read(fd, min(left, 1 << 20))):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def _filled(folder: int, name: bytes) -> bool:
    with _opened(_open(folder, name, _FOLDER)) as fd, os.scandir(fd) as entries:
        return any(True for _ in entries)


def _quoted(path: bytes) -> bytes:
    if b"\0" in path:
        raise UnavailableError("a name has a NUL in it", code="bad_path")
    return b'"' + path.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n") + b'"'


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def size_of(top: Path) -> int:
    """Bytes on the disk below a folder."""
    total = 0
    for _, _, names, fd in os.fwalk(top, follow_symlinks=False):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(name, dir_fd=fd, follow_symlinks=False).st_blocks * 512
    return total
