"""What goes wrong below machines is told in words, costs nobody else anything, and is over when it is over.

libvirt is killed, hangs and comes back; QEMU is killed and hangs; the disk is full, and what is on it is damaged. The
controller, the hypervisor and QEMU are real; the machines have no system (`hollow`), but leases, screens and snapshots.
"""

import asyncio
import os
import signal
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from cu_fleet.app import controller_of
from cu_fleet.backends.libvirt import hypervisor, machines
from cu_fleet.controller import Controller
from cu_fleet.model.access import Caller, Role
from cu_fleet.model.action import parse_actions
from cu_fleet.model.errors import FleetError, LeaseOverError, UnavailableError
from cu_fleet.model.request import Acquire, Shot
from cu_fleet.model.snapshot import Snapshot
from cu_fleet.model.view import LeaseView
from cu_fleet.settings import read_settings
from cu_fleet.testing.libvirtd import PrivateLibvirt, need_libvirtd
from tests.libvirt import hollow
from tests.support import command_lines, run, until

pytestmark = [pytest.mark.real, pytest.mark.slow]
ANA = Caller(operator="ana", role=Role.ADMIN)
_ROOM = 96 << 20  # bytes of the store


@dataclass
class Room:
    """A hypervisor that a test may harm, with a store that a test may fill."""

    store: Path
    libvirtd: PrivateLibvirt


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    need_libvirtd()
    with tempfile.TemporaryDirectory(prefix="cf-store-") as name:
        store = Path(name)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=711,size={_ROOM}", "tmpfs", name], check=True)
        try:
            hollow.make_image(store)
            with PrivateLibvirt() as libvirtd:
                yield Room(store, libvirtd)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


@pytest.fixture(autouse=True)
def _quick(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypervisor, "_ALIVE", (1, 3))
    monkeypatch.setattr(hypervisor, "_BACK", 1.0)
    monkeypatch.setattr(hypervisor, "_GRACE", 1.0)
    monkeypatch.setattr("cu_fleet.backends.libvirt.far.beside.LibvirtBackend", hollow.Hollow)
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", room.libvirtd.uri)
    hollow.empty(monkeypatch)


class Fleet:
    """A controller with one agent, who has a lease."""

    def __init__(self, room: Room, controller: Controller, backend: hollow.Hollow) -> None:
        self.libvirtd, self.controller, self.backend = room.libvirtd, controller, backend
        self.lease: LeaseView

    async def acquire(self) -> LeaseView:
        self.lease = await self.controller.acquire(ANA, Acquire(agent="a", profile="hollow", wait=60.0), hold=60)
        assert self.lease.state == "active", self.lease.reason
        return self.lease

    async def move(self) -> None:
        answer = await self.controller.act(ANA, self.lease.lease, parse_actions([{"type": "move", "x": 9, "y": 9}]))
        assert all(done.ok for done in answer.done)

    async def save(self) -> Snapshot:
        return await self.controller.save(ANA, self.lease.lease, "")

    async def saved(self) -> list[str]:
        snapshots = self.backend.abilities.snapshots
        assert snapshots
        return await snapshots.saved()

    async def reason(self) -> str:
        """Why the lease is over; empty while it is not."""
        now = await self.controller.lease(ANA, self.lease.lease)
        return "" if now.state == "active" else f"{now.state}: {now.reason}"

    async def another(self) -> None:
        """The lease is given back, and the next is served as ever."""
        before = self.lease
        if not await self.reason():
            await self.controller.release(ANA, before.lease)
        after = await self.acquire()
        assert (after.desktop, after.generation) != (before.desktop, before.generation)
        await self.move()
        await until(self._one, timeout=60)

    async def _one(self) -> bool:
        return [found.desktop for found in await self.backend.found()] == [self.lease.desktop]

    @property
    def folder(self) -> Path:
        return self.backend.layout.desk(self.lease.desktop or "").dir

    def qemu(self) -> int:
        """The process that is the machine."""
        words = f"guest=cu-fleet-{self.backend.layout.fleet}-{self.lease.desktop},"
        [pid] = [pid for pid, line in command_lines().items() if words in line]
        return pid


def in_fleet(room: Room, home: Path, body: Callable[[Fleet], Awaitable[None]], **more: object) -> None:
    async def whole() -> None:
        settings = read_settings(home, {}, machines=room.store, max_desktops=2, **more)
        async with controller_of(settings) as controller:
            backend = controller.core.backends["libvirt"]
            assert isinstance(backend, hollow.Hollow)
            await controller.start()
            try:
                fleet = Fleet(room, controller, backend)
                await fleet.acquire()
                await body(fleet)
            finally:
                if room.libvirtd._daemon is None:  # noqa: SLF001 - a test's own, which failed while it was gone
                    await asyncio.to_thread(room.libvirtd.start)
                await controller.shut_down()
            assert await backend.found() == []
            assert list(room.store.glob("*/desktops/*")) == []
            assert await backend.hypervisor.do(lambda api: api.listAllDomains()) == []

    home.chmod(0o700)
    (home / "profiles").mkdir()
    (home / "profiles/hollow.yaml").write_text(yaml.safe_dump(hollow.WORDS))
    run(whole(), 240)


def test_libvirt_dies_and_comes_back(room: Room, tmp_path: Path) -> None:
    """Machines live on: their agents see nothing of it. What needs libvirt says so, and works when it is back."""

    async def body(fleet: Fleet) -> None:
        qemu = fleet.qemu()
        kept = await fleet.save()
        await asyncio.to_thread(room.libvirtd.kill)
        await fleet.move()
        await fleet.controller.screenshot(ANA, fleet.lease.lease, Shot())
        with pytest.raises(UnavailableError, match="does not answer") as caught:
            await fleet.save()
        assert caught.value.code == "no_hypervisor"
        assert await fleet.saved() == [kept.id]
        await asyncio.to_thread(room.libvirtd.start)
        assert (fleet.qemu(), await fleet.reason()) == (qemu, "")
        again = await fleet.save()
        await fleet.controller.restore(ANA, kept.id, None)
        await fleet.move()
        await fleet.another()
        for one in (kept, again):
            await fleet.controller.delete_snapshot(ANA, one.id)
        assert await fleet.saved() == []

    in_fleet(room, tmp_path, body)


