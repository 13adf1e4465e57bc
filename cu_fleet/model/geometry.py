"""Which pixels of the screen each pixel of a picture shows.

A picture shows a rectangle of the screen, as it is or smaller, never larger. Where n pixels of it stand for s of the
screen, pixel p shows those from p*s/n to (p+1)*s/n, and what points at p is meant for their middle. All of it is
reckoned in whole numbers, so nothing is off by a rounding, and the way back from that middle leads to p again.
"""

from dataclasses import dataclass
from typing import Self

from cu_fleet.model.action import Action

Rect = tuple[int, int, int, int]  # x, y, width, height


def fit(width: int, height: int, max_edge: int | None) -> tuple[int, int]:
    """The size scaled down until neither edge is longer."""
    longest = max(width, height)
    if max_edge is None or longest <= max_edge:
        return width, height
    return max(1, round(width * max_edge / longest)), max(1, round(height * max_edge / longest))


@dataclass(frozen=True, slots=True)
class Geometry:
    """A picture of `width` x `height` pixels, and the rectangle of a screen of `screen`'s size that it shows."""

    rect: Rect
    width: int
    height: int
    screen: tuple[int, int]

    @classmethod
    def whole(cls, width: int, height: int, max_edge: int | None) -> Self:
        """The whole screen, with its longest edge at most that long."""
        return cls((0, 0, width, height), *fit(width, height, max_edge), (width, height))

    @property
    def scale(self) -> float:
        """Pixels of the picture for each of the screen."""
        return self.width / self.rect[2]

    @property
    def same(self) -> bool:
        """Whether a pixel of the picture is the screen's pixel of the same coordinates."""
        return self.rect == (0, 0, self.width, self.height)

    def point(self, x: int, y: int) -> tuple[int, int]:
        """The screen's pixel in the middle of what a pixel of the picture shows."""
        left, top, across, down = self.rect
        return left + _middle(x, across, self.width), top + _middle(y, down, self.height)

    def area(self, area: Rect) -> Rect:
        """All of the screen that an area of the picture shows any part of."""
        x, y, width, height = area
        left, top, across, down = self.rect
        begin_x, end_x = _span(x, width, across, self.width)
        begin_y, end_y = _span(y, height, down, self.height)
        return left + begin_x, top + begin_y, end_x - begin_x, end_y - begin_y

    def shows(self, x: int, y: int) -> tuple[int, int]:
        """The picture's pixel that shows the middle of a pixel of the screen, which lies in the rectangle."""
        left, top, across, down = self.rect
        return _middle(x - left, self.width, across), _middle(y - top, self.height, down)

    @staticmethod
    def placed(action: Action) -> bool:
        """Whether it has coordinates at all."""
        return any(getattr(action, name, None) for name in ("path", "region", "ignore")) or (
            getattr(action, "x", None) is not None
        )

    def meant(self, action: Action) -> Action:
        """An action in pixels of this picture, in pixels of the screen."""
        if self.same or not self.placed(action):
            return action
        given = {name: value for name, value in action if value is not None}
        changes: dict[str, object] = {}
        if "x" in given and "y" in given:
            changes["x"], changes["y"] = self.point(given["x"], given["y"])
        if "path" in given:
            changes["path"] = tuple(self.point(x, y) for x, y in given["path"])
        if "region" in given:
            changes["region"] = self.area(given["region"])
        if given.get("ignore"):
            changes["ignore"] = tuple(self.area(area) for area in given["ignore"])
        return action.model_copy(update=changes)


def _middle(at: int, there: int, here: int) -> int:
    """`here` pixels stand for `there`: the middle of what the one `at` stands for."""
    return (2 * at + 1) * there // (2 * here)


def _span(begin: int, length: int, there: int, here: int) -> tuple[int, int]:
    return begin * there // here, -(-(begin + length) * there // here)
