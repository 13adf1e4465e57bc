"""The slot of a machine, carried over a restore: it lies inside, and what is restored must not contain it.

It is packed into an archive beside the desktops before the machine ends, and unpacked in the one that wakes, by its own
user: what is in it is the desktop's affair, and nobody here looks into it. An archive has its name only when it is
whole, and keeps it until it is unpacked: a restore that was cut off is finished with it. A desktop is restored even if
its slot cannot be saved, as it may be too broken for that; then a file in the new slot says so.
"""

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO

from cu_fleet.backends.base import Abilities, Exec, Process
from cu_fleet.backends.libvirt.layout import Desk
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import FleetError, UnavailableError

log = logging.getLogger(__name__)
Run = Callable[[list[str]], Awaitable[Process]]
NOTE = "NOT-KEPT.txt"
_PACK = 'exec tar --create --sparse --xattrs --ignore-failed-read --warning=none --directory="$HOME/Shared" .'
_UNPACK = 'exec tar --extract --preserve-permissions --xattrs --warning=none --directory="$HOME/Shared"'
_ANY_PACK = 'exec tar -c -f - -C "$HOME/Shared" .'  # by whichever tar there is
_ANY_UNPACK = 'exec tar -x -p -f - -C "$HOME/Shared"'
_CHUNK = 1 << 18
_FINE = (0, 1)  # for tar: something changed while it was read


class Carried:
    """One desktop's slot, on its way over one restore."""

    def __init__(self, desk: Desk, abilities: Abilities, most: int, fed: Exec | None = None) -> None:
        """In a machine with any tar, `fed` is how a command is run that is to read something."""
        assert abilities.exec
        assert abilities.files
        self.desk, self.exec, self.files, self.most = desk, abilities.exec, abilities.files, most
        self.fed = fed
        self.words = (_ANY_PACK, _ANY_UNPACK) if fed else (_PACK, _UNPACK)
        self.lost = ""

    @property
    def there(self) -> bool:
        return bool(self.lost) or place(self.desk).exists()

    async def out(self, handle: Handle) -> None:
        """Out of the machine, unless that was done before by whoever was cut off."""
        if place(self.desk).exists():
            return
        try:
            if await self.files.listing(handle):
                await pack(partial(self.exec.exec, handle), self.desk, self.most, self.words[0])
        except FleetError as e:
            self._lose(e)

    async def back(self, handle: Handle) -> None:
        """Into the machine that woke."""
        try:
            if not self.lost:
                await unpack(partial((self.fed or self.exec).exec, handle), self.desk, self.words[1])
        except FleetError as e:
            self._lose(e)
        if self.lost:
            await asyncio.to_thread(forget, self.desk)
            said = f"What was in here before this desktop was restored could not be kept: {self.lost}\n"
            with suppress(FleetError):  # it is in the log
                await self.files.put(handle, NOTE, chunks(said.encode()))

    def _lose(self, error: FleetError) -> None:
        self.lost = error.what
        log.warning("the slot of desktop %s is lost over a restore: %s", self.desk.id, error)


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    yield data


def words(seconds: float) -> str:
    return f"what is in its ~/Shared is carried over, for {seconds:.0f} s so far"


def place(desk: Desk) -> Path:
    return desk.dir.with_name(f".{desk.id}.slot")


def forget(desk: Desk) -> None:
    for path in desk.dir.parent.glob(f".{desk.id}.slot*"):
        path.unlink(missing_ok=True)


async def pack(run: Run, desk: Desk, most: int, words: str = _PACK) -> None:
    """What is in the slot, as one archive of no more than `most` bytes."""
    new = place(desk).with_name(f"{place(desk).name}.{secrets.token_hex(4)}")
    process = await run(["sh", "-c", words])
    try:
        with await asyncio.to_thread(_create, new) as file:
            wrong = await _take(process, file, desk, most)
        if (code := await process.wait()) not in _FINE:
            raise _failed(desk, f"tar ended with {code}: {wrong}")
        new.rename(place(desk))
    finally:
        await process.kill()
        new.unlink(missing_ok=True)


def _create(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


async def _take(process: Process, file: IO[bytes], desk: Desk, most: int) -> str:
    size, wrong = 0, b""
    async for number, data in process.output():
        if number == 2:
            wrong = (wrong + data)[-500:]
            continue
        size += len(data)
        if size > most:
            raise _failed(desk, f"it holds more than {most >> 20} MiB")
        try:
            await asyncio.to_thread(file.write, data)
        except OSError as e:
            raise _failed(desk, f"{file.name}: {e.strerror}") from e
    return wrong.decode("utf-8", "replace").strip()


async def unpack(run: Run, desk: Desk, words: str = _UNPACK) -> None:
    """Put it back, and forget it."""
    process = await run(["sh", "-c", words])
    hearing = asyncio.create_task(_heard(process), name=f"unpack {desk.id}")
    try:
        with await asyncio.to_thread(place(desk).open, "rb") as file:
            while data := await asyncio.to_thread(file.read, _CHUNK):
                await process.write(data)
        await process.close_stdin()
        if code := await process.wait():
            raise _failed(desk, f"tar ended with {code}: {await hearing}")
        place(desk).unlink()
    except UnavailableError as e:
        if e.code != "stdin_closed":
            raise
        raise _failed(desk, f"it could not be put back: {await hearing}") from e
    finally:
        await process.kill()
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)


async def _heard(process: Process) -> str:
    said = b""
    async for _, data in process.output():
        said = (said + data)[-500:]
    return said.decode("utf-8", "replace").strip()


def _failed(desk: Desk, why: str) -> FleetError:
    return UnavailableError(
        f"what was in ~/Shared of desktop {desk.id} could not be carried over the restore: {why}", code="slot_not_kept"
    )