def test_a_short_absence_is_waited_for(room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when its package is upgraded."""
    monkeypatch.setattr(hypervisor, "_BACK", 60.0)

    async def body(fleet: Fleet) -> None:
        await asyncio.to_thread(room.libvirtd.kill)
        saving = asyncio.create_task(fleet.save(), name="save")
        releasing = await asyncio.wait({saving}, timeout=0.5)
        assert releasing[0] == set()
        await asyncio.to_thread(room.libvirtd.start)
        assert (await saving).state == "saved"
        await fleet.controller.delete_snapshot(ANA, (await saving).id)

    in_fleet(room, tmp_path, body)


def test_libvirt_hangs(room: Room, tmp_path: Path) -> None:
    """Nobody waits for ever; a call that hangs is given up, and so is a new connection."""

    async def body(fleet: Fleet) -> None:
        with held(daemon_of(room.libvirtd)):
            await fleet.move()
            with pytest.raises(UnavailableError, match="does not answer") as caught:
                await fleet.save()
            assert caught.value.code in ("no_hypervisor", "backend_hangs")
            await fleet.move()
            with pytest.raises(FleetError, match=r"did not|does not answer"):
                await fleet.save()
        assert await fleet.reason() == ""

        async def works() -> bool:
            try:
                return (await fleet.save()).state == "saved"
            except UnavailableError:
                return False

        await until(works, timeout=60)
        for one in await fleet.controller.snapshots(ANA, None):
            await fleet.controller.delete_snapshot(ANA, one.id)
        await fleet.another()

    in_fleet(room, tmp_path, body, snapshot_timeout=8.0)


def test_qemu_is_killed(room: Room, tmp_path: Path) -> None:
    async def body(fleet: Fleet) -> None:
        os.kill(fleet.qemu(), signal.SIGKILL)
        told = await until(fleet.reason, timeout=60)
        assert "lost" in told
        assert f"the machine of desktop {fleet.lease.desktop} has ended" in told
        with pytest.raises(LeaseOverError, match="has ended"):
            await fleet.move()
        await fleet.another()

    in_fleet(room, tmp_path, body)


def test_qemu_hangs(room: Room, tmp_path: Path) -> None:
    """It can be neither saved nor asked, but it can be ended, and the next lease has another."""

    async def body(fleet: Fleet) -> None:
        with held([fleet.qemu()]):
            with pytest.raises(UnavailableError, match="did not save within"):
                await fleet.save()
            await fleet.another()

    in_fleet(room, tmp_path, body, snapshot_timeout=2.0)


def test_the_disk_is_full_when_a_snapshot_is_saved(room: Room, tmp_path: Path) -> None:
    async def body(fleet: Fleet) -> None:
        hog = room.store / "hog"
        for left in (1 << 20, 0):  # for the new layer, but not for the memory; and for nothing
            free = os.statvfs(room.store)
            hog.write_bytes(bytes(free.f_bavail * free.f_bsize - left))
            try:
                with pytest.raises(UnavailableError, match=r"disk is full|No space left") as caught:
                    await fleet.save()
                assert (caught.value.code, caught.value.remedy) == ("disk_full", "make room")
                assert await fleet.controller.snapshots(ANA, None) == []
                assert await fleet.saved() == []
                await runs(fleet)
            finally:
                hog.unlink()
        kept = await fleet.save()
        await fleet.controller.restore(ANA, kept.id, None)
        await fleet.move()
        await fleet.controller.delete_snapshot(ANA, kept.id)

    in_fleet(room, tmp_path, body)


async def runs(fleet: Fleet) -> None:
    desk = fleet.backend.layout.desk(fleet.lease.desktop or "")
    assert not await fleet.backend.hypervisor.do(lambda api: machines.is_paused(machines.must_run(api, desk)))
    await fleet.move()
    assert await fleet.reason() == ""


def test_a_disk_is_damaged(room: Room, tmp_path: Path) -> None:
    """A desktop's: it cannot be saved, which is said, and the rollback mends it. A snapshot's: it does not wake."""

    async def body(fleet: Fleet) -> None:
        kept = await fleet.save()
        damage(fleet.folder / "disk.qcow2")
        with pytest.raises(UnavailableError, match="qcow2"):
            await fleet.save()
        assert await fleet.saved() == [kept.id]
        await runs(fleet)
        await fleet.another()
        damage(fleet.backend.layout.snapshot(kept.id) / "disk.qcow2")
        await fleet.controller.restore(ANA, kept.id, None)
        assert "lost" in await until(fleet.reason, timeout=60)
        assert "qcow2" in await fleet.reason()
        await fleet.another()
        await fleet.controller.delete_snapshot(ANA, kept.id)

    in_fleet(room, tmp_path, body)


def damage(disk: Path) -> None:
    with disk.open("r+b") as file:
        file.write(bytes(65536))


def daemon_of(libvirtd: PrivateLibvirt) -> list[int]:
    """And the one that waits for it, and stops with it."""
    daemon = libvirtd._daemon  # noqa: SLF001 - a test's own
    assert daemon
    return [int(Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()[0]), daemon.pid]


@contextmanager
def held(pids: list[int]) -> Iterator[None]:
    """It does nothing any more, as if it waited for something that does not come."""
    os.kill(pids[0], signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
