"""What every screen must show, as tests: nothing stale, nothing half, the pointer as asked.

    class TestMine(SeeingContract):
        @asynccontextmanager
        async def sight(self): yield MySight(...)

An application in the desktop fills the whole screen with one number after another, now as fast as it can, now with
pauses, and says which number it has drawn (`easel` does it on X). Then at any moment it is known which numbers the
screen may show, and every pixel of a picture has to show one of these: none older than what had been said before the
picture was asked for, and where pictures are proved exact one number only. A picture that may be old by `within`
seconds may show what had been said so long before, and parts of several.

What a screen lacks is named in `gaps`, with the reason, and shows in the report as an expected failure.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol, TypeVar

import pytest
from PIL import Image, ImageChops

from cu_fleet.rfb.picture import image
from cu_fleet.rfb.screen import Screen
from cu_fleet.testing.easel import EDGE, colours, number_of

T = TypeVar("T")
_DEADLINE = 120.0
_REMEMBERED = 100_000  # numbers
_POINTER = 64  # pixels; no pointer reaches further
_TRIES = 200


@dataclass(frozen=True)
class Seen:
    picture: Image.Image
    within: float  # seconds by which it may be old, as whoever took it says
    pointer: tuple[int, int] | None = None  # where it says the pointer is


@dataclass
class Said:
    """What the application has said to have drawn, and when that was heard."""

    times: deque[tuple[float, int]] = field(default_factory=lambda: deque([(0.0, 0)], _REMEMBERED))
    more: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def newest(self) -> int:
        return self.times[-1][1]

    def hear(self, number: int) -> None:
        self.times.append((time.monotonic(), number))
        self.more.set()

    def before(self, when: float) -> int:
        """The newest number that had been heard by then."""
        return next((number for at, number in reversed(self.times) if at <= when), self.times[0][1])

    async def beyond(self, number: int) -> None:
        while self.newest <= number:
            self.more.clear()
            await self.more.wait()


class Sight(Protocol):
    """A desktop in which the application draws, and the eyes to be tried."""

    said: Said

    async def look(self, *, pointer: bool) -> Seen: ...

    async def point(self, x: int, y: int) -> None:
        """Move the pointer, by the same connection."""

    def numbers(self, picture: Image.Image) -> set[int]:
        """All that the picture shows; AssertionError if a pixel shows none."""

    def whole(self, picture: Image.Image) -> bool:
        """Whether it is all of one number's pattern."""


