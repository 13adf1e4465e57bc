"""One viewer's connection, from its first byte to its last; and the pictures that viewers share.

Whoever connects is greeted and asked for a ticket, within a bounded time, a few at once. Who has one is entered among
those who watch before it is checked once more, so that whatever ends the lease meanwhile finds it.
"""

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable
from functools import partial

from cu_fleet.controller.actor import Actors
from cu_fleet.controller.core import Core, stale
from cu_fleet.controller.inside import Inside
from cu_fleet.controller.steering import Steering
from cu_fleet.controller.tickets import Ticket, Tickets
from cu_fleet.controller.watchers import Watcher, closed, opened
from cu_fleet.model.desktop import Stage
from cu_fleet.model.errors import ConflictError, FleetError, UnavailableError
from cu_fleet.model.lease import Control, Lease
from cu_fleet.model.names import new_id
from cu_fleet.rfb.screen import Screen
from cu_fleet.stores.base import Tx
from cu_fleet.watch.breach import BreachError
from cu_fleet.watch.broadcast import Broadcast
from cu_fleet.watch.protocol import Answered, Entered, Event, Protocol
from cu_fleet.watch.viewer import Viewer, Wire

log = logging.getLogger(__name__)
ENTER_WITHIN = 10.0  # seconds
WRONG = 1.0  # seconds that a wrong ticket costs
MOST_ENTERING = 8  # of one lease by one way, who have shown no ticket yet
_MOST_WATCHERS = 32  # of one lease
_LAST_WORDS = 1.0  # seconds for a refusal to be taken
_GONE_WITHIN = 2.0  # seconds for a connection to be cut


