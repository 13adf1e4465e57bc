"""Files of ours as one stream, to be unpacked inside a desktop: contents, modes and links, but nobody's name.

What lies below the current folder keeps its place in relation to it, so that a command finds it where it would here;
anything else is found by its own name.
"""

import asyncio
import fcntl
import os
import tarfile
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from cu_fleet.cli import output
from cu_fleet.model.errors import InvalidError, NotFoundError, UnavailableError
from cu_fleet.settings import default_home

MOST_BYTES = 1 << 30
MOST_FILES = 100_000
_CHUNK = 256 << 10
_SAY = "say what to bring in with --put, or --bare for nothing"


def to_bring(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Each path and its name inside; refused if they are not there, or more than a desktop should be given."""
    here, home = Path.cwd(), Path.home()
    found = [(path, _name(path, here)) for path in paths]
    count = size = 0
    for path, _ in found:
        if not os.path.lexists(path):
            raise NotFoundError(f"there is no {path} here", code="no_file")
        whole, fleet = path.resolve(), default_home().resolve()
        if whole in (home, Path("/")):
            raise InvalidError(f"{whole} is not brought into a desktop as a whole", remedy=_SAY, code="usage")
        if fleet.is_relative_to(whole) or whole.is_relative_to(fleet):
            what = f"{whole} and {fleet}, where the fleet keeps its secrets and its desktops, are one in the other"
            raise InvalidError(what, remedy=_SAY, code="usage")
        for folder, _, files in os.walk(path) if path.is_dir() else [(str(path.parent), [], [path.name])]:
            count += 1 + len(files)
            size += sum(os.lstat(Path(folder, name)).st_size for name in files)
            if count > MOST_FILES or size > MOST_BYTES:
                most = f"{output.size(MOST_BYTES)} or {MOST_FILES} files"
                raise InvalidError(f"{path.resolve()} holds more than {most}", remedy=_SAY, code="too_large")
    return found


def _name(path: Path, here: Path) -> str:
    """Without following links: a link is brought as one."""
    whole = Path(os.path.normpath(here / path))
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else whole.name


class Packed:
    """The stream. What could not be read ends it early, and is then raised by `check`."""

    def __init__(self, found: Sequence[tuple[Path, str]]) -> None:
        self._found = found
        self._failed: OSError | None = None

    def check(self) -> None:
        if self._failed:
            raise UnavailableError(f"the files could not be brought in: {self._failed}", code="not_readable")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _CHUNK)
        packing = threading.Thread(target=self._pack, args=(writing,), name="pack files", daemon=True)
        packing.start()
        try:
            while data := await asyncio.to_thread(os.read, reading, _CHUNK):
                yield data
        finally:
            os.close(reading)  # and the thread ends, for nobody takes what it writes

    def _pack(self, descriptor: int) -> None:
        try:
            with os.fdopen(descriptor, "wb") as pipe, tarfile.open(fileobj=pipe, mode="w|", bufsize=_CHUNK) as tar:
                for path, name in self._found:
                    tar.add(path, name, filter=_nobodys)
        except BrokenPipeError:
            pass
        except OSError as error:
            self._failed = error


def _nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if not (member.isfile() or member.isdir() or member.issym() or member.islnk()):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