class SeeingContract:
    looks: ClassVar[int] = 200
    exact: ClassVar[bool] = True  # whether pictures must be proved exact
    at_one_stroke: ClassVar[bool] = True  # whether the application draws so: else the screen itself shows parts of two
    most: ClassVar[float] = 0.0  # seconds that `within` may say at most
    gaps: ClassVar[Mapping[str, str]] = {}  # test that this screen fails → why

    def sight(self) -> AbstractAsyncContextManager[Sight]:
        raise AssertionError(f"{type(self).__name__} must say how its screen is had")

    @pytest.fixture(autouse=True)
    def _known_gaps(self, request: pytest.FixtureRequest) -> None:
        if reason := self.gaps.get(request.node.originalname):
            pytest.xfail(f"known gap: {reason}")

    def run(self, body: Callable[[Sight], Coroutine[Any, Any, T]]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(_DEADLINE), self.sight() as sight:
                await sight.said.beyond(0)
                await asyncio.sleep(self.most)  # for so long a picture may show what was there before the pattern
                return await body(sight)

        return asyncio.run(bounded())

    def test_what_was_drawn_before_the_question_is_in_the_picture_and_whole(self) -> None:
        async def body(sight: Sight) -> None:
            for _ in range(self.looks):
                await self._true(sight)

        self.run(body)

    def test_looks_at_once_are_as_true(self) -> None:
        async def body(sight: Sight) -> None:
            for _ in range(self.looks // 8):
                await asyncio.gather(*(self._true(sight) for _ in range(4)))

        self.run(body)

    def test_a_look_right_after_it_was_said_shows_it(self) -> None:
        """The hardest moment: the server may be about to notice."""

        async def body(sight: Sight) -> None:
            for _ in range(self.looks // 2):
                await sight.said.beyond(sight.said.newest)
                await self._true(sight)

        self.run(body)

    def test_the_pointer_is_in_the_picture_when_asked_for_and_not_otherwise(self) -> None:
        async def body(sight: Sight) -> None:
            for x, y in ((300, 200), (101, 77), (300, 201)):
                await sight.point(x, y)
                await self._until(sight, lambda seen: sight.whole(seen.picture), pointer=False)
                await self._until(sight, partial(self._points, sight, x, y), pointer=True)

        self.run(body)

    async def _true(self, sight: Sight, *, pointer: bool = False) -> Seen:
        """A picture, of which every pixel shows what the screen showed at its time."""
        asked = time.monotonic()
        oldest = sight.said.newest
        seen = await sight.look(pointer=pointer)
        assert seen.within <= self.most
        assert not self.exact or seen.within == 0.0
        if seen.within:
            oldest = sight.said.before(asked - seen.within)
        shown = sight.numbers(seen.picture)
        assert min(shown) >= oldest, f"{shown} is shown, {oldest} had been drawn before"
        await sight.said.beyond(max(shown) - 1)  # it may be heard a little after it was seen
        if self.exact and self.at_one_stroke:
            assert sight.whole(seen.picture), f"a picture in parts, of {shown}"
        return seen

    async def _until(self, sight: Sight, right: Callable[[Seen], bool], *, pointer: bool) -> None:
        """The first picture must be right; where pictures may be in parts, one of many."""
        for _ in range(1 if self.exact and self.at_one_stroke else _TRIES):
            seen = await sight.look(pointer=pointer)
            if right(seen):
                return
        raise AssertionError("the pointer is not in the picture" if pointer else "the pointer is in the picture")

    def _points(self, sight: Sight, x: int, y: int, seen: Seen) -> bool:
        """Whether there is a pointer in the picture, with nothing but one number's pattern around it."""
        width, height = seen.picture.size
        corner = seen.picture.crop((width - 4 * EDGE, height - 4 * EDGE, width, height))
        box = ImageChops.difference(seen.picture, pattern(min(sight.numbers(corner)), seen.picture.size)).getbbox()
        if box is None or max(box[2] - box[0], box[3] - box[1]) > _POINTER:
            return False
        return box[0] <= x < box[2] and box[1] <= y < box[3] and seen.pointer in ((x, y), None)


def pattern(number: int, size: tuple[int, int]) -> Image.Image:
    """What the easel draws."""
    ink, paper = (_rgb(colour) for colour in colours(number))
    tile = Image.new("RGB", (2 * EDGE, 2 * EDGE), paper)
    for at in (0, EDGE):
        tile.paste(ink, (at, at, at + EDGE, at + EDGE))
    row = Image.new("RGB", (size[0], 2 * EDGE))
    for x in range(0, size[0], 2 * EDGE):
        row.paste(tile, (x, 0))
    whole = Image.new("RGB", size)
    for y in range(0, size[1], 2 * EDGE):
        whole.paste(row, (0, y))
    return whole


class Easels:
    """For a `Sight` of a screen on which the easel draws."""

    def numbers(self, picture: Image.Image) -> set[int]:
        found: Any = picture.convert("RGB").getcolors(maxcolors=1024)
        assert found is not None, "the picture is not of the pattern"
        return {number_of(red << 16 | green << 8 | blue) for _, (red, green, blue) in found}

    def whole(self, picture: Image.Image) -> bool:
        numbers = self.numbers(picture)
        return len(numbers) == 1 and not ImageChops.difference(picture, pattern(min(numbers), picture.size)).getbbox()


class ScreenSight(Easels):
    """The eyes are a connection of our own."""

    def __init__(self, screen: Screen, said: Said) -> None:
        self.screen = screen
        self.said = said

    async def look(self, *, pointer: bool) -> Seen:
        frame = await self.screen.frame(pointer=pointer)
        return Seen(image(frame, pointer=pointer), frame.within, frame.pointer)

    async def point(self, x: int, y: int) -> None:
        self.screen.pointer_event(x, y, 0)
        await self.screen.sync()


@asynccontextmanager
async def listening(said: Said, lines: AsyncIterator[bytes]) -> AsyncIterator[None]:
    """As long as this lasts, what the application writes is heard."""

    async def listen() -> None:
        async for line in lines:
            said.hear(int(line))

    task = asyncio.create_task(listen(), name="listen to the easel")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()):
            raise error


def _rgb(colour: int) -> tuple[int, int, int]:
    return colour >> 16, colour >> 8 & 0xFF, colour & 0xFF
