"""Bodies sent as they come: a command's output, a file, the events.

Such a body has four ends: its source is done, its source fails, the client leaves, or the door closes. `Stream` ends
at the first of them and then closes its source, so that a command is ended and a file is let go, whoever went first.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from typing import Any, TypeVar

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cu_fleet.api.problems import problem_of, stopping
from cu_fleet.model.errors import FleetError

T = TypeVar("T")
NDJSON = "application/x-ndjson"
_END: Any = object()
_LAST_WORD = 0.5  # seconds for a long poll that the closing itself may have answered


class Stream(Response):
    """`farewell` ends the body when the door closes; without one it may go on for the door's grace."""

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        *,
        media_type: str,
        headers: Mapping[str, str] | None = None,
        closing: asyncio.Event | None = None,
        farewell: bytes = b"",
    ) -> None:
        super().__init__(None, 200, headers, media_type)
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._chunks, self._closing, self._farewell = chunks, closing, farewell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        name = f"{scope['method']} {scope['path']}"
        sending = asyncio.create_task(self._send(send), name=f"{name}: send")
        leaving = asyncio.create_task(_left(receive), name=f"{name}: client")
        ends = [sending, leaving]
        if self._closing is not None:
            ends.append(asyncio.create_task(_set(self._closing), name=f"{name}: door"))
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            left = leaving.done()
        finally:
            for task in ends:
                task.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
            await self._chunks.aclose()
        if sending.cancelled() and not left:
            await send({"type": "http.response.body", "body": self._farewell, "more_body": False})
        elif not sending.cancelled():
            sending.result()

    async def _send(self, send: Send) -> None:
        async for chunk in self._chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _set(event: asyncio.Event) -> None:
    await event.wait()


async def until_closing(closing: asyncio.Event, work: Coroutine[Any, Any, T]) -> T:
    """`work`, unless the door closes first: a long poll must not keep it open, but what is just settled is told."""
    working = asyncio.create_task(work, name="held: work")
    closed = asyncio.create_task(_set(closing), name="held: door")
    try:
        await asyncio.wait([working, closed], return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([working], timeout=_LAST_WORD)
        if working.done():
            return working.result()
    finally:
        for task in (working, closed):
            task.cancel()
        await asyncio.gather(working, closed, return_exceptions=True)
    raise stopping()


async def with_silences(source: AsyncIterator[T], every: float) -> AsyncGenerator[T | None, None]:
    """What `source` gives, and None whenever it has been silent for that long."""
    coming: asyncio.Task[T] | None = None
    try:
        while True:
            coming = coming or asyncio.create_task(_next(source), name="stream: next")
            done, _ = await asyncio.wait([coming], timeout=every)
            if not done:
                yield None
                continue
            item, coming = coming.result(), None
            if item is _END:
                return
            yield item
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        if isinstance(source, AsyncGenerator):
            await source.aclose()


async def _next(source: AsyncIterator[T]) -> T:
    return await anext(source, _END)


async def chunks_of(source: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """A source as a generator, closed with it."""
    try:
        async for chunk in source:
            yield chunk
    finally:
        if isinstance(source, AsyncGenerator):
            await source.aclose()


async def in_words(lines: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Lines of JSON whose status is already sent: what goes wrong now is the last line."""
    try:
        async for one in lines:
            yield one
    except FleetError as error:
        yield error_line(error)
    finally:
        await lines.aclose()


def line(value: object) -> bytes:
    return to_json(value, inf_nan_mode="null", fallback=str) + b"\n"


def error_line(error: FleetError) -> bytes:
    return line({"error": problem_of(error)})
