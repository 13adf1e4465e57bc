"""What the parts of the stores' contract suite share: how a test opens its store, and records to try it with."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import HealthCheck, settings

from cu_fleet.model.approval import Approval
from cu_fleet.model.audit import Draft
from cu_fleet.model.desktop import Desktop
from cu_fleet.model.lease import Lease
from cu_fleet.model.record import Record
from cu_fleet.model.snapshot import Snapshot
from cu_fleet.stores.base import Store, Tx

KEY = b"an audit key for tests only....."
DEADLINE = 60.0  # seconds for one test: hanging is a failure


def desktop(number: int, **more: Any) -> Desktop:
    fields = {"profile": "p", "profile_digest": "0", "backend": "b", "width": 640, "height": 480, "created_at": 1.0}
    return Desktop(id=f"dk_{number}", **{**fields, **more})


def lease(number: int, **more: Any) -> Lease:
    fields = {"agent": "a", "profile": "p", "backend": "b", "asked_at": 1.0, "asked_by": "agent a"}
    return Lease(id=f"ls_{number}", **{**fields, **more})


def snapshot(number: int, **more: Any) -> Snapshot:
    return Snapshot(id=f"sn_{number}", **{"desktop": "dk_1", "profile": "p", "backend": "b", "created_at": 1.0, **more})


def approval(number: int, **more: Any) -> Approval:
    fields = {"kind": "action", "subject": "do", "lease": "ls_1", "agent": "a", "asked_at": 1.0, "deadline": 2.0}
    return Approval(id=f"ap_{number}", **{**fields, "asked_by": "agent a", **more})


def draft(number: int, **more: Any) -> Draft:
    return Draft(at=float(number), what="act", who="agent a", lease="ls_1", facts={"n": number}, **more)


def put(*records: Record) -> Callable[[Tx], None]:
    def work(tx: Tx) -> None:
        for record in records:
            tx.put(record)

    return work


# One suite serves several classes, each with a database of its own: that is all the health check sees.
examples = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.differing_executors])


class StoreBase:
    async def open(self) -> Store:
        """The store over this test's database."""
        raise AssertionError("a subclass says how to open its store")

    async def intrude(self, store: Store, *sql: str) -> None:
        """Run statements on the database behind the store, with the triggers on `audit` gone."""
        raise AssertionError("a subclass says how to get at its database")

    def run(self, body: Callable[[Store], Awaitable[None]]) -> None:
        """Run a test's body on an open store, and close it."""

        async def bounded() -> None:
            async with asyncio.timeout(DEADLINE):
                store = await self.open()
                try:
                    await body(store)
                finally:
                    await store.close()

        asyncio.run(bounded())
