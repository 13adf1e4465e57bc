"""A region of the screen as tiles of 64 pixels, one bit each, in one number: never larger than the screen is."""

from collections.abc import Iterator
from dataclasses import dataclass

from cu_fleet.rfb.canvas import Rect

TILE = 64
_WIDEST = 2048 // TILE  # of one rectangle: Tight's bound


@dataclass(frozen=True)
class Grid:
    width: int
    height: int

    @property
    def columns(self) -> int:
        return -(-self.width // TILE)

    @property
    def rows(self) -> int:
        return -(-self.height // TILE)

    @property
    def whole(self) -> int:
        return (1 << self.columns * self.rows) - 1

    def region(self, rect: Rect) -> int:
        """The tiles that a rectangle touches, as far as it is on the screen."""
        x, y, width, height = rect
        left, top = max(0, x), max(0, y)
        right, bottom = min(self.width, x + width), min(self.height, y + height)
        if left >= right or top >= bottom:
            return 0
        first, last = left // TILE, (right - 1) // TILE
        row = (1 << last - first + 1) - 1 << first
        return sum(row << at * self.columns for at in range(top // TILE, (bottom - 1) // TILE + 1))

    def rects(self, region: int) -> Iterator[tuple[Rect, int]]:
        """The region as rectangles one row of tiles high, each with its own part of the region."""
        for row in range(self.rows):
            bits = region >> row * self.columns & (1 << self.columns) - 1
            while bits:
                first = (bits & -bits).bit_length() - 1
                rest = bits >> first
                count = min(_WIDEST, (~rest & rest + 1).bit_length() - 1)
                run = (1 << count) - 1 << first
                yield self._rect(first, row, count), run << row * self.columns
                bits &= ~run

    def _rect(self, column: int, row: int, count: int) -> Rect:
        x, y = column * TILE, row * TILE
        return x, y, min(count * TILE, self.width - x), min(TILE, self.height - y)
