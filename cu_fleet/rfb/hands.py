"""Actions into key and pointer events, one at a time.

Every event passes the fingers, which ask the guard in the same breath and keep account of what is down. If the guard
refuses, or anything else ends an action before its end, all that is down is lifted at once, without asking, and nothing
more is sent. An action is done when the server has taken in its last event; of a machine's, when its programs have it.

RFB has eight buttons, TigerVNC 1.12 heeds seven, QEMU five: somebody inside presses back and forward and turns the
wheel sideways, or that is refused.

*Clicks that are meant singly stay single.* GTK, Qt, Tk and Chromium take two presses for a double click if they come
within 400 or 500 ms at nearly the same place (GTK a third for a triple click within 800 ms of the first); moving away
between does not change that for GTK and Tk. So a click or drag where the same button was pressed just before waits
until that time has passed. Presses by `press` that follow each other are left as they come: whoever uses them wants to
decide.

*Keys come after the click that they follow.* A window manager that raises what is clicked on has the X server hold the
pointer back until it has looked at each press, and keys overtake it: they would go where the focus was before. So keys
soon after a press wait until the window manager has let go of it, which somebody inside can tell, or else for a moment.
"""

import asyncio
import itertools
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from cu_fleet.model.action import (
    Action,
    Click,
    Drag,
    HoldKey,
    Key,
    KeyDown,
    KeyUp,
    Move,
    Paste,
    Press,
    Release,
    Scroll,
    Type,
    Wait,
    WaitChange,
    WaitStable,
    check_on_screen,
)
from cu_fleet.model.errors import FleetError, UnsupportedError
from cu_fleet.model.keys import modifier
from cu_fleet.rfb.changes import Still
from cu_fleet.rfb.fingers import Extra, Fingers
from cu_fleet.rfb.keyboard import BEFORE_SYNC, Keyboard, PasteText
from cu_fleet.rfb.passage import Ask
from cu_fleet.rfb.screen import Screen

_BUTTONS = {"left": 1, "middle": 2, "right": 4}
_WHEEL = {"up": 8, "down": 16, "left": 32, "right": 64}
_SIDEWAYS = ("left", "right")
_STEP = 12  # pixels between two points of a drag
_MOST_STEPS = 24  # of one stretch of a drag
_PACE = 0.004  # seconds between two points of a drag, so that a toolkit's own loop gets to see them
_DWELL = 0.03  # seconds a drag rests before it begins to move and before it lets go
_BETWEEN = 0.008  # seconds between the presses of a double click
_DOUBLE = 0.52  # seconds after a press within which another may make it a double click
_TRIPLE = 0.82  # and after two presses, a triple click
_WATCHED = 2.0  # seconds after which a window manager has dealt with a press, however slow it is
_MOST_UNHEARD = 8  # presses, of which all but the last few are dealt with for certain
_UNHEARD = 0.05  # seconds that it is given where nobody inside can tell
_LIFTED = 2.0  # seconds that what was lifted at the end may take to arrive
_NEAR = 10  # pixels within which two presses may be taken for one


@dataclass(frozen=True)
class _Pressed:
    """The last press of a button."""

    button: str
    at: tuple[int, int]
    when: float
    several: bool  # it was not alone
    by_hand: bool  # by the press action


