"""A controller that is killed while it saves a snapshot: what stood still for that goes on, whatever else is amiss."""

import asyncio
from pathlib import Path

from cu_fleet.model.action import parse_actions
from cu_fleet.model.snapshot import Snapshot
from cu_fleet.testing.saboteurs import DIE, HANG, Saboteur
from tests.controller.fleet import ANA, Fleet
from tests.support import run, until


async def _killed_while_saving(fleet: Fleet, desktop: str) -> None:
    saboteur = fleet.controller.core.backends["memory"]
    assert isinstance(saboteur, Saboteur)
    saboteur.at("snapshots.save", HANG)
    saving = asyncio.create_task(fleet.controller.save(ANA, desktop, ""), name="call save")
    await until(lambda: saboteur.sprung)
    fleet.backend.desktop(desktop).gate.shut()  # as backends do that hold still what they save
    await fleet.kill()
    await asyncio.wait({saving})


def test_a_desktop_that_stood_still_for_it_goes_on_under_its_lease(tmp_path: Path) -> None:
    async def body() -> None:
        fleet = Fleet(tmp_path, wrap=Saboteur)
        await fleet.start()
        lease = await fleet.granted("a")
        await _killed_while_saving(fleet, lease.desktop or "")
        await fleet.start()
        try:
            assert fleet.backend.desktop(lease.desktop or "").gate.is_open
            who = await fleet.controller.caller(fleet.lease_token(lease.lease))
            done = await fleet.controller.act(who, lease.lease, parse_actions([{"type": "key", "keys": "a"}]))
            assert [one.ok for one in done.done] == [True]
            assert await fleet.controller.snapshots(ANA, None) == []
        finally:
            await fleet.controller.close()

    run(body())


def test_one_that_was_frozen_by_a_person_stays_so(tmp_path: Path) -> None:
    async def body() -> None:
        fleet = Fleet(tmp_path, wrap=Saboteur)
        await fleet.start()
        lease = await fleet.granted("a")
        await fleet.controller.freeze(ANA, lease.desktop or "")
        await _killed_while_saving(fleet, lease.desktop or "")
        await fleet.start()
        try:
            assert not fleet.backend.desktop(lease.desktop or "").gate.is_open
        finally:
            await fleet.controller.close()

    run(body())


def test_a_backend_that_does_not_answer_then_keeps_no_controller_from_starting(tmp_path: Path) -> None:
    async def body() -> None:
        betrayed: list[Saboteur] = []

        def wrap(backend: object) -> Saboteur:
            betrayed.append(Saboteur(backend))  # type: ignore[arg-type]
            if len(betrayed) == 2:
                betrayed[1].at("freeze.thaw", DIE)
            return betrayed[-1]

        fleet = Fleet(tmp_path, wrap=wrap)
        await fleet.start()
        lease = await fleet.granted("a")
        await _killed_while_saving(fleet, lease.desktop or "")
        await fleet.start()
        assert betrayed[1].sprung == [("freeze.thaw", DIE)]
        await fleet.kill()
        await fleet.start()
        try:
            rows = await fleet.controller.core.read(lambda tx: tx.find(Snapshot))
            assert rows == [], "the next start removes it"
            assert fleet.backend.desktop(lease.desktop or "").gate.is_open
        finally:
            await fleet.controller.close()

    run(body())
