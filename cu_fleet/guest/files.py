"""The slot's files, for a desktop whose slot lies inside it: one call for each, as the desktop's own user.

It is given what to do and the path. What is refused is said in one line of JSON on standard error, with exit code 3;
everything else that fails says so as Python does.
"""

# By descriptors and plain names, as these are what is spoken of here:
# ruff: noqa: PTH111, PTH116, PTH208, SIM105, TRY301

import errno
import itertools
import json
import os
import shutil
import stat
import sys

_CHUNK = 256 << 10
_MOST = 10_000
_FEW = 50
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link"}


class RefusedError(Exception):
    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code


def folder(names: list[str], *, make: bool = False) -> int:
    """A folder below the slot, opened part by part, and never over a link."""
    fd = os.open(os.path.expanduser("~/Shared"), _FOLDER)
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


def look(names: list[str]) -> os.stat_result:
    if not names:
        return os.stat(os.path.expanduser("~/Shared"))
    return os.stat(names[-1], dir_fd=folder(names[:-1]), follow_symlinks=False)


def kind(found: os.stat_result) -> str:
    return _KINDS.get(stat.S_IFMT(found.st_mode), "other")


def get(names: list[str]) -> None:
    if kind(look(names)) != "file":
        raise RefusedError("not_a_file", f"is a {kind(look(names))}, not a file")
    fd = os.open(names[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder(names[:-1]))
    left = os.fstat(fd).st_size  # what grows for ever is not read for ever
    while left > 0 and (chunk := os.read(fd, min(_CHUNK, left))):
        left -= len(chunk)
        sys.stdout.buffer.write(chunk)


def put(names: list[str], mode: int, last: str) -> None:
    """What comes on standard input, whole or not at all: only `last` tells its end from its being cut off."""
    above = folder(names[:-1], make=True)
    try:
        if kind(os.stat(names[-1], dir_fd=above, follow_symlinks=False)) != "file":
            raise RefusedError("not_a_file", "is something else than a file already")
    except FileNotFoundError:
        pass
    part = f".{os.urandom(8).hex()}.part"
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=above)
    try:
        with os.fdopen(fd, "w+b") as file:
            shutil.copyfileobj(sys.stdin.buffer, file, _CHUNK)
            end = max(0, file.tell() - len(last))
            file.seek(end)
            if file.read() != last.encode():
                raise RefusedError("cut_off", "was cut off")
            file.truncate(end)
            os.fchmod(file.fileno(), mode)
        os.rename(part, names[-1], src_dir_fd=above, dst_dir_fd=above)
    except BaseException:
        os.unlink(part, dir_fd=above)
        raise
    print(end)


def listing(names: list[str]) -> None:
    path = "/".join(names)
    if kind(look(names)) != "dir":
        entries = [(path, look(names))]
    else:
        fd = folder(names)
        inside = os.listdir(fd)
        if len(inside) > _MOST:
            raise RefusedError("too_many_files", f"has more than {_MOST} entries")
        entries = [(f"{path}/{name}".lstrip("/"), os.stat(name, dir_fd=fd, follow_symlinks=False)) for name in inside]
    for name, found in sorted(entries, key=lambda one: one[0]):
        print(json.dumps(told(name, found)))


def told(name: str, found: os.stat_result) -> list[object]:
    shown = os.fsencode(name).decode("utf-8", "backslashreplace")
    return [shown, kind(found), found.st_size, found.st_mtime, stat.S_IMODE(found.st_mode)]


def few(home: str) -> list[list[object]] | None:
    """What lies at the top of the slot, if it is little and there is nothing odd about it.

    For root, and at once: no link of the desktop's is followed, and nothing is opened but the folder.
    """
    try:
        fd = os.open(f"{home}/Shared", _FOLDER | os.O_CLOEXEC)
        try:
            with os.scandir(fd) as found:
                names = [one.name for one in itertools.islice(found, _FEW + 1)]
            if len(names) > _FEW:
                return None
            return [told(name, os.stat(name, dir_fd=fd, follow_symlinks=False)) for name in sorted(names)]
        finally:
            os.close(fd)
    except OSError:
        return None


def remove(names: list[str]) -> None:
    try:
        above = folder(names[:-1])
        for name in [names[-1]] if names else os.listdir(above):
            if kind(os.stat(name, dir_fd=above, follow_symlinks=False)) == "dir":
                shutil.rmtree(name, dir_fd=above)
            else:
                os.unlink(name, dir_fd=above)
    except FileNotFoundError:
        pass


def main(argv: list[str]) -> None:
    do, path, *more = argv
    names = path.split("/") if path else []
    try:
        if do == "get":
            get(names)
        elif do == "put":
            put(names, int(more[0]), more[1])
        elif do == "list":
            listing(names)
        else:
            remove(names)
    except RefusedError as e:
        fail(e.code, str(e))
    except OSError as e:
        words = {errno.ENOENT: "no_file", errno.ELOOP: "bad_path", errno.ENOTDIR: "bad_path", errno.ENOSPC: "disk_full"}
        fail(words.get(e.errno or 0, "file_failed"), f"could not be used: {e.strerror}")


def fail(code: str, why: str) -> None:
    print(json.dumps([code, why]), file=sys.stderr)
    sys.exit(3)
