"""The controller is killed before each thing that it does to files, programs and machines; the next one makes it good.

Machines here have no system (`hollow`), so there is time for many kills; that leases survive them is shown where whole
desktops are (`test_faults`). `CU_FLEET_EVERY_STEP=1` tries every step there is.
"""

import asyncio
import multiprocessing
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from cu_fleet.backends.base import Place
from cu_fleet.backends.libvirt import machines, warm
from cu_fleet.model.desktop import Handle
from cu_fleet.testing.libvirtd import PrivateLibvirt
from tests.libvirt import hollow, mortal
from tests.support import run

pytestmark = [pytest.mark.real, pytest.mark.slow]
_FORKS = multiprocessing.get_context("forkserver")
_HANDLE: Handle = {"desktop": "dk_1", "boot": "b"}
_MOST = 60.0  # seconds that one try may take


class Room:
    """A place with a hypervisor, where many controllers live after each other."""

    def __init__(self, folder: Path, libvirtd: PrivateLibvirt) -> None:
        self.libvirtd = libvirtd
        self.store = libvirtd.folder / folder.name
        self.store.mkdir(mode=0o711)
        self.store.chmod(0o711)
        self.place = Place(folder, f"kills{os.urandom(3).hex()}", machines=self.store)
        hollow.make_image(self.store)

    def next(self) -> hollow.Hollow:
        """Another controller's."""
        return hollow.Hollow(self.place, self.libvirtd.uri, self.store)

    def killed(self, work: mortal.Work, at: int) -> bool:
        """Have a process of its own do this up to a step. False if there was no such step any more."""
        words = (work, self.place, self.libvirtd.uri, self.store, at)
        process = _FORKS.Process(target=mortal.do, args=words, name=f"to be killed at {at}")
        process.start()
        process.join(_MOST)
        if process.exitcode is None:
            process.kill()
            process.join()
        assert process.exitcode in (-9, mortal.ENOUGH), f"step {at}: failed otherwise than by the kill"
        return process.exitcode == -9

    async def left(self) -> list[str]:
        """Machines, files and uids. What becomes a warm state is ended or gone on with by the next who needs it."""
        one = self.next()
        found = await one.hypervisor.do(lambda api: [domain.name() for domain in api.listAllDomains()])
        left = [f"machine {name}" for name in found if self.place.fleet in name]
        left += [f"files {path}" for path in one.layout.desktops.glob("*")]
        owners = one.layout.uids.owners().values()
        return left + [f"uid of {owner}" for owner in owners if not owner.startswith("warm-")]

    async def gone(self) -> None:
        """A next controller finds all that there is, and ends it."""
        one = self.next()
        found = await one.found()
        assert {each.desktop for each in found} <= {"dk_1"}
        for each in found:
            await one.stop(each.handle)
        assert await one.found() == []
        assert await self.left() == []


@pytest.fixture
def room(tmp_path: Path, libvirtd: PrivateLibvirt, monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    _FORKS.set_forkserver_preload(["tests.libvirt.mortal"])
    hollow.empty(monkeypatch)
    one = Room(tmp_path, libvirtd)
    yield one
    run(one.gone(), _MOST)


def each(room: Room, stride: int, work: mortal.Work, check: Callable[[], Awaitable[None]]) -> None:
    """Kill at every step, or at each so manyth, and check what the next controller finds."""

    async def whole() -> None:
        at = 1
        while await asyncio.to_thread(room.killed, work, at):
            await check()
            at += 1 if os.environ.get("CU_FLEET_EVERY_STEP") else stride
        assert at > 1, "it did nothing"
        print(f"{work.__name__}: killed up to step {at}")
        await check()

    run(whole(), 600)


def test_while_a_machine_is_warmed_and_forked(room: Room) -> None:
    async def check() -> None:
        await room.gone()
        for path in room.next().layout.warm.glob("[0-9a-f]*"):
            assert warm.read(path), "a state is whole or not there"

    each(room, 7, mortal.start, check)
    layout = room.next().layout
    assert len(list(layout.warm.glob("[0-9a-f]*"))) == 1
    assert list(layout.warm.glob(".*.new")) == []
    assert layout.uids.owners() == {}


def test_while_a_desktop_is_forked(room: Room) -> None:
    run(_fork(room), _MOST)

    async def check() -> None:
        await room.gone()

    each(room, 7, mortal.start, check)


async def _fork(room: Room) -> Handle:
    return await hollow.last(room.next().start(hollow.spec("dk_1")))


def test_while_it_is_saved(room: Room) -> None:
    """It runs on, and what was not reported as saved can be taken away; another save works."""
    run(_fork(room), _MOST)
    snapshots = room.next().abilities.snapshots
    freeze = room.next().abilities.freeze
    assert snapshots
    assert freeze

    async def check() -> None:
        one = room.next()
        await freeze.thaw(_HANDLE)
        desk = one.desk(_HANDLE)
        assert not await one.hypervisor.do(lambda api: machines.is_paused(machines.must_run(api, desk)))
        for half in await snapshots.saved():
            await snapshots.delete(half)
        assert await snapshots.saved() == []
        assert list(one.layout.snapshots.glob("*")) == []
        await snapshots.save(_HANDLE, "sn_1")
        await snapshots.delete("sn_1")

    each(room, 5, mortal.save, check)


def test_while_it_is_put_back(room: Room) -> None:
    """The snapshot stays whole, and putting it back once more works."""
    run(_saved(room, "sn_0"), _MOST)

    async def check() -> None:
        one = room.next()
        assert [found.desktop for found in await one.found()] in ([], ["dk_1"])
        one.snapshots.state("sn_0")

    each(room, 9, mortal.restore, check)
    run(mortal.restore(room.next()), _MOST)
    run(mortal.forget_all(room.next()), _MOST)


async def _saved(room: Room, snapshot: str) -> None:
    await _fork(room)
    snapshots = room.next().abilities.snapshots
    assert snapshots
    await snapshots.save(_HANDLE, snapshot)


def test_while_it_is_ended(room: Room) -> None:
    async def check() -> None:
        await room.gone()
        await _fork(room)

    run(_fork(room), _MOST)
    each(room, 5, mortal.stop, check)


def test_while_a_snapshot_is_deleted(room: Room) -> None:
    """Listed until it is gone, so that it is deleted by whoever tries again; no half of one can be woken."""
    run(_saved(room, "sn_1"), _MOST)
    snapshots = room.next().abilities.snapshots
    assert snapshots

    async def check() -> None:
        for half in await snapshots.saved():
            await snapshots.delete(half)
        assert list(room.next().layout.snapshots.glob("*")) == []
        await snapshots.save(_HANDLE, "sn_1")

    each(room, 3, mortal.forget, check)
    run(snapshots.delete("sn_1"), _MOST)
