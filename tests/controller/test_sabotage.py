"""Backends that die, hang, lie or lose the desktop at any checkpoint: nobody ever sees what another left behind, nobody
waits for ever, nothing is orphaned."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from cu_fleet.backends.base import Backend, Spec
from cu_fleet.backends.memory_inside import MemoryFile
from cu_fleet.model.action import parse_actions
from cu_fleet.model.desktop import Handle, Stage
from cu_fleet.model.errors import FleetError
from cu_fleet.model.lease import LeaseState
from cu_fleet.model.profile import Screen
from cu_fleet.model.request import Shot
from cu_fleet.testing.saboteurs import CHECKPOINTS, DIE, HANG, LIE, VANISH, Saboteur
from tests.controller.fleet import ANA, Fleet, profile, running
from tests.support import run, until

pytestmark = pytest.mark.slow

LEFT = "/tmp/left-by-a"
TRAPS = [
    pytest.param(checkpoint, how, marks=[pytest.mark.slow] if how == HANG else [])
    for checkpoint in CHECKPOINTS
    for how in (DIE, HANG, LIE, VANISH)
    if (checkpoint, how) not in {("exec.exec", LIE), ("meter.usage", LIE)} and not checkpoint.startswith("meter")
]


class Shrinking:
    """A backend whose first desktop is smaller than its profile says."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.name, self.abilities = backend.name, backend.abilities
        self.endpoint, self.found, self.check, self.stop = backend.endpoint, backend.found, backend.check, backend.stop
        self.first = True

    def start(self, spec: Spec) -> AsyncIterator[Handle]:
        screen = Screen(width=100, height=80) if self.first else spec.profile.screen
        self.first = False
        return self.backend.start(replace(spec, profile=spec.profile.but(screen=screen)))


def saboteur_of(fleet: Fleet) -> Saboteur:
    backend = fleet.controller.core.backends["memory"]
    assert isinstance(backend, Saboteur)
    return backend


async def day_of_a(fleet: Fleet) -> None:
    """Agent a works, is looked at, saved, frozen and released; whatever of it fails, fails in words."""
    view = await fleet.acquire("a", wait=100)
    view = await until(lambda: no_longer_waiting(fleet, view.lease))
    if view.state != "active":
        return
    desktop = fleet.world.desktops.get(view.desktop or "")
    if desktop:
        desktop.files[LEFT] = MemoryFile(b"secret")
        desktop.slot["out/result"] = MemoryFile(b"kept")
    control, lease = fleet.controller, view.lease
    who = await control.caller(fleet.lease_token(lease))
    for step in (
        control.act(who, lease, parse_actions([{"type": "type", "text": "hello"}])),
        control.screenshot(who, lease, Shot()),
        control.files(who, lease, ""),
        control.save(ANA, lease, "mine"),
        control.freeze(ANA, lease),
        control.thaw(ANA, lease),
        control.logs(ANA, lease),
        control.revoke(ANA, lease, reason="enough", bar=None, snapshot=True),
    ):
        with contextlib.suppress(FleetError):
            await step


async def no_longer_waiting(fleet: Fleet, lease: str) -> object:
    view = await fleet.controller.lease(ANA, lease)
    return view if view.state != "waiting" else None


async def b_sees_nothing_of_a(fleet: Fleet) -> None:
    """The next agent is served within a few tries, and finds a clean desktop."""
    for _ in range(4):
        asked = await fleet.acquire("b")
        view = await until(lambda lease=asked.lease: no_longer_waiting(fleet, lease))  # type: ignore[misc]
        if view.state == "active":
            break
    assert view.state == "active", view
    assert LEFT not in fleet.backend.desktop(view.desktop).files
    assert "out/result" not in fleet.backend.desktop(view.desktop).slot
    who = await fleet.controller.caller(fleet.lease_token(view.lease))
    await fleet.controller.act(who, view.lease, parse_actions([{"type": "key", "keys": "a"}]))
    await fleet.controller.release(ANA, view.lease)


@pytest.mark.parametrize("call", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("checkpoint", "how"), TRAPS)
def test_whatever_the_backend_does(tmp_path: Path, checkpoint: str, how: str, call: int) -> None:
    async def body() -> None:
        async with running(
            tmp_path, wrap=Saboteur, start_timeout=0.4, backend_timeout=0.4, snapshot_timeout=0.4
        ) as fleet:
            saboteur_of(fleet).at(checkpoint, how, call=call)
            await day_of_a(fleet)
            await b_sees_nothing_of_a(fleet)
            saboteur_of(fleet).disarm()
            await fleet.check()
            await swept(fleet)
            await fleet.controller.shut_down()
            assert not fleet.world.desktops, "orphaned"

    run(body(), timeout=60)


async def swept(fleet: Fleet) -> None:
    """Two sweeps remove what nobody knows; what is quarantined waits for a person, who removes it."""
    for _ in range(2):
        await fleet.controller.sweeper.sweep()
    for desktop in await fleet.controller.desktops(ANA):
        if desktop.stage == Stage.QUARANTINED.value:
            await fleet.controller.remove_desktop(ANA, desktop.desktop)


def test_a_rollback_that_did_not_happen_is_found_out(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path, wrap=Saboteur) as fleet:
            lease = await fleet.granted("a")
            saboteur_of(fleet).at("snapshots.restore", LIE)
            await fleet.controller.release(ANA, lease.lease)
            await fleet.settled()
            desktop = await fleet.controller.desktop(ANA, lease.desktop or "")
            assert desktop.stage == "quarantined"
            assert "still there" in desktop.note
            assert (await fleet.granted("b")).desktop != lease.desktop

    run(body())


def test_a_screen_of_the_wrong_size_is_not_handed_out(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path, wrap=Shrinking) as fleet:
            lease = await fleet.granted("a")
            failed = await fleet.controller.audit(ANA, limit=1000, what="desktop.failed")
            assert "but its profile says 200x120" in str(failed[0].facts["error"])
            assert lease.desktop != failed[0].desktop

    run(body())


def test_who_waits_for_what_cannot_be_made_hears_why(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path, wrap=Saboteur) as fleet:
            saboteur_of(fleet).at("start", DIE, times=2)
            asked = await fleet.acquire("a")
            view = await fleet.reached(asked.lease, LeaseState.CANCELLED)
            assert "could not be started: sabotage: start died" in view.reason
            await fleet.granted("a")

    run(body())


def test_orphans_are_removed_when_seen_twice(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            lease = await fleet.granted("a")
            orphan = Spec("dk_orphan0001", profile(), "boot", "left by nobody")
            async for _ in fleet.backend.start(orphan):
                pass
            fleet.controller.sweeper.forget()
            await fleet.controller.sweeper.sweep()
            assert "dk_orphan0001" in fleet.world.desktops
            await fleet.controller.sweeper.sweep()
            assert set(fleet.world.desktops) == {lease.desktop}
            record = await fleet.controller.audit(ANA, limit=1000, what="orphan.removed")
            assert [entry.facts["desktop"] for entry in record] == ["dk_orphan0001"]

    run(body())
