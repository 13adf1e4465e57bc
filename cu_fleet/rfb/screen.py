"""One lasting connection to a desktop's screen, with its picture kept, and brought up to date when somebody looks.

*Never stale.* A fence tells that the server has read what was sent, not that what was drawn has been sent: damage
waits for the server's frame clock. TigerVNC (1.9 and later) never answers a request for pixels while damage waits, and
its answer then holds all that has changed in what was requested. So a look is three messages in one write: a fence; a
request for whatever has changed on the whole screen; and a request for one pixel, changed or not. The first update
after the fence's return that carries this pixel was made after the question was asked, and by then the whole screen
has come. Nothing is sent while nobody looks.

A server without fences is asked for the whole screen each time, twice if an older request may still be answered
first. That is as new as what the server itself knows, and x11vnc and QEMU look at their screens by timer:
`Frame.within` says by how much such a frame may be older than the question.

A frame is copied in the moment its update ends, so it is whole.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Self

from cu_fleet.rfb.canvas import Coverage, Frame, Rect
from cu_fleet.rfb.changes import Focus, Still, differs
from cu_fleet.rfb.engine import Engine, Update
from cu_fleet.rfb.handshake import MOST_PIXELS, RfbError
from cu_fleet.rfb.link import Link, deadline, settle

POLLED = 1.0  # seconds after which a server without fences has seen what was drawn, if nothing better is known of it
_PIXEL = (0, 0, 1, 1)
_FORGIVEN = 500.0  # messages that nobody asked for, a second
_PACE = 0.015  # seconds between two updates of a screen that is being watched


@dataclass(slots=True)
class _Look:
    done: "asyncio.Future[Frame | None]"
    copy: bool = False
    whole: bool = False  # every pixel has to come, not only what has changed
    pixel_only: bool = False  # no more than a round trip
    coverage: Coverage | None = None
    fence: bytes = b""  # updates count only after its return

    def answered_by(self, update: Update) -> bool:
        if self.coverage is None:
            return any(x == y == 0 and width and height for x, y, width, height in update.rects)
        return self.coverage.add(update.rects)


class Screen:
    """Made by `Screen.open`. `lost` is done when the connection is over, and its result says why."""

    def __init__(self, password: str | None, within: float, most_pixels: int = MOST_PIXELS) -> None:
        self.freshness: Callable[[], Awaitable[None]] | None = None  # awaited before a look that no fence can prove
        self._within = within
        self._link = Link(self._feed, self._fail)
        self._engine = Engine(self._link, self, password, most_pixels)
        self.lost = self._link.lost
        self._ready: asyncio.Future[None] = self._link.answer()
        self._fences: dict[bytes, asyncio.Future[None]] = {}
        self._fence_number = 0
        self._looking = asyncio.Lock()
        self._look: _Look | None = None
        self._complete = False  # whether every pixel has come at least once
        self._requested = False  # whether an answer may come to an older request
        self._change = asyncio.Event()
        self._watches = 0
        self._next_ask: asyncio.TimerHandle | None = None
        self._clipboards: list[asyncio.Future[str | None]] = []
        self._text: str | None = None
        self._offered = False
        self._forgiven_at = time.monotonic()

    @classmethod
    async def open(
        cls,
        sock: socket.socket,
        password: str | None = None,
        timeout: float = 10.0,
        within: float = POLLED,
        most_pixels: int = MOST_PIXELS,
    ) -> Self:
        """Take over a connected stream socket, and return when the server has let us in and answers.

        `within` is how old the server's own knowledge of its screen may be, where no fence can prove what it shows;
        `most_pixels` how big it may make its screen, now or later.
        """
        screen = cls(password, within, most_pixels)
        try:
            async with deadline(timeout, "the screen's server did not finish its greeting"):
                await screen._link.take(sock)
                await screen._ready
                await screen._take(_Look(screen._link.answer(), pixel_only=True))
        except BaseException:
            screen._fail(RfbError("the connection to the screen was closed", code="screen_closed"))
            sock.close()
            raise
        return screen

    @property
    def width(self) -> int:
        return self._engine.canvas.width

    @property
    def height(self) -> int:
        return self._engine.canvas.height

    @property
    def name(self) -> str:
        return self._engine.name

    @property
    def pointer(self) -> tuple[int, int]:
        """Where the pointer is, as far as the server has told or been told."""
        return self._engine.pointer

    @property
    def serial(self) -> int:
        """Grows with every change of the picture that has come in."""
        return self._engine.canvas.serial

    @property
    def lost_because(self) -> RfbError | None:
        """Why no more can be sent; `lost` follows when the socket is closed."""
        return self._engine.error

    async def close(self) -> None:
        self._fail(RfbError("the connection to the screen was closed", code="screen_closed"))
        await self.lost

    # Looking

    async def sync(self, timeout: float = 10.0) -> None:
        """Return when the server has taken in all that was sent before.

        By a fence; where there is none by asking for one pixel, which an answer on its way may bring a little early.
        """
        async with deadline(timeout, "the screen's server did not answer"):
            if self._engine.fences:
                await self._fence(self._link.answer())
            else:
                async with self._looking:
                    await self._take(_Look(self._link.answer(), pixel_only=True))

    async def frame(self, pointer: bool = False, timeout: float = 10.0) -> Frame:
        """The screen as it is now: all that was drawn before this call is in it. `pointer` brings its image along.

        TigerVNC draws the pointer into the picture while another than this connection has moved it last, and when
        nobody has yet: `Frame.drawn` tells, and `Hands.claim_pointer` ends it.
        """
        async with deadline(timeout, "the screen's server did not send the picture"):
            frame = await self._look_now(copy=True)
        assert frame is not None
        return frame if pointer else replace(frame, cursor=None)

    async def refresh(self, timeout: float = 10.0) -> int:
        """Bring the picture up to date without copying it; returns its serial."""
        async with deadline(timeout, "the screen's server did not send the picture"):
            await self._look_now()
        return self.serial

    async def mark(self, timeout: float = 10.0) -> Still:
        """The picture as it is now, for a `wait_change` after whatever is done next."""
        await self.refresh(timeout)
        return Still.of(self._engine.canvas)

    async def wait_change(
        self,
        since: int | Still,
        timeout: float,
        region: Rect | None = None,
        ignore: Sequence[Rect] = (),
        ignore_below: int = 0,
    ) -> None:
        """Return when the picture, or a region of it, is another than it was: at a serial, or in a mark.

        Changes in the rectangles of `ignore`, and of fewer pixels than `ignore_below`, do not count. A mark is compared
        with pixel by pixel. Of an older serial only the rectangles are known that came since; one that counts in part
        counts then.
        """
        canvas, focus = self._engine.canvas, Focus(region, tuple(ignore), ignore_below)
        async with deadline(timeout, "the screen did not change", "no_change"):
            with self._watched():
                if isinstance(since, Still):
                    await self._other_than(since, focus)
                elif not canvas.changed_since(since, region, ignore, ignore_below):
                    await self._other_than(Still.of(canvas), focus)

    async def wait_stable(
        self,
        quiet: float,
        timeout: float,
        region: Rect | None = None,
        ignore: Sequence[Rect] = (),
        ignore_below: int = 0,
    ) -> None:
        """Return when nothing that counts has changed for `quiet` seconds."""
        focus = Focus(region, tuple(ignore), ignore_below)
        async with deadline(timeout, f"the screen did not keep still for {quiet:g} s", "not_stable"):
            with self._watched():
                while True:
                    await self._look_now()
                    still = Still.of(self._engine.canvas)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(quiet):
                            await self._other_than(still, focus)
                            continue
                    await self._look_now()
                    if not differs(still, self._engine.canvas, focus):
                        return

    # Acting: sends at once, and only `Hands` does it

    def key_event(self, keysym: int, down: bool) -> None:
        self._engine.keyEvent(keysym, down)

    def pointer_event(self, x: int, y: int, buttons: int) -> None:
        self._engine.pointerEvent(x, y, buttons)
        self._engine.pointer = (x, y)

    # Clipboard

    async def set_clipboard(self, text: str, timeout: float = 10.0) -> None:
        """Make `text` what a paste in the desktop brings."""
        self._engine.offer(text)
        await self.sync(timeout)

    async def clipboard(self, timeout: float = 10.0) -> str | None:
        """The text in the desktop's clipboard; None if there is none, or more than a megabyte."""
        if not self._offered:
            return self._text
        text: asyncio.Future[str | None] = self._link.answer()
        self._clipboards.append(text)
        self._engine.request_clipboard()
        try:
            async with deadline(timeout, "the desktop did not hand over its clipboard"):
                return await text
        finally:
            self._clipboards = [other for other in self._clipboards if other is not text]

    # What the engine says

    def ready(self) -> None:
        settle(self._ready, None)

    def fenced(self, payload: bytes) -> None:
        settle(self._fences.pop(payload, None), None)
        if self._look and self._look.fence == payload:
            self._look.fence = b""

    def updated(self, update: Update) -> None:
        self._requested = False
        self._change.set()
        if update.resized:
            self._complete = False
        look = self._look
        if look and update.resized and not look.pixel_only:
            look.coverage = Coverage(self.width, self.height)
            self._request(incremental=False)
        elif look and not look.fence and look.answered_by(update):
            self._answer(look)
        elif look:
            self._request(_PIXEL if look.pixel_only else None, incremental=not look.pixel_only)
        self._ask_on()

    def offered(self) -> None:
        self._offered = True

    def provided(self, text: str | None) -> None:
        self._text = text
        self._offered = self._offered and text is not None
        waiting, self._clipboards = self._clipboards, []
        for future in waiting:
            settle(future, text)

    def failed(self, error: RfbError) -> None:
        self._link.over(error)
        self._change.set()
        if self._next_ask:
            self._next_ask.cancel()

    # Within

    def _feed(self, data: bytes) -> None:
        now = time.monotonic()
        self._engine.noise = max(0.0, self._engine.noise - (now - self._forgiven_at) * _FORGIVEN)
        self._forgiven_at = now
        self._engine.dataReceived(data)

    def _fail(self, error: RfbError) -> None:
        self._engine.fail(error)

    async def _look_now(self, *, copy: bool = False) -> Frame | None:
        async with self._looking:
            if self._engine.fences:
                return await self._take(_Look(self._link.answer(), copy, whole=not self._complete, fence=self._token()))
            if self.freshness:
                await self.freshness()
            if self._requested:
                await self._take(_Look(self._link.answer(), whole=True))
            return await self._take(_Look(self._link.answer(), copy, whole=True))

    async def _take(self, look: _Look) -> Frame | None:
        self._look = look
        try:
            if look.fence:
                self._request(incremental=True)  # so that no request for less is open when the fence returns
                self._engine.fence(look.fence)
            if look.whole:
                look.coverage = Coverage(self.width, self.height)
                self._request(incremental=False)
            else:
                if not look.pixel_only:
                    self._request(incremental=True)
                self._request(_PIXEL, incremental=False)
            return await look.done
        finally:
            self._look = None

    def _answer(self, look: _Look) -> None:
        self._look = None
        self._complete |= look.coverage is not None
        settle(look.done, self._picture() if look.copy else None)

    def _picture(self) -> Frame:
        canvas, engine = self._engine.canvas, self._engine
        return Frame(
            width=canvas.width,
            height=canvas.height,
            pixels=bytes(canvas.data),
            at=time.monotonic(),
            serial=canvas.serial,
            within=0.0 if engine.fences else self._within,
            pointer=engine.pointer,
            cursor=engine.cursor,
            drawn=engine.cursor is None,
        )

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

    async def _other_than(self, still: Still, focus: Focus) -> None:
        while not differs(still, self._engine.canvas, focus):
            self._change.clear()
            await self._change.wait()
            if self._engine.error:
                raise self._engine.error

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """As long as this lasts the server is asked for every change."""
        self._watches += 1
        try:
            if not self._requested:
                self._request(incremental=True)
            yield
        finally:
            self._watches -= 1

    def _ask_on(self) -> None:
        if self._watches and not self._requested and self._next_ask is None:
            self._next_ask = asyncio.get_running_loop().call_later(_PACE, self._ask)

    def _ask(self) -> None:
        self._next_ask = None
        if self._watches and not self._requested and not self._engine.error:
            self._request(incremental=True)
