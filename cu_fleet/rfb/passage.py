"""How events get from QEMU's server to the programs in its machine, with nothing lost and nothing overtaken.

QEMU passes keys on one every 10 ms and drops those beyond a few hundred. The machine's keyboard and its pointer are two
devices, each with room for 64 events (a key takes two, a turn of the wheel seven): what comes while a slow machine has
not emptied that is lost without a word, and whichever of the two it looks at first overtakes the other. So no more is
sent than there is room for; before a turn from one to the other, and at the end of every action, all must have arrived.

What Linux programs read a mouse with takes two presses within 25 ms for one by a worn-out switch. So a button is
pressed only so long after its last release, whose arrival begins the time.

Somebody inside counts what arrives. Where nobody is, or nobody can tell, time must do.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

from cu_fleet.model.errors import UnavailableError
from cu_fleet.model.keys import NAMES, unshifted

COUNTED = ("keys", "buttons", "notches", "motions")
_KEY = 0.01  # seconds from one key to the next
_POINTED = 0.005
_APART = 0.035  # from a button's release to its next press
_LATER = 0.1  # by which one device may be heard later than the other
_ROOM = 24  # pairs of events that are under way at once to one device
_PATIENCE = 8.0  # seconds for all to arrive
_AT_FIRST = 2.0  # for the pointer, before anything is counted
_WHEEL = 0x78
_SAME_KEY = {
    NAMES[one]: NAMES[other]
    for one, other in {"Meta_L": "Alt_L", "Meta_R": "Alt_R", "ISO_Level3_Shift": "Alt_R", "ISO_Left_Tab": "Tab"}.items()
}
_NEVER = 1 << 30
Ask = Callable[[Mapping[str, int], tuple[int, int], float, object], Awaitable[Mapping[str, object] | None]]


class Passage:
    """`ask(wanted, place, within, of)` returns what has been counted, once it is what is wanted; None where nobody can.

    `of` names who counted until now; another answers at once.
    """

    def __init__(self, server: str, place: tuple[int, int], ask: Ask | None = None) -> None:
        self.narrow = server.startswith("QEMU")
        self._ask = ask if self.narrow else None
        self._counter: object = None  # who counts; another one begins anew
        self._wanted: Counter[str] = Counter()
        self._under_way = {"keys": 0, "pointer": 0}
        self._passed_on = 0.0  # when the server will have passed on what was sent
        self._later = {"keys": 0.0, "pointer": 0.0}  # and when the machine will have heard what of it is whose
        self._down: set[int] = set()
        self._released = False  # whether a button was, since one was pressed
        self.place, self._buttons = place, 0

    # what is sent

    def key(self, sym: int, *, down: bool) -> None:
        key = _SAME_KEY.get(sym, unshifted(sym))
        if (key in self._down) != down:  # a machine hears nothing of a key that is pressed twice
            (self._down.add if down else self._down.discard)(key)
            self._sends("keys", 1, _KEY, keys=1)

    def point(self, place: tuple[int, int], buttons: int) -> None:
        changed = self._buttons ^ buttons
        pressed, notches = (changed & ~_WHEEL).bit_count(), (changed & buttons & _WHEEL).bit_count()
        self._sends(
            "pointer", 2, _POINTED * bool(changed), buttons=pressed, notches=notches, motions=place != self.place
        )
        self._released |= bool(changed & self._buttons & ~_WHEEL)
        self.place, self._buttons = place, buttons

    def _sends(self, device: str, room: int, seconds: float, **wanted: int) -> None:
        if self.narrow:
            self._passed_on = max(self._passed_on, time.monotonic()) + seconds
            self._later[device] = self._passed_on + _LATER
            self._under_way[device] += room
            self._wanted.update(wanted)

    # what has arrived

    async def begin(self) -> None:
        """Have counted what is sent from now on, if somebody can."""
        if self._ask is None or self._counter is not None:
            return
        await _until(self._later["keys"])
        its_place = {**dict.fromkeys(COUNTED, 0), "motions": _NEVER}
        told = await self._ask(its_place, self.place, _AT_FIRST, None)
        if told and all(isinstance(told.get(what), int) for what in COUNTED):
            self._counter = told.get("of")
            self._wanted = Counter({what: int(str(told[what])) for what in COUNTED})
            self._under_way = {"keys": 0, "pointer": 0}

    async def room(self) -> None:
        """Return when more can be sent and nothing of it is lost."""
        await _until(self._passed_on)
        if max(self._under_way.values()) >= _ROOM:
            await self.arrived()

    async def turn(self, device: str) -> None:
        """Return when nothing of the other device can be overtaken by what this one does next."""
        other = "pointer" if device == "keys" else "keys"
        if self._under_way[other] and not await self.arrived():
            await _until(self._later[other])
            self._under_way[other] = 0

    async def press(self) -> None:
        """Return when a button can be pressed."""
        if self.narrow and self._released:
            await self.arrived()
            await asyncio.sleep(_APART)
            self._released = False

    async def arrived(self, within: float = _PATIENCE) -> bool:
        """Return when all that was sent has arrived; False if nobody can tell. Raises if it has not."""
        if self._ask is None or self._counter is None:
            return False
        asked = dict(self._under_way)
        if not any(asked.values()):
            return True
        wanted = {what: self._wanted[what] for what in COUNTED}
        told = await self._ask(wanted, self.place, within, self._counter)
        if told is None or told.get("of") != self._counter:
            self._counter = None
            return False
        for device, count in asked.items():
            self._under_way[device] -= count
        if told.get("arrived") is not True:
            self._counter = None
            self._check(wanted, told, within)
        return True

    def _check(self, wanted: Mapping[str, int], told: Mapping[str, object], within: float) -> None:
        """A motion may be uncounted: a program has moved the pointer on."""
        lacking = {what: count - int(str(told.get(what))) for what, count in wanted.items()}
        if said := [f"{count} of {what}" for what, count in lacking.items() if count > 0 and what != "motions"]:
            raise UnavailableError(
                f"the machine has not taken in all that was sent: {', '.join(said)} did not arrive in {within:g} s",
                remedy="it may be very busy: look at its screen for what has arrived, and go on from there",
                code="not_arrived",
            )


async def _until(moment: float) -> None:
    if (left := moment - time.monotonic()) > 0:
        await asyncio.sleep(left)
