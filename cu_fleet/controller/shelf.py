"""Files under the hash of their bytes, in two-letter folders: `ab/abcdef….png`.

Plain functions for threads, with a lock around "is it there" and what follows from it. A file counts once it has its
name; until then it is a `.part`, and those that a crash has left are removed at the next start. What is read is hashed
again, so that nothing damaged is ever handed out.
"""

import hashlib
import os
import re
import threading
from pathlib import Path
from typing import NamedTuple

from cu_fleet.model.errors import BrokenError, NotFoundError

_NAME = re.compile(r"([0-9a-f]{64})\.(png|jpeg|webp)")
_PART = ".part"


class File(NamedTuple):
    format: str
    size: int


class Shelf:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.size = 0  # bytes of all files
        self._lock = threading.Lock()

    def open(self) -> None:
        """Reckon up what there is, without what a crash left half written."""
        with self._lock:
            for path in self.root.glob(f"??/*{_PART}"):
                path.unlink()
        self.size = sum(file.size for file in self.files().values())

    def files(self) -> dict[str, File]:
        found = {}
        for folder in self.root.glob("[0-9a-f][0-9a-f]"):
            with os.scandir(folder) as entries:
                for entry in entries:
                    if name := _NAME.fullmatch(entry.name):
                        found[name[1]] = File(name[2], entry.stat().st_size)
        return found

    def put(self, data: bytes, format: str) -> str:  # noqa: A002 - the name it has everywhere
        """Keep these bytes; returns their hash."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.put_back(sha256, data, format)
        return sha256

    def put_back(self, sha256: str, data: bytes, format: str) -> None:  # noqa: A002
        """Write the bytes that have this hash, if they are not there."""
        path = self._path(sha256, format)
        with self._lock:
            before = _size(path)
            if before != len(data):  # another size: a loss of power has left it empty or cut
                _write(path, data)
                self.size += len(data) - before

    def drop(self, sha256: str, format: str) -> bool:  # noqa: A002
        """Remove a file; returns whether it was there."""
        path = self._path(sha256, format)
        with self._lock:
            size = _size(path)
            path.unlink(missing_ok=True)
            self.size -= size
        return size > 0

    def named(self, beginning: str) -> list[str]:
        """The hashes of all files that begin like this."""
        folder = self.root / beginning[:2]
        names = [_NAME.fullmatch(path.name) for path in folder.glob(f"{beginning}*")] if folder.is_dir() else []
        return sorted({name[1] for name in names if name})

    def read(self, sha256: str, format: str) -> bytes:  # noqa: A002
        try:
            data = self._path(sha256, format).read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"frame {sha256} is no longer kept", code="no_kept_frame", sha256=sha256) from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BrokenError(
                f"the file of frame {sha256} is damaged",
                remedy="it cannot be shown any more; the record still names it",
                code="frame_damaged",
                sha256=sha256,
            )
        return data

    def _path(self, sha256: str, format: str) -> Path:  # noqa: A002
        return self.root / sha256[:2] / f"{sha256}.{format}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _write(path: Path, data: bytes) -> None:
    for folder in (path.parent.parent, path.parent):
        folder.mkdir(mode=0o700, exist_ok=True)
    part = path.with_suffix(_PART)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        part.rename(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
