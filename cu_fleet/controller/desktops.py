"""Desktops as operators see them: listed, shown, taken away; and how the whole fleet is."""

import asyncio
import os
import threading
from collections import Counter
from typing import Any

from cu_fleet import __version__
from cu_fleet.controller.core import Core
from cu_fleet.controller.keeper import Keeper
from cu_fleet.model.access import Caller, Role
from cu_fleet.model.approval import Approval, ApprovalState
from cu_fleet.model.desktop import NOT_GONE, TAKES_ROOM, Desktop, Event, Handle, Stage, moved
from cu_fleet.model.errors import ConflictError, FleetError
from cu_fleet.model.lease import LIVE, Lease, LeaseState
from cu_fleet.model.offer import Offer
from cu_fleet.model.profile import Profile
from cu_fleet.model.view import DesktopView, desktop_view, iso
from cu_fleet.stores.base import Tx


class Desktops:
    def __init__(self, core: Core, keeper: Keeper, started_at: float) -> None:
        self.core = core
        self.keeper = keeper
        self.started_at = started_at

    async def listing(self, who: Caller) -> list[DesktopView]:
        who.needs(Role.OBSERVER)

        def work(tx: Tx) -> list[DesktopView]:
            holders = {x.desktop: x for x in tx.find(Lease, state=LeaseState.ACTIVE.value)}
            return [desktop_view(x, holders.get(x.id)) for x in tx.find(Desktop, stage=NOT_GONE)]

        return await self.core.read(work)

    async def one(self, who: Caller, key: str) -> DesktopView:
        who.needs(Role.OBSERVER)

        def work(tx: Tx) -> DesktopView:
            desktop = self.core.get_desktop(tx, key)
            handles.append((desktop.backend, desktop.handle))
            return desktop_view(desktop, self.core.holder_of(tx, desktop.id))

        handles: list[tuple[str, Handle]] = []
        view = await self.core.read(work)
        return view.model_copy(update=await self._disk(*handles[-1], view.profile))

    async def _disk(self, backend: str, handle: Handle, profile: str) -> dict[str, int]:
        """What it has written, and may write, where that is bounded."""
        disk = self.core.backends[backend].abilities.disk if backend in self.core.backends else None
        if disk is None or not handle or profile not in self.core.profiles:
            return {}
        limit = {"disk_limit": self.core.profile(profile).limits.disk}
        try:
            return limit | {"disk_bytes": await self.core.bounded(disk.used(handle), "measure its disk")}
        except FleetError:
            return limit  # it ends at this moment

    async def remove(self, who: Caller, key: str) -> None:
        """Take a desktop away that nobody holds; a named one loses its state for good."""
        who.needs(Role.OPERATOR)

        def work(tx: Tx) -> str:
            desktop = self.core.get_desktop(tx, key)
            lease = self.core.holder_of(tx, desktop.id)
            if lease:
                raise ConflictError(
                    f"desktop {desktop.id} is held by agent {lease.agent} (lease {lease.id})",
                    remedy=f"cu-fleet lease revoke {lease.id}, then remove it",
                    code="desktop_held",
                )
            if desktop.stage not in (Stage.STOPPING, Stage.GONE):
                tx.put(moved(desktop, Event.STOP, generation=desktop.generation + 1))
                self.core.record(tx, "desktop.removed", who.who, desktop=desktop)
                self.core.touch(desktop.id)
            return desktop.id

        await self.keeper.settled(await self.core.change(work))

    async def profiles(self, who: Caller) -> list[tuple[Profile, str]]:
        return list(self.core.profiles.values())

    async def profile(self, who: Caller, name: str) -> tuple[Profile, str]:
        self.core.profile(name)
        return self.core.profiles[name]

    async def offer(self, who: Caller | None, profile: str | None) -> Offer:
        """What the caller's desktop has, or one of this profile would have; all there is where neither is known."""
        lease_id = who.lease if who else None
        lease = await self.core.read(lambda tx: tx.get(Lease, lease_id)) if lease_id else None
        name = lease.profile if lease else profile
        if name is None or (lease and name not in self.core.profiles):
            return Offer()
        recipe = self.core.profile(name)
        can = self.core.backend(recipe.backend).abilities.of(recipe)
        launch = {name: program.title for name, program in recipe.launch.items()} if can.exec else {}
        return Offer(helper=can.exec is not None and can.helper, files=can.files is not None, launch=launch)

    async def status(self, who: Caller, url: str | None) -> dict[str, Any]:
        who.needs(Role.OBSERVER)
        numbers = await self.core.read(self._count)
        return {
            "version": __version__,
            "fleet": self.core.fleet,
            "home": str(self.core.settings.home),
            "url": url,
            "pid": os.getpid(),
            "started_at": iso(self.started_at),
            "database": "postgresql" if self.core.settings.database else "sqlite",
            **numbers,
        }

    def _count(self, tx: Tx) -> dict[str, Any]:
        desktops = tx.find(Desktop, stage=NOT_GONE)
        leases = Counter(x.state.value for x in tx.find(Lease, state=tuple(x.value for x in LIVE)))
        rooms = [x for x in desktops if x.stage in TAKES_ROOM]
        known = [self.core.profiles[x.profile][0] for x in rooms if x.profile in self.core.profiles]
        head = tx.head()
        return {
            "capacity": {
                "desktops": self.core.most_desktops,
                "used": len(rooms),
                "memory_bytes": self.core.memory,
                "reserved_bytes": sum(profile.reserve for profile in known),
            },
            "leases": {"active": leases["active"], "waiting": leases["waiting"]},
            "approvals": {"waiting": len(tx.find(Approval, state=ApprovalState.WAITING))},
            "desktops": dict(Counter(x.stage.value for x in desktops)),
            "audit": {"entries": head.seq if head else 0, "alarm": self.core.alarm or None},
        }

    async def metrics(self, who: Caller) -> str:
        """The same numbers for Prometheus."""
        status = await self.status(who, None)
        lines = []

        def gauge(name: str, text: str, values: dict[str, float]) -> None:
            lines.append(f"# HELP cu_fleet_{name} {text}")
            lines.append(f"# TYPE cu_fleet_{name} gauge")
            lines.extend(f"cu_fleet_{name}{labels} {value:g}" for labels, value in values.items())

        gauge("leases", "Live leases.", {f'{{state="{k}"}}': v for k, v in status["leases"].items()})
        gauge("approvals_waiting", "What waits for a person's answer.", {"": status["approvals"]["waiting"]})
        gauge("desktops", "Desktops by stage.", {f'{{stage="{k}"}}': v for k, v in status["desktops"].items()})
        gauge("desktops_most", "Desktops there is room for.", {"": status["capacity"]["desktops"]})
        gauge("reserved_bytes", "Memory set aside.", {"": status["capacity"]["reserved_bytes"]})
        gauge("audit_entries", "Entries of the audit record.", {"": status["audit"]["entries"]})
        gauge("audit_broken", "1 when the audit record was cut or rewritten.", {"": bool(status["audit"]["alarm"])})
        gauge("tasks", "What the controller has under way, this answer among it.", {"": len(asyncio.all_tasks())})
        gauge("threads", "Its threads.", {"": threading.active_count()})
        gauge("started_at_seconds", "When the controller started.", {"": self.started_at})
        return "\n".join(lines) + "\n"
