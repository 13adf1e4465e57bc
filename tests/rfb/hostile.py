"""Servers that mean harm, as streams of bytes; and a neighbour who must not suffer by them.

A `Stream` is what a server says, chunk by chunk, for ever if it likes. `serving` says it to whoever has the other end
of the socket, as fast as that takes it in, and hears, or does not hear, what is said back.
"""

import asyncio
import random
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import chain, cycle, repeat

from cu_fleet.rfb.screen import Screen
from tests.rfb.wire import HELLO, INIT, Server, cut_text, fence, raw, rect, update

Stream = Callable[[], Iterator[bytes]]
PIXEL = update(raw(0, 0, 1, 1))  # the answer that `Screen.open` waits for
NAME, SIZE, LEDS, MOVED, MASKED, ALPHA = -307, -223, -261, 0x574D5666, -239, -314
BAD_SIZES = [(65535, 65535), (16385, 1), (1, 65535), (0, 0), (0, 48), (9000, 9000)]
_REQUEST = 1 << 31
_LOOK = struct.pack("!BBHHHH", 3, 0, 0, 0, 1, 1)


def hello(width: int, height: int, name: bytes = b"big") -> bytes:
    return HELLO[: -len(INIT)] + struct.pack("!HH", width, height) + INIT[4:-8] + struct.pack("!I", len(name)) + name


WIDE = (4000, 2250)
TURNED = [(2250, 4000), WIDE]
BIG = hello(2000, 2000)


def after(*data: bytes, start: bytes = HELLO) -> Stream:
    """Let in, looked at once, and then this."""
    return lambda: iter((start, PIXEL, *data))


