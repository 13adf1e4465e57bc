"""The files that a leased desktop shares with whoever drives it: what is `~/Shared` inside."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

from cu_fleet.backends.base import FileInfo
from cu_fleet.client.http import chunks, v1
from cu_fleet.client.opened import Opened


class Shared(Opened):
    async def files(self, path: str = "") -> list[FileInfo]:
        answer = await self._call("GET", "files", query={"path": path})
        return [FileInfo(**one) for one in answer.json()["files"]]

    async def put_file(
        self, path: str, data: bytes | os.PathLike[str] | AsyncIterator[bytes], *, mode: int = 0o644
    ) -> int:
        """Write bytes, or the file at a local path, to `path`; returns the size."""
        content = _contents(Path(data)) if isinstance(data, os.PathLike) else data
        query = {"mode": f"{mode:04o}"}
        answer = await self._call("PUT", "files", *path.split("/"), query=query, content=content, patience=600)
        return int(answer.json()["size"])

    async def get_file(self, path: str) -> bytes:
        return bytes((await self._call("GET", "files", *path.split("/"), patience=600)).content)

    async def download(self, path: str, to: str | os.PathLike[str]) -> int:
        """Write a file to a local path, whole or not at all; returns the size."""
        target = Path(to)
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            size = await self._downloaded(path, part)
            await asyncio.to_thread(part.replace, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return size

    async def _downloaded(self, path: str, part: Path) -> int:
        size = 0
        url = v1("leases", self.id, "files", *path.split("/"))
        async with self._wire.stream("GET", url, token=self.lease.token, patience=600, start=False) as answer:
            with await asyncio.to_thread(part.open, "wb") as file:
                async for chunk in chunks(self._wire, answer):
                    size += await asyncio.to_thread(file.write, chunk)
        return size

    async def remove_file(self, path: str) -> None:
        await self._call("DELETE", "files", *path.split("/"))


async def _contents(path: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, 256 << 10):
            yield chunk
