"""Actions into key and pointer events, one at a time.

Every event passes `_key` or `_point`, which ask the guard in the same breath and keep account of what is down. If the
guard refuses, or anything else ends an action before its end, all that is down is lifted at once, without asking, and
nothing more is sent. An action is done when the server has taken in its last event.

A server that loses its client lifts that client's keys, but TigerVNC leaves a button down. So the first thing that new
hands do, or `release_all` with them, is to lift the buttons of whoever was there before.

TigerVNC makes whatever keysym it is sent, pressing shift by itself where it must. It keeps room for some twenty keysyms
that its keyboard lacks and then drops further ones without a word: so a line with anything beyond ASCII goes over the
clipboard if there is a hook for it (its end and its tabs remain keys), and otherwise, within Latin-1, a few distinct
ones are sent as keys and the rest refused before the first key. RFB has eight buttons and TigerVNC 1.12 heeds seven, so
back and forward are refused by name.
"""

import asyncio
import itertools
import math
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence

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
from cu_fleet.model.errors import UnsupportedError
from cu_fleet.model.keys import char_keysym, combo, keysym, modifier
from cu_fleet.rfb.changes import Still
from cu_fleet.rfb.screen import Screen

_BUTTONS = {"left": 1, "middle": 2, "right": 4}
_WHEEL = {"up": 8, "down": 16, "left": 32, "right": 64}
_BEFORE_SYNC = 32  # keys or notches sent before the server has to catch up
_STEP = 12  # pixels between two points of a drag
_MOST_STEPS = 24  # of one stretch of a drag
_PACE = 0.004  # seconds between two points of a drag, so that a toolkit's own loop gets to see them
_DWELL = 0.03  # seconds a drag rests before it begins to move and before it lets go
_AS_KEYS = re.compile(r"([\n\r\t]+)")  # also in a text that is pasted: they submit, and go to the next field
_FOREIGN = 12  # distinct characters beyond ASCII that are sent as keys on one connection


