"""What a desktop needs whose engine does not see our files: all goes in as an archive, and comes out by its doors.

Its container has volumes where a near one has folders of ours, and no file of it lies here but a mark that says so.
The archive is laid into the container before it starts: the system's own files, which belong to root there, so that
its system need not be read-only for them to be safe from the desktop.
"""

from __future__ import annotations

import asyncio
import errno
import io
import json
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from cu_fleet.backends.base import FileInfo, Process
from cu_fleet.backends.docker.begin import FAR_STATE, STATE
from cu_fleet.backends.docker.layout import Desk
from cu_fleet.backends.inside import BEGINNING
from cu_fleet.backends.slot import in_words, parts
from cu_fleet.guest import init as guest
from cu_fleet.guest import slot as inside
from cu_fleet.model.errors import BrokenError, ConflictError, FleetError, InvalidError

if TYPE_CHECKING:
    from docker import APIClient

PROGRAMS = ("tunnel", "slot")
_PROGRAM = ["/usr/bin/python3", "-I", "-S", f"{guest.SETUP}/slot.py"]
_CHUNK = 64 << 10
_MOST_LISTING = 64 << 20
Run = Callable[[Sequence[str]], Awaitable[Process]]


def lay_in(
    api: APIClient, container: str, system: dict[str, bytes], own: dict[str, bytes], state: bytes | None, uid: int
) -> None:
    """Put files below /etc and in init's folder, and where the home comes from; the slot is given to its user."""
    programs = {f"{name}.py": (files("cu_fleet.guest") / f"{name}.py").read_bytes() for name in PROGRAMS}
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        _add(tar, guest.SETUP, None)
        for folder in {name.rpartition("/")[0] for name in own} - {""}:  # the engine would let anybody write there
            _add(tar, f"{guest.SETUP}/{folder}", None)
        for top, some in (("/etc", system), (guest.SETUP, {**own, **programs})):
            for name, content in some.items():
                _add(tar, f"{top}/{name}", content)
        for folder in (inside.ROOT, FAR_STATE):
            _add(tar, folder, None, uid)
        if state is not None:
            _add(tar, f"{FAR_STATE}/{STATE}", state, uid)
    api.put_archive(container, "/", data.getvalue())


def _add(tar: tarfile.TarFile, path: str, content: bytes | None, uid: int = 0) -> None:
    member = tarfile.TarInfo(path[1:])
    member.uid = member.gid = uid
    member.mtime = BEGINNING // 10**9
    member.mode = (0o700 if uid else 0o755) if content is None else 0o644
    member.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
    member.size = len(content or b"")
    tar.addfile(member, io.BytesIO(content or b""))


class FarSlot:
    """Files in and out of one slot, by a program inside."""

    def __init__(self, desk: Desk, run: Run) -> None:
        self._desk = desk
        self._run = run

    async def put(self, path: str, data: AsyncIterator[bytes], *, mode: int = 0o644) -> int:
        if not parts(path):
            raise InvalidError("a file needs a name", code="bad_path", path=path)
        process, size = await self._begin("put", path, str(mode & 0o777)), 0
        try:
            async for chunk in data:
                await self._write(process, path, chunk)
                size += len(chunk)
            await self._write(process, path, b"\1")
            await self._end(process, path)
        except BaseException:
            await process.close_stdin()
            await asyncio.shield(_let_end(process))
            raise
        return size

    async def _write(self, process: Process, path: str, data: bytes) -> None:
        try:
            await process.write(data)
        except FleetError:
            await self._end(process, path)  # raises why it takes no more
            raise

    async def get(self, path: str) -> AsyncIterator[bytes]:
        if not parts(path):
            raise InvalidError("the slot is a folder, not a file", code="not_a_file", path=path)
        process = await self._begin("get", path)
        try:
            async for data in self._output(process, path):
                yield data
        finally:
            await process.kill()

    async def listing(self, path: str = "") -> list[FileInfo]:
        process = await self._begin("list", path)
        said = b""
        try:
            async for data in self._output(process, path):
                said += data
                if len(said) > _MOST_LISTING:
                    raise InvalidError(f"{path or 'the slot'} has names without end", code="too_many_files")
        finally:
            await process.kill()
        try:
            return [_info(path, json.loads(line)) for line in said.splitlines()]
        except (ValueError, TypeError) as e:
            raise BrokenError(f"desktop {self._desk.id} lists its files as nonsense", code="nonsense") from e

    async def remove(self, path: str) -> None:
        process = await self._begin("remove", path)
        try:
            await self._end(process, path)
        finally:
            await process.kill()

    async def _begin(self, what: str, path: str, *more: str) -> Process:
        parts(path)
        return await self._run([*_PROGRAM, what, path, *more])

    async def _end(self, process: Process, path: str) -> None:
        await process.close_stdin()
        async for _ in self._output(process, path):
            pass

    async def _output(self, process: Process, path: str) -> AsyncIterator[bytes]:
        """What it says, up to its end, which may be a refusal."""
        error = b""
        async for stream, data in process.output():
            if stream == 1:
                yield data
            else:
                error = (error + data)[-200:]
        if await process.wait() != 0:
            raise _refusal(path, error.decode("utf-8", "replace").strip())


async def _let_end(process: Process) -> None:
    try:
        async with asyncio.timeout(5):
            await process.wait()
    except TimeoutError:
        pass
    finally:
        await process.kill()


def _refusal(path: str, error: str) -> FleetError:
    """What the program says by the name of an error."""
    if error in ("EMEDIUMTYPE", "ENOTDIR"):
        return InvalidError(f"{path!r} is not a file, or leads over something that is no folder", code="not_a_file")
    if error == "ENOTUNIQ":
        return ConflictError(
            f"{path!r} is there already, and is no file", remedy="remove it or choose another name", code="not_a_file"
        )
    if error == "E2BIG":
        return InvalidError(f"{path or 'the slot'} has more than {inside.MOST_LISTED} entries", code="too_many_files")
    number = getattr(errno, error, errno.EIO)
    return in_words(path, OSError(number, f"{error or 'it was ended'}"))


def _info(path: str, said: Any) -> FileInfo:
    name, kind, size, mtime, mode = said
    inside = "/".join(filter(None, (path, str(name))))
    if kind not in ("file", "dir", "link", "other"):
        raise ValueError(kind)
    return FileInfo(inside, kind, int(size), float(mtime), int(mode))
