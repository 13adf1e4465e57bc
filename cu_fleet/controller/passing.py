"""What time brings: leases run out, requests leave the queue, the record is anchored, orphans are swept."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable

from cu_fleet.controller.bounding import Bounding
from cu_fleet.controller.core import Core
from cu_fleet.controller.ending import Ending
from cu_fleet.controller.pending import deadlines, expire
from cu_fleet.controller.record import Chronicle
from cu_fleet.controller.sweeping import Sweeper
from cu_fleet.model.errors import FleetError
from cu_fleet.model.lease import LIVE, Lease, LeaseState
from cu_fleet.stores.base import Tx

log = logging.getLogger(__name__)
_SWEEP_EVERY = 30.0
_IDLE = 3600.0


class Passing:
    """Four owned tasks: deadlines, heartbeat and anchor, sweep, disk."""

    def __init__(self, core: Core, ending: Ending, chronicle: Chronicle, sweeper: Sweeper) -> None:
        self.core = core
        self.ending = ending
        self.chronicle = chronicle
        self.sweeper = sweeper
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        every = self.core.settings.anchor_every
        self._tasks = [
            asyncio.create_task(self._deadlines(), name="deadlines"),
            asyncio.create_task(self._repeat(every, self._beat), name="heartbeat"),
            asyncio.create_task(self._repeat(_SWEEP_EVERY, self._sweep), name="sweep"),
            asyncio.create_task(Bounding(self.core, self.ending).watch(), name="disk"),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _deadlines(self) -> None:
        """End what has run out, then sleep until the next deadline or the next change."""
        while True:
            rings = self.core.turned.rings
            try:
                following = await self._expire()
            except FleetError as e:
                log.warning("deadlines could not be kept: %s", e)
                following = self.core.now() + 1.0
            sleep = asyncio.create_task(self._sleep_until(following), name="until")
            heard = asyncio.create_task(self.core.turned.heard(rings), name="change")
            try:
                await asyncio.wait({sleep, heard}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleep.cancel()
                heard.cancel()

    async def _sleep_until(self, at: float) -> None:
        await self.core.clock.sleep(max(0.0, at - self.core.now()))

    async def _expire(self) -> float:
        now = self.core.now()

        def live(tx: Tx) -> tuple[list[Lease], list[float]]:
            return tx.find(Lease, state=tuple(state.value for state in LIVE)), deadlines(tx)

        leases, questions = await self.core.read(live)
        if min(questions, default=math.inf) <= now:
            await self.core.change(lambda tx: expire(self.core, tx))
        for lease in leases:
            if lease.state is LeaseState.ACTIVE and lease.expires_at is not None and lease.expires_at <= now:
                await self._run_out(lease, now)
            elif lease.state is LeaseState.WAITING and lease.wait_until is not None and lease.wait_until <= now:
                waited = f"it waited {now - lease.asked_at:.0f} s, as long as it was asked to"
                await self.ending.end(lease.id, LeaseState.CANCELLED, reason=waited, by="controller")
        times = [at for x in leases for at in (x.expires_at, x.wait_until)]
        return min((at for at in (*times, *questions) if at is not None and at > now), default=now + _IDLE)

    async def _run_out(self, lease: Lease, now: float) -> None:
        """The lease may have been renewed since it was read: then it has not run out."""
        current = await self.core.read(lambda tx: self.core.get_lease(tx, lease.id))
        if current.expires_at is not None and current.expires_at <= now:
            reason = f"it was not renewed for {lease.ttl:.0f} s"
            await self.ending.end(lease.id, LeaseState.EXPIRED, reason=reason, by="controller")

    async def _beat(self) -> None:
        """The time until which the controller was surely alive: the clocks of leases stand still after it."""
        now = self.core.now()
        await self.core.read(lambda tx: tx.set_meta("alive_at", repr(now)))
        await self.chronicle.anchor()

    async def _sweep(self) -> None:
        self.core.resting.clear()
        await self.sweeper.sweep()
        await self.core.change(lambda tx: None)

    async def _repeat(self, every: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except (FleetError, OSError, TimeoutError) as e:
                log.warning("%s: %s", asyncio.current_task(), e)
            await self.core.clock.sleep(every)
