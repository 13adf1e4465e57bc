"""Who watches: one record for each viewer that is connected, and what the store knows of them, for after a kill."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from cu_fleet.controller.core import Core
from cu_fleet.model.access import Agent, Caller, Operator
from cu_fleet.model.errors import FleetError
from cu_fleet.model.lease import Lease
from cu_fleet.model.view import WatcherView, iso
from cu_fleet.stores.base import Tx

_META = "watching"


@dataclass(eq=False)
class Watcher:
    id: str
    lease: str
    desktop: str
    generation: int
    who: Caller
    standing: str
    control: bool
    way: str
    since: float
    why: FleetError | None = None  # it has to go
    suspended: bool = False
    entering: asyncio.Timeout | None = None  # until it has its picture
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def view(self) -> WatcherView:
        return WatcherView(
            viewer=self.id, who=self.who.who, control=self.control, way=self.way, since=iso(self.since) or ""
        )


def standing_of(tx: Tx, who: Caller) -> str:
    """Another one once this caller's token was rotated or their role changed; nothing for a lease's own token."""
    if who.operator:
        operator = tx.get(Operator, who.operator)
        return f"{operator.role} {operator.epoch}" if operator else "unknown"
    agent = tx.get(Agent, who.agent or "") if not who.lease else None
    return f"agent {agent.epoch}" if agent else ""


# what would be left behind by a kill


def _known(tx: Tx) -> dict[str, dict[str, Any]]:
    return dict(json.loads(tx.get_meta(_META) or "{}"))


def _keep(tx: Tx, known: dict[str, dict[str, Any]]) -> None:
    tx.set_meta(_META, json.dumps(known) if known else None)


def opened(core: Core, tx: Tx, watcher: Watcher, lease: Lease) -> None:
    facts: dict[str, object] = {"viewer": watcher.id, "control": watcher.control, "way": watcher.way}
    core.record(tx, "watch.opened", watcher.who.who, lease=lease, facts=facts)
    _keep(tx, _known(tx) | {watcher.id: {"lease": lease.id, "input": None}})


def open_input(tx: Tx, viewer: str, entry: int | None) -> None:
    known = _known(tx)
    if viewer in known:
        known[viewer]["input"] = entry
        _keep(tx, known)


def closed(core: Core, tx: Tx, watcher: Watcher, why: str) -> None:
    known = _known(tx)
    if known.pop(watcher.id, None) is None:
        return
    _keep(tx, known)
    lease = tx.get(Lease, watcher.lease)
    facts: dict[str, object] = {"viewer": watcher.id, "why": why}
    seconds = round(core.now() - watcher.since, 3)
    core.record(tx, "watch.closed", watcher.who.who, lease=lease, facts=facts, seconds=seconds)


def interrupted(core: Core, tx: Tx) -> None:
    """After a start: viewers that a killed controller left, and what they were doing."""
    for viewer, left in _known(tx).items():
        lease = tx.get(Lease, left["lease"])
        if left["input"]:
            core.record(tx, "watch.input.done", "controller", lease=lease, of=left["input"], result="interrupted")
        facts: dict[str, object] = {"viewer": viewer, "why": "the controller was killed"}
        core.record(tx, "watch.closed", "controller", lease=lease, facts=facts)
    _keep(tx, {})
