"""The pointer's buttons, and ways to turn its wheel, that VNC has no bits for, pressed by XTEST.

What is down is lifted when the helper ends.
"""

from __future__ import annotations

from Xlib import X  # type: ignore[import-untyped]
from Xlib.ext import xtest  # type: ignore[import-untyped]

from cu_fleet.guest.terms import RefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cu_fleet.guest.link import Link

NUMBERS = {"back": 8, "forward": 9, "wheel_left": 6, "wheel_right": 7}


class Buttons:
    def __init__(self, link: Link) -> None:
        self.display, self.root = link.display, link.root
        self.down: set[str] = set()

    def press(self, name: object, down: object, x: object, y: object) -> None:
        """Press or lift a button at a place; returns when the X server has done it."""
        if name not in NUMBERS or not isinstance(name, str) or not isinstance(x, int) or not isinstance(y, int):
            raise RefusedError("invalid", f"a button is one of {', '.join(NUMBERS)}, its place two numbers")
        if NUMBERS[name] > len(self.display.get_pointer_mapping()):
            raise RefusedError("no_button", f"the X server's pointer has no button {NUMBERS[name]}, for {name}")
        here = self.root.query_pointer()
        if (here.root_x, here.root_y) != (x, y):  # else servers would say that a program has moved it
            xtest.fake_input(self.display, X.MotionNotify, x=x, y=y)
        xtest.fake_input(self.display, X.ButtonPress if down else X.ButtonRelease, NUMBERS[name])
        (self.down.add if down else self.down.discard)(name)
        self.display.sync()

    def lift(self) -> None:
        """Lift them all, also what an earlier helper may have left down."""
        for number in NUMBERS.values():
            xtest.fake_input(self.display, X.ButtonRelease, number)
        self.down.clear()
        self.display.sync()
