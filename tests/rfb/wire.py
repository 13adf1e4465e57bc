"""The server's side of RFB, as bytes, and a small server that speaks it."""

import asyncio
import socket
import struct
from typing import Self

INIT = struct.pack("!HH16sI", 64, 48, bytes.fromhex("20180001 00ff00ff00ff 100800 000000"), 4) + b"fake"
HELLO = b"RFB 003.008\n" + b"\x01\x01" + b"\0\0\0\0" + INIT


def rect(x: int, y: int, width: int, height: int, encoding: int, data: bytes = b"") -> bytes:
    return struct.pack("!HHHHi", x, y, width, height, encoding) + data


def update(*rects: bytes, count: int | None = None) -> bytes:
    return struct.pack("!BxH", 0, len(rects) if count is None else count) + b"".join(rects)


def raw(x: int, y: int, width: int, height: int, colour: bytes = b"\1\2\3\0") -> bytes:
    return rect(x, y, width, height, 0, colour * (width * height))


def fence(payload: bytes, flags: int = 0) -> bytes:
    return struct.pack("!BxxxIB", 248, flags, len(payload)) + payload


def cut_text(data: bytes, size: int | None = None) -> bytes:
    return struct.pack("!Bxxxi", 3, len(data) if size is None else size) + data


class Server:
    """A screen of 64x48 in one colour, over a socket pair; answers requests until told otherwise."""

    def __init__(self, *, fences: bool = True, name: bytes = b"fake") -> None:
        self.hello = HELLO[:-8] + struct.pack("!I", len(name)) + name
        self.fences = fences
        self.colour = b"\1\2\3\0"
        self.answers = True
        self.heard: list[tuple[int, ...]] = []  # key and pointer events
        self.requests: list[tuple[int, int, int, int, int]] = []  # incremental, x, y, width, height
        self.ours, theirs = socket.socketpair()
        self._theirs = theirs

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection(sock=self._theirs)
        self._task = asyncio.create_task(self._serve(), name="fake rfb server")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        self.writer.close()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def answer(self, x: int, y: int, width: int, height: int) -> bytes:
        return raw(x, y, width, height, self.colour)

    async def _serve(self) -> None:
        self.send(self.hello)
        await self.reader.readexactly(12 + 1 + 1)
        while kind := await self.reader.readexactly(1):
            await self._message(kind[0])

    async def _message(self, kind: int) -> None:
        read = self.reader.readexactly
        if kind == 0:
            await read(19)
        elif kind == 2:
            (count,) = struct.unpack("!xH", await read(3))
            await read(4 * count)
            if self.fences:
                self.send(fence(b"\0", 1 << 31))
        elif kind == 3:
            self.requests.append(struct.unpack("!BHHHH", await read(9)))
            incremental, x, y, width, height = self.requests[-1]
            if self.answers and not (incremental and self.fences):
                self.send(update(self.answer(x, y, width, height)))
        elif kind == 4:
            self.heard.append((4, *struct.unpack("!BxxI", await read(7))))
        elif kind == 5:
            self.heard.append((5, *struct.unpack("!BHH", await read(5))))
        elif kind == 6:
            (size,) = struct.unpack("!xxxi", await read(7))
            await read(abs(size))
        elif kind == 248:
            flags, size = struct.unpack("!xxxIB", await read(8))
            payload = await read(size)
            if flags >> 31 and self.answers:
                self.send(fence(payload))
