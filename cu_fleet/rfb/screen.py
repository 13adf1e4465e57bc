"""One lasting connection to a desktop's screen, with its picture kept, and brought up to date when somebody looks.

What must be asked, so that all that was drawn before is in the answer, `asking` knows: exact on TigerVNC and QEMU;
elsewhere `Frame.within` says by how much a frame may be older than the question. Nothing is sent while nobody looks.

A frame is copied in the moment its update ends, so it is whole.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Self

from cu_fleet.model.errors import FleetError
from cu_fleet.rfb.asking import Asking
from cu_fleet.rfb.canvas import Canvas, Cursor, Frame, Rect
from cu_fleet.rfb.changes import Focus, Still, differs
from cu_fleet.rfb.engine import Engine
from cu_fleet.rfb.handshake import MOST_PIXELS, RfbError
from cu_fleet.rfb.link import Link, deadline, settle
from cu_fleet.rfb.updates import Update

POLLED = 20.0  # seconds after which a server of which nothing is known has seen what was drawn: x11vnc as it comes
_NUM_LOCK = 2
_FORGIVEN = 500.0  # messages that nobody asked for, a second


class Screen:
    """Made by `Screen.open`. `lost` is done when the connection is over, and its result says why."""

    def __init__(self, password: str | None, within: float, most_pixels: int = MOST_PIXELS) -> None:
        self.unpaint: Callable[[], None] | None = None  # sends the pointer to where it is; raises where that is barred
        self._pointed: tuple[int, int] | None = None  # where it was sent last
        self._within = within
        self._link = Link(self._feed, self._fail)
        self._engine = Engine(self._link, self, password, most_pixels)
        self._asking = Asking(self._link, self._engine)
        self.lost = self._link.lost
        self._ready: asyncio.Future[None] = self._link.answer()
        self._clipboards: list[asyncio.Future[str | None]] = []
        self._text: str | None = None
        self._offered = False
        self.clipboards = 0  # how often the desktop's clipboard has changed
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
                await screen._asking.round_trip()
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
    def num_lock(self) -> bool:
        """Whether its lamp is on, as far as the server tells."""
        return bool(self._engine.leds & _NUM_LOCK)

    @property
    def serial(self) -> int:
        """Grows with every change of the picture that has come in."""
        return self._engine.canvas.serial

    @property
    def canvas(self) -> Canvas:
        """The picture as far as it has come; current as long as it is `followed`, after a `refresh`."""
        return self._engine.canvas

    @property
    def cursor(self) -> Cursor | None:
        """What the pointer looks like; None where it is hidden, or drawn into the picture."""
        return self._engine.cursor

    @property
    def bells(self) -> int:
        return self._engine.bells

    @contextmanager
    def followed(self) -> Iterator[asyncio.Event]:
        """As long as this lasts the picture is kept current; the event is set with all that changes, and by the end."""
        with self._asking.watched():
            yield self._asking.change

    @property
    def lost_because(self) -> RfbError | None:
        """Why no more can be sent; `lost` follows when the socket is closed."""
        return self._engine.error

    async def close(self) -> None:
        self._fail(RfbError("the connection to the screen was closed", code="screen_closed"))
        await self.lost

    # Looking

    def before_looks(self, drawn: Callable[[], Awaitable[bool]]) -> None:
        """Have a machine pass on what was drawn in it, before it is looked at; False if nobody there answers."""
        self._asking.drawn = drawn

    async def sync(self, timeout: float = 10.0) -> None:
        """Return when the server has taken in all that was sent before."""
        async with deadline(timeout, "the screen's server did not answer"):
            await self._asking.round_trip()

    async def frame(self, pointer: bool = False, timeout: float = 10.0) -> Frame:
        """The screen as it is now: all that was drawn before this call is in it. `pointer` brings its image along.

        TigerVNC draws the pointer into the picture while another than this connection has moved it last, and when
        nobody has yet: `Frame.drawn` tells. `Hands.claim_pointer` ends it at the start; after a program has moved the
        pointer a frame without it costs a second look, if there are hands that may send events.
        """
        async with deadline(timeout, "the screen's server did not send the picture"):
            frame = await self._frame(pointer=pointer)
            if pointer or not frame.drawn or not self._unpainted(frame):
                return frame
            return await self._frame(pointer=False)

    async def refresh(self, timeout: float = 10.0, meanwhile: Callable[[], None] = lambda: None) -> int:
        """Bring the picture up to date without copying it; returns its serial. `meanwhile` the server is answering."""
        async with deadline(timeout, "the screen's server did not send the picture"):
            await self._asking.look(meanwhile=meanwhile)
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
            with self._asking.watched():
                if isinstance(since, Still):
                    await self._other_than(since, focus)
                elif not canvas.changed_since(since, region, ignore, ignore_below):
                    await self._other_than(Still.of(canvas, focus), focus)

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
            with self._asking.watched():
                while not await self._still_for(quiet, focus):
                    pass

    # Acting: sends at once, and only `Hands` does it

    def key_event(self, keysym: int, down: bool) -> None:
        self._engine.keyEvent(keysym, down)

    def pointer_event(self, x: int, y: int, buttons: int) -> None:
        beyond = int(self.name.startswith("QEMU"))  # its tablet rounds down, and the machine's system does so again
        self._engine.pointerEvent(x + beyond, y + beyond, buttons)
        self._engine.pointer = self._pointed = (x, y)
        self._asking.change.set()

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
        self._asking.fenced(payload)

    def updated(self, update: Update) -> None:
        self._asking.updated(update)

    def offered(self) -> None:
        self._offered = True
        self.clipboards += 1
        self._asking.change.set()

    def provided(self, text: str | None) -> None:
        if not self._clipboards:  # unasked: a server that does not offer, but sends
            self.clipboards += 1
            self._asking.change.set()
        self._text = text
        self._offered = self._offered and text is not None
        waiting, self._clipboards = self._clipboards, []
        for future in waiting:
            settle(future, text)

    def failed(self, error: RfbError) -> None:
        self._link.over(error)
        self._asking.over()

    # Within

    def _feed(self, data: bytes) -> None:
        now = time.monotonic()
        self._engine.noise = max(0.0, self._engine.noise - (now - self._forgiven_at) * _FORGIVEN)
        self._forgiven_at = now
        self._engine.dataReceived(data)

    def _fail(self, error: RfbError) -> None:
        self._engine.fail(error)

    def _unpainted(self, frame: Frame) -> bool:
        """Have TigerVNC take the pointer out of its pictures, by sending it to where a program has moved it.

        For X nothing happens by that: it is there already.
        """
        if self.unpaint is None or self._pointed in (None, frame.pointer):
            return False
        try:
            self.unpaint()
        except FleetError:
            return False
        self._engine.tell_encodings()
        return True

    async def _frame(self, *, pointer: bool) -> Frame:
        frames: list[Frame] = []
        await self._asking.look(lambda: frames.append(self._picture(pointer=pointer)))
        return frames[0]

    async def _still_for(self, quiet: float, focus: Focus) -> bool:
        """Whether nothing in focus changes for so long; said as soon as something does."""
        await self._asking.look()
        still = Still.of(self._engine.canvas, focus)
        with suppress(TimeoutError):
            async with asyncio.timeout(quiet):
                await self._other_than(still, focus)
                return False
        await self._asking.look()
        return not differs(still, self._engine.canvas, focus)

    async def _other_than(self, still: Still, focus: Focus) -> None:
        while not differs(still, self._engine.canvas, focus):
            self._asking.change.clear()
            await self._asking.change.wait()
            if self._engine.error:
                raise self._engine.error

    def _picture(self, *, pointer: bool) -> Frame:
        canvas, engine = self._engine.canvas, self._engine
        return Frame(
            width=canvas.width,
            height=canvas.height,
            pixels=bytes(canvas.data),
            at=time.monotonic(),
            serial=canvas.serial,
            within=0.0 if self._asking.exact else self._within,
            pointer=engine.pointer,
            cursor=engine.cursor if pointer else None,
            drawn=engine.cursor is None,
            strips=tuple(canvas.strips),
            deflated=canvas.deflated,
        )