def endless(*messages: bytes, start: bytes = HELLO) -> Stream:
    """The same messages for ever, in chunks that keep a reader busy."""
    once = b"".join(messages)
    many = once * max(1, 65536 // len(once))
    return lambda: chain((start, PIXEL), repeat(many))


def many(*rects: bytes, start: bytes = HELLO) -> Stream:
    """The same rectangles over and over in one update."""
    return endless(update(*rects * (65534 // len(rects))), start=start)


def bomb(size: int) -> bytes:
    packed = zlib.compress(struct.pack("!I", size - 4) + bytes(size - 4), 9)
    return cut_text(struct.pack("!I", 1 << 28 | 1) + packed, -4 - len(packed))


def rubbish(seed: int) -> Stream:
    chance = random.Random(seed)
    return lambda: chain((HELLO, PIXEL), (chance.randbytes(chance.randint(1, 5000)) for _ in repeat(None)))


def _in_greeting() -> dict[str, tuple[Stream, str]]:
    said: dict[str, tuple[bytes, str]] = {
        "another protocol": (b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n", "no VNC server"),
        "version of letters": (b"RFB aaa.bbb\n", "no VNC server"),
        "version nought": (b"RFB 000.000\n", "speaks RFB 000.000"),
        "logins not known": (b"RFB 003.008\n\x03\x05\x13\x1e", "kind of login that is not known here (5, 19, 30)"),
        "255 logins not known": (b"RFB 003.008\n\xff" + b"\x77" * 255, "kind of login"),
        "login of 3.3 not known": (b"RFB 003.003\n\0\0\0\x13", "kind of login that is not known here (19)"),
        "turned away": (b"RFB 003.008\n\0\0\0\0\x04busy", "refused us: busy"),
        "turned away by 3.3": (b"RFB 003.003\n\0\0\0\0\0\0\0\x04busy", "refused us: busy"),
        "reason of 4 GB": (b"RFB 003.003\n\0\0\0\0\xff\xff\xff\xff", "4,294,967,295 bytes"),
        "reason that paints": (b"RFB 003.008\n\0\0\0\0\x08\x1b[2J\x07\x9b1m", "refused us: \ufffd[2J"),
        "let in, then not": (b"RFB 003.008\n\1\1\0\0\0\7\xff\xff\xff\xff", "4,294,967,295 bytes"),
        "name of 2 GB": (HELLO[:-8] + b"\x7f\xff\xff\xff", "2,147,483,647 bytes"),
        "a password is wanted": (b"RFB 003.008\n\1\2" + bytes(16), "wants a password, and none is known"),
    }
    said |= {f"screen of {w}x{h}": (hello(w, h), f"a screen of {w}x{h}") for w, h in BAD_SIZES}
    return {name: (lambda data=data: iter((data,)), words) for name, (data, words) in said.items()}  # type: ignore[misc]


IN_GREETING = _in_greeting()
BREACHES: dict[str, tuple[Stream, str]] = {
    "unknown message": (after(b"\x99"), "unknown kind 153"),
    "unknown encoding": (after(update(rect(0, 0, 8, 8, 7))), "encoding nobody asked for (7)"),
    "off the right edge": (after(update(raw(60, 0, 5, 1))), "off its screen of 64x48"),
    "off the bottom": (after(update(rect(0, 65535, 1, 65535, 0))), "off its screen"),
    "copied from outside": (after(update(rect(0, 0, 8, 8, 1, b"\0\x3f\0\0"))), "copies from 63,0"),
    "cursor of 65535x65535": (after(update(rect(0, 0, 65535, 65535, MASKED))), "cursor of 65535x65535"),
    "alpha cursor of 65535x65535": (after(update(rect(0, 0, 65535, 65535, ALPHA))), "cursor of 65535x65535"),
    "clipboard of a gigabyte": (after(cut_text(b"", 1 << 30)), "clipboard of 1,073,741,824"),
    "extended clipboard of a gigabyte": (after(cut_text(b"", -(1 << 30))), "clipboard of 1,073,741,824"),
    "the most negative length": (after(cut_text(b"", -(1 << 31))), "clipboard of 2,147,483,648"),
    "length of minus one": (after(cut_text(b"x", -1)), "without its flags"),
    "deflated rubbish": (after(cut_text(struct.pack("!I", 1 << 28 | 1) + b"rubbish", -11)), "does not inflate"),
    "fence of 255 bytes": (after(struct.pack("!BxxxIB", 248, 0, 255)), "fence with 255"),
    "name of a gigabyte": (after(update(rect(0, 0, 0, 0, NAME, b"\x40\0\0\0"))), "1,073,741,824 bytes"),
    **{f"resized to {w}x{h}": (after(update(rect(0, 0, w, h, SIZE))), f"a screen of {w}x{h}") for w, h in BAD_SIZES},
    "gone in mid-frame": (after(update(raw(0, 0, 64, 48))[:5000]), "closed the connection"),
    "gone in a cursor": (after(update(rect(0, 0, 512, 512, ALPHA))), "closed the connection"),
}
ENDLESS: dict[str, tuple[Stream, str]] = {
    "bells": (endless(b"\2"), "nobody asked for"),
    "fences": (endless(fence(b"x" * 64)), "nobody asked for"),
    "fences to be answered": (endless(fence(b"x" * 64, _REQUEST | 3)), "nobody asked for"),
    "colour maps": (endless(struct.pack("!BxHH", 1, 0, 5) + bytes(30)), "nobody asked for"),
    "colour maps of 65,535": (endless(struct.pack("!BxHH", 1, 0, 65535) + bytes(6 * 65535)), "nobody asked for"),
    "short clipboards": (endless(cut_text(b"x")), "nobody asked for"),
    "clipboards of 60 MB": (
        lambda: chain((HELLO, PIXEL), cycle([cut_text(b"", 60 << 20), *[bytes(1 << 20)] * 60])),
        "nobody asked for",
    ),
    "clipboard abilities": (endless(cut_text(struct.pack("!II", 1 << 24 | 1, 0), -8)), "nobody asked for"),
    "clipboard bombs": (endless(bomb(1 << 20)), "nobody asked for"),
    "updates of nothing": (endless(update()), "nobody asked for"),
    "names": (many(rect(0, 0, 0, 0, NAME, b"\0\0\0\1n")), "nobody asked for"),
    "lights": (many(rect(0, 0, 0, 0, LEDS, b"\1")), "nobody asked for"),
    "jumps": (many(rect(1, 1, 0, 0, MOVED)), "nobody asked for"),
    "sizes that are none": (many(rect(0, 0, 64, 48, SIZE)), "nobody asked for"),
    "tall rectangles of no width": (many(rect(0, 0, 0, 48, 0)), "nobody asked for"),
    "copies of nothing": (many(rect(0, 0, 64, 0, 1, bytes(4))), "nobody asked for"),
    "sizes": (endless(*(update(rect(0, 0, *size, SIZE)) for size in TURNED), start=hello(*WIDE)), "nobody asked for"),
    "sizes in one update": (
        many(*(rect(0, 0, *size, SIZE) for size in TURNED), start=hello(*WIDE)),
        "nobody asked for",
    ),
    "masked cursors": (endless(update(rect(0, 0, 512, 512, MASKED, bytes(512 * 512 * 4 + 64 * 512)))), "nobody asked"),
    "alpha cursors": (endless(update(rect(0, 0, 512, 512, ALPHA, bytes(512 * 512 * 4 + 4)))), "nobody asked for"),
    "rectangles": (endless(update(count=65535) + raw(0, 0, 64, 1) * 200), "twice the screen"),
    "pictures": (endless(update(raw(1, 1, 8, 8))), "nobody asked for"),
    "copies of a big screen": (endless(update(rect(0, 0, 2000, 2000, 1, bytes(4))), start=BIG), "nobody asked for"),
    "columns of a big screen": (many(rect(1, 0, 1, 2000, 1, bytes(4)), start=BIG), "nobody asked for"),
}


@asynccontextmanager
async def serving(stream: Stream, *, listens: bool = True, hangs_up: bool = False) -> AsyncIterator[socket.socket]:
    """Our end of a socket at whose other end this is said, all but the first of it when the first look has begun."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=theirs)

    async def speak() -> None:
        for number, chunk in enumerate(stream()):
            if number == 1:
                await heard.wait()
            writer.write(chunk)
            await writer.drain()
        if hangs_up:
            writer.close()

    async def listen() -> None:
        data = b""
        while not data.endswith(_LOOK):
            if not (more := await reader.read(1 << 16)):
                break
            data += more
        heard.set()
        while listens and await reader.read(1 << 16):
            pass

    heard = asyncio.Event()  # the first look's question, or the end
    tasks = [asyncio.create_task(work, name="hostile server") for work in (speak(), listen())]
    try:
        yield ours
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        writer.close()


@asynccontextmanager
async def slowed(sock: socket.socket) -> AsyncIterator[socket.socket]:
    """The same connection, but what comes from the other end comes a byte at a time."""
    ours, theirs = socket.socketpair()
    near_reader, near = await asyncio.open_connection(sock=theirs)
    far_reader, far = await asyncio.open_connection(sock=sock)

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int) -> None:
        while data := await reader.read(most):
            writer.write(data)
            await asyncio.sleep(0)
        writer.close()

    tasks = [
        asyncio.create_task(pass_on(*way), name="slow line")
        for way in ((near_reader, far, 4096), (far_reader, near, 1))
    ]
    try:
        yield ours
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        near.close()
        far.close()


async def neighbour(frames: int) -> None:
    """Somebody else's honest screen in the same event loop, looked at so often."""
    async with Server() as server:
        screen = await Screen.open(server.ours)
        for number in range(frames):
            server.colour = bytes([number % 256, 0, 0, 0])
            assert (await screen.frame()).pixels[0] == number % 256
        await screen.close()
