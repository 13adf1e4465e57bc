"""Runs inside a desktop, under its own python3: fills the screen with one number after another and says which it drew.

Every pixel tells the number: a chequered pattern of two colours, *ink* (the number scrambled over 23 bits) and *paper*
(the same and the highest bit). A number is drawn at one stroke; once X has confirmed it, it is written to standard
output. Then comes a pause, by a seeded chance: mostly none, so that the screen is as busy as it can be, or one of up to
REST seconds, in which all that looks must come to show the same.

    python3 easel.py SEED REST [LAST]
"""

import random
import sys
import time
from typing import Any

EDGE = 16  # pixels of one square of the pattern
_BITS = 23
_MASK = (1 << _BITS) - 1
_FACTOR = 5_654_321  # odd, so it can be undone
_ARROW = 2  # in X's font of cursors
_BUSY = 12  # numbers drawn without a pause between two that are followed by one, on average


def colours(number: int) -> tuple[int, int]:
    """Ink and paper of a number."""
    ink = number * _FACTOR & _MASK
    return ink, ink | 1 << _BITS


def number_of(colour: int) -> int:
    return (colour & _MASK) * pow(_FACTOR, -1, 1 << _BITS) & _MASK


class Easel:
    def __init__(self) -> None:
        from Xlib.display import Display  # type: ignore[import-untyped]

        self.display = Display()
        self.screen = self.display.screen()
        root, size = self.screen.root, (self.screen.width_in_pixels, self.screen.height_in_pixels)
        self.window = root.create_window(0, 0, *size, 0, self.screen.root_depth, override_redirect=True)
        font = self.display.open_font("cursor")
        arrow = font.create_glyph_cursor(font, _ARROW, _ARROW + 1, (0, 0, 0), (65535, 65535, 65535))
        self.window.change_attributes(cursor=arrow)
        self.window.map()
        self.size = size
        self.tile = root.create_pixmap(2 * EDGE, 2 * EDGE, self.screen.root_depth)
        self.pen: Any = self.tile.create_gc()
        self.brush: Any = self.window.create_gc(tile=self.tile, fill_style=1)

    def draw(self, number: int) -> None:
        """Return when the whole screen shows it."""
        ink, paper = colours(number)
        self.pen.change(foreground=paper)
        self.tile.fill_rectangle(self.pen, 0, 0, 2 * EDGE, 2 * EDGE)
        self.pen.change(foreground=ink)
        self.tile.poly_fill_rectangle(self.pen, [(0, 0, EDGE, EDGE), (EDGE, EDGE, EDGE, EDGE)])
        self.brush.change(tile=self.tile)
        self.window.fill_rectangle(self.brush, 0, 0, *self.size)
        self.display.sync()


def main(seed: str, rest: str, last: str = "1000000") -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # Xlib prints its remarks
    chance, easel = random.Random(int(seed)), Easel()  # noqa: S311 - it keeps no secret
    for number in range(1, int(last) + 1):
        easel.draw(number)
        print(number, file=answers, flush=True)
        if chance.random() < 1 / _BUSY:
            time.sleep(chance.random() * float(rest))


if __name__ == "__main__":
    main(*sys.argv[1:])