class Hands:
    """`guard` is called right before every event and stops it by raising.

    `paste_text(text, press)` sets the desktop's clipboard, presses, and returns when a program has taken the text in,
    so that what is sent next comes after it. `extra` presses the buttons that VNC lacks. `heard(presses)` returns when
    the window manager has dealt with them, or says that it cannot tell. `arrived` counts what has come into a machine
    (see `passage`). `foreign` holds the characters that took up room in the server's keyboard; hands on the same server
    share it.
    """

    def __init__(
        self,
        screen: Screen,
        guard: Callable[[], None],
        paste_text: PasteText | None = None,
        extra: Extra | None = None,
        heard: Callable[[int], Awaitable[bool]] | None = None,
        foreign: set[str] | None = None,
        arrived: Ask | None = None,
    ) -> None:
        self.screen = screen
        self.fingers = Fingers(screen, guard, extra, arrived)
        self.keyboard = Keyboard(self.fingers, paste_text, set() if foreign is None else foreign)
        self._seen: int | Still = screen.serial  # the picture before the latest input
        self._pressed: _Pressed | None = None
        self._heard = heard
        self._unheard = 0  # presses that keys could overtake

    @property
    def position(self) -> tuple[int, int]:
        return self.screen.pointer

    @property
    def down(self) -> bool:
        """Whether any key or button is down."""
        return self.fingers.down

    async def do(self, action: Action) -> None:
        """Do one action, in pixels of the screen; it is done when this returns."""
        check_on_screen(action, self.screen.width, self.screen.height)
        self.fingers.guard()
        try:
            if not isinstance(action, Wait | WaitStable | WaitChange):
                await self._begin()
            await self._do(action)
        except BaseException as e:
            await self.fingers.lift_after(e)
            raise

    async def mark(self, *, whole: bool = False) -> None:
        """Look before an action, so that a `wait_change` after it misses nothing and takes nothing older for it.

        Without it, `wait_change` compares with the picture as it was last looked at before the action. Where any change
        of the `whole` screen counts, the serial tells, and the picture need not be kept.
        """
        self._seen = await (self.screen.refresh() if whole else self.screen.mark())

    async def release_all(self, timeout: float = 10.0) -> None:
        """Lift all that is down, and return when the server has taken that in. Asks no guard."""
        lifted = self.fingers.lift()
        await self.screen.sync(timeout)
        if lifted:
            with suppress(FleetError):
                await self.fingers.passage.arrived(_LIFTED)
        await self.fingers.lift_extra()

    async def claim_pointer(self, *, last: bool = True) -> None:
        """Take over the pointer where it is thought to be (at first in the middle), with no button down.

        From then on it is known where it is, and the server keeps it out of pictures. It has to move for that: by one
        pixel, and back. `last` is False for who looks right afterwards, and so waits for that anyway.
        """
        x, y = self.screen.pointer
        self.fingers.point(x - 1 if x else x + 1, y)
        await self.screen.sync()
        self.fingers.point(x, y)
        if last:
            await self.screen.sync()
        self.fingers.new = False

    async def _begin(self) -> None:
        if not isinstance(self._seen, Still) or self._seen.serial != self.screen.serial:
            self._seen = self.screen.serial
        if self.fingers.new:
            await self.claim_pointer()
        await self.fingers.passage.begin()
        if self.fingers.extra and self.fingers.extra.owed:
            await self.fingers.lift_extra()

    async def _do(self, action: Action) -> None:
        match action:
            case Wait():
                await asyncio.sleep(action.seconds)
            case WaitStable():
                what = (action.region, action.ignore, action.ignore_below)
                await self.screen.wait_stable(action.quiet_ms / 1000, action.timeout_ms / 1000, *what)
            case WaitChange():
                what = (action.region, action.ignore, action.ignore_below)
                await self.screen.wait_change(self._seen, action.timeout_ms / 1000, *what)
            case Key() | KeyDown() | KeyUp() | HoldKey() | Type() | Paste():
                await self.fingers.passage.turn("keys")
                await self._behind_clicks()
                await self._press_keys(action)
                await self.fingers.delivered()
            case _:
                before = self._pressed
                await self._move(action)
                await self.fingers.delivered()
                if self._pressed is not before and self._pressed:  # the server may have been slow
                    self._pressed = replace(self._pressed, when=time.monotonic())

    async def _behind_clicks(self) -> None:
        presses, self._unheard = self._unheard, 0
        if not presses or self._pressed is None or time.monotonic() - self._pressed.when > _WATCHED:
            return
        if self._heard is None or not await self._heard(min(presses, _MOST_UNHEARD)):
            await asyncio.sleep(_UNHEARD)

    async def _press_keys(self, action: Key | KeyDown | KeyUp | HoldKey | Type | Paste) -> None:
        match action:
            case Key():
                self.fingers.release(await self.keyboard.hold(action))
            case KeyDown():
                await self.keyboard.hold(action)
            case KeyUp():
                self.keyboard.lift(action)
            case HoldKey():
                held = await self.keyboard.hold(action)
                await asyncio.sleep(action.seconds)
                self.fingers.release(held)
            case Type():
                await self.keyboard.type(action)
            case Paste():
                await self.keyboard.paste(action)

    async def _move(self, action: Move | Click | Press | Release | Drag | Scroll) -> None:
        await self.fingers.passage.turn("pointer")
        match action:
            case Move():
                self.fingers.place(action.x, action.y)
            case Click():
                await self._click(action)
            case Press():
                self._check(action.button)
                if self._pressed and not self._pressed.by_hand:
                    await self._apart(action.button, action.x, action.y)
                self.fingers.place(action.x, action.y)
                await self._button(action.button, down=True, by_hand=True)
            case Release():
                self._check(action.button)
                self.fingers.point(action.x, action.y)
                await self._button(action.button, down=False)
            case Drag():
                await self._drag(action)
            case Scroll():
                await self._scroll(action)

    async def _click(self, action: Click) -> None:
        self._check(action.button)
        await self._apart(action.button, action.x, action.y)
        with_keys = await self._with(action.modifiers)
        self.fingers.place(action.x, action.y)
        for number in range(action.count):
            if number and not self.fingers.qemu:  # Chromium takes presses of the same millisecond for one
                await self.screen.sync()
                await asyncio.sleep(_BETWEEN)
            await self._button(action.button, down=True, several=action.count > 1)
            await self._button(action.button, down=False)
        await self._without(with_keys)

    async def _drag(self, action: Drag) -> None:
        self._check(action.button)
        await self._apart(action.button, *action.path[0])
        with_keys = await self._with(action.modifiers)
        self.fingers.place(*action.path[0])
        await self._button(action.button, down=True)
        await asyncio.sleep(_DWELL)
        for x, y in _between(action.path):
            self.fingers.point(x, y)
            await self.fingers.delivered()
            await asyncio.sleep(_PACE)
        await asyncio.sleep(_DWELL)
        await self._button(action.button, down=False)
        await self._without(with_keys)

    async def _scroll(self, action: Scroll) -> None:
        ways = ["down" if action.dy > 0 else "up"] * abs(action.dy)
        ways += ["right" if action.dx > 0 else "left"] * abs(action.dx)
        if action.dx and self.fingers.qemu and self.fingers.extra is None:
            raise _no_wheel()
        with_keys = await self._with(action.modifiers)
        self.fingers.place(action.x, action.y)
        for number, way in enumerate(ways, 1):
            await self._turn(way)
            if number % BEFORE_SYNC == 0:
                await self.fingers.delivered()
        await self._without(with_keys)

    async def _turn(self, way: str) -> None:
        """The wheel, by one notch."""
        if self.fingers.qemu and way in _SIDEWAYS:
            for down in (True, False):
                await self.fingers.press_extra(f"wheel_{way}", down=down)
            return
        self.fingers.point(buttons=self.fingers.buttons | _WHEEL[way])
        self.fingers.point(buttons=self.fingers.buttons & ~_WHEEL[way])
        await self.fingers.passage.room()

    async def _with(self, modifiers: Iterable[str]) -> list[int]:
        pressed = self.fingers.press(map(modifier, modifiers))
        await self.fingers.passage.turn("pointer")
        return pressed

    async def _without(self, pressed: Sequence[int]) -> None:
        if pressed:
            await self.fingers.passage.turn("keys")
            self.fingers.release(pressed)

    async def _button(self, name: str, *, down: bool, several: bool = False, by_hand: bool = False) -> None:
        if name in _BUTTONS:
            if down:
                await self.fingers.passage.press()
            mask = _BUTTONS[name]
            self.fingers.point(buttons=self.fingers.buttons | mask if down else self.fingers.buttons & ~mask)
        else:
            await self.fingers.press_extra(name, down=down)
        if down:
            self._unheard += 1
            self._pressed = _Pressed(name, self.screen.pointer, time.monotonic(), several or by_hand, by_hand)

    async def _apart(self, name: str, x: int | None, y: int | None) -> None:
        """Return when a press here is none of two."""
        if (last := self._pressed) and last.button == name:
            here = self.screen.pointer if x is None or y is None else (x, y)
            left = last.when + (_TRIPLE if last.several else _DOUBLE) - time.monotonic()
            if left > 0 and all(abs(a - b) <= _NEAR for a, b in zip(here, last.at, strict=True)):
                await asyncio.sleep(left)

    def _check(self, button: str) -> None:
        if button not in _BUTTONS and self.fingers.extra is None:
            raise no_button(button)


def no_button(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"the screen's server has no {name} button: VNC carries left, middle, right and the wheel",
        remedy="press the key instead: XF86Back or XF86Forward, or alt+left or alt+right in a browser",
        code="no_such_button",
        button=name,
    )


def _no_wheel() -> UnsupportedError:
    return UnsupportedError(
        "the screen's server, QEMU, has no wheel that turns sideways",
        remedy="scroll up and down with shift held: many programs take that for sideways",
        code="no_such_button",
        button="wheel",
    )


def _between(path: Sequence[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """The points of a drag after the first, with further ones on the way."""
    for (x0, y0), (x1, y1) in itertools.pairwise(path):
        steps = min(_MOST_STEPS, max(1, math.ceil(math.hypot(x1 - x0, y1 - y0) / _STEP)))
        for step in range(1, steps + 1):
            yield round(x0 + (x1 - x0) * step / steps), round(y0 + (y1 - y0) * step / steps)
