"""One viewer's connection: what it has not got yet goes out when it is ready for it, what it does is handed on.

Two tasks: one reads, one sends. The sender waits until the other end has room, and only then looks what is to be sent:
so a viewer that is slow gets the newest picture, and what is kept for it is one update. It reads no further from a
viewer that takes nothing. Where the viewer knows fences, two updates may be under way, so that no road between fills
up with what is old by the time it arrives. Whoever takes nothing for `STALL` seconds is gone.

`suspend` shuts pictures off, from one moment to the next; `end` the connection.
"""

import asyncio
import time
from typing import Protocol as Interface

from cu_fleet.model.errors import FleetError, UnavailableError
from cu_fleet.rfb.canvas import Cursor
from cu_fleet.watch import encodings as rfb
from cu_fleet.watch.broadcast import Broadcast, Pointer, place_of
from cu_fleet.watch.grid import Grid
from cu_fleet.watch.protocol import (
    Asked,
    Brought,
    Event,
    FenceBack,
    Keyed,
    Offers,
    Peeks,
    Pointed,
    Protocol,
    Streams,
    Told,
    Wants,
)

STALL = 30.0
_PACE = 0.015  # seconds between two updates
_SHARE = 3  # times as long as an update took to make it waits at least
_UNDER_WAY = 2  # updates whose fence has not come back
_MOST_UPDATE = 40 << 20  # bytes of one: all of a screen of 4K, as it is
_UNSENT = 64 << 10  # bytes of answers, past which nothing more is read


class Wire(Interface):
    """A connection; what ends it ends both directions."""

    async def receive(self) -> bytes:
        """Some bytes; none at the end."""

    async def send(self, data: bytes) -> None:
        """Return when the other end has room for more."""

    async def close(self, why: FleetError | None, *, at_once: bool) -> None:
        """The reason is told if there is a way to; at once: what was sent and has not gone does not go any more."""


class Desk(Interface):
    """What becomes of what a viewer with control does. None of these may wait."""

    def key(self, keysym: int, down: bool) -> None: ...

    def point(self, x: int, y: int, buttons: int) -> None: ...

    def put_text(self, text: str) -> None: ...

    def want_text(self) -> None:
        """Bring the desktop's clipboard by `Viewer.send_text`."""


