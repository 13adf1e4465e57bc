"""Files in and out of `~/Shared`, for a backend that does not see that folder: one operation a run.

    slot.py get PATH | put PATH MODE | list PATH | remove PATH

What goes in comes on standard input, ended by a byte 1; without that it is not put in. What goes out comes on standard
output; a listing as lines of JSON. A refusal is the name of an error on standard error, with the exit code 1. It runs
as the desktop's own user, so there is nothing it could do that the desktop could not; no link is followed all the same,
so that what is asked for is what comes.
"""

# pathlib and contextlib are among what would cost:
# ruff: noqa: PTH101, PTH208, SIM105, TRY301

import errno
import json
import os
import stat
import sys
from typing import BinaryIO

ROOT = "/run/cu-fleet-slot"
MOST_LISTED = 10_000
_CHUNK = 1 << 18
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def folder(names: list[str], *, make: bool = False) -> int:
    fd = os.open(ROOT, _FOLDER)
    for name in names:
        if make:
            try:
                os.mkdir(name, 0o755, dir_fd=fd)
            except FileExistsError:
                pass
        inner = os.open(name, _FOLDER, dir_fd=fd)
        os.close(fd)
        fd = inner
    return fd


def get(names: list[str], out: BinaryIO) -> None:
    """As much as there is now: a file that grows for ever is not read for ever."""
    fd = os.open(names[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=folder(names[:-1]))
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EMEDIUMTYPE, "")
    left = found.st_size
    while left > 0 and (data := os.read(fd, min(_CHUNK, left))):
        left -= len(data)
        out.write(data)


def put(names: list[str], mode: int, data: BinaryIO) -> None:
    """Beside its place first. The last byte says that all came; one is always kept back to know it."""
    into, part = folder(names[:-1], make=True), f".{os.urandom(8).hex()}.part"
    if _other_kind(names[-1], into):
        raise OSError(errno.ENOTUNIQ, "")
    fd = os.open(part, _NEW, 0o600, dir_fd=into)
    try:
        kept = b""
        while chunk := data.read(_CHUNK):
            _write(fd, kept + chunk[:-1])
            kept = chunk[-1:]
        if kept != b"\1":
            raise OSError(errno.ECANCELED, "")
        os.fchmod(fd, mode)
        os.rename(part, names[-1], src_dir_fd=into, dst_dir_fd=into)
    except BaseException:
        os.unlink(part, dir_fd=into)
        raise


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _other_kind(name: str, into: int) -> bool:
    try:
        return not stat.S_ISREG(os.stat(name, dir_fd=into, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def listing(names: list[str], out: BinaryIO) -> None:
    if names:
        parent = folder(names[:-1])
        found = os.stat(names[-1], dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode):
            out.write(_line("", found))
            return
    fd = folder(names)
    for number, name in enumerate(sorted(os.listdir(fd))):
        if number >= MOST_LISTED:
            raise OSError(errno.E2BIG, "")
        try:
            out.write(_line(name, os.stat(name, dir_fd=fd, follow_symlinks=False)))
        except FileNotFoundError:
            pass


def _line(name: str, found: os.stat_result) -> bytes:
    kind = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link"}.get(stat.S_IFMT(found.st_mode), "other")
    readable = os.fsencode(name).decode("utf-8", "backslashreplace")
    words = [readable, kind, found.st_size, found.st_mtime, stat.S_IMODE(found.st_mode)]
    return json.dumps(words).encode() + b"\n"


def remove(names: list[str]) -> None:
    try:
        fd = folder(names[:-1])
    except FileNotFoundError:
        return
    for name in [names[-1]] if names else os.listdir(fd):
        _remove(name, fd)


def _remove(name: str, fd: int) -> None:
    """Deeper than Python can count it fails, and so does the rollback, which then takes the whole desktop away."""
    try:
        if not stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=fd)
            return
        os.chmod(name, 0o700, dir_fd=fd)
        inner = os.open(name, _FOLDER, dir_fd=fd)
        try:
            for one in os.listdir(inner):
                _remove(one, inner)
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=fd)
    except FileNotFoundError:
        pass


def main() -> None:
    what, path, *more = sys.argv[1:]
    names = path.split("/") if path else []
    try:
        os.chmod(ROOT, 0o700)
        if what == "get":
            get(names, sys.stdout.buffer)
        elif what == "put":
            put(names, int(more[0]), sys.stdin.buffer)
        elif what == "list":
            listing(names, sys.stdout.buffer)
        else:
            remove(names)
        sys.stdout.buffer.flush()
    except OSError as e:
        sys.exit(errno.errorcode.get(e.errno or 0, "EIO"))


if __name__ == "__main__":
    main()
