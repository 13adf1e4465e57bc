"""Single events: each is sent right after the guard was asked, and an account is kept of what is down.

A server that loses its client lifts that client's keys, but TigerVNC leaves a button down. So the first thing that new
hands do, or `release_all` with them, is to lift the buttons of whoever was there before.

QEMU passes keys on to its machine one every 10 ms, drops them beyond a few hundred, and lets the pointer overtake them;
of quick turns of the wheel it loses most. So there events are sent no faster than they are passed on. It presses no
shift by itself ("A" alone arrives as "a"), cuts keysyms to 16 bits, so that some arrive as others, and takes ctrl+alt
and a digit for itself, to show what may be its own monitor: what would become of that is refused.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

from cu_fleet.model.errors import FleetError, UnsupportedError
from cu_fleet.model.keys import NAMES
from cu_fleet.rfb.screen import Screen

_QEMU_KEY = 0.01  # seconds from one key to the next
_QEMU_BUTTON = 0.005
_QEMU_KEYBOARD = 0.1  # by which a machine, if it is slow, may hear its keyboard later than its pointer
_CTRLS = frozenset(NAMES[name] for name in ("Control_L", "Control_R"))
_ALTS = frozenset(NAMES[name] for name in ("Alt_L", "Alt_R", "Meta_L", "Meta_R"))
_DIGITS = frozenset(map(ord, "123456789!@#$%^&*("))


class Extra:
    """Buttons that VNC has no bits for, pressed by somebody inside; one for all connections to a desktop.

    What may be down is on account before it is asked for, and off it only when somebody inside has said so.
    """

    def __init__(
        self, press: Callable[[str, bool, int, int], Awaitable[None]], lift: Callable[[], Awaitable[None]]
    ) -> None:
        self._press = press
        self._lift = lift
        self.down: set[str] = set()
        self.owed = False  # whether they must be lifted before anything else is done

    async def press(self, name: str, down: bool, x: int, y: int) -> None:
        before = set(self.down)
        self.down.add(name)
        try:
            await self._press(name, down, x, y)
        except UnsupportedError as e:
            if e.code == "no_such_button":  # nobody is inside who could have pressed it
                self.down = before
            raise
        if not down:
            self.down.discard(name)

    async def lift(self) -> None:
        if self.down:
            self.owed = True
            await self._lift()
            self.down.clear()
        self.owed = False


class Fingers:
    def __init__(self, screen: Screen, guard: Callable[[], None], extra: Extra | None = None) -> None:
        self.screen = screen
        self.guard = guard
        self.extra = extra
        self.keys: list[int] = []  # down, in the order they went down
        self.buttons = 0
        self.new = True  # a button may be down from an earlier connection
        self.qemu = screen.name.startswith("QEMU")
        screen.unpaint = self.point
        self._passed_on = 0.0  # when the server will have passed on what was sent
        self._keys_heard = 0.0  # and when the machine will have heard the keys of it

    @property
    def down(self) -> bool:
        """Whether any key or button is down."""
        return bool(self.keys or self.buttons or (self.extra and self.extra.down))

    def press(self, syms: Iterable[int]) -> list[int]:
        """Press keys that are not down yet; returns them."""
        pressed = []
        for sym in syms:
            if sym not in self.keys:
                self.key(sym, down=True)
                pressed.append(sym)
        return pressed

    def release(self, syms: Sequence[int]) -> None:
        for sym in reversed(syms):
            self.key(sym, down=False)

    def key(self, sym: int, *, down: bool) -> None:
        self.guard()
        if self.qemu and down and sym in _DIGITS and _CTRLS & set(self.keys) and _ALTS & set(self.keys):
            raise UnsupportedError(
                "the screen's server, QEMU, keeps ctrl+alt and a digit for itself", code="no_such_key"
            )
        if sym in self.keys:
            self.keys.remove(sym)
        if down:
            self.keys.append(sym)
        self._send(sym, down)

    def point(self, x: int | None = None, y: int | None = None, *, buttons: int | None = None) -> None:
        self.guard()
        if buttons is not None:
            self.buttons = buttons
            self._pass_on(_QEMU_BUTTON)
        here = self.screen.pointer
        self.screen.pointer_event(here[0] if x is None else x, here[1] if y is None else y, self.buttons)

    async def press_extra(self, name: str, *, down: bool) -> None:
        """After what was sent before, where the pointer is."""
        assert self.extra
        await self.screen.sync()
        self.guard()
        await self.extra.press(name, down, *self.screen.pointer)

    async def passed_on(self) -> None:
        """Return when the server has passed on all that was sent, so that nothing is lost."""
        await _until(self._passed_on)

    async def keys_heard(self) -> None:
        """Return when the pointer cannot overtake the keys that were sent before."""
        await _until(self._keys_heard)

    def lift(self) -> None:
        """Lift all that is down, the last pressed first; a lost connection has lifted it already."""
        keys, self.keys, buttons, self.buttons = self.keys, [], self.buttons, 0
        if self.screen.lost_because is not None:
            return
        for sym in reversed(keys):
            self._send(sym, False)
        if buttons or self.new:
            self.screen.pointer_event(*self.screen.pointer, 0)
            self.new = False

    async def lift_after(self, failure: BaseException) -> None:
        """Lift all after a failure, which counts for more than one to lift what only somebody inside can."""
        self.lift()
        try:
            await self.lift_extra()
        except (FleetError, OSError) as e:
            failure.add_note(f"a button could not be lifted: {e}")

    async def lift_extra(self) -> None:
        if self.extra:
            await self.extra.lift()

    def _send(self, sym: int, down: bool) -> None:
        self._pass_on(_QEMU_KEY)
        if self.qemu:
            self._keys_heard = self._passed_on + _QEMU_KEYBOARD
        self.screen.key_event(sym, down)

    def _pass_on(self, seconds: float) -> None:
        if self.qemu:
            self._passed_on = max(self._passed_on, time.monotonic()) + seconds


async def _until(moment: float) -> None:
    if (left := moment - time.monotonic()) > 0:
        await asyncio.sleep(left)
