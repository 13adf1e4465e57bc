"""The display that a vendor's tool was told of, over a lease's view that may have another size.

The translators speak in pixels of the declared display alone. Here, and nowhere else, points go from it to the view
(the middle of what a declared pixel covers), and pictures come back in its size. Where both sizes are equal, which is
simplest, nothing is scaled.

Our API does not tell where the pointer is, so the display keeps where its own actions have put it last; after a
failure it is not known. A person who takes over may have moved it since.
"""

import asyncio
import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast

from PIL import Image

from cu_fleet.client.desktop import Desktop
from cu_fleet.client.hands import Result
from cu_fleet.client.picture import Area
from cu_fleet.model.action import MOST_SECONDS, Action, Drag, check_on_screen, parse_actions
from cu_fleet.model.errors import FleetError, InvalidError, LeaseOverError
from cu_fleet.model.keys import MODIFIERS, combo, keysym
from cu_fleet.model.view import ApprovalView

if TYPE_CHECKING:
    from cu_fleet.client.picture import Picture

Step = dict[str, Any]  # one action of ours, its points in pixels of the declared display
MOST_BYTES = 3_700_000  # of a picture: what both vendors take, also in base64
_UNSURE = frozenset({"broken_off", "no_answer"})


@dataclass(frozen=True)
class Image64:
    media_type: str
    data: str

    @property
    def url(self) -> str:
        return f"data:{self.media_type};base64,{self.data}"


@dataclass(frozen=True)
class Shown:
    """What came of a batch: the display as it is now, and what went wrong."""

    image: Image64 | None
    error: str = ""  # why something was not done
    blind: str = ""  # why there is no picture