class Viewer:
    """`desk` is None for one that may only look: then all that it does is dropped, and no clipboard is told."""

    def __init__(self, wire: Wire, protocol: Protocol, broadcast: Broadcast, desk: Desk | None) -> None:
        self.desk = desk
        self.why: FleetError | None = None  # it had to go
        self._wire = wire
        self._protocol = protocol
        self._broadcast = broadcast
        self._ending = asyncio.Event()
        self._wake = asyncio.Event()
        self._sent = asyncio.Event()
        self._suspended = False
        self._grid = Grid(0, 0)  # as the viewer knows it
        self._new_size = False
        self._dirty = 0
        self._asked = 0
        self._must = False  # it waits for an answer even if nothing is new
        self._stream = 0
        self._painted: Pointer | None = None  # the pointer, as it is in the viewer's picture
        self._own: Cursor | None = None  # what it was told to draw itself
        self._own_told = False
        self._form = (rfb.RAW, protocol.format)
        self._deflating = False  # whether ZRLE's stream has begun
        self._fences = self._fences_back = 0
        self._stalled_at = 0.0

    # Living

    async def serve(self, waiting: list[Event]) -> None:
        """Until it leaves, has to go, or breaks the protocol (that is raised). `waiting`: what it has said already."""
        self._enter()
        self._broadcast.followers.add(self)
        tasks = [
            asyncio.create_task(self._read(waiting), name="viewer: read"),
            asyncio.create_task(self._send_all(), name="viewer: send"),
            asyncio.create_task(self._ending.wait(), name="viewer: end"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._broadcast.followers.discard(self)
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        if self.why is None:
            for outcome in outcomes:
                if isinstance(outcome, Exception) and not isinstance(outcome, OSError):
                    raise outcome

    def _enter(self) -> None:
        self._grid = self._broadcast.grid
        self._dirty = self._grid.whole

    def end(self, why: FleetError) -> None:
        """Nothing more goes out from now on."""
        if self.why is None:
            self.why = why
        self.suspend()
        self._ending.set()

    def suspend(self) -> None:
        self._suspended = True

    def resume(self) -> None:
        if self._suspended and self.why is None:
            self._suspended = False
            self._wake.set()

    # What the broadcast tells

    def changed(self, region: int) -> None:
        self._dirty |= region
        self._wake.set()

    def resized(self) -> None:
        self._new_size = True
        self._wake.set()

    def rang(self) -> None:
        if not self._deaf:
            self._protocol.bell()
            self._wake.set()

    def copied(self) -> None:
        if self.desk is None or self._deaf:
            return
        if self._protocol.has(rfb.EXTENDED_CLIPBOARD):
            self._protocol.offer_text(there_is=True)
            self._wake.set()
        else:
            self.desk.want_text()

    def send_text(self, text: str) -> None:
        """The desktop's clipboard, which was wanted."""
        if not self._deaf:
            self._protocol.send_text(text)
            self._wake.set()

    @property
    def _deaf(self) -> bool:
        """Whether it is told nothing: it may not hear it now, or has not taken what it was told before."""
        return self._suspended or len(self._protocol.out) > _UNSENT

    # Reading

    async def _read(self, waiting: list[Event]) -> None:
        self._take(waiting)
        while data := await self._wire.receive():
            self._take(self._protocol.feed(data))
            while len(self._protocol.out) > _UNSENT:
                self._sent.clear()
                await self._sent.wait()

    def _take(self, events: list[Event]) -> None:
        for event in events:
            self._hear(event)
        self._wake.set()

    def _hear(self, event: Event) -> None:
        match event:
            case Asked(rect, incremental):
                region = self._grid.region(rect)
                self._asked |= region
                if not incremental:
                    self._dirty |= region
                    self._must = True
            case Streams(rect):
                self._stream = self._grid.region(rect) if rect else 0
            case Told():
                self._choose()
            case FenceBack(payload):
                self._fences_back = min(self._fences, max(self._fences_back, int.from_bytes(payload, "big")))
                self._stalled_at = time.monotonic() + STALL
            case _ if self.desk is not None and not self._suspended:
                self._act(self.desk, event)

    def _act(self, desk: Desk, event: Event) -> None:
        match event:
            case Keyed(keysym, down):
                desk.key(keysym, down)
            case Pointed(x, y, buttons):
                desk.point(min(x, self._grid.width - 1), min(y, self._grid.height - 1), buttons)
            case Brought(text):
                desk.put_text(text)
            case Offers():
                self._protocol.request_text()
            case Wants():
                desk.want_text()
            case Peeks():
                self._protocol.offer_text(there_is=True)

    def _choose(self) -> None:
        """The first of its encodings that is known here; what it has got stays as it is."""
        known = [encoding for encoding in self._protocol.encodings if encoding in rfb.ENCODERS]
        self._form = (known[0] if known else rfb.RAW, self._protocol.format)
        self._own_told = False

    # Sending

    async def _send_all(self) -> None:
        while True:
            await self._woken()
            began, answers = time.monotonic(), self._answers()
            update = self._update()
            took = time.monotonic() - began
            if data := answers + update + self._answers():
                await self._send(data)
            if update:
                await asyncio.sleep(max(_PACE, _SHARE * took))

    async def _woken(self) -> None:
        left = self._stalled_at - time.monotonic() if self._fences > self._fences_back else STALL
        try:
            async with asyncio.timeout(left if left < STALL else None):
                await self._wake.wait()
        except TimeoutError:
            raise _stalls() from None
        if left < 0:
            raise _stalls()
        self._wake.clear()

    def _answers(self) -> bytes:
        out, self._protocol.out[:] = bytes(self._protocol.out), b""
        self._sent.set()
        return out

    async def _send(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(STALL):
                await self._wire.send(data)
        except TimeoutError:
            raise _stalls() from None

    def _update(self) -> bytes:
        """What is new of what it wants, if it is ready for it."""
        wanted = self._asked | self._stream
        if self._suspended or not (wanted or self._must) or self._fences - self._fences_back >= _UNDER_WAY:
            return b""
        if self._new_size:
            return self._resize()
        rects = [*self._own_pointer(), *self._picture(wanted)]
        if not rects and not self._must:
            return b""
        self._asked, self._must = 0, False
        if rects and self._protocol.has(rfb.FENCE):
            self._fence()
        return rfb.update(rects)

    def _resize(self) -> bytes:
        grid = self._broadcast.grid
        if grid != self._grid and not self._protocol.has(rfb.DESKTOP_SIZE):
            raise UnavailableError(
                f"the screen is {grid.width}x{grid.height} now, and the viewer cannot be told", code="screen_resized"
            )
        same, self._grid, self._new_size = grid == self._grid, grid, False
        self._dirty, self._stream = grid.whole, grid.whole if self._stream else 0
        self._painted = None
        if same:
            self._wake.set()
            return b""
        self._asked, self._must = 0, False
        return rfb.update([rfb.rect((0, 0, grid.width, grid.height), rfb.DESKTOP_SIZE)])

    def _picture(self, wanted: int) -> list[bytes]:
        pointer = self._broadcast.pointer_for(self if self._draws else None)
        if pointer != self._painted:
            for shown in filter(None, (pointer, self._painted)):
                self._dirty |= self._grid.region(place_of(shown))
            self._painted = pointer
        rects, size = [], 0
        for where, part in self._grid.rects(self._dirty & wanted):
            rects.append(self._rect(where, part, pointer))
            self._dirty &= ~part
            size += len(rects[-1])
            if size > _MOST_UPDATE:
                self._wake.set()
                break  # the rest with the next
        return rects

    def _rect(self, where: tuple[int, int, int, int], part: int, pointer: Pointer | None) -> bytes:
        encoding = self._form[0]
        payload = self._broadcast.encoded(where, part, self._form, pointer)
        if encoding == rfb.ZRLE:
            begin, self._deflating = b"" if self._deflating else rfb.ZRLE_BEGIN, True
            payload = (len(begin) + len(payload)).to_bytes(4, "big") + begin + payload
        return rfb.rect(where, encoding, payload)

    def _own_pointer(self) -> list[bytes]:
        """The pointer for the viewer to draw itself, if it can and that is another than before."""
        if not self._draws:
            return []
        cursor = self._broadcast.own_pointer(self)
        if self._own_told and cursor == self._own:
            return []
        self._own, self._own_told = cursor, True
        alpha = self._protocol.has(rfb.POINTER_WITH_ALPHA)
        return [rfb.pointer(cursor, self._protocol.format, alpha=alpha)]

    @property
    def _draws(self) -> bool:
        """Whether it draws the pointer itself, when it has moved it."""
        knows = self._protocol.has(rfb.POINTER_WITH_ALPHA) or self._protocol.has(rfb.POINTER)
        return self.desk is not None and knows

    def _fence(self) -> None:
        """It comes back when the viewer has taken the update that it goes out behind."""
        if self._fences == self._fences_back:
            self._stalled_at = time.monotonic() + STALL
        self._fences += 1
        self._protocol.fence(self._fences.to_bytes(8, "big"))


def _stalls() -> UnavailableError:
    return UnavailableError(f"the viewer took nothing for {STALL:g} s", code="viewer_stalls")