class Hands:
    """`guard` is called right before every event and stops it by raising.

    `paste_text(text, press)` sets the desktop's clipboard, presses, and returns when a program has taken the text in,
    so that what is sent next comes after it.
    """

    def __init__(
        self,
        screen: Screen,
        guard: Callable[[], None],
        paste_text: Callable[[str, Callable[[], None]], Awaitable[None]] | None = None,
    ) -> None:
        self.screen = screen
        self.guard = guard
        self.paste_text = paste_text
        self.paste_keys = "ctrl+v"
        self._keys: list[int] = []  # down, in the order they went down
        self._buttons = 0
        self._foreign: set[str] = set()
        self._seen: int | Still = screen.serial  # the picture before the latest input
        self._new = True  # a button may be down from an earlier connection

    @property
    def position(self) -> tuple[int, int]:
        return self.screen.pointer

    @property
    def down(self) -> bool:
        """Whether any key or button is down."""
        return bool(self._keys or self._buttons)

    async def do(self, action: Action) -> None:
        """Do one action, in pixels of the screen; it is done when this returns."""
        check_on_screen(action, self.screen.width, self.screen.height)
        self.guard()
        try:
            if not isinstance(action, Wait | WaitStable | WaitChange):
                if not isinstance(self._seen, Still) or self._seen.serial != self.screen.serial:
                    self._seen = self.screen.serial
                if self._new:
                    await self.claim_pointer()
            await self._do(action)
        except BaseException:
            self._lift()
            raise

    async def mark(self) -> None:
        """Look before an action, so that a `wait_change` after it misses nothing and takes nothing older for it.

        Without it, `wait_change` compares with the picture as it was last looked at before the action.
        """
        self._seen = await self.screen.mark()

    async def release_all(self, timeout: float = 10.0) -> None:
        """Lift all that is down, and return when the server has taken that in. Asks no guard."""
        self._lift()
        await self.screen.sync(timeout)

    async def claim_pointer(self) -> None:
        """Take over the pointer where it is thought to be (at first in the middle), with no button down.

        From then on it is known where it is, and the server keeps it out of pictures. It has to move for that: by one
        pixel, and back.
        """
        x, y = self.screen.pointer
        for place in ((x - 1 if x else x + 1, y), (x, y)):
            self._point(*place)
            await self.screen.sync()
        self._new = False

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
                await self._type(action)
                await self.screen.sync()
            case _:
                await self._move(action)
                await self.screen.sync()

    # Pointer

    async def _move(self, action: Move | Click | Press | Release | Drag | Scroll) -> None:
        match action:
            case Move():
                self._point(action.x, action.y)
            case Click():
                mask = _mask(action.button)
                with_keys = self._press(map(modifier, action.modifiers))
                self._point(action.x, action.y)
                for _ in range(action.count):
                    self._point(buttons=self._buttons | mask)
                    self._point(buttons=self._buttons & ~mask)
                self._release(with_keys)
            case Press():
                mask = _mask(action.button)
                self._point(action.x, action.y)
                self._point(buttons=self._buttons | mask)
            case Release():
                mask = _mask(action.button)
                self._point(action.x, action.y)
                self._point(buttons=self._buttons & ~mask)
            case Drag():
                await self._drag(action)
            case Scroll():
                await self._scroll(action)

    async def _drag(self, action: Drag) -> None:
        mask = _mask(action.button)
        with_keys = self._press(map(modifier, action.modifiers))
        self._point(*action.path[0])
        self._point(buttons=self._buttons | mask)
        await asyncio.sleep(_DWELL)
        for x, y in _between(action.path):
            self._point(x, y)
            await self.screen.sync()
            await asyncio.sleep(_PACE)
        await asyncio.sleep(_DWELL)
        self._point(buttons=self._buttons & ~mask)
        self._release(with_keys)

    async def _scroll(self, action: Scroll) -> None:
        with_keys = self._press(map(modifier, action.modifiers))
        self._point(action.x, action.y)
        ways = [_WHEEL["down" if action.dy > 0 else "up"]] * abs(action.dy)
        ways += [_WHEEL["right" if action.dx > 0 else "left"]] * abs(action.dx)
        for number, wheel in enumerate(ways, 1):
            self._point(buttons=self._buttons | wheel)
            self._point(buttons=self._buttons & ~wheel)
            if number % _BEFORE_SYNC == 0:
                await self.screen.sync()
        self._release(with_keys)

    # Keyboard

    async def _type(self, action: Key | KeyDown | KeyUp | HoldKey | Type | Paste) -> None:
        match action:
            case Key():
                self._release(self._press(self._known(combo(action.keys))))
            case KeyDown():
                self._press(self._known((keysym(action.key),)))
            case KeyUp():
                self._release((self._held_as(keysym(action.key)),))
            case HoldKey():
                held = self._press(self._known(combo(action.keys)))
                await asyncio.sleep(action.seconds)
                self._release(held)
            case Type():
                text = action.text.replace("\r\n", "\n")
                if (odd := self._odd(text)) and self.paste_text is None:
                    raise self._untypable(odd)
                for piece in _AS_KEYS.split(text) if odd else [text]:
                    await (self._paste(piece) if self._odd(piece) else self._write(piece))
            case Paste():
                await self._paste(action.text)

    async def _write(self, text: str) -> None:
        for number, char in enumerate(text, 1):
            sym = char_keysym(char)
            if ord(char) > 0x7E:
                self._foreign.add(char)
            self._key(sym, down=True)
            self._key(sym, down=False)
            if number % _BEFORE_SYNC == 0:
                await self.screen.sync()

    async def _paste(self, text: str) -> None:
        if self.paste_text is not None:
            await self.paste_text(text, self._press_paste)
        else:
            await self.screen.set_clipboard(text)
            self._press_paste()

    def _press_paste(self) -> None:
        self._release(self._press(combo(self.paste_keys)))

    def _untypable(self, char: str) -> UnsupportedError:
        return UnsupportedError(
            f"the character {char!r} (U+{ord(char):04X}) cannot be typed on this desktop's keyboard",
            remedy="use the paste action",
            code="cannot_type",
            character=char,
        )

    def _odd(self, text: str) -> str:
        """The first character that has no key, or nothing."""
        known = set(self._foreign)
        for char in dict.fromkeys(text):
            if " " <= char <= "~" or char in "\n\r\t":
                continue
            full = len(known) >= _FOREIGN and char not in known
            if self.paste_text is not None or full or not "\xa0" <= char <= "\xff":
                return char
            known.add(char)
        return ""

    def _held_as(self, sym: int) -> int:
        """`A` and `a` are one key: lift it as it was pressed."""
        twins = [held for held in self._keys if held != sym and _letter(held) == _letter(sym) != ""]
        return twins[0] if twins and sym not in self._keys else sym

    def _known(self, syms: Sequence[int]) -> Sequence[int]:
        """Refuse a character that the server would drop without a word."""
        for sym in syms:
            char = chr(sym & 0xFFFFFF)
            if (0xA0 <= sym <= 0xFF or sym >> 24 == 1) and char not in self._foreign:
                if len(self._foreign) >= _FOREIGN:
                    raise UnsupportedError(
                        f"the key {char!r} is not on this desktop's keyboard, which takes {_FOREIGN} foreign ones",
                        remedy="use the type action",
                        code="cannot_type",
                        character=char,
                    )
                self._foreign.add(char)
        return syms

    # Events

    def _press(self, syms: Iterable[int]) -> list[int]:
        """Press keys that are not down yet; returns them."""
        pressed = []
        for sym in syms:
            if sym not in self._keys:
                self._key(sym, down=True)
                pressed.append(sym)
        return pressed

    def _release(self, syms: Sequence[int]) -> None:
        for sym in reversed(syms):
            self._key(sym, down=False)

    def _key(self, sym: int, *, down: bool) -> None:
        self.guard()
        if sym in self._keys:
            self._keys.remove(sym)
        if down:
            self._keys.append(sym)
        self.screen.key_event(sym, down)

    def _point(self, x: int | None = None, y: int | None = None, *, buttons: int | None = None) -> None:
        self.guard()
        if buttons is not None:
            self._buttons = buttons
        here = self.screen.pointer
        self.screen.pointer_event(here[0] if x is None else x, here[1] if y is None else y, self._buttons)

    def _lift(self) -> None:
        """Lift all that is down, the last pressed first; a lost connection has lifted it already."""
        keys, self._keys, buttons, self._buttons = self._keys, [], self._buttons, 0
        if self.screen.lost_because is not None:
            return
        for sym in reversed(keys):
            self.screen.key_event(sym, down=False)
        if buttons or self._new:
            self.screen.pointer_event(*self.screen.pointer, 0)
            self._new = False


def _letter(sym: int) -> str:
    """The letter that a keysym stands for, in lower case, or nothing."""
    char = chr(sym & 0xFFFFFF) if 0x20 <= sym <= 0xFF or sym >> 24 == 1 else ""
    return char.lower() if char.isalpha() else ""


def _mask(button: str) -> int:
    if button not in _BUTTONS:
        raise UnsupportedError(
            f"the screen's server has no {button} button: VNC carries left, middle, right and the wheel",
            remedy="press the key instead: XF86Back or XF86Forward, or alt+left or alt+right in a browser",
            code="no_such_button",
            button=button,
        )
    return _BUTTONS[button]


def _between(path: Sequence[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """The points of a drag after the first, with further ones on the way."""
    for (x0, y0), (x1, y1) in itertools.pairwise(path):
        steps = min(_MOST_STEPS, max(1, math.ceil(math.hypot(x1 - x0, y1 - y0) / _STEP)))
        for step in range(1, steps + 1):
            yield round(x0 + (x1 - x0) * step / steps), round(y0 + (y1 - y0) * step / steps)
