"""A small real RFB 3.8 server over a picture in memory: security None, raw encoding, 32-bit pixels.

What TigerVNC offers and clients of ours rely on is here too: fences, continuous updates, and backpressure towards a
client that does not read. Pictures change visibly: a key press adds a stripe coloured by its keysym along the top, a
pointer event leaves a mark where it happened, larger and coloured by its buttons.

Connections belong to whoever's event loop connected; the picture and the log of events outlive them.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

_RAW, _FENCE, _CONTINUOUS = 0, -312, -313
_REQUEST = 1 << 31  # in a fence: answer me
_NATIVE = struct.pack(">BBBBHHHBBB3x", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
_MOST_TEXT = 1 << 20
_MOST_UNSENT = 8 << 20
_PAPER = bytes((0x5F, 0x4A, 0x2E, 0))  # blue, green, red, unused: slate blue, as a clean desktop's ground
_LINE = bytes((0x6B, 0x55, 0x38, 0))  # and a lighter one, so that no picture is blank
_EVERY = 16  # pixels between two lines
_WIDTH_OF_KEY, _HEIGHT_OF_KEY = 8, 16


class Gate:
    """Open, or shut until it is opened; can be waited for in any event loop."""

    def __init__(self) -> None:
        self.is_open = True
        self._waiting: set[asyncio.Future[None]] = set()

    def shut(self) -> None:
        self.is_open = False

    def open(self) -> None:
        self.is_open = True
        for waiter in self._waiting:
            loop = waiter.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_resolve, waiter)

    async def passed(self) -> None:
        while not self.is_open:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.add(waiter)
            try:
                await waiter
            finally:
                self._waiting.discard(waiter)


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def ground(width: int, height: int) -> bytearray:
    """What a fresh screen shows: lines from above to below."""
    stripe = _LINE + _PAPER * (_EVERY - 1)
    row = (stripe * (width // _EVERY + 1))[: 4 * width]
    return bytearray(row * height)


class Screen:
    """A picture, the log of what was done to it, and those who look."""

    def __init__(self, width: int, height: int, name: str, gate: Gate) -> None:
        self.width, self.height, self.name, self.gate = width, height, name, gate
        self.pixels = ground(width, height)  # blue, green, red, unused
        self.events: list[tuple[object, ...]] = []
        self.complaints: list[str] = []  # what clients did wrong
        self.clipboard = ""  # what a client last sent
        self.dead = False
        self._keys = 0
        self._viewers: set[_Viewer] = set()

    async def connect(self) -> socket.socket:
        """A connected socket whose other end we serve."""
        if self.dead:
            raise ConnectionRefusedError("this screen is gone")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        try:
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            theirs.close()
            raise
        viewer = _Viewer(self, reader, writer)
        self._viewers.add(viewer)
        viewer.task = asyncio.create_task(viewer.serve(), name=f"screen of {self.name}")
        viewer.task.add_done_callback(lambda _: self._viewers.discard(viewer))
        return theirs

    def die(self) -> None:
        """What a crash of the server looks like: every connection is cut, and no new one is taken."""
        self.dead = True
        for viewer in list(self._viewers):
            viewer.cut()

    async def close(self) -> None:
        self.die()
        here = asyncio.get_running_loop()
        tasks = [v.task for v in self._viewers if v.task and v.task.get_loop() is here]
        if tasks:
            await asyncio.wait(tasks)

    def show(self, picture: bytes) -> None:
        self.pixels[:] = picture[: len(self.pixels)].ljust(len(self.pixels), b"\0")
        self.changed(0, 0, self.width, self.height)

    def fill(self, x: int, y: int, width: int, height: int, colour: tuple[int, int, int]) -> None:
        """Paint a rectangle, colour as red, green, blue; what is off the screen is left out."""
        left, top = max(0, x), max(0, y)
        right, bottom = min(self.width, x + width), min(self.height, y + height)
        if left >= right or top >= bottom:
            return
        row = bytes((*reversed(colour), 0)) * (right - left)
        for line in range(top, bottom):
            at = (line * self.width + left) * 4
            self.pixels[at : at + len(row)] = row
        self.changed(left, top, right - left, bottom - top)

    def changed(self, x: int, y: int, width: int, height: int) -> None:
        for viewer in self._viewers:
            viewer.damaged((x, y, width, height))

    def key(self, keysym: int, down: bool) -> None:
        self.events.append(("key", keysym, down))
        if down:
            columns = max(1, self.width // _WIDTH_OF_KEY)
            x, y = self._keys % columns * _WIDTH_OF_KEY, self._keys // columns * _HEIGHT_OF_KEY
            shade = 55 - self._keys % 2 * 30  # the same key twice does not look like one
            colour = (keysym * 37 % 200 + shade, keysym * 101 % 200 + shade, keysym * 173 % 200 + shade)
            self.fill(x, y % max(1, self.height), _WIDTH_OF_KEY, _HEIGHT_OF_KEY, colour)
            self._keys += 1

    def pointer(self, x: int, y: int, buttons: int) -> None:
        x, y = min(x, self.width - 1), min(y, self.height - 1)
        self.events.append(("pointer", x, y, buttons))
        reach = 4 if buttons else 1
        colour = (255, 255 - buttons % 128, 64 + buttons % 128) if buttons else (200, 200, 200)
        self.fill(x - reach, y - reach, 2 * reach + 1, 2 * reach + 1, colour)


Area = tuple[int, int, int, int]


def _union(a: Area | None, b: Area) -> Area:
    if a is None:
        return b
    x, y = min(a[0], b[0]), min(a[1], b[1])
    return x, y, max(a[0] + a[2], b[0] + b[2]) - x, max(a[1] + a[3], b[1] + b[3]) - y


def _common(a: Area, b: Area) -> Area | None:
    x, y = max(a[0], b[0]), max(a[1], b[1])
    width, height = min(a[0] + a[2], b[0] + b[2]) - x, min(a[1] + a[3], b[1] + b[3]) - y
    return (x, y, width, height) if width > 0 and height > 0 else None


@dataclass
class _Format:
    """How a client wants a pixel's four bytes: where each of blue, green, red goes."""

    order: tuple[int, int, int] = (0, 1, 2)

    @classmethod
    def parse(cls, data: bytes) -> "_Format":
        bits, _, big, true, *maxima_and_shifts = struct.unpack(">BBBBHHHBBB3x", data)
        maxima, shifts = maxima_and_shifts[:3], maxima_and_shifts[3:]
        if bits != 32 or not true or maxima != [255] * 3 or any(s not in (0, 8, 16, 24) for s in shifts):
            raise ValueError("only 32-bit true colour with whole bytes is spoken here")
        red, green, blue = (3 - s // 8 if big else s // 8 for s in shifts)
        return cls((blue, green, red))

    def apply(self, row: bytes) -> bytes:
        if self.order == (0, 1, 2):
            return row
        out = bytearray(len(row))
        for source, to in enumerate(self.order):
            out[to::4] = row[source::4]
        return bytes(out)


_Rest = tuple[int, Callable[[bytes], None]]  # how many bytes a message still has, and what to do with them


@dataclass(eq=False)
class _Viewer:
    """One connection."""

    screen: Screen
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    task: asyncio.Task[None] | None = None
    format: _Format = field(default_factory=_Format)
    encodings: frozenset[int] = frozenset()
    damage: Area | None = None
    asked: Area | None = None  # requests that are not answered yet
    continuous: Area | None = None
    keys: set[int] = field(default_factory=set)  # that this client holds down
    at: tuple[int, int, int] = (0, 0, 0)  # its pointer: x, y, buttons

    def __post_init__(self) -> None:
        self._messages: dict[int, tuple[int, Callable[[bytes], _Rest | None]]] = {
            0: (19, self._set_format),
            2: (3, self._set_encodings),
            3: (9, self._request),
            4: (7, self._key),
            5: (5, self._pointer),
            6: (7, self._cut_text),
            150: (9, self._set_continuous),
            248: (8, self._fence),
        }

    async def serve(self) -> None:
        try:
            await self._greet()
            while True:
                await self.screen.gate.passed()
                await self._message((await self.reader.readexactly(1))[0])
                await self.writer.drain()
                self._flush()
        except ValueError as e:
            self.screen.complaints.append(str(e))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone, as it may
        finally:
            self._lift()
            self.writer.close()
            with contextlib.suppress(ConnectionError):
                await self.writer.wait_closed()

    def _lift(self) -> None:
        """A client that goes takes its keys and buttons with it, as with TigerVNC."""
        for keysym in sorted(self.keys):
            self.screen.key(keysym, False)
        if self.at[2]:
            self.screen.pointer(self.at[0], self.at[1], 0)

    def cut(self) -> None:
        loop = self.task.get_loop() if self.task else None
        if self.task and loop and not loop.is_closed():
            loop.call_soon_threadsafe(self.task.cancel)

    async def _greet(self) -> None:
        self.writer.write(b"RFB 003.008\n")
        if await self.reader.readexactly(12) != b"RFB 003.008\n":
            raise ValueError("only RFB 3.8 is spoken here")
        self.writer.write(b"\x01\x01")
        if await self.reader.readexactly(1) != b"\x01":
            raise ValueError("only the security type None is offered here")
        self.writer.write(bytes(4))
        await self.reader.readexactly(1)
        name = self.screen.name.encode()
        self.writer.write(struct.pack(">HH", self.screen.width, self.screen.height) + _NATIVE)
        self.writer.write(struct.pack(">I", len(name)) + name)

    async def _message(self, kind: int) -> None:
        if kind not in self._messages:
            raise ValueError(f"message {kind} is not spoken here")
        size, handle = self._messages[kind]
        data = await self.reader.readexactly(size)
        await self.screen.gate.passed()
        rest = handle(data)
        if rest is not None:
            length, then = rest
            if length > _MOST_TEXT:
                raise ValueError(f"{length} bytes are too many")
            then(await self.reader.readexactly(length))

    def _set_format(self, data: bytes) -> None:
        self.format = _Format.parse(data[3:])

    def _set_encodings(self, data: bytes) -> _Rest:
        count: int = struct.unpack(">xH", data)[0]

        def then(body: bytes) -> None:
            before, self.encodings = self.encodings, frozenset(struct.unpack(f">{count}i", body))
            if _FENCE in self.encodings - before:
                self.writer.write(struct.pack(">B3xIB", 248, _REQUEST, 0))
            if _CONTINUOUS in self.encodings - before:
                self.writer.write(b"\x96")

        return 4 * count, then

    def _request(self, data: bytes) -> None:
        incremental, x, y, width, height = struct.unpack(">BHHHH", data)
        self.asked = _union(self.asked, (x, y, width, height))
        if not incremental:
            self.damage = _union(self.damage, (x, y, width, height))

    def _key(self, data: bytes) -> None:
        down, keysym = struct.unpack(">BxxI", data)
        (self.keys.add if down else self.keys.discard)(keysym)
        self.screen.key(keysym, bool(down))

    def _pointer(self, data: bytes) -> None:
        buttons, x, y = struct.unpack(">BHH", data)
        self.at = (x, y, buttons)
        self.screen.pointer(x, y, buttons)

    def _cut_text(self, data: bytes) -> _Rest:
        def then(body: bytes) -> None:
            self.screen.clipboard = body.decode("latin-1")

        return struct.unpack(">3xI", data)[0], then

    def _set_continuous(self, data: bytes) -> None:
        on, *area = struct.unpack(">BHHHH", data)
        self.continuous = (area[0], area[1], area[2], area[3]) if on else None
        if not on:
            self.writer.write(b"\x96")

    def _fence(self, data: bytes) -> _Rest:
        flags, size = struct.unpack(">3xIB", data)

        def then(payload: bytes) -> None:
            if flags & _REQUEST:
                self._flush()  # what came before the fence is seen before its answer
                self.writer.write(struct.pack(">B3xIB", 248, flags & 0x7, size) + payload)

        return size, then

    def damaged(self, area: Area) -> None:
        self.damage = _union(self.damage, area)
        if self.task is None or self.task.done():
            return
        loop = self.task.get_loop()
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        """Send what changed, if the client wants it and reads what it got so far."""
        wanted = self.continuous or self.asked
        if not (self.damage and wanted) or self.writer.is_closing() or not self.screen.gate.is_open:
            return
        if self.writer.transport.get_write_buffer_size() > _MOST_UNSENT:
            return  # `serve` comes here again when the client has read on and said something
        area = _common(_common(self.damage, wanted) or (0, 0, 0, 0), (0, 0, self.screen.width, self.screen.height))
        if area is None:
            return
        self.damage = None if _union(wanted, self.damage) == wanted else self.damage
        self.asked = None
        self.writer.write(self._update(area))

    def _update(self, area: Area) -> bytes:
        x, y, width, height = area
        pixels, stride = self.screen.pixels, self.screen.width * 4
        rows = [bytes(pixels[line * stride + x * 4 : line * stride + (x + width) * 4]) for line in range(y, y + height)]
        return struct.pack(">BxHHHHHi", 0, 1, x, y, width, height, _RAW) + self.format.apply(b"".join(rows))
