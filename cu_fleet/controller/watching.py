"""Viewers: who may watch a lease's desktop, by which ways, and until when.

A viewer comes with a ticket, and a ticket is for one lease and one generation. Operators get tickets, observers to look
only. So do the lease's own token and its agent's parent, to look only: an agent acts by its actions, which are judged
and on record one by one; what comes through a viewer with control is taken for a person's own input. Every viewer is
on record when it comes and goes, and shown with its lease.

*At once.* A fence reaches every viewer in the moment it is closed: one whose lease is over, or whose desktop is being
put back, has ended before anything is written down; any other is shown nothing more until what is written says that it
may look. After every change all viewers are held against what is written then: the lease and its generation, whether
looking is allowed, and whether whoever watches is still who they were.

The lease's socket and its port on loopback are opened with its first ticket, and closed with the lease.
"""

import asyncio
import logging
import secrets
from collections import Counter
from functools import partial

from cu_fleet.controller.actor import Actors
from cu_fleet.controller.core import Core, stale
from cu_fleet.controller.inside import Inside
from cu_fleet.controller.leasing import Leasing
from cu_fleet.controller.listening import Listening
from cu_fleet.controller.steering import Steering
from cu_fleet.controller.tickets import Ticket, Tickets
from cu_fleet.controller.watchers import Watcher, closed, standing_of, interrupted, opened
from cu_fleet.model.access import Caller, Role
from cu_fleet.model.desktop import Desktop, Stage
from cu_fleet.model.errors import ConflictError, DeniedError, FleetError, InvalidError, LeaseOverError, UnavailableError
from cu_fleet.model.lease import Control, Lease, why_not
from cu_fleet.model.names import new_id
from cu_fleet.model.view import TicketView, WatcherView, iso
from cu_fleet.rfb.screen import Screen
from cu_fleet.stores.base import Tx
from cu_fleet.watch.breach import BreachError
from cu_fleet.watch.broadcast import Broadcast
from cu_fleet.watch.protocol import Answered, Entered, Event, Protocol
from cu_fleet.watch.viewer import Viewer, Wire

log = logging.getLogger(__name__)
TICKET_TTL = 60.0
_MOST_TTL = 600.0
_ENTER_WITHIN = 10.0  # seconds
WRONG = 1.0  # seconds that a wrong ticket costs
MOST_ENTERING = 8  # of one lease by one way, who have shown no ticket yet
_MOST_WATCHERS = 32  # of one lease
_GONE_WITHIN = 2.0  # seconds for a connection to be cut


