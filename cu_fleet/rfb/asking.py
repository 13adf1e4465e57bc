"""What is asked of a screen's server, and which of its answers are answers.

*Never stale.* A fence tells that the server has read what was sent, not that what was drawn has been sent: damage
waits for the server's frame clock. TigerVNC (1.9 and later) never answers a request for pixels while damage waits, and
its answer then holds all that has changed in what was requested. So a look is three messages in one write: a fence; a
request for whatever has changed on the whole screen; and a request for one pixel, changed or not. The first update
after the fence's return that carries this pixel was made after the question was asked, and by then the whole screen
has come. Nothing is sent while nobody looks.

*QEMU* has no fences, but sends updates from its refresh alone, right after that has compared its copy of the screen
with the machine's memory; and an update holds all that has changed, whatever was requested. So a request for one pixel
is answered by what is true after the question. The refresh slows down to one in three seconds on a still screen; a
message of the clipboard or of input makes it 30 ms again, so each look begins with one that says nothing. A program's
drawing is in the machine's memory only after its X server has passed it on: that somebody inside makes sure of, first.

*Others* send from a copy of their own, that may be old. They are asked for all of it, and the frame says by how much
it may be older than the question. x11vnc keeps to 0.5 s when it is started with `-xd_area 0 -wait 10 -defer 1 -nonap
-sb 0 -speeds lan`. As it comes it looks at nothing for five seconds, at times fifteen, after a client has joined, naps
for up to four when nothing has changed for a minute, and finds a small change in a large window's redrawing by one line
in 32 at a time. A round trip of the desktop's helper to X would not make it look.

Without fences an answer to an older request may come first. As many answers as may still be on their way are drained
before the one that counts, each by a request of its own.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cu_fleet.rfb import clipboard
from cu_fleet.rfb.canvas import Coverage, Rect
from cu_fleet.rfb.engine import Engine
from cu_fleet.rfb.link import Link, settle
from cu_fleet.rfb.updates import Update

_PIXEL = (0, 0, 1, 1)
_PACE = 0.015  # seconds between two updates of a screen that is being watched
_NUDGE = 0.1  # seconds between two messages that keep QEMU from slowing down while it is watched
_STRAY = 2.0  # seconds after which no answer to an older request comes any more


@dataclass(slots=True)
class _Look:
    done: "asyncio.Future[None]"
    whole: bool = False  # every pixel has to come, not only what has changed
    pixel_only: bool = False  # no more than a round trip
    coverage: Coverage | None = None
    fence: bytes = b""  # updates count only after its return
    answered: Callable[[], None] = lambda: None  # called in the moment when the picture is whole

    def answered_by(self, update: Update) -> bool:
        if self.coverage is None:
            return any(x == y == 0 and width and height for x, y, width, height in update.rects)
        return self.coverage.add(update.rects)


class Asking:
    def __init__(self, link: Link, engine: Engine) -> None:
        self.change = asyncio.Event()  # set by every update, and by the end
        self._link = link
        self._engine = engine
        self._fences: dict[bytes, asyncio.Future[None]] = {}
        self._fence_number = 0
        self._turn = asyncio.Lock()
        self._look: _Look | None = None
        self._complete = False  # whether every pixel has come at least once
        self._requested = False  # whether an answer may come to an older request
        self._strays_until = 0.0  # and until when a second one
        self._watches = 0
        self._next_ask: asyncio.TimerHandle | None = None
        self.drawn: Callable[[], Awaitable[bool]] | None = None  # have passed on what was drawn in QEMU's machine
        self._drawn = True

    @property
    def exact(self) -> bool:
        """Whether an answer proves what the screen shows."""
        return self._engine.fences or (self._refreshes and self._drawn)

    @property
    def _refreshes(self) -> bool:
        return not self._engine.fences and self._engine.name.startswith("QEMU")

    async def look(
        self, answered: Callable[[], None] = lambda: None, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """Bring the picture up to date, and call `answered` in the moment it is, `meanwhile` as soon as it is asked."""
        async with self._turn:
            if self._refreshes and self.drawn:
                self._drawn = await self.drawn()
            if not self._engine.fences:
                await self._drain()
            look = _Look(self._link.answer(), whole=not (self.exact and self._complete), answered=answered)
            look.fence = self._token() if self._engine.fences else b""
            await self._take(look, meanwhile)

    async def round_trip(self) -> None:
        """Return when the server has taken in all that was sent before.

        By a fence; where there is none by asking for one pixel, which an answer on its way may bring a little early.
        """
        if self._engine.fences:
            await self._fence(self._link.answer())
        else:
            async with self._turn:
                await self._take(_Look(self._link.answer(), pixel_only=True))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """As long as this lasts the server is asked for every change."""
        self._watches += 1
        try:
            self._ask()
            yield
        finally:
            self._watches -= 1

    # What the engine says

    def fenced(self, payload: bytes) -> None:
        settle(self._fences.pop(payload, None), None)
        if self._look and self._look.fence == payload:
            self._look.fence = b""

    def updated(self, update: Update) -> None:
        self.change.set()
        if update.rects or not self._refreshes:  # QEMU tells of lamps and cursors unasked
            self._requested = False
        if update.resized:
            self._complete = False
            self._strays_until = time.monotonic() + _STRAY
        self._forward(update)
        self._ask_on()

    def _forward(self, update: Update) -> None:
        look = self._look
        if look and update.resized and not look.pixel_only:
            look.coverage = Coverage(self._engine.canvas.width, self._engine.canvas.height)
            self._request(incremental=False)
        elif look and not look.fence and look.answered_by(update):
            self._answer(look)
        elif look and not self._refreshes:
            self._request(_PIXEL if look.pixel_only else None, incremental=not look.pixel_only)

    def over(self) -> None:
        self.change.set()
        if self._next_ask:
            self._next_ask.cancel()

    # Within

    async def _drain(self) -> None:
        strays = self._requested + (time.monotonic() < self._strays_until)
        for _ in range(strays):
            await self._take(_Look(self._link.answer(), pixel_only=True))

    async def _take(self, look: _Look, meanwhile: Callable[[], None] = lambda: None) -> None:
        self._look = look
        if self._requested:
            self._strays_until = time.monotonic() + _STRAY
        try:
            with self._link.together():
                self._put(look)
            meanwhile()
            await look.done
        except BaseException:
            self._strays_until = time.monotonic() + _STRAY
            raise
        finally:
            self._look = None

    def _put(self, look: _Look) -> None:
        """The question."""
        if look.fence:
            self._request(incremental=True)  # so that no request for less is open when the fence returns
            self._engine.fence(look.fence)
        elif self._refreshes:
            self._link.write(clipboard.peek())
        if look.whole:
            look.coverage = Coverage(self._engine.canvas.width, self._engine.canvas.height)
            self._request(incremental=False)
        else:
            if look.fence:
                self._request(incremental=True)
            self._request(_PIXEL, incremental=False)

    def _answer(self, look: _Look) -> None:
        self._look = None
        self._complete |= look.coverage is not None
        look.answered()
        settle(look.done, None)

    async def _fence(self, back: asyncio.Future[None]) -> None:
        token = self._token()
        self._fences[token] = back
        try:
            self._engine.fence(token)
            await back
        finally:
            self._fences.pop(token, None)

    def _token(self) -> bytes:
        self._fence_number += 1
        return self._fence_number.to_bytes(8, "big")

    def _request(self, rect: Rect | None = None, *, incremental: bool) -> None:
        self._requested = True
        self._engine.request(rect, incremental=incremental)

    def _ask_on(self) -> None:
        if self._watches and self._next_ask is None and (self._refreshes or not self._requested):
            pace = _NUDGE if self._requested else _PACE
            self._next_ask = asyncio.get_running_loop().call_later(pace, self._ask)

    def _ask(self) -> None:
        """For whatever changes next, as long as somebody watches."""
        self._next_ask = None
        if not self._watches or self._engine.error:
            return
        if self._refreshes:
            self._link.write(clipboard.peek())
        if not self._requested:
            self._request(incremental=True)
        self._ask_on()
