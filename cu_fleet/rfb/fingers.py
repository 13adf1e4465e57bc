"""Single events: each is sent right after the guard was asked, and an account is kept of what is down.

A server that loses its client lifts that client's keys, but TigerVNC leaves a button down. So the first thing that new
hands do, or `release_all` with them, is to lift the buttons of whoever was there before.

To QEMU events are sent no faster than they arrive (see `passage`). It presses no shift by itself ("A" alone arrives as
"a"). A keysym that it does not know it drops, and ctrl+alt and a digit it takes for itself, to show what may be its own
monitor: those are refused. Of the keypad's digits it presses the keys, whatever they mean, so while NumLock is off the
digits above the letters are pressed.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence

from cu_fleet.model.errors import FleetError, UnsupportedError
from cu_fleet.model.keys import NAMES
from cu_fleet.rfb.passage import Ask, Passage
from cu_fleet.rfb.screen import Screen

_CTRLS = frozenset(NAMES[name] for name in ("Control_L", "Control_R"))
_ALTS = frozenset(NAMES[name] for name in ("Alt_L", "Alt_R", "Meta_L", "Meta_R"))
_DIGITS = frozenset(map(ord, "123456789!@#$%^&*("))
_KEYPAD = {NAMES[f"KP_{n}"]: ord(str(n)) for n in range(10)} | {NAMES["KP_Decimal"]: ord(".")}


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
    def __init__(
        self, screen: Screen, guard: Callable[[], None], extra: Extra | None = None, arrived: Ask | None = None
    ) -> None:
        self.screen = screen
        self.guard = guard
        self.extra = extra
        self.keys: list[int] = []  # down, in the order they went down
        self.buttons = 0
        self.new = True  # a button may be down from an earlier connection
        self.qemu = screen.name.startswith("QEMU")
        screen.unpaint = self.point
        self.passage = Passage(screen.name, screen.pointer, arrived)
        self._sent_as: dict[int, int] = {}  # keys that are down as others

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
        if down:
            self.check_together((sym,))
        if sym in self.keys:
            self.keys.remove(sym)
        if down:
            self.keys.append(sym)
        self._send(sym, down)

    def place(self, x: int | None, y: int | None) -> None:
        """Send the pointer there, also if it was sent there before and a program has moved it on since.

        A machine hears nothing of a tablet's place that is the same again.
        """
        if self.qemu and not self.buttons and x is not None and (x, y) == self.passage.place:
            self.point(x - 1 if x else x + 1, y)
        self.point(x, y)

    def check_together(self, syms: Sequence[int]) -> None:
        """Refuse keys that are down, and these with them, which would be taken for something else."""
        keys = {*self.keys, *syms}
        if self.qemu and _DIGITS & keys and _CTRLS & keys and _ALTS & keys:
            raise UnsupportedError(
                "the screen's server, QEMU, keeps ctrl+alt and a digit for itself", code="no_such_key"
            )

    def point(self, x: int | None = None, y: int | None = None, *, buttons: int | None = None) -> None:
        self.guard()
        if buttons is not None:
            self.buttons = buttons
        x, y = self.screen.pointer[0] if x is None else x, self.screen.pointer[1] if y is None else y
        self._point(x, y)

    async def press_extra(self, name: str, *, down: bool) -> None:
        """After what was sent before, where the pointer is."""
        assert self.extra
        await self.delivered()
        self.guard()
        await self.extra.press(name, down, *self.screen.pointer)

    async def delivered(self) -> None:
        """Return when all that was sent has arrived: inside, if somebody there can tell, or else at the server."""
        if not await self.passage.arrived():
            await self.passage.room()
            await self.screen.sync()

    def lift(self) -> bool:
        """Lift all that is down, the last pressed first; whether it was anything. A lost connection has done it."""
        keys, self.keys, buttons, self.buttons = self.keys, [], self.buttons, 0
        if self.screen.lost_because is not None:
            return False
        for sym in reversed(keys):
            self._send(sym, False)
        if buttons or self.new:
            self._point(*self.screen.pointer)
            self.new = False
        return bool(keys or buttons)

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
        sent = self._sent_as.pop(sym, sym)
        if self.qemu and down and sym in _KEYPAD and not self.screen.num_lock:
            sent = self._sent_as[sym] = _KEYPAD[sym]
        self.passage.key(sent, down=down)
        self.screen.key_event(sent, down)

    def _point(self, x: int, y: int) -> None:
        self.passage.point((x, y), self.buttons)
        self.screen.pointer_event(x, y, self.buttons)
