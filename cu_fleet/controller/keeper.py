"""Keeps every desktop on its way from what is to what should be.

Each desktop that has something to do has one task, which takes one step after another until the desktop rests. Every
step may be cut off by a kill at any line and taken again: what is about to exist is written down first. Starting the
controller is nothing but poking every desktop that does not rest.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine

from cu_fleet.backends.base import Backend
from cu_fleet.controller.actor import Actors
from cu_fleet.controller.core import Core
from cu_fleet.controller.evidence import Evidence
from cu_fleet.controller.making import Maker
from cu_fleet.controller.pending import void
from cu_fleet.model.desktop import RESTING, Desktop, Event, Stage, moved
from cu_fleet.model.errors import BrokenError, ConflictError, FleetError, LeaseOverError, UnavailableError
from cu_fleet.model.lease import ENDS, Lease, LeaseState, ended
from cu_fleet.model.names import new_id
from cu_fleet.model.resource import Holding
from cu_fleet.model.snapshot import Snapshot
from cu_fleet.stores.base import Tx

log = logging.getLogger(__name__)
_TRIES = 2  # starts that may fail in a row before a waiting request hears why
_MOST_LOSSES = 5  # connections in a row that a screen may break off
_LOSSES_WITHIN = 60.0  # seconds


class Keeper:
    def __init__(self, core: Core, actors: Actors, evidence: Evidence) -> None:
        self.core = core
        self.actors = actors
        self.evidence = evidence
        self.maker = Maker(core, actors)
        self.failures: Counter[str] = Counter()
        self.forget_inside: Callable[[str], Coroutine[None, None, None]] = _nothing  # ends the desktop's helper
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()
        self._losses: dict[str, deque[tuple[float, str]]] = {}  # by desktop: when it lost its screen, and why
        core.poke = self.poke
        actors.on_lost = self.screen_lost

    def poke(self, desktop: str) -> None:
        """See to this desktop: it may have something to do."""
        task = self._tasks.get(desktop)
        if task and not task.done():
            self._again.add(desktop)
            return
        self._tasks[desktop] = asyncio.create_task(self._keep(desktop), name=f"keep {desktop}")

    def screen_lost(self, desktop: str, why: str) -> None:
        if not self.core.closing:
            log.warning("desktop %s: %s", desktop, why)
            self._losses.setdefault(desktop, deque(maxlen=_MOST_LOSSES)).append((self.core.now(), why))
            self.poke(desktop)

    async def settled(self, desktop: str) -> Desktop:
        """The desktop once it rests."""
        while True:
            rings = self.core.bell.rings
            found = await self.core.read(lambda tx: self.core.get_desktop(tx, desktop))
            if found.stage in RESTING:
                return found
            await self.core.bell.heard(rings)

    async def close(self) -> None:
        """Stop seeing to desktops; each is left where the next start can take it up."""
        tasks = [task for task in self._tasks.values() if not task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()

    async def _keep(self, desktop_id: str) -> None:
        while True:
            self._again.discard(desktop_id)
            desktop = await self.core.read(lambda tx: tx.get(Desktop, desktop_id))
            if desktop is None:
                return
            try:
                await self._step(desktop)
            except FleetError as e:
                await self._failed(desktop, e)
            except Exception as e:
                log.exception("desktop %s: %s failed", desktop_id, desktop.stage.value)
                await self._failed(desktop, UnavailableError(f"{type(e).__name__}: {e}"))
            after = await self.core.read(lambda tx: tx.get(Desktop, desktop_id))
            if after is None or (after.stage in RESTING and desktop_id not in self._again):
                return

    async def _step(self, desktop: Desktop) -> None:
        steps: dict[Stage, Callable[[Desktop], Awaitable[None]]] = {
            Stage.PLANNED: self._start,
            Stage.STARTING: self._start,
            Stage.CLEANING: self._clean,
            Stage.PARKING: self._park,
            Stage.STOPPING: self._stop,
            Stage.READY: self._look_after,
            Stage.HELD: self._look_after,
        }
        if step := steps.get(desktop.stage):
            await step(desktop)

    # making

    async def _start(self, desktop: Desktop) -> None:
        backend = self.core.backend(desktop.backend)
        if desktop.handle:  # left half-made by a controller that was killed
            await self.core.bounded(backend.stop(desktop.handle), "stop")
        desktop = await self._move(desktop, Event.START, boot=new_id("bt"))
        self._losses.pop(desktop.id, None)
        await self.maker.start(backend, desktop)
        self.failures[desktop.profile] = 0
        self.core.resting.discard(desktop.profile)
        await self._move(
            desktop, Event.PROVED, "desktop.ready", ready_at=self.core.now(), parked_in=None, note="", failures=0
        )
        if desktop.parked_in:
            await self._forget_snapshot(backend, desktop.parked_in)

    # cleaning

    async def _clean(self, desktop: Desktop) -> None:
        """Back to clean, or to the snapshot that was asked for, and prove it."""
        backend = self.core.backend(desktop.backend)
        actor = self.actors.of(desktop.id)
        async with actor.turn:
            if not desktop.frozen:
                await actor.let_go()
            lease = await self.core.read(lambda tx: self.core.holder_of(tx, desktop.id))
            canary = await self._last_traces(backend, desktop, keep=lease is None)
            if self.core.ending and lease is None:
                await self._move(desktop, Event.STOP)
                return
            await actor.disconnect()
            begun = await self._move(desktop, Event.CLEAN, boot=new_id("bt"), frozen=False)
            self._losses.pop(desktop.id, None)
            await self.maker.put_back(backend, begun, canary, empty_slot=lease is None)
            await self._cleaned(begun)

    async def _last_traces(self, backend: Backend, desktop: Desktop, *, keep: bool) -> str | None:
        """Keep what is to be kept of a desktop, and leave what a true rollback takes away.

        All at once, as each takes a while; but planting lets a frozen one go on, and it is kept as it stands.
        """
        actor = self.actors.of(desktop.id)
        if keep and desktop.frozen:
            await self.evidence.keep(desktop, actor)
        planting = asyncio.create_task(self.maker.plant(backend, desktop), name=f"plant {desktop.id}")
        forgetting = asyncio.create_task(self.forget_inside(desktop.id), name=f"forget {desktop.id}")
        try:
            if keep and not desktop.frozen:
                await self.evidence.keep(desktop, actor)
            await forgetting
            return await planting
        finally:
            for one in (planting, forgetting):
                one.cancel()
            await asyncio.wait([planting, forgetting])

    async def _cleaned(self, begun: Desktop) -> None:
        """Clean and proved. If it changed hands meanwhile, it is cleaned once more, for whoever comes now."""
        now = self.core.now()

        def work(tx: Tx) -> None:
            current = self.core.get_desktop(tx, begun.id)
            if current.generation != begun.generation:
                return
            event = Event.GIVE_BACK if self.core.holder_of(tx, begun.id) else Event.PROVED
            after = moved(current, event, target=None, ready_at=now, note="")
            tx.put(after)
            facts = {"to": current.target} if current.target else {}
            self.core.record(tx, "desktop.rolled_back", "controller", desktop=after, facts=facts)

        await self.core.change(work)

    # sleeping and ending

    async def _park(self, desktop: Desktop) -> None:
        """Save a named desktop's files and let its processes end."""
        backend = self.core.backend(desktop.backend)
        if backend.abilities.snapshots is None:
            raise UnavailableError(f"desktop {desktop.id} cannot be saved", code="no_snapshots")
        async with self.actors.of(desktop.id).turn:
            if not desktop.parked_in:
                await self.actors.of(desktop.id).let_go()
                await self.evidence.keep(desktop, self.actors.of(desktop.id))
                snapshot = await self.save(desktop, note="parked", purpose="parked", by="controller")
                desktop = await self._move(desktop, Event.PARK, parked_in=snapshot.id)
            await self.maker.before_emptying(desktop)
            await self.forget_inside(desktop.id)
            await self.actors.drop(desktop.id)
            await self.core.bounded(backend.stop(desktop.handle), "stop")
            await self._move(desktop, Event.SLEEP, "desktop.parked", handle={}, frozen=False)

    async def _stop(self, desktop: Desktop) -> None:
        backend = self.core.backend(desktop.backend)
        self._losses.pop(desktop.id, None)
        await self.forget_inside(desktop.id)
        await self.actors.drop(desktop.id)
        if desktop.handle:
            await self.maker.before_emptying(desktop)
            await self.core.bounded(backend.stop(desktop.handle), "stop")
            if await self.core.endpoint(desktop) is not None:
                raise BrokenError(f"desktop {desktop.id} was said to be stopped, but its screen still answers")
        if desktop.parked_in:
            await self._forget_snapshot(backend, desktop.parked_in)
        await self._move(desktop, Event.STOPPED, "desktop.gone", handle={}, parked_in=None)

    async def save(self, desktop: Desktop, *, note: str, purpose: str, by: str, snapshot: str = "") -> Snapshot:
        """Save the desktop's state; the caller has its actor's turn. Reported only when it is whole."""
        backend = self.core.backend(desktop.backend)
        assert backend.abilities.snapshots
        row = Snapshot.model_validate(
            {
                "id": snapshot or new_id("sn"),
                "desktop": desktop.id,
                "profile": desktop.profile,
                "backend": desktop.backend,
                "note": note,
                "purpose": purpose,
                "agent": desktop.owner,
                "by": by,
                "created_at": self.core.now(),
            }
        )
        await self.core.read(lambda tx: tx.put(row))
        if snapshot:  # begun before by a controller that was killed
            await backend.abilities.snapshots.delete(row.id)
        saved = await self.core.bounded(
            backend.abilities.snapshots.save(desktop.handle, row.id), "save", self.core.settings.snapshot_timeout
        )
        row = row.but(state="saved", size_bytes=saved.size_bytes, kind=saved.kind)

        def work(tx: Tx) -> None:
            tx.put(row)
            facts: dict[str, object] = {"snapshot": row.id, "bytes": row.size_bytes, "purpose": purpose}
            self.core.record(tx, "snapshot.saved", by, desktop=desktop, facts=facts)

        await self.core.note(work)
        return row

    async def _forget_snapshot(self, backend: Backend, snapshot: str) -> None:
        if backend.abilities.snapshots:
            await self.core.bounded(backend.abilities.snapshots.delete(snapshot), "delete a snapshot")
        await self.core.read(lambda tx: _delete_row(tx, snapshot))

    # watching

    async def _look_after(self, desktop: Desktop) -> None:
        """A desktop that should be running: connected again if it lost its screen, given up if it is dead."""
        actor = self.actors.of(desktop.id)
        if desktop.frozen:
            return
        if why := self._breaks_off(desktop.id):
            await self._dead(desktop, why)
            return
        error: Exception | None = None
        for _ in range(2):
            try:
                await actor.connect(desktop, await self.core.endpoint(desktop), self.core.settings.backend_timeout)
            except (FleetError, OSError, TimeoutError) as e:
                error = e
            else:
                return
        await self._dead(desktop, f"its screen died ({error})")

    def _breaks_off(self, desktop: str) -> str:
        """Why this screen is not connected to any more, though it lets itself be connected to."""
        losses = self._losses.get(desktop)
        if losses is None or len(losses) < _MOST_LOSSES or self.core.now() - losses[0][0] > _LOSSES_WITHIN:
            return ""
        return f"its screen broke off {_MOST_LOSSES} times within {_LOSSES_WITHIN:g} s, at last so: {losses[-1][1]}"

    async def _dead(self, desktop: Desktop, why: str) -> None:
        """The lease hears of it; a pool desktop is replaced, a named one goes to sleep with its files."""
        actor = self.actors.of(desktop.id)
        actor.fence(LeaseOverError(f"desktop {desktop.id} is lost: {why}", code="lease_lost"))

        def work(tx: Tx) -> None:
            current = self.core.get_desktop(tx, desktop.id)
            if current.stage is not desktop.stage or current.generation != desktop.generation:
                return  # somebody else has dealt with it
            end_lease(self.core, tx, current, LeaseState.LOST, why, "controller")
            event = Event.STOP
            if current.name:
                current = moved(current, Event.HAND_BACK) if current.stage is Stage.HELD else current
                event = Event.PARK
            after = moved(current, event, note=why, generation=current.generation + 1)
            tx.put(after)
            self.core.record(tx, "desktop.died", "controller", desktop=after, facts={"why": why})

        await self.core.change(work)
        self.poke(desktop.id)

    async def _failed(self, before: Desktop, error: FleetError) -> None:
        """A step failed: a desktop that is not proved is taken away, and one that cannot be, set apart."""
        log.warning("desktop %s: %s failed: %s", before.id, before.stage.value, error)
        profile = before.profile
        starting = before.stage in (Stage.PLANNED, Stage.STARTING)
        if starting:
            self.failures[profile] += 1
            self.core.resting.add(profile)
        distrust = isinstance(error, BrokenError) or before.stage in (Stage.STOPPING, Stage.PARKING) or before.parked_in

        def work(tx: Tx) -> None:
            desktop = self.core.get_desktop(tx, before.id)
            if desktop.stage in RESTING:
                return
            end_lease(self.core, tx, desktop, LeaseState.LOST, f"its desktop failed: {error.what}", "controller")
            if desktop.stage is Stage.STOPPING:
                tx.put(desktop.but(note=error.what, failures=desktop.failures + 1))
            else:
                tx.put(moved(desktop, Event.DISTRUST if distrust else Event.STOP, note=error.what))
            facts: dict[str, object] = {"stage": before.stage.value, "error": error.what}
            self.core.record(tx, "desktop.failed", "controller", desktop=desktop, facts=facts)
            if starting and self.failures[profile] >= _TRIES:
                self._tell_the_waiting(tx, before, error)

        await self.core.change(work)
        if before.stage is Stage.STOPPING:
            await self.core.clock.sleep(min(60.0, 2.0 ** min(before.failures, 6)))

    def _tell_the_waiting(self, tx: Tx, desktop: Desktop, error: FleetError) -> None:
        """Whoever waits for a desktop that cannot be made hears why, rather than waiting for ever."""
        self.failures[desktop.profile] = 0
        for lease in tx.find(Lease, state=LeaseState.WAITING.value):
            if lease.profile == desktop.profile and lease.desktop_name == desktop.name:
                reason = f"its desktop could not be started: {error}"
                over = ended(lease, LeaseState.CANCELLED, self.core.now(), reason=reason, by="controller")
                tx.put(over)
                self.core.record(tx, "lease.cancelled", "controller", lease=over, facts={"reason": reason})

    # small things

    async def _move(self, desktop: Desktop, event: Event, record: str | None = None, **changes: object) -> Desktop:
        def work(tx: Tx) -> Desktop:
            current = self.core.get_desktop(tx, desktop.id)
            if current.stage is not desktop.stage:
                raise ConflictError(f"desktop {desktop.id} has become {current.stage.value} meanwhile", code="moved")
            after = moved(current, event, **changes)
            tx.put(after)
            if record:
                self.core.record(tx, record, "controller", desktop=after)
            return after

        return await self.core.change(work)


def end_lease(core: Core, tx: Tx, desktop: Desktop, state: LeaseState, reason: str, by: str) -> Lease | None:
    """End the lease that holds this desktop, if one does: nothing waits for it any more, its token only hears why."""
    lease = core.holder_of(tx, desktop.id)
    if lease is None:
        return None
    lease = void(core, tx, lease, by, f"the lease {ENDS[state]}: {reason}")
    over = ended(lease, state, core.now(), reason=reason, by=by)
    tx.put(over)
    free_resources(tx, over)
    core.record(tx, f"lease.{state.value}", by, lease=over, facts={"reason": reason})
    return over


def free_resources(tx: Tx, lease: Lease) -> None:
    for holding in tx.find(Holding, lease=lease.id):
        tx.delete(holding)


def _delete_row(tx: Tx, snapshot: str) -> None:
    row = tx.get(Snapshot, snapshot)
    if row:
        tx.delete(row)


async def _nothing(desktop: str) -> None:
    """Before the controller has wired the helpers in."""
