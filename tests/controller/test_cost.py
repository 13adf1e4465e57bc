"""What a look and an action cost, in transactions: counts, since times belong to a machine and an hour.

Each transaction is a wait for another thread, and on PostgreSQL several for another process. What must be written is:
a look, once; an action's intent before it is sent, and its result before the caller hears of it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cu_fleet.model.access import Caller
from cu_fleet.model.action import parse_actions
from cu_fleet.model.lease import LeaseState
from cu_fleet.model.request import Shot
from cu_fleet.stores.engine import SqlStore
from tests.controller.fleet import ANA, running
from tests.support import run, until

MOVES = [{"type": "move", "x": 10 + number, "y": 10} for number in range(5)]


class Cost:
    """How many transactions there were."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        real = SqlStore.transact

        async def counted(store: SqlStore, *args: object, **more: object) -> object:
            self.count += 1
            return await real(store, *args, **more)  # type: ignore[arg-type]

        patch.setattr(SqlStore, "transact", counted)

    async def of(self, work: Callable[[], Awaitable[object]]) -> int:
        """Also of what it sets off in others."""
        before = self.count
        await work()
        for _ in range(50):
            await asyncio.sleep(0)
        return self.count - before


def test_looks_and_actions_cost_no_more_transactions_than_they_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            lease = await fleet.granted("a")
            await fleet.settled()
            controller, who = fleet.controller, Caller(lease=lease.lease, agent="a")

            def look(**shot: object) -> Callable[[], Awaitable[object]]:
                return lambda: controller.screenshot(who, lease.lease, Shot.model_validate(shot))

            def act(count: int, shot: Shot | None = None) -> Callable[[], Awaitable[object]]:
                actions = parse_actions(MOVES[:count])
                return lambda: controller.act(who, lease.lease, actions, shot=shot)

            await look()()
            frame = (await controller.screenshot(who, lease.lease, Shot())).frame
            cost = Cost(monkeypatch)
            assert await cost.of(look()) == 1
            assert await cost.of(look(format="jpeg", max_edge=64)) == 1
            assert await cost.of(look(if_changed_since=frame)) == 1
            assert await cost.of(act(1)) == 2
            assert await cost.of(act(5)) == 6
            assert await cost.of(act(1, Shot(settle_ms=0))) == 3

    run(body())


def test_a_sleeping_deadline_is_woken_by_what_may_bring_it_nearer_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            lease = await fleet.granted("a", ttl=1000)
            await fleet.settled()
            controller, who = fleet.controller, Caller(lease=lease.lease, agent="a")
            began, cost = fleet.clock.now(), Cost(monkeypatch)
            for _ in range(20):
                await controller.screenshot(who, lease.lease, Shot())
            assert cost.count <= 20 + 1  # the first look needs to know which desktop is meant
            await controller.renew(ANA, lease.lease, 5.0)

            async def over() -> bool:
                """Far less time than it had before; in steps, for it may fall asleep anew while a step is made."""
                await fleet.clock.advance(0.2)
                return (await controller.lease(ANA, lease.lease)).state == LeaseState.EXPIRED.value

            await until(over)
            assert fleet.clock.now() < began + 500

    run(body())
