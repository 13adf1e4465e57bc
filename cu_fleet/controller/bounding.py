"""Keeps desktops from filling the disk: one that has written more than its profile's `limits.disk` stands still.

No kernel limit that always can be had bounds a folder, so what each desktop has written is measured: every half minute,
and as soon as the disk has lost some room since the last time, which is looked at every second. Between two looks a
desktop can write more than it may, but no more than the disk takes in that time. When hardly any room is left, the
desktop that has written most is stopped likewise, whatever its limit. Desktops may fill other disks than the home's, on
other hosts too: how much room is left there is asked whenever they are measured.

To stand still is to be frozen, so that nothing more is written and a person can look, with the lease paused and told
why. A rollback frees the room. A desktop that nobody holds is not worth looking at, and is replaced.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cu_fleet.backends.base import Disk, Freeze, Room
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


@dataclass(frozen=True)
class _Used:
    """What a desktop has written when it was measured, and what was left of the disk it writes to."""

    desktop: Desktop
    size: int
    room: Room | None

    @property
    def low(self) -> bool:
        return self.room is not None and _low(self.room)

    @property
    def disk(self) -> tuple[str, str] | None:
        return (self.room.host, self.room.disk) if self.room else None


class Bounding:
    def __init__(self, core: Core, ending: Ending) -> None:
        self.core = core
        self.ending = ending
        self._free = 0  # of the home's disk
        self._next = 0.0
        self._known: dict[str, list[_Used]] = {}  # of each backend
        self._measuring: dict[str, asyncio.Task[None]] = {}

    async def watch(self) -> None:
        """For ever."""
        try:
            while True:
                with _told("the disk"):
                    await self._look()
                await self.core.clock.sleep(LOOK_EVERY)
        finally:
            for task in self._measuring.values():
                task.cancel()
            await asyncio.gather(*self._measuring.values(), return_exceptions=True)

    async def _look(self) -> None:
        room = await asyncio.to_thread(Room.at, self.core.settings.home)
        if room.free > self._free - _STEP and self.core.now() < self._next:
            self._free = max(self._free, room.free)
            return
        self._free, self._next = room.free, self.core.now() + (MEASURE_WHEN_LOW if _low(room) else MEASURE_EVERY)
        for name, backend in self.core.backends.items():
            if backend.abilities.disk and (name not in self._measuring or self._measuring[name].done()):
                work = self._measure(name, backend.abilities.disk)
                self._measuring[name] = asyncio.create_task(work, name=f"disk of {name}")

    async def _measure(self, name: str, disk: Disk) -> None:
        """One backend's desktops, so that none waits for a host that does not answer."""
        with _told(f"the disk of {name}"):
            found = self._known[name] = await self._used(name, disk)
            for one in found:
                if one.size > (limit := self.core.profile(one.desktop.profile).limits.disk):
                    why = f"it has written {_in_words(one.size)}, and its limit is {_in_words(limit)}"
                    await self._hold_still(one.desktop, why)
            for full in {one.disk: one.room for one in found if one.low}.values():
                assert full
                self._next = min(self._next, self.core.now() + MEASURE_WHEN_LOW)
                await self._make_room(full)

    async def _used(self, name: str, disk: Disk) -> list[_Used]:
        running = tuple(stage.value for stage in RUNNING)
        found = []
        for desktop in await self.core.read(lambda tx: tx.find(Desktop, stage=running)):
            if desktop.backend != name or desktop.profile not in self.core.profiles:
                continue
            try:
                used = await self.core.bounded(disk.used(desktop.handle), "measure its disk", _MOST_SECONDS)
                room = await self.core.bounded(disk.room(desktop.handle), "say what is left of its disk", _MOST_SECONDS)
            except FleetError as e:
                log.warning("desktop %s: %s", desktop.id, e)
            else:
                found.append(_Used(desktop, used, room))
        return found

    async def _make_room(self, room: Room) -> None:
        """Stop who has written most to this disk."""
        there = [one for known in self._known.values() for one in known if one.disk == (room.host, room.disk)]
        most = max(there, key=lambda one: one.size)
        if most.size > _STEP:
            where = f" on {room.host}" if room.host else ""
            left = f"only {_in_words(room.free)} are left of the disk{where}"
            await self._hold_still(most.desktop, f"{left}, and it has written most, {_in_words(most.size)}")

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


def _low(room: Room) -> bool:
    return room.free < min(_LEAST_ROOM, room.size // 20)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """What goes wrong is tried again at the next look."""
    try:
        yield
    except (FleetError, OSError) as e:
        log.warning("%s could not be watched: %s", what, e)


def _in_words(size: int) -> str:
    return f"{size / (1 << 30):.1f} GB" if size >= 1 << 30 else f"{size / (1 << 20):.0f} MB"