class Display:
    """A desktop under the size that was declared; none: that of the lease's view."""

    def __init__(self, desktop: Desktop, size: tuple[int, int] | None = None) -> None:
        lease = desktop.lease
        if not lease.width or not lease.height:
            raise InvalidError(
                f"lease {lease.lease} has no view yet", remedy="wait until it is granted", code="no_view"
            )
        self.desktop = desktop
        self.view = (lease.width, lease.height)
        self.screen = (lease.screen_width or lease.width, lease.screen_height or lease.height)
        self.width, self.height = size or self.view
        if self.width < 1 or self.height < 1:
            raise InvalidError(f"a display of {self.width}x{self.height} shows nothing", code="bad_size")
        self.pointer: tuple[int, int] | None = None

    async def act(self, steps: Sequence[Step], *, intent: str | None = None, approval: str | None = None) -> Shown:
        """Do them in order until one fails, and look. Nothing is sent if any of them is wrong."""
        actions = self._checked(steps)
        sent = [self._scaled(action) for action in actions]
        try:
            result = await self.desktop.act(sent, screenshot=self._wanted(), intent=intent, approval=approval)
        except LeaseOverError:
            raise
        except FleetError as error:  # then the first was not done, and none after it, if there was an answer at all
            self.pointer = None
            known = "it is not known what was done" if error.code in _UNSURE else "nothing was done"
            return await self._shown(f"{known}: {error}")
        good = [done.ok for done in result.done]
        count = good.index(False) if False in good else len(good)
        self._follow(actions[:count])
        failed = _what_failed(steps, result, count)
        if failed:
            self.pointer = None
        if result.image is None:
            return await self._shown(failed)
        return Shown(await self._fitted(result.image), failed)

    async def answered(self, steps: Sequence[Step], reason: str, checks: Sequence[Mapping[str, Any]]) -> ApprovalView:
        """What the operator says to these steps, asked through the controller; returns when it is answered, or over."""
        sent = [self._scaled(action) for action in self._checked(steps)]
        asked = await self.desktop.ask_approval(sent, reason, checks=checks)
        return await self.desktop.approval(asked.approval)

    def _checked(self, steps: Sequence[Step]) -> list[Action]:
        actions = parse_actions([*steps])
        for action in actions:
            check_on_screen(action, self.width, self.height, "the display")
        return actions

    async def look(self) -> Image64:
        """The whole display. A blank screen is shown too: it is for the model to see that."""
        return await self._fitted(await self.desktop.screenshot(**self._wanted(), allow_blank=True))

    async def zoom(self, x0: int, y0: int, x1: int, y1: int) -> Image64:
        """A part of the display, with all the pixels that the screen has there, as large as the display has room."""
        if not (0 <= x0 < x1 <= self.width and 0 <= y0 < y1 <= self.height):
            raise InvalidError(
                f"the region {x0},{y0} to {x1},{y1} is not on the display, which is {self.width}x{self.height}",
                remedy="give the upper left and the lower right corner",
                code="off_screen",
            )
        region = self._area(x0, y0, x1, y1)
        wanted = {**self._wanted(), "max_edge": max(self.width, self.height, 16)}
        picture = await self.desktop.screenshot(region=region, **wanted, allow_blank=True)
        grown = min(self.width / picture.width, self.height / picture.height)
        return await _encoded(picture, (max(1, int(picture.width * grown)), max(1, int(picture.height * grown))))

    def notches(self, pixels: int, per_notch: float, across: bool) -> int:
        """Of the wheel, for a distance in pixels of the display: at least one, if there is any."""
        axis = 0 if across else 1
        size = self.screen[axis] / (self.width, self.height)[axis]
        count = max(1, round(abs(pixels) * size / per_notch)) if pixels else 0
        return count if pixels > 0 else -count

    def _wanted(self) -> dict[str, Any]:
        edge = {} if (self.width, self.height) == self.view else {"max_edge": max(self.width, self.height, 16)}
        return {"max_bytes": MOST_BYTES, "settle_ms": 100, **edge}

    async def _shown(self, error: str) -> Shown:
        try:
            return Shown(await self.look(), error)
        except LeaseOverError:
            raise
        except FleetError as blind:
            return Shown(None, error, str(blind))

    async def _fitted(self, picture: "Picture") -> Image64:
        return await _encoded(picture, (self.width, self.height))

    def _follow(self, done: Sequence[Action]) -> None:
        for action in done:
            if isinstance(action, Drag):
                self.pointer = action.path[-1]
            elif (x := getattr(action, "x", None)) is not None:
                self.pointer = (x, cast("Any", action).y)

    def _scaled(self, action: Action) -> Step:
        step = action.model_dump(mode="json", exclude_none=True)
        if "path" in step:
            step["path"] = [list(self._point(x, y)) for x, y in step["path"]]
        elif "x" in step:
            step["x"], step["y"] = self._point(step["x"], step["y"])
        return step

    def _point(self, x: int, y: int) -> tuple[int, int]:
        (width, height) = self.view
        return (2 * x + 1) * width // (2 * self.width), (2 * y + 1) * height // (2 * self.height)

    def _area(self, x0: int, y0: int, x1: int, y1: int) -> Area:
        """Every pixel of the view that the rectangle touches."""
        (width, height) = self.view
        left, top = x0 * width // self.width, y0 * height // self.height
        right, bottom = -(-x1 * width // self.width), -(-y1 * height // self.height)
        return left, top, right - left, bottom - top


def holding(keys: Sequence[str], step: Step) -> list[Step]:
    """The step while these keys are down: as its modifiers if they are that, else pressed before and lifted after.

    If the step fails, the controller lifts all that is down.
    """
    named = list({keysym(key): key for key in keys}.values())
    if not named:
        return [step]
    if step["type"] in ("click", "drag", "scroll") and all(keysym(key) in MODIFIERS for key in named):
        return [{**step, "modifiers": named}]
    down = [{"type": "key_down", "key": key} for key in named]
    return [*down, step, *({"type": "key_up", "key": key} for key in reversed(named))]


def keys_of(text: str) -> list[str]:
    """The keys of `ctrl+shift`, each by its name."""
    combo(text)
    names = [*text[:-2].split("+"), "plus"] if text.endswith("++") else ["plus"] if text == "+" else text.split("+")
    return [name if len(name) == 1 else name.strip() for name in names]


def waiting(seconds: float) -> list[Step]:
    """In pieces, where it is longer than one wait may be."""
    pieces = [MOST_SECONDS] * int(seconds // MOST_SECONDS)
    rest = seconds - MOST_SECONDS * len(pieces)
    return [{"type": "wait", "seconds": piece} for piece in (*pieces, *([rest] if rest or not pieces else []))]


def _what_failed(steps: Sequence[Step], result: Result, count: int) -> str:
    if count == len(steps):
        return ""
    why = result.done[count].detail if count < len(result.done) else "it was not reached"
    return f"{steps[count]['type']} was not done: {why}; what came before it was done, what comes after it was not"


async def _encoded(picture: "Picture", size: tuple[int, int]) -> Image64:
    frame = picture.frame
    if picture.size == size:
        return Image64(f"image/{frame.format}", base64.b64encode(frame.data).decode())
    return await asyncio.to_thread(_resized, picture, size)


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image64:
    small = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    for kind, quality in (("png", 0), *(("jpeg", quality) for quality in (90, 70, 50, 30, 10))):
        into = BytesIO()
        small.save(into, kind, quality=quality)
        if into.tell() <= MOST_BYTES:
            break
    return Image64(f"image/{kind}", base64.b64encode(into.getvalue()).decode())
