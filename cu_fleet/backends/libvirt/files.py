"""The slot of a machine, which lies inside it: files go in and out over the wire, read and written by its own user."""

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any

from cu_fleet.backends.base import FileInfo, Process
from cu_fleet.backends.slot import MAX_LISTED, parts
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import (
    BrokenError,
    ConflictError,
    FleetError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)

Begin = Callable[[Handle, list[str]], Awaitable[Process]]
Glance = Callable[[Handle], Awaitable[object]]
_MOST_SAID = 16 << 20
_SECONDS_TO_TIDY = 10.0
_CLASSES: dict[str, type[FleetError]] = {
    "bad_path": InvalidError,
    "no_file": NotFoundError,
    "not_a_file": ConflictError,
    "too_many_files": InvalidError,
}


class Files:
    def __init__(self, begin: Begin, glance: Glance | None = None) -> None:
        """`glance` says what lies at the top of the slot, without starting anything, if that is little."""
        self._begin, self._glance = begin, glance

    async def put(self, handle: Handle, path: str, data: AsyncIterator[bytes], *, mode: int = 0o644) -> int:
        if not parts(path):
            raise InvalidError("a file needs a name", code="bad_path", path=path)
        end = secrets.token_hex(16)  # that it came whole is said only by this
        process = await self._begin(handle, ["put", path, str(mode & 0o777), end])
        try:
            async for chunk in data:
                await process.write(chunk)
            await process.write(end.encode())
            await process.close_stdin()
            return int(await self._said(process, path))
        except BaseException:
            await _give_up(process)
            raise
        finally:
            await process.kill()

    async def get(self, handle: Handle, path: str) -> AsyncIterator[bytes]:
        if not parts(path):
            raise InvalidError("the slot is a folder, not a file", code="not_a_file", path=path)
        process = await self._begin(handle, ["get", path])
        try:
            wrong = b""
            async for number, chunk in process.output():
                if number == 1:
                    yield chunk
                else:
                    wrong = (wrong + chunk)[-4096:]
            _judge(await process.wait(), wrong, path)
        finally:
            await process.kill()

    async def listing(self, handle: Handle, path: str = "") -> list[FileInfo]:
        if not parts(path) and self._glance:
            with contextlib.suppress(UnsupportedError):
                if isinstance(few := await self._glance(handle), list):
                    return _listed(few)
        process = await self._begin(handle, ["list", path])
        try:
            lines = (await self._said(process, path)).splitlines()
        finally:
            await process.kill()
        return _listed(map(json.loads, lines[: MAX_LISTED + 1]))

    async def remove(self, handle: Handle, path: str) -> None:
        parts(path)
        process = await self._begin(handle, ["remove", path])
        try:
            await self._said(process, path)
        finally:
            await process.kill()

    async def _said(self, process: Process, path: str) -> str:
        said = {1: b"", 2: b""}
        with contextlib.suppress(UnavailableError):
            await process.close_stdin()
        async for number, chunk in process.output():
            said[number] += chunk
            if len(said[number]) > _MOST_SAID:
                raise BrokenError("a desktop's answer about its files has no end", code="files_nonsense")
        _judge(await process.wait(), said[2], path)
        return said[1].decode("utf-8", "replace")


def _listed(said: Iterable[Sequence[Any]]) -> list[FileInfo]:
    try:
        found = [FileInfo(*words) for words in said]
    except (ValueError, TypeError):
        raise BrokenError("a desktop's list of files is nonsense", code="files_nonsense") from None
    return [one for one in found if isinstance(one.path, str) and isinstance(one.size, int)]


async def _give_up(process: Process) -> None:
    """Let the program see that this is not the end it waits for, so that it leaves nothing behind."""
    with contextlib.suppress(FleetError, TimeoutError):
        async with asyncio.timeout(_SECONDS_TO_TIDY):
            await process.close_stdin()
            await process.wait()


def _judge(code: int, wrong: bytes, path: str) -> None:
    if code == 0:
        return
    last = wrong.decode("utf-8", "replace").strip().rpartition("\n")[2]
    try:
        word, why = json.loads(last)
    except (ValueError, TypeError):
        word, why = "file_failed", last or f"the desktop's program ended with {code}"
    kind = _CLASSES.get(str(word), UnavailableError)
    raise kind(f"{path!r}: {str(why)[:300]}", code=word if word in _CLASSES else "file_failed", path=path)