class Showing:
    """`still` is the lease of a viewer that may watch it as it came, or raises."""

    def __init__(
        self, core: Core, actors: Actors, inside: Inside, tickets: Tickets, still: Callable[[Tx, Watcher], Lease]
    ) -> None:
        self.core = core
        self.actors = actors
        self.inside = inside
        self.tickets = tickets
        self.watchers: dict[Watcher, Viewer | None] = {}
        self.steering: dict[Watcher, Steering] = {}
        self._still = still
        self._broadcasts: dict[tuple[str, int], tuple[Broadcast, asyncio.Task[None]]] = {}
        self._entering: Counter[tuple[str, str]] = Counter()

    async def serve(self, lease_id: str, wire: Wire, way: str) -> None:
        """From its first byte to its last."""
        why: FleetError | None = None
        at_once = self._entering[lease_id, way] >= MOST_ENTERING or self.core.closing
        try:
            if not at_once:
                await self._come_in(lease_id, wire, way)
        except (BreachError, UnavailableError) as e:
            why = e
            log.info("a viewer of lease %.60r (%s): %s", lease_id, way, e)
        except OSError:
            pass  # it is gone
        except _HadToGo as e:
            why, at_once = e.why, True
        finally:
            await wire.close(why, at_once=at_once)

    async def _come_in(self, lease_id: str, wire: Wire, way: str) -> None:
        protocol, place = Protocol(secrets.token_bytes(16)), (lease_id, way)
        self._entering[place] += 1
        try:
            async with asyncio.timeout(ENTER_WITHIN):
                ticket = await self._shown_ticket(lease_id, wire, protocol)
        except TimeoutError:
            raise BreachError("the viewer showed no ticket in time", code="viewer_slow") from None
        finally:
            self._entering[place] -= 1
            self._entering += Counter()  # forgets who has none
        if ticket is None:
            await self._refuse(wire, protocol, "this ticket is wrong, used or too old; ask for another one")
            return
        watcher = Watcher(
            id=new_id("vw"),
            lease=ticket.lease,
            desktop=ticket.desktop,
            generation=ticket.generation,
            who=ticket.who,
            standing=ticket.standing,
            control=ticket.control,
            way=way,
            since=self.core.now(),
        )
        await self._watch(watcher, wire, protocol)

    async def _shown_ticket(self, lease_id: str, wire: Wire, protocol: Protocol) -> Ticket | None:
        event, _ = await self._next(wire, protocol)
        assert isinstance(event, Answered)  # nothing else is read before it
        ticket = self.tickets.redeem(lease_id, protocol.challenge, event.response)
        if ticket is None:
            await asyncio.sleep(WRONG)
        return ticket

    async def _next(self, wire: Wire, protocol: Protocol) -> tuple[Event, list[Event]]:
        """The next thing it says, and what it has said after that."""
        data = b""
        while not (events := protocol.feed(data)):
            await self._flush(wire, protocol)
            data = await wire.receive()
            if not data:
                raise OSError("the viewer left")
        return events[0], events[1:]

    async def _flush(self, wire: Wire, protocol: Protocol) -> None:
        out, protocol.out[:] = bytes(protocol.out), b""
        if out:
            await wire.send(out)

    async def _refuse(self, wire: Wire, protocol: Protocol, why: str) -> None:
        protocol.refuse(why)
        async with asyncio.timeout(_LAST_WORDS):
            await self._flush(wire, protocol)

    async def _watch(self, watcher: Watcher, wire: Wire, protocol: Protocol) -> None:
        self.watchers[watcher] = None
        why = "it left"
        try:
            name = await self._open(watcher, wire, protocol)
            await self._show(watcher, wire, protocol, name)
        except FleetError as e:
            why = e.what
            raise
        except _HadToGo as e:
            why = e.why.what
            raise
        finally:
            await asyncio.shield(self._leave(watcher, wire, why))

    async def _open(self, watcher: Watcher, wire: Wire, protocol: Protocol) -> str:
        """On record, if it still may watch; what the desktop is called."""

        def work(tx: Tx) -> str:
            lease = self._still(tx, watcher)
            opened(self.core, tx, watcher, lease)
            watcher.suspended |= self.actors.of(watcher.desktop).fenced and lease.control is Control.AGENT
            return f"{lease.agent} on {lease.desktop_name or lease.desktop}{'' if watcher.control else ' (view only)'}"

        try:
            if len([x for x in self.watchers if x.lease == watcher.lease]) > _MOST_WATCHERS:
                raise ConflictError(f"{_MOST_WATCHERS} viewers watch lease {watcher.lease} already", code="too_many")
            return await self.core.note(work)
        except FleetError as e:
            await self._refuse(wire, protocol, str(e))
            raise UnavailableError(str(e), code=e.code) from None

    async def _show(self, watcher: Watcher, wire: Wire, protocol: Protocol, name: str) -> None:
        broadcast, waiting = self._broadcast(watcher), await self._enter(watcher, wire, protocol)
        protocol.welcome(broadcast.grid.width, broadcast.grid.height, name)
        steering = self._steer(watcher, broadcast) if watcher.control else None
        viewer = self.watchers[watcher] = Viewer(wire, protocol, broadcast, steering)
        if watcher.suspended:
            viewer.suspend()
        acting = asyncio.create_task(steering.run(), name=f"steer {watcher.id}") if steering else None
        try:
            await viewer.serve(waiting)
        finally:
            if acting:
                acting.cancel()
                [outcome] = await asyncio.gather(acting, return_exceptions=True)
                if isinstance(outcome, Exception):
                    log.error("the input of viewer %s failed", watcher.id, exc_info=outcome)
        if watcher.why:
            raise _HadToGo(watcher.why)

    async def _enter(self, watcher: Watcher, wire: Wire, protocol: Protocol) -> list[Event]:
        """Let it in, and wait for its wish to see and for a picture; what it has said beyond that."""
        protocol.let_in()
        try:
            async with asyncio.timeout(ENTER_WITHIN) as watcher.entering:
                if watcher.why is None:
                    event, waiting = await self._next(wire, protocol)
                    assert isinstance(event, Entered)
                    await self._broadcast(watcher).shown.wait()
        except TimeoutError:
            if watcher.why is None:
                raise UnavailableError(f"lease {watcher.lease} has no picture to show", code="screen_slow") from None
        finally:
            watcher.entering = None
        if watcher.why:
            raise _HadToGo(watcher.why)
        return waiting

    def _steer(self, watcher: Watcher, broadcast: Broadcast) -> Steering:
        def moved() -> None:
            if viewer := self.watchers.get(watcher):
                broadcast.moved(viewer)

        def bring(text: str) -> None:
            if viewer := self.watchers.get(watcher):
                viewer.send_text(text)

        steering = Steering(self.core, self.actors, self.inside, watcher, moved, bring)
        self.steering[watcher] = steering
        return steering

    async def _leave(self, watcher: Watcher, wire: Wire, why: str) -> None:
        try:
            if watcher.why:
                await wire.close(watcher.why, at_once=True)
        finally:
            self.watchers.pop(watcher, None)
            self.steering.pop(watcher, None)
            await self._end_broadcast(watcher)
            try:
                await self.core.note(lambda tx: closed(self.core, tx, watcher, why))
            finally:
                watcher.gone.set()

    # the picture

    def _broadcast(self, watcher: Watcher) -> Broadcast:
        """One for each desktop and holder: a picture of one is never shown to those who watch the next."""
        key = (watcher.desktop, watcher.generation)
        if key not in self._broadcasts:
            broadcast = Broadcast(partial(self._screen, *key))
            task = asyncio.create_task(broadcast.run(), name=f"broadcast {watcher.desktop}")
            task.add_done_callback(partial(self._broken, key))
            self._broadcasts[key] = (broadcast, task)
        return self._broadcasts[key][0]

    def _broken(self, key: tuple[str, int], task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            log.error("broadcast of desktop %s failed", key[0], exc_info=task.exception())
            for watcher in [x for x in self.watchers if (x.desktop, x.generation) == key]:
                self.end(watcher, UnavailableError("the picture could not be shown any more", code="internal"))

    async def _end_broadcast(self, watcher: Watcher) -> None:
        key = (watcher.desktop, watcher.generation)
        if key in self._broadcasts and not any((x.desktop, x.generation) == key for x in self.watchers):
            _, task = self._broadcasts.pop(key)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _screen(self, desktop_id: str, generation: int) -> Screen:
        desktop = await self.core.read(lambda tx: self.core.get_desktop(tx, desktop_id))
        actor = self.actors.of(desktop_id)
        if desktop.stage is not Stage.HELD or desktop.generation != generation or desktop.frozen:
            if desktop.frozen and actor.screen:
                return actor.screen
            raise stale(desktop)
        return await actor.connect(desktop, await self.core.endpoint(desktop), self.core.settings.backend_timeout)

    # who has to go

    def end(self, watcher: Watcher, why: FleetError) -> None:
        watcher.why = watcher.why or why
        if viewer := self.watchers.get(watcher):
            viewer.end(why)
        elif watcher.entering and not watcher.entering.expired():
            watcher.entering.reschedule(0)

    def suspend(self, watcher: Watcher) -> None:
        watcher.suspended = True
        if viewer := self.watchers.get(watcher):
            viewer.suspend()

    def resume(self, watcher: Watcher) -> None:
        watcher.suspended = False
        if viewer := self.watchers.get(watcher):
            viewer.resume()

    async def all_gone(self, watchers: list[Watcher]) -> None:
        waits = [asyncio.create_task(watcher.gone.wait(), name="viewer: gone") for watcher in watchers]
        if waits:
            _, late = await asyncio.wait(waits, timeout=_GONE_WITHIN)
            for wait in late:
                wait.cancel()


class _HadToGo(Exception):  # noqa: N818 - no error: the viewer did nothing wrong
    def __init__(self, why: FleetError) -> None:
        super().__init__(str(why))
        self.why = why