class Watching:
    def __init__(self, core: Core, actors: Actors, inside: Inside, leasing: Leasing) -> None:
        self.core = core
        self.actors = actors
        self.inside = inside
        self.leasing = leasing
        self.tickets = Tickets(core)
        self.listening = Listening(core.settings.home / "watch", self.serve)
        self._watchers: dict[Watcher, Viewer | None] = {}
        self._steering: dict[Watcher, Steering] = {}
        self._broadcasts: dict[tuple[str, int], tuple[Broadcast, asyncio.Task[None]]] = {}
        self._entering: Counter[tuple[str, str]] = Counter()
        self._task: asyncio.Task[None] | None = None
        self._fences = 0  # how many were closed

    async def start(self) -> None:
        await self.core.note(partial(interrupted, self.core))
        self.listening.clear()
        self._task = asyncio.create_task(self._review_always(), name="viewers: review")

    async def close(self) -> None:
        for watcher in list(self._watchers):
            self._end(watcher, UnavailableError("the controller is stopping", code="stopping"))
        await self._all_gone(list(self._watchers))
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.listening.close()

    # tickets

    async def ticket(self, who: Caller, lease_id: str, *, control: bool = False, ttl: float = TICKET_TTL) -> TicketView:
        """Let one viewer in, once, soon: by the lease's socket, its port on loopback, or its WebSocket."""
        if not 0 < ttl <= _MOST_TTL:
            raise InvalidError(f"ttl: {ttl:g} s is not between 0 and {_MOST_TTL:g}", code="bad_ttl")
        until, number = self.core.now() + ttl, self.tickets.number()

        def work(tx: Tx) -> Ticket:
            lease, desktop = self._may_watch(tx, who, lease_id, control=control)
            facts: dict[str, object] = {"control": control, "until": iso(until)}
            self.core.record(tx, "watch.ticket", who.who, lease=lease, facts=facts)
            return Ticket(
                number,
                lease.id,
                desktop.id,
                desktop.generation,
                who,
                standing_of(tx, who),
                control=control,
                until=until,
            )

        ticket = await self.core.note(work)
        path, port = await self.listening.open(lease_id)
        url = self.leasing.url
        return TicketView(
            lease=lease_id,
            ticket=self.tickets.issue(ticket),
            control=control,
            expires_at=iso(until) or "",
            host="127.0.0.1",
            port=port,
            socket=str(path) if path else None,
            ws_url=f"ws{url.removeprefix('http')}/v1/leases/{lease_id}/watch" if url else None,
        )

    def _may_watch(
        self, tx: Tx, who: Caller, lease_id: str, *, control: bool, generation: int | None = None
    ) -> tuple[Lease, Desktop]:
        lease = self.core.get_lease(tx, lease_id)
        if who.role is not None:
            who.needs(Role.OPERATOR if control else Role.OBSERVER)
        elif who.lease != lease_id and not self.leasing.is_parent(tx, who, lease):
            raise DeniedError(f"{who.who} may not watch lease {lease_id}", code="not_yours")
        elif control:
            raise DeniedError(
                f"{who.who} may look through a viewer, not act",
                remedy="send actions: they are judged and recorded one by one, and a viewer's input is a person's",
                code="view_only",
            )
        refusal = why_not(lease, look=True)
        if refusal and (who.role is None or not lease.live or lease.desktop is None):
            raise refusal
        desktop = self.core.get_desktop(tx, lease.desktop or "")
        if desktop.stage is not Stage.HELD or desktop.generation != lease.generation:
            raise stale(desktop)
        if generation not in (None, desktop.generation):
            raise ConflictError(f"desktop {desktop.id} has changed hands", code="old_generation")
        return lease, desktop

    # one connection

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
            async with asyncio.timeout(_ENTER_WITHIN):
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
        async with asyncio.timeout(WRONG):
            await self._flush(wire, protocol)

    async def _watch(self, watcher: Watcher, wire: Wire, protocol: Protocol) -> None:
        self._watchers[watcher] = None
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
            if len([x for x in self._watchers if x.lease == watcher.lease]) > _MOST_WATCHERS:
                raise ConflictError(f"{_MOST_WATCHERS} viewers watch lease {watcher.lease} already", code="too_many")
            return await self.core.note(work)
        except FleetError as e:
            await self._refuse(wire, protocol, str(e))
            raise UnavailableError(str(e), code=e.code) from None

    async def _show(self, watcher: Watcher, wire: Wire, protocol: Protocol, name: str) -> None:
        broadcast, waiting = self._broadcast(watcher), await self._enter(watcher, wire, protocol)
        protocol.welcome(broadcast.grid.width, broadcast.grid.height, name)
        steering = self._steer(watcher, broadcast) if watcher.control else None
        viewer = self._watchers[watcher] = Viewer(wire, protocol, broadcast, steering)
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
            async with asyncio.timeout(_ENTER_WITHIN) as watcher.entering:
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
            if viewer := self._watchers.get(watcher):
                broadcast.moved(viewer)

        def bring(text: str) -> None:
            if viewer := self._watchers.get(watcher):
                viewer.send_text(text)

        steering = Steering(self.core, self.actors, self.inside, watcher, moved, bring)
        self._steering[watcher] = steering
        return steering

    async def _leave(self, watcher: Watcher, wire: Wire, why: str) -> None:
        try:
            if watcher.why:
                await wire.close(watcher.why, at_once=True)
        finally:
            self._watchers.pop(watcher, None)
            self._steering.pop(watcher, None)
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
            for watcher in [x for x in self._watchers if (x.desktop, x.generation) == key]:
                self._end(watcher, UnavailableError("the picture could not be shown any more", code="internal"))

    async def _end_broadcast(self, watcher: Watcher) -> None:
        key = (watcher.desktop, watcher.generation)
        if key in self._broadcasts and not any((x.desktop, x.generation) == key for x in self._watchers):
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

    def of_lease(self, lease_id: str) -> tuple[WatcherView, ...]:
        return tuple(watcher.view() for watcher in list(self._watchers) if watcher.lease == lease_id)

    def fenced(self, desktop: str, why: FleetError) -> None:
        self._fences += 1
        for watcher in self._of(desktop):
            if isinstance(why, LeaseOverError) or why.code == "restoring":
                self._end(watcher, why)
            else:
                self._suspend(watcher)
            if steering := self._steering.get(watcher):
                steering.fenced()

    def opened(self, desktop: str) -> None:
        if self._of(desktop):
            self.core.turned.ring()

    async def dismissed(self, desktop: str) -> None:
        if self._of(desktop):
            await self._review()  # one may have come in after the fence, and before it was written down why
            await self._all_gone([watcher for watcher in self._of(desktop) if watcher.why])

    def _of(self, desktop: str) -> list[Watcher]:
        return [watcher for watcher in self._watchers if watcher.desktop == desktop]

    def _end(self, watcher: Watcher, why: FleetError) -> None:
        watcher.why = watcher.why or why
        if viewer := self._watchers.get(watcher):
            viewer.end(why)
        elif watcher.entering and not watcher.entering.expired():
            watcher.entering.reschedule(0)

    def _suspend(self, watcher: Watcher) -> None:
        watcher.suspended = True
        if viewer := self._watchers.get(watcher):
            viewer.suspend()

    def _resume(self, watcher: Watcher) -> None:
        watcher.suspended = False
        if viewer := self._watchers.get(watcher):
            viewer.resume()

    async def _all_gone(self, watchers: list[Watcher]) -> None:
        waits = [asyncio.create_task(watcher.gone.wait(), name="viewer: gone") for watcher in watchers]
        if waits:
            _, late = await asyncio.wait(waits, timeout=_GONE_WITHIN)
            for wait in late:
                wait.cancel()

    async def _review_always(self) -> None:
        """Hold every viewer against what is written, after each change."""
        while True:
            rings = self.core.turned.rings
            try:
                await self._review()
            except (FleetError, OSError) as e:
                log.warning("viewers could not be reviewed: %s", e)
            await self.core.turned.heard(rings)

    async def _review(self) -> None:
        if self._watchers:
            fences = self._fences
            for watcher, verdict in await self.core.read(self._verdicts):
                if isinstance(verdict, FleetError):
                    self._end(watcher, verdict)
                elif fences == self._fences and self._calm(watcher, verdict):
                    self._resume(watcher)
        if self.listening.leases:
            await self.listening.keep(await self.core.read(self._live))

    def _calm(self, watcher: Watcher, control: Control) -> bool:
        """Whether what is written is all there is to know: no fence stands that is still to be explained."""
        return control is not Control.AGENT or not self.actors.of(watcher.desktop).fenced

    def _verdicts(self, tx: Tx) -> list[tuple[Watcher, FleetError | Control]]:
        out: list[tuple[Watcher, FleetError | Control]] = []
        for watcher in list(self._watchers):
            try:
                out.append((watcher, self._still(tx, watcher).control))
            except FleetError as e:
                out.append((watcher, e))
        return out

    def _still(self, tx: Tx, watcher: Watcher) -> Lease:
        """The lease, if this viewer may watch it as it came."""
        lease, _ = self._may_watch(
            tx, watcher.who, watcher.lease, control=watcher.control, generation=watcher.generation
        )
        if standing_of(tx, watcher.who) != watcher.standing:
            raise DeniedError(f"{watcher.who.who} has another token or role now, or none", code="outdated_token")
        return lease

    def _live(self, tx: Tx) -> set[str]:
        found = (tx.get(Lease, lease) for lease in list(self.listening.leases))
        return {lease.id for lease in found if lease and lease.live}


class _HadToGo(Exception):  # noqa: N818 - no error: the viewer did nothing wrong
    def __init__(self, why: FleetError) -> None:
        super().__init__(str(why))
        self.why = why
