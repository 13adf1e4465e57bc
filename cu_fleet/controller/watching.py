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
import threading
from functools import partial

from cu_fleet.controller.actor import Actors
from cu_fleet.controller.core import Core, stale
from cu_fleet.controller.inside import Inside
from cu_fleet.controller.leasing import Leasing
from cu_fleet.controller.listening import Listening
from cu_fleet.controller.showing import Showing
from cu_fleet.controller.tickets import Ticket, Tickets
from cu_fleet.controller.watchers import Watcher, interrupted, standing_of
from cu_fleet.model.access import Caller, Role
from cu_fleet.model.desktop import Desktop, Stage
from cu_fleet.model.errors import ConflictError, DeniedError, FleetError, InvalidError, LeaseOverError, UnavailableError
from cu_fleet.model.lease import Control, Lease, why_not
from cu_fleet.model.view import TicketView, WatcherView, iso
from cu_fleet.stores.base import Tx

log = logging.getLogger(__name__)
TICKET_TTL = 60.0
_MOST_TTL = 600.0


class Watching:
    def __init__(self, core: Core, actors: Actors, inside: Inside, leasing: Leasing) -> None:
        self.core = core
        self.actors = actors
        self.leasing = leasing
        self.tickets = Tickets(core)
        self.showing = Showing(core, actors, inside, self.tickets, self._still)
        self.serve = self.showing.serve
        self.listening = Listening(core.settings.home / "watch", self.serve)
        self._task: asyncio.Task[None] | None = None
        self._fences = 0  # how many were closed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    async def start(self) -> None:
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        await self.core.note(partial(interrupted, self.core))
        self.listening.clear()
        self._task = asyncio.create_task(self._review_always(), name="viewers: review")

    async def close(self) -> None:
        for watcher in list(self.showing.watchers):
            self.showing.end(watcher, UnavailableError("the controller is stopping", code="stopping"))
        await self.showing.all_gone(list(self.showing.watchers))
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

    # who has to go

    def of_lease(self, lease_id: str) -> tuple[WatcherView, ...]:
        return tuple(watcher.view() for watcher in list(self.showing.watchers) if watcher.lease == lease_id)

    def fenced(self, desktop: str, why: FleetError) -> None:
        """A restore closes it in its transaction, and so on the store's thread."""
        self._fences += 1
        if self._loop is not None and threading.get_ident() != self._thread:
            self._loop.call_soon_threadsafe(self._fenced, desktop, why)
        else:
            self._fenced(desktop, why)

    def _fenced(self, desktop: str, why: FleetError) -> None:
        for watcher in self._of(desktop):
            if isinstance(why, LeaseOverError) or why.code == "restoring":
                self.showing.end(watcher, why)
            else:
                self.showing.suspend(watcher)
            if steering := self.showing.steering.get(watcher):
                steering.fenced()

    def opened(self, desktop: str) -> None:
        if self._of(desktop):
            self.core.turned.ring()

    async def dismissed(self, desktop: str) -> None:
        if self._of(desktop):
            await self._review()  # one may have come in after the fence, and before it was written down why
            await self.showing.all_gone([watcher for watcher in self._of(desktop) if watcher.why])

    def _of(self, desktop: str) -> list[Watcher]:
        return [watcher for watcher in self.showing.watchers if watcher.desktop == desktop]

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
        if self.showing.watchers:
            fences = self._fences
            for watcher, verdict in await self.core.read(self._verdicts):
                if isinstance(verdict, FleetError):
                    self.showing.end(watcher, verdict)
                elif fences == self._fences and self._calm(watcher, verdict):
                    self.showing.resume(watcher)
        if self.listening.leases:
            await self.listening.keep(await self.core.read(self._live))

    def _calm(self, watcher: Watcher, control: Control) -> bool:
        """Whether what is written is all there is to know: no fence stands that is still to be explained."""
        return control is not Control.AGENT or not self.actors.of(watcher.desktop).fenced

    def _verdicts(self, tx: Tx) -> list[tuple[Watcher, FleetError | Control]]:
        out: list[tuple[Watcher, FleetError | Control]] = []
        for watcher in list(self.showing.watchers):
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
