"""WHO MAKES IT HAPPEN: the controller, one object that the doors talk to.

`core` changes state in transactions; `keeper` brings every desktop to where it should be; `leasing` decides who holds
what; `acting` and `inside` reach into desktops through their `actor`; `passing` is what time brings.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from cu_fleet.backends.base import Backend
from cu_fleet.controller.accessible import Accessible
from cu_fleet.controller.acting import Acting
from cu_fleet.controller.actor import Actors
from cu_fleet.controller.approving import Approving
from cu_fleet.controller.clock import Clock, RealClock
from cu_fleet.controller.core import Core
from cu_fleet.controller.desktops import Desktops
from cu_fleet.controller.ending import Ending
from cu_fleet.controller.evidence import Evidence
from cu_fleet.controller.frames import Frames
from cu_fleet.controller.inside import Inside
from cu_fleet.controller.keeper import Keeper
from cu_fleet.controller.leasing import Leasing
from cu_fleet.controller.passing import Passing
from cu_fleet.controller.people import People
from cu_fleet.controller.record import Chronicle
from cu_fleet.controller.recovery import Recovery
from cu_fleet.controller.snapshots import Snapshots
from cu_fleet.controller.supervising import Supervising
from cu_fleet.controller.sweeping import Sweeper
from cu_fleet.controller.watching import Watching
from cu_fleet.controller.worktree_door import WorktreeDoor
from cu_fleet.controller.worktrees import Worktrees
from cu_fleet.model.access import Caller
from cu_fleet.model.desktop import NOT_GONE, RESTING, Desktop, Event, Stage, moved
from cu_fleet.model.errors import UnavailableError
from cu_fleet.model.lease import LIVE, Lease, LeaseState
from cu_fleet.model.profile import Profile
from cu_fleet.model.view import DesktopView, desktop_view
from cu_fleet.settings import Settings
from cu_fleet.stores.base import Store, Tx

_END_TIMEOUT = 120.0


class Controller:
    """The facade. Every method says who asks, and refuses what they may not."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        backends: Mapping[str, Backend],
        profiles: Mapping[str, tuple[Profile, str]],
        *,
        fleet: str,
        secret: bytes,
        clock: Clock | None = None,
    ) -> None:
        self.settings = settings
        self.fleet = fleet
        self.core = core = Core(settings, fleet, store, backends, profiles, clock or RealClock(), secret)
        self.started_at = core.now()
        self._closed = False
        self.actors = Actors()
        self._frames = frames = Frames(core)
        evidence = Evidence(core, frames)
        self.keeper = Keeper(core, self.actors, evidence)
        evidence.save_snapshot = self.keeper.save
        self._ending = ending = Ending(core, self.actors)
        self._leasing = leasing = Leasing(core, ending)
        supervising = Supervising(core, self.actors, leasing, ending)
        acting = Acting(core, self.actors, frames)
        self._inside = inside = Inside(core, self.actors, acting)
        self._accessible = accessible = Accessible(core, acting, inside)
        self.watching = watching = Watching(core, self.actors, inside, leasing)
        self.actors.watching, leasing.watchers = watching, watching.of_lease
        self.actors.beside, self.keeper.forget_inside = inside, self._forget_inside
        self._snapshots = snapshots = Snapshots(core, self.actors, self.keeper)
        self.approving = approving = Approving(core, self.actors, acting)
        people = People(core)
        self._chronicle = chronicle = Chronicle(core)
        self._desktops = desktops = Desktops(core, self.keeper, self.started_at)
        self._worktrees = worktrees = Worktrees(core, approving)
        self.keeper.maker.before_emptying = worktrees.fetch_from
        self.sweeper = Sweeper(core, snapshots, frames, acting.looking, worktrees)
        self._passing = Passing(core, ending, chronicle, self.sweeper)
        self._recovery = Recovery(core, self.actors, self.keeper, acting, snapshots, approving)

        self.caller = people.caller
        self.agents, self.add_agent, self.remove_agent = people.agents, people.add_agent, people.remove_agent
        self.rotate_agent, self.unbar_agent = people.rotate_agent, people.unbar_agent
        self.agent_token = people.agent_token
        self.operators, self.add_operator = people.operators, people.add_operator
        self.rotate_operator, self.remove_operator = people.rotate_operator, people.remove_operator
        self.acquire, self.lease, self.leases = leasing.acquire, leasing.lease, leasing.leases
        self.renew, self.release = leasing.renew, leasing.release
        self.pause, self.resume, self.take = supervising.pause, supervising.resume, supervising.take
        self.revoke, self.reassign = supervising.revoke, supervising.reassign
        self.watch, self.serve_viewer = watching.ticket, watching.serve
        self.act, self.screenshot = acting.act, acting.screenshot
        self.ask_approval, self.answer = approving.ask_actions, approving.answer
        self.approvals, self.approval = approving.listing, approving.get
        self.frames, self.frame, self.prune_frames = frames.listing, frames.get, frames.prune
        self.files, self.put_file = inside.files, inside.put_file
        self.get_file, self.remove_file = inside.get_file, inside.remove_file
        self.windows, self.focus, self.launch = inside.windows, inside.focus, inside.launch
        self.ui, self.where = accessible.ui, accessible.where
        self.clipboard_get, self.clipboard_set = inside.clipboard_get, inside.clipboard_set
        self.exec, self.logs = inside.exec, inside.logs
        self.save, self.snapshots, self.delete_snapshot = snapshots.save, snapshots.listing, snapshots.delete
        self.desktops, self.desktop, self.remove_desktop = desktops.listing, desktops.one, desktops.remove
        self.profiles, self.profile, self.offer = desktops.profiles, desktops.profile, desktops.offer
        self.metrics = desktops.metrics
        yard = WorktreeDoor(worktrees)
        self.plan_worktree, self.make_worktree, self.worktree = yard.plan, yard.make, yard.one
        self.worktrees, self.worktree_diff, self.worktree_summary = yard.listing, yard.diff, yard.summary
        self.merge_worktree, self.discard_worktree, self.prune_worktrees = yard.merge, yard.discard, yard.prune
        self.audit, self.verify_audit, self.events = chronicle.entries, chronicle.verify, chronicle.events

    @property
    def url(self) -> str | None:
        """Where the HTTP door listens; the door sets it."""
        return self._leasing.url

    @url.setter
    def url(self, url: str | None) -> None:
        self._leasing.url = url

    async def _forget_inside(self, desktop: str) -> None:
        await self._inside.helpers.forget(desktop)
        await self._accessible.helpers.forget(desktop)

    async def start(self) -> None:
        await self._frames.open()
        await self._recovery.recover()
        await self._worktrees.start()
        await self.watching.start()
        self._passing.start()

    async def close(self) -> None:
        """Stop serving. Desktops live on; the next start finds them."""
        if self._closed:
            return
        self._closed = self.core.closing = True
        self.core.bell.ring()
        await self._passing.close()
        await self._worktrees.close()
        await self.watching.close()
        await self.keeper.close()
        await self._inside.helpers.close()
        await self._accessible.helpers.close()
        await self.actors.close()
        await self._frames.close()
        await self._chronicle.anchor()
        await self.core.store.close()

    async def shut_down(self) -> None:
        """End every lease and everything that was made; named desktops keep their files, asleep. Then close."""
        self.core.ending = self.core.closing = True
        await self._passing.close()
        try:
            await self.end_leases()
            await self._end_desktops()
        finally:
            await self.close()

    async def end_leases(self) -> None:
        """The first part of shutting down, while the doors are still open: who holds or awaits a desktop hears why."""
        self.core.ending = True
        for lease in await self.core.read(lambda tx: tx.find(Lease, state=tuple(x.value for x in LIVE))):
            state = LeaseState.CANCELLED if lease.state is LeaseState.WAITING else LeaseState.RELEASED
            await self._ending.end(lease.id, state, reason="cu-fleet was shut down", by="controller")

    async def _end_desktops(self) -> None:
        try:
            async with asyncio.timeout(_END_TIMEOUT):
                while running := await self.core.read(_not_at_rest):
                    await self._end_those(running)
        except TimeoutError:
            left = [f"{x.id} ({x.backend}, {x.stage.value})" for x in await self.core.read(_not_at_rest)]
            raise UnavailableError(
                f"not ended within {_END_TIMEOUT:g} s: {', '.join(left)}",
                remedy="controller.log in the home says why; mend that, then cu-fleet down again",
                code="not_ended",
            ) from None

    async def _end_those(self, running: list[Desktop]) -> None:
        for desktop in running:
            if desktop.stage in RESTING:
                await self.core.change(lambda tx, key=desktop.id: self._end_one(tx, key))  # type: ignore[misc]
        rings = self.core.bell.rings
        if await self.core.read(_not_at_rest):
            await self.core.bell.heard(rings, 1.0)

    def _end_one(self, tx: Tx, key: str) -> None:
        desktop = self.core.get_desktop(tx, key)
        if desktop.stage in (Stage.READY, Stage.QUARANTINED):
            lasting = desktop.name is not None and desktop.stage is Stage.READY
            can_sleep = self.core.backend(desktop.backend).abilities.snapshots is not None
            tx.put(moved(desktop, Event.PARK if lasting and can_sleep else Event.STOP))
            self.core.touch(key)

    async def status(self, who: Caller) -> dict[str, Any]:
        return await self._desktops.status(who, self.url)

    async def freeze(self, who: Caller, key: str) -> DesktopView:
        return self._shown(await self._inside.freeze(who, key, frozen=True))

    async def thaw(self, who: Caller, key: str) -> DesktopView:
        return self._shown(await self._inside.freeze(who, key, frozen=False))

    async def restore(self, who: Caller, snapshot: str, key: str | None = None) -> DesktopView:
        return self._shown(await self._snapshots.restore(who, snapshot, key))

    def _shown(self, desktop: Desktop) -> DesktopView:
        return desktop_view(desktop, None)


def _not_at_rest(tx: Tx) -> list[Desktop]:
    """What still has to end before everything is down: all but what sleeps."""
    return [desktop for desktop in tx.find(Desktop, stage=NOT_GONE) if desktop.stage is not Stage.PARKED]
