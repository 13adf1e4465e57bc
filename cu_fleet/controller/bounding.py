"""Keeps desktops from filling the disk: one that has written more than its profile's `limits.disk` stands still.

No kernel limit that always can be had bounds a folder, so what each desktop has written is measured: every half minute,
and as soon as the disk has lost some room since the last time, which is looked at every second. Between two looks a
desktop can write more than it may, but no more than the disk takes in that time. When hardly any room is left, the
desktop that has written most is stopped likewise, whatever its limit.

To stand still is to be frozen, so that nothing more is written and a person can look, with the lease paused and told
why. A rollback frees the room. A desktop that nobody holds is not worth looking at, and is replaced.
"""

import asyncio
import logging
import os
from pathlib import Path

from cu_fleet.backends.base import Freeze
from cu_fleet.controller.core import Core
from cu_fleet.controller.ending import Ending
from cu_fleet.model.desktop import RUNNING, Desktop, Event, Stage, moved
from cu_fleet.model.errors import FleetError
from cu_fleet.model.lease import Control, Lease, stopped_clock, why_not
from cu_fleet.stores.base import Tx

log = logging.getLogger(__name__)
LOOK_EVERY, MEASURE_EVERY, MEASURE_WHEN_LOW = 1.0, 30.0, 5.0
_STEP = 64 << 20  # this much less room is a reason to measure
_LEAST_ROOM = 1 << 30  # or a twentieth of the disk, if that is less
_MOST_SECONDS = 60.0


class Bounding:
    def __init__(self, core: Core, ending: Ending) -> None:
        self.core = core
        self.ending = ending
        self._room = 0
        self._next = 0.0

    async def watch(self) -> None:
        """For ever."""
        while True:
            try:
                await self._look()
            except (FleetError, OSError) as e:
                log.warning("the disk could not be watched: %s", e)
            await self.core.clock.sleep(LOOK_EVERY)

    async def _look(self) -> None:
        room, least = await asyncio.to_thread(room_of, self.core.settings.home)
        if room > self._room - _STEP and self.core.now() < self._next:
            self._room = max(self._room, room)
            return
        used = await self._measure()
        self._room, self._next = room, self.core.now() + (MEASURE_EVERY if room > least else MEASURE_WHEN_LOW)
        for desktop, size in used:
            if size > (limit := self.core.profile(desktop.profile).limits.disk):
                await self._hold_still(
                    desktop, f"it has written {_in_words(size)}, and its limit is {_in_words(limit)}"
                )
        if room < least and (here := [one for one in used if await self._at_home(one[0])]):
            desktop, size = max(here, key=lambda one: one[1])
            if size > _STEP:
                what = f"only {_in_words(room)} are left of the disk, and it has written most, {_in_words(size)}"
                await self._hold_still(desktop, what)

    async def _measure(self) -> list[tuple[Desktop, int]]:
        running = tuple(stage.value for stage in RUNNING)
        found = []
        for desktop in await self.core.read(lambda tx: tx.find(Desktop, stage=running)):
            ability = self.core.backend(desktop.backend).abilities.disk
            if ability is None or desktop.profile not in self.core.profiles:
                continue
            try:
                used = await self.core.bounded(ability.used(desktop.handle), "measure its disk", _MOST_SECONDS)
            except FleetError as e:
                log.warning("desktop %s: %s", desktop.id, e)
            else:
                found.append((desktop, used))
        return found

    async def _at_home(self, desktop: Desktop) -> bool:
        disk = self.core.backend(desktop.backend).abilities.disk
        return disk is not None and await disk.at_home(desktop.handle)

    async def _hold_still(self, desktop: Desktop, why: str) -> None:
        lease = await self.core.change(lambda tx: self._write(tx, desktop, f"desktop {desktop.id} stands still: {why}"))
        if lease:
            self.ending.fence(lease, why_not(lease))
        freeze = self.core.backend(desktop.backend).abilities.freeze
        actor = self.ending.actors.of(desktop.id)
        async with actor.turn:
            now = await self.core.read(lambda tx: self.core.get_desktop(tx, desktop.id))
            if freeze and now.frozen and now.stage in RUNNING:
                if not desktop.frozen:
                    await actor.let_go()
                await self._freeze(freeze, now)  # anew, if it goes on writing though it should stand still

    async def _freeze(self, freeze: Freeze, desktop: Desktop) -> None:
        try:
            await self.core.bounded(freeze.freeze(desktop.handle), "freeze")
        except FleetError as e:
            log.warning("desktop %s could not be frozen, which will be tried again: %s", desktop.id, e)

    def _write(self, tx: Tx, desktop: Desktop, why: str) -> Lease | None:
        """The lease that is paused by it, if there is one that an agent controls."""
        now = self.core.get_desktop(tx, desktop.id)
        if now.stage is not desktop.stage or now.generation != desktop.generation:
            return None  # it has changed hands, and is as good as another
        lease = self.core.holder_of(tx, now.id)
        paused = None
        if lease and lease.control is Control.AGENT:
            paused = stopped_clock(lease, Control.PAUSED, self.core.now(), reason=why, by="controller", looking=True)
            tx.put(paused)
        if now.frozen and paused is None:
            return None
        idle = now.stage is Stage.READY and now.name is None
        tx.put(moved(now, Event.STOP, note=why) if idle else now.but(frozen=True, note=why))
        self.core.record(tx, "desktop.over_limit", "controller", desktop=now, facts={"why": why})
        self.core.touch(now.id)
        return paused


def room_of(home: Path) -> tuple[int, int]:
    """How much of the disk is left, and how much should be."""
    found = os.statvfs(home)
    return found.f_bavail * found.f_frsize, min(_LEAST_ROOM, found.f_blocks * found.f_frsize // 20)


def _in_words(size: int) -> str:
    return f"{size / (1 << 30):.1f} GB" if size >= 1 << 30 else f"{size / (1 << 20):.0f} MB"
