"""The one road to a desktop's screen.

Everything that reaches a desktop takes a turn at its actor, so nothing interleaves. Pause and revoke do not wait for
a turn: `fence` takes hold at once, before anything is written down, and from that moment no further event is sent;
what is under way is stopped between two events. Only a change that is written down opens the fence again.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Protocol

from cu_fleet.backends.base import Endpoint
from cu_fleet.model.action import Action
from cu_fleet.model.desktop import Desktop
from cu_fleet.model.errors import FleetError, TooLongError, UnavailableError
from cu_fleet.model.request import Acted, Done
from cu_fleet.rfb.canvas import Rect
from cu_fleet.rfb.fingers import Extra
from cu_fleet.rfb.hands import Hands
from cu_fleet.rfb.screen import POLLED, Screen

log = logging.getLogger(__name__)
Press = Callable[[], None]  # the keys that paste


class Beside(Protocol):
    """What reaches a desktop beside its screen's server: somebody inside."""

    async def paste(self, desktop: str, text: str, press: Press) -> None:
        """Bring in what keys cannot carry, by the clipboard; return when a program has taken it."""

    async def button(self, desktop: str, name: str, down: bool, x: int, y: int) -> None:
        """Press or lift a button that VNC lacks."""

    async def lift(self, desktop: str) -> None:
        """Lift all those buttons."""

    async def heard(self, desktop: str, presses: int) -> bool:
        """Return when the window manager has let go of so many presses of a button; False if nobody can tell."""

    async def arrived(
        self, desktop: str, wanted: Mapping[str, int], place: tuple[int, int], within: float, of: object
    ) -> Mapping[str, object] | None:
        """What has come into a machine, once it is what is wanted; None if nobody can tell."""

    async def drawn(self, desktop: str) -> bool:
        """Return when a machine has passed on what was drawn; False if it is not known."""


class Watchers(Protocol):
    """Who follows a desktop's screen as it is, and hears at once when that may have to end."""

    def fenced(self, desktop: str, why: FleetError) -> None:
        """Nothing is sent any more."""

    def opened(self, desktop: str) -> None:
        """It may be sent again."""

    async def dismissed(self, desktop: str) -> None:
        """Return when nobody is connected any more who had to go."""


class _Nobody:
    def fenced(self, desktop: str, why: FleetError) -> None: ...

    def opened(self, desktop: str) -> None: ...

    async def dismissed(self, desktop: str) -> None: ...


_GROWN = 4  # times as many pixels as its profile says may a desktop's screen get
_REMEMBERED = 64  # answers kept for callers who ask again with the same request id
_PICTURES = 32 << 20  # bytes of their pictures; the oldest go first
_NO_PICTURE = Done(ok=False, code="not_kept", detail="the picture of this answer is not kept any more; look again")


