"""A viewer's connection over TCP or a unix socket."""

import asyncio
import socket

from cu_fleet.model.errors import FleetError

_MOST = 64 << 10  # bytes read at once
_UNSENT = 64 << 10  # bytes that wait in this process before a sender waits too
_LAST_WORDS = 1.0  # seconds for what is still unsent
_IN_KERNEL = 256 << 10  # and in the kernel's buffer: what lies there is old when a slow viewer gets it


class StreamWire:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        writer.transport.set_write_buffer_limits(high=_UNSENT)
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _IN_KERNEL)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    async def receive(self) -> bytes:
        try:
            return await self._reader.read(_MOST)
        except OSError:
            return b""

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def close(self, why: FleetError | None, *, at_once: bool) -> None:
        try:
            if not at_once:
                self._writer.close()
                async with asyncio.timeout(_LAST_WORDS):
                    await self._writer.wait_closed()
        except (OSError, TimeoutError):
            pass  # it is gone, or takes nothing any more
        finally:
            self._writer.transport.abort()
