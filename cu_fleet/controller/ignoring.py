"""What git would leave out of a folder, asked of a git that does not see it.

It is shown the ignore files and the names of folders, copied into a folder of ours, and answers for all other names.
"""

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cu_fleet.controller.carrying import Name
from cu_fleet.controller.git import Owner
from cu_fleet.model.errors import UnavailableError


@contextlib.contextmanager
def scratch_for(owner: Owner) -> Iterator[Path]:
    """A folder that git may read, and only we write."""
    with tempfile.TemporaryDirectory(prefix="cu-fleet-") as name:
        if not owner.ours:
            os.chown(name, -1, owner.gid)
            Path(name).chmod(0o750)
        yield Path(name)


class Ignoring:
    """Asks git, folder by folder, once it has been shown the folder's ignore file and the folders in it."""

    _AT_ONCE = 16 << 10  # bytes of names, so that neither side waits for the other's pipe

    def __init__(self, stdin: IO[bytes], stdout: IO[bytes], scratch: Path) -> None:
        self._in, self._out = stdin, stdout
        self._scratch = scratch

    def __call__(self, inside: bytes, ignore_file: bytes, names: list[Name]) -> list[bool]:
        here = self._scratch / os.fsdecode(inside)
        if ignore_file:
            (here / ".gitignore").write_bytes(ignore_file)
        for name, found in names:
            if stat.S_ISDIR(found.st_mode):
                (here / os.fsdecode(name)).mkdir()
        paths = [inside + b"/" + name if inside else name for name, _ in names]
        return [answer for some in _in_parts(paths, self._AT_ONCE) for answer in self._ask(some)]

    def _ask(self, paths: list[bytes]) -> list[bool]:
        self._in.write(b"".join(b"./" + path + b"\0" for path in paths))  # a leading colon would be magic
        self._in.flush()
        return [self._answer() for _ in paths]

    def _answer(self) -> bool:
        """The file, line and pattern that decided, and the path; all but the last empty if none did."""
        _, _, pattern, _ = (self._field() for _ in range(4))
        return bool(pattern) and not pattern.startswith(b"!")

    def _field(self) -> bytes:
        field = bytearray()
        while (byte := self._out.read(1)) != b"\0":
            if not byte:
                raise UnavailableError("git check-ignore broke off", code="git_failed")
            field += byte
        return bytes(field)


def _in_parts(paths: list[bytes], most: int) -> Iterator[list[bytes]]:
    part: list[bytes] = []
    size = 0
    for path in paths:
        if part and size + len(path) > most:
            yield part
            part, size = [], 0
        part.append(path)
        size += len(path) + 1
    if part:
        yield part