class Actor:
    def __init__(self, desktop: str, on_lost: Callable[[str, str], None], beside: Beside, watching: Watchers) -> None:
        self.desktop = desktop
        self._watching = watching
        self.turn = asyncio.Lock()
        self._connecting = asyncio.Lock()
        self.answers: OrderedDict[tuple[str, str], Acted] = OrderedDict()
        self._on_lost = on_lost
        self._paste = partial(beside.paste, desktop)
        self._extra = Extra(partial(beside.button, desktop), partial(beside.lift, desktop))
        self._heard = partial(beside.heard, desktop)
        self._arrived = partial(beside.arrived, desktop)
        self._drawn = partial(beside.drawn, desktop)
        self._foreign: set[str] = set()  # of its server, which lives no longer than this actor
        self._fence: FleetError | None = None
        self._screen: Screen | None = None
        self._hands: Hands | None = None
        self._doing: asyncio.Task[None] | None = None

    def fence(self, why: FleetError) -> None:
        """From now on no event is sent; whoever is sending hears `why`. A restore calls it from the store's thread."""
        self._fence = why
        self._watching.fenced(self.desktop, why)
        if doing := self._doing:
            doing.get_loop().call_soon_threadsafe(doing.cancel)

    def open(self) -> None:
        self._fence = None
        self._watching.opened(self.desktop)

    @property
    def fenced(self) -> bool:
        return self._fence is not None

    @property
    def hands(self) -> Hands | None:
        """For a person's own input, event by event; whoever uses them has the turn."""
        return self._hands if self.screen else None

    def check(self) -> None:
        if self._fence:
            raise self._fence

    @property
    def screen(self) -> Screen | None:
        """The desktop's screen, if it is connected."""
        return None if self._screen is None or self._screen.lost.done() else self._screen

    async def connect(self, desktop: Desktop, endpoint: Endpoint | None, timeout: float) -> Screen:
        """The desktop's screen, connected once and kept; refuses one that is not of the size it should be."""
        async with self._connecting:
            return self.screen or await self._connect(desktop, endpoint, timeout)

    async def _connect(self, desktop: Desktop, endpoint: Endpoint | None, timeout: float) -> Screen:
        if endpoint is None:
            raise UnavailableError(
                f"the screen of desktop {desktop.id} is gone", code="screen_lost", desktop=desktop.id
            )
        screen = await self._opened(endpoint, timeout, _GROWN * desktop.width * desktop.height)
        if (screen.width, screen.height) != (desktop.width, desktop.height):
            await screen.close()
            raise UnavailableError(
                f"the screen of desktop {desktop.id} is {screen.width}x{screen.height}, but its profile says "
                f"{desktop.width}x{desktop.height}",
                code="wrong_size",
                desktop=desktop.id,
            )
        hands = self._hands_on(screen, helped=endpoint.helped)
        hands.keyboard.paste_keys = "shift+insert"  # terminals know it too, with the text in both selections
        try:
            await hands.release_all()  # a button that an earlier connection of ours left down
        except BaseException:
            await screen.close()
            raise
        self._screen, self._hands = screen, hands
        screen.lost.add_done_callback(lambda _: self._lost(screen))
        return screen

    def _hands_on(self, screen: Screen, *, helped: bool) -> Hands:
        if not helped:
            return Hands(screen, self.check, foreign=self._foreign)
        screen.before_looks(self._drawn)
        return Hands(screen, self.check, self._paste, self._extra, self._heard, self._foreign, self._arrived)

    async def _opened(self, endpoint: Endpoint, timeout: float, most_pixels: int) -> Screen:
        try:
            async with asyncio.timeout(timeout):
                sock = await endpoint.connect()
        except TimeoutError:
            raise UnavailableError(f"nothing answers at {endpoint.where}", code="screen_lost") from None
        try:
            known = POLLED if endpoint.within is None else endpoint.within
            return await Screen.open(sock, endpoint.password, timeout, known, most_pixels)
        except BaseException:
            sock.close()
            raise

    async def park_pointer(self) -> None:
        """Put a fresh desktop's pointer where we know it, so that no server paints it into the next picture."""
        if self._hands:
            await self._hands.claim_pointer(last=False)

    async def mark(self, *, whole: bool) -> None:
        """Look before an action, so that a `wait_change` after it takes nothing older for its effect."""
        self.check()
        if self._hands:
            await self._hands.mark(whole=whole)

    async def do(self, action: Action) -> None:
        """Send one action; the caller has the turn. Stops in the middle when the fence closes."""
        self.check()
        if self._hands is None:
            raise UnavailableError(f"the screen of desktop {self.desktop} is gone", code="screen_lost")
        await self._fenced(self._hands.do(action), action.type)

    async def settled(self, screen: Screen, quiet: float, timeout: float, region: Rect | None) -> bool:
        """After actions: whether what they set going came to rest in time. A closed fence ends it like an action."""
        self.check()
        try:
            await self._fenced(screen.wait_stable(quiet, timeout, region), "settle")
        except TooLongError:
            return False
        return True

    async def _fenced(self, work: Coroutine[None, None, None], what: str) -> None:
        task = asyncio.create_task(work, name=f"act {what} on {self.desktop}")
        self._doing = task
        try:
            await asyncio.wait({task})
        finally:
            self._doing = None
            task.cancel()
            await asyncio.wait({task})
        if task.cancelled():
            self.check()
            raise UnavailableError(f"the action on desktop {self.desktop} was interrupted", code="interrupted")
        task.result()

    async def let_go(self, timeout: float = 5.0) -> None:
        """Lift every key and button that is down, and return when the server has taken it in."""
        if self._hands is None or self._screen is None or self._screen.lost.done():
            return  # whoever connects next lifts what is left down
        try:
            async with asyncio.timeout(timeout):
                await self._hands.release_all()
        except (FleetError, OSError, TimeoutError) as e:
            log.warning("desktop %s: keys could not be lifted (%s); its connection is closed instead", self.desktop, e)
            await self.disconnect()

    async def disconnect(self) -> None:
        screen, self._screen, self._hands = self._screen, None, None
        if screen:
            with contextlib.suppress(OSError, FleetError):
                await screen.close()

    def remember(self, lease: str, request_id: str | None, answer: Acted) -> None:
        if request_id:
            self.answers[lease, request_id] = answer
            while len(self.answers) > _REMEMBERED:
                self.answers.popitem(last=False)
            self._drop_pictures()

    def _drop_pictures(self) -> None:
        room = _PICTURES
        for key, answer in reversed(list(self.answers.items())):
            room -= len(answer.screenshot.data) if answer.screenshot else 0
            if room < 0 and answer.screenshot:
                self.answers[key] = answer.model_copy(update={"screenshot": None, "not_shown": _NO_PICTURE})

    def _lost(self, screen: Screen) -> None:
        if self._screen is screen:
            self._screen = self._hands = None
            self._on_lost(self.desktop, str(screen.lost.result()))


class Actors:
    """The actors of all desktops that run."""

    def __init__(self) -> None:
        self._actors: dict[str, Actor] = {}
        self.on_lost: Callable[[str, str], None] = lambda desktop, why: None
        self.beside: Beside  # set by whoever puts a controller together
        self.watching: Watchers = _Nobody()

    def of(self, desktop: str) -> Actor:
        if desktop not in self._actors:
            self._actors[desktop] = Actor(desktop, self._lost, self.beside, self.watching)
        return self._actors[desktop]

    def _lost(self, desktop: str, why: str) -> None:
        self.on_lost(desktop, why)

    async def drop(self, desktop: str) -> None:
        actor = self._actors.pop(desktop, None)
        if actor:
            await actor.disconnect()

    async def close(self) -> None:
        for desktop in list(self._actors):
            await self.drop(desktop)
