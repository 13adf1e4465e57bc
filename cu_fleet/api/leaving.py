"""Work that ends when whoever asked for it leaves: what was to be typed for them is not, and what was held goes up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive


@asynccontextmanager
async def unless_left(receive: Receive) -> AsyncIterator[Receive]:
    """In here is the way to receive; a ClientDisconnect breaks it off."""
    async with asyncio.timeout(None) as patience:
        client = _Client(receive, patience)
        try:
            yield client.receive
        except asyncio.CancelledError:
            if patience.expired():
                raise ClientDisconnect from None
            raise
        finally:
            await client.forget()


class _Client:
    """Watched as soon as all of its body has come: until then a receiver hears it leave."""

    def __init__(self, receive: Receive, patience: asyncio.Timeout) -> None:
        self._receive, self._patience = receive, patience
        self._leaving: asyncio.Task[None] | None = None

    async def receive(self) -> Message:
        if self._leaving is not None:
            await asyncio.wait({self._leaving})
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            self._leaving = asyncio.create_task(self._left(), name="watch the client")
        return message

    async def _left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._patience.reschedule(asyncio.get_running_loop().time())

    async def forget(self) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
            await asyncio.wait({self._leaving})
