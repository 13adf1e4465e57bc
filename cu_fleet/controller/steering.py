"""What a person does through a viewer, on its way to the desktop: by the desktop's one actor, like everything.

Events come one by one and gather into *bursts*. A burst takes its turn at the actor, is checked and written down before
its first event, and once more with what it was when it is over: what was typed as a keyed hash and a length, where
was clicked in clear. Every event asks the actor's fence.

Where the agent has control too, a burst keeps its turn as long as the person holds a key or button down, so that the
agent's clicks do not become parts of a person's drag; but not for ever: then what is held goes up. Once a person has
taken over nobody else acts, and what is held may be held.

What waits for a turn is bounded: of movements the newest counts.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from cu_fleet.controller.actor import Actors
from cu_fleet.controller.core import Core
from cu_fleet.controller.inside import Inside
from cu_fleet.controller.permit import allowed
from cu_fleet.controller.watchers import Watcher, open_input
from cu_fleet.model.audit import redacted
from cu_fleet.model.errors import FleetError, UnavailableError, UnsupportedError
from cu_fleet.model.keys import name_of, prints
from cu_fleet.model.lease import Control
from cu_fleet.rfb.hands import Hands
from cu_fleet.stores.base import Tx
from cu_fleet.watch.protocol import Brought, Keyed, Pointed, Wants

_MOST_EVENTS = 512  # that wait
_BEFORE_SYNC = 32  # events sent before the screen's server has to catch up
_LINGER = 0.3  # seconds without an event that end a burst
_LONGEST = 3.0  # seconds after which somebody else gets a turn
_HELD = 20.0  # seconds of holding something down while the agent waits
_MOST_PRESSES = 32  # on record one by one
_BUTTONS = ("left", "middle", "right")
_ALL_BUTTONS = 0x7F  # three, and the wheel four ways


@dataclass
class Burst:
    """What a burst was."""

    began: float = field(default_factory=time.monotonic)
    exclusive: bool = False  # the agent waits meanwhile
    events: int = 0
    typed: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    presses: list[list[object]] = field(default_factory=list)
    wheel: int = 0
    refused: list[str] = field(default_factory=list)

    def key(self, keysym: int) -> None:
        if prints((keysym,)):
            self.typed.append(chr(keysym & 0xFFFFFF))
        elif len(self.keys) < _MOST_PRESSES:
            self.keys.append(name_of(keysym))

    def pressed(self, new: int, x: int, y: int) -> None:
        for number, name in enumerate(_BUTTONS):
            if new >> number & 1 and len(self.presses) < _MOST_PRESSES:
                self.presses.append([name, x, y])
        self.wheel += (new >> 3).bit_count()

    def facts(self, key: bytes) -> dict[str, object]:
        found: dict[str, object] = {
            "text": redacted("".join(self.typed), key) if self.typed else None,
            "keys": self.keys,
            "presses": self.presses,
            "wheel": self.wheel,
            "refused": self.refused,
        }
        return {"events": self.events} | {name: value for name, value in found.items() if value}


class Steering:
    """`moved` is called after each of the pointer's moves, `bring` with the desktop's clipboard when it is wanted."""

    def __init__(
        self,
        core: Core,
        actors: Actors,
        inside: Inside,
        watcher: Watcher,
        moved: Callable[[], None],
        bring: Callable[[str], None],
    ) -> None:
        self.core = core
        self.actors = actors
        self.inside = inside
        self.watcher = watcher
        self._moved, self._bring = moved, bring
        self._events: deque[Keyed | Pointed | Brought | Wants] = deque()
        self._given = asyncio.Event()
        self._keys: list[int] = []  # that this viewer holds down
        self._buttons = 0
        self._refused_at = -1  # as of which change of the controller it may not act

    # What the viewer does

    def key(self, keysym: int, down: bool) -> None:
        if _is_key(keysym):
            self._give(Keyed(keysym, down))

    def point(self, x: int, y: int, buttons: int) -> None:
        event = Pointed(x, y, buttons & _ALL_BUTTONS)
        if self._moves_on(event.buttons):
            self._events.pop()
        self._give(event)

    def _moves_on(self, buttons: int) -> bool:
        """Whether what waits last was a mere movement too: then that place does not matter any more."""
        last = self._events[-1] if self._events else None
        before = self._events[-2] if len(self._events) > 1 else Pointed(0, 0, self._buttons)
        return all(isinstance(event, Pointed) and event.buttons == buttons for event in (last, before))

    def put_text(self, text: str) -> None:
        self._events = deque(event for event in self._events if not isinstance(event, Brought))
        self._give(Brought(text))

    def want_text(self) -> None:
        if not any(isinstance(event, Wants) for event in self._events):
            self._give(Wants())

    def _give(self, event: Keyed | Pointed | Brought | Wants) -> None:
        if len(self._events) < _MOST_EVENTS:
            self._events.append(event)
            self._given.set()

    def fenced(self) -> None:
        """Nothing of what waits is sent any more; what is down is lifted by who closed the fence."""
        self._events.clear()
        self._keys, self._buttons = [], 0
        self._given.set()

    # Passing it on

    async def run(self) -> None:
        """Until it is cancelled; then what is held goes up."""
        try:
            while True:
                await self._given.wait()
                self._given.clear()
                while self._events:
                    await self._next()
        finally:
            await asyncio.shield(self._leave())

    async def _next(self) -> None:
        match self._events[0]:
            case Brought() | Wants() as event:
                self._events.popleft()
                with suppress(FleetError, OSError):
                    await self._carry(event)
            case _ if self._refused_at == self.core.changes:
                self._events.popleft()
            case _:
                try:
                    await self._burst()
                except (FleetError, OSError):
                    self._events.clear()

    async def _carry(self, event: Brought | Wants) -> None:
        who, lease = self.watcher.who, self.watcher.lease
        if isinstance(event, Brought):
            await self.inside.clipboard_set(who, lease, event.text)
        else:
            self._bring(await self.inside.clipboard_get(who, lease))

    async def _burst(self) -> None:
        actor = self.actors.of(self.watcher.desktop)
        async with actor.turn:
            if not self._events:
                return
            hands, burst, result = actor.hands, Burst(), "ok"
            actor.check()
            if hands is None:
                raise UnavailableError(f"the screen of desktop {actor.desktop} is gone", code="screen_lost")
            entry = await self._begin(burst)
            try:
                await self._pass_on(hands, burst)
            except FleetError as e:
                result = e.code
                raise
            except BaseException:
                result = "interrupted"
                raise
            finally:
                if burst.exclusive:
                    self._lift(hands)
                await asyncio.shield(self._end(entry, burst, result))

    async def _begin(self, burst: Burst) -> int:
        """Write down that this person is about to act, if they may."""
        watcher, changes = self.watcher, self.core.changes

        def work(tx: Tx) -> tuple[int, bool]:
            lease, _ = allowed(self.core, tx, watcher.who, watcher.lease, generation=watcher.generation)
            facts: dict[str, object] = {"viewer": watcher.id}
            entry = self.core.record(tx, "watch.input", watcher.who.who, lease=lease, facts=facts)
            open_input(tx, watcher.id, entry)
            return entry, lease.control is Control.AGENT

        try:
            entry, burst.exclusive = await self.core.note(work)
        except FleetError:
            self._refused_at = changes
            raise
        return entry

    async def _end(self, entry: int, burst: Burst, result: str) -> None:
        watcher, seconds = self.watcher, round(time.monotonic() - burst.began, 6)
        facts = {"viewer": watcher.id, **burst.facts(self.core.redaction_key)}

        def work(tx: Tx) -> None:
            lease = self.core.get_lease(tx, watcher.lease)
            who = watcher.who.who
            self.core.record(
                tx, "watch.input.done", who, lease=lease, of=entry, result=result, seconds=seconds, facts=facts
            )
            open_input(tx, watcher.id, None)

        await self.core.note(work)

    async def _pass_on(self, hands: Hands, burst: Burst) -> None:
        await hands.fingers.passage.begin()
        while True:
            while self._events and isinstance(event := self._events[0], Keyed | Pointed):
                self._events.popleft()
                await self._in_turn(hands, event)
                self._send(hands, event, burst)
                await hands.fingers.passage.room()
                if burst.events % _BEFORE_SYNC == 0:
                    break
            await hands.screen.sync()
            if not await self._more(hands, burst):
                return

    async def _in_turn(self, hands: Hands, event: Keyed | Pointed) -> None:
        """Return when nothing that was sent before can be overtaken, or swallow it."""
        if isinstance(event, Keyed):
            await hands.fingers.passage.turn("keys")
            return
        await hands.fingers.passage.turn("pointer")
        if event.buttons & ~self._buttons:
            await hands.fingers.passage.press()

    def _send(self, hands: Hands, event: Keyed | Pointed, burst: Burst) -> None:
        burst.events += 1
        if isinstance(event, Pointed):
            x, y = min(event.x, hands.screen.width - 1), min(event.y, hands.screen.height - 1)
            hands.fingers.point(x, y, buttons=event.buttons)
            burst.pressed(event.buttons & ~self._buttons, x, y)
            self._buttons = event.buttons
            self._moved()
            return
        try:
            hands.fingers.key(hands.keyboard.known((event.keysym,))[0], down=event.down)
        except UnsupportedError as e:
            burst.refused = [*burst.refused, e.code][:_MOST_PRESSES]
            return
        if event.keysym in self._keys:
            self._keys.remove(event.keysym)
        if event.down:
            self._keys.append(event.keysym)
            burst.key(event.keysym)

    async def _more(self, hands: Hands, burst: Burst) -> bool:
        """Whether the burst goes on; returns with the next event, or when it is over."""
        held = burst.exclusive and bool(self._keys or self._buttons)
        left = burst.began + (_HELD if held else _LONGEST) - time.monotonic()
        if not self._events and left > 0:
            self._given.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left if held else min(left, _LINGER)):
                    await self._given.wait()
        hands.fingers.guard()
        return left > 0 and bool(self._events) and isinstance(self._events[0], Keyed | Pointed)

    def _lift(self, hands: Hands) -> None:
        """What this viewer holds; behind a fence all is lifted by who closed it."""
        keys, self._keys, buttons, self._buttons = self._keys, [], self._buttons, 0
        with suppress(FleetError):
            for keysym in reversed(keys):
                hands.fingers.key(keysym, down=False)
            if buttons:
                hands.fingers.point(buttons=0)

    async def _leave(self) -> None:
        if not (self._keys or self._buttons):
            return
        actor = self.actors.of(self.watcher.desktop)
        async with actor.turn:
            if actor.hands:
                self._lift(actor.hands)
                with suppress(FleetError):
                    await actor.hands.screen.sync()


def _is_key(keysym: int) -> bool:
    """Whether X could know it: a viewer may send any number."""
    char = keysym & 0xFFFFFF
    if keysym >> 24 == 1:
        return char <= 0x10FFFF and not 0xD800 <= char < 0xE000
    return 0 < keysym < 0x10000 or keysym >> 16 == 0x1008
