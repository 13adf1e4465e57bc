"""One desktop's picture, for all who watch it.

There is one connection to the desktop and one framebuffer, whoever watches. Its changes are added to each viewer's own
region of what it has not got yet, which is a set of tiles: a slow viewer's grows no larger than the screen, it is sent
what is there when it is ready for it, and nobody waits for it. A rectangle is encoded once for all viewers who take it
in the same form, as long as it stays as it is.

Where the pointer was moved by somebody else, a person watching could not see it: VNC viewers draw their own. So it is
painted into the picture of every viewer but the one who moved it last.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

from PIL import Image

from cu_fleet.model.errors import FleetError
from cu_fleet.rfb.canvas import Cursor, Rect
from cu_fleet.rfb.screen import Screen
from cu_fleet.watch.encodings import ENCODERS, arrow
from cu_fleet.watch.grid import Grid
from cu_fleet.watch.pixels import Format

_KEPT = 16 << 20  # bytes of encoded rectangles
_AGAIN = 0.25  # seconds until a screen that was lost is asked for again

Pointer = tuple[int, int, Cursor]  # where it is, and what it looks like
Form = tuple[int, Format]  # an encoding, and its pixels


class Follower(Protocol):
    """A viewer, as the picture knows it."""

    def changed(self, region: int) -> None:
        """These tiles show something else now; or nothing but the pointer is new."""

    def resized(self) -> None:
        """The screen is another: all of it is new."""

    def rang(self) -> None:
        """The desktop rang its bell."""

    def copied(self) -> None:
        """The desktop's clipboard has changed."""


class Broadcast:
    """`connect` brings the desktop's screen, or fails; `run` goes on as long as anybody watches."""

    def __init__(self, connect: Callable[[], Awaitable[Screen]]) -> None:
        self.followers: set[Follower] = set()
        self.grid = Grid(0, 0)
        self.shown = asyncio.Event()  # there is a picture
        self._connect = connect
        self._screen: Screen | None = None
        self._serial = self._bells = self._clipboards = 0
        self._pointer: tuple[int, int] = (0, 0)
        self._mover: Follower | None = None
        self._encoded: dict[tuple[Rect, Form, Pointer | None], tuple[int, bytes]] = {}
        self._size = 0

    async def run(self) -> None:
        while True:
            with suppress(FleetError, OSError, TimeoutError):
                await self._follow(await self._connect())
            await asyncio.sleep(_AGAIN)

    async def _follow(self, screen: Screen) -> None:
        self._bells, self._clipboards = screen.bells, screen.clipboards
        with screen.followed() as change:
            await screen.refresh()
            self._screen, self._serial = screen, -1
            while screen.lost_because is None:
                change.clear()
                self._look(screen)
                await change.wait()

    def _look(self, screen: Screen) -> None:
        canvas = screen.canvas
        if (canvas.width, canvas.height) != (self.grid.width, self.grid.height) or self._serial < 0:
            self.grid, self._serial = Grid(canvas.width, canvas.height), canvas.serial
            self._forget(self.grid.whole)
            self._tell(lambda follower: follower.resized())
            self.shown.set()
        elif (damage := self._damage(screen)) or screen.pointer != self._pointer:
            self._forget(damage)
            self._tell(lambda follower: follower.changed(damage))
        if screen.pointer != self._pointer:
            self._pointer, self._mover = screen.pointer, None
        if screen.bells != self._bells:
            self._bells = screen.bells
            self._tell(lambda follower: follower.rang())
        if screen.clipboards != self._clipboards:
            self._clipboards = screen.clipboards
            self._tell(lambda follower: follower.copied())

    def _tell(self, what: Callable[[Follower], None]) -> None:
        for follower in list(self.followers):
            what(follower)

    def _damage(self, screen: Screen) -> int:
        rects = screen.canvas.damage_since(self._serial)
        self._serial = screen.canvas.serial
        if rects is None:
            return self.grid.whole
        region = 0
        for rect in rects:
            region |= self.grid.region(rect)
        return region

    def moved(self, by: Follower) -> None:
        """This viewer has just moved the pointer: it need not be shown it."""
        if self._screen:
            self._pointer, self._mover = self._screen.pointer, by
            self._tell(lambda follower: follower.changed(0))

    def pointer_for(self, follower: Follower | None) -> Pointer | None:
        """The pointer as it must be painted for this viewer, if it must."""
        cursor = self.cursor
        own = follower is not None and self._mover is follower
        return None if cursor is None or own else (*self._pointer, cursor)

    def own_pointer(self, follower: Follower) -> Cursor | None:
        """The pointer as this viewer may draw it itself, if it is the one that moves it."""
        return self.cursor if self._mover is follower else None

    @property
    def cursor(self) -> Cursor | None:
        return self._screen.cursor if self._screen else None

    def encoded(self, where: Rect, part: int, form: Form, pointer: Pointer | None) -> bytes:
        """A rectangle of the picture as it is now; `part` are its tiles."""
        if pointer and not part & self.grid.region(place_of(pointer)):
            pointer = None
        key = (where, form, pointer)
        kept = self._encoded.get(key)
        if kept is None:
            encoding, pixels = form
            kept = (part, ENCODERS[encoding](self._cut(where, pointer), pixels))
            if self._size > _KEPT:
                self._forget(self.grid.whole)
            self._encoded[key] = kept
            self._size += len(kept[1])
        return kept[1]

    def _cut(self, where: Rect, pointer: Pointer | None) -> Image.Image:
        assert self._screen
        canvas = self._screen.canvas
        x, y, width, height = where
        rows = memoryview(canvas.data)[y * canvas.stride : (y + height) * canvas.stride]
        picture = Image.frombuffer("RGB", (canvas.width, height), rows, "raw", "BGRX", 0, 1)  # type: ignore[arg-type]
        rows.release()
        if width != canvas.width:
            picture = picture.crop((x, 0, x + width, height))
        if pointer:
            left, top, _, _ = place_of(pointer)
            shape = arrow(pointer[2])
            picture.paste(shape, (left - x, top - y), shape)
        return picture

    def _forget(self, region: int) -> None:
        """What was encoded of these tiles is not so any more."""
        if region:
            self._encoded = {key: kept for key, kept in self._encoded.items() if not kept[0] & region}
            self._size = sum(len(data) for _, data in self._encoded.values())


def place_of(pointer: Pointer) -> Rect:
    x, y, cursor = pointer
    return x - cursor.hot_x, y - cursor.hot_y, cursor.width, cursor.height
