"""Machines on another host, through a real sshd: who is refused and why, a lease from end to end, and what breaks."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from cu_fleet.backends.base import Backend, Place
from cu_fleet.backends.libvirt import LibvirtBackend, where
from cu_fleet.backends.libvirt.layout import drop
from cu_fleet.model.profile import Profile, read_profile
from cu_fleet.testing import backend_base
from cu_fleet.testing.backend_base import BackendBase
from cu_fleet.testing.backend_inside import ExecContract, FilesContract, FreezeContract
from cu_fleet.testing.libvirtd import PrivateLibvirt
from tests.acceptance.home import Home, home, knowing
from tests.libvirt.test_together import MACHINE
from tests.libvirt.there import There
from tests.support import run, until

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture
def house(store: Path) -> Iterator[Home]:
    with home(memory="4G", start_timeout=120) as one:
        one.env["CU_FLEET_MACHINES"] = str(one.path / "machines")
        yield one


def test_what_keeps_another_host_from_being_used_is_said_with_its_remedy(
    libvirtd: PrivateLibvirt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    def said() -> str:
        async def look() -> str:
            [check] = await where.backends(Place(tmp_path, "doctor", hypervisor=there.uri))[0].check()
            assert not check.fix, "there is nothing to mend here"
            return f"{check.ok} {check.detail}"

        return run(look(), timeout=90)

    with There(libvirtd, tmp_path) as there:
        there.befriend(tmp_path, known=False)
        config = tmp_path / ".ssh/config"
        config.write_text(f"{config.read_text()}  UserKnownHostsFile none\n  StrictHostKeyChecking no\n")
        assert "is not known" in said(), "whatever the configuration says: nobody unknown is trusted"
        there.befriend(tmp_path)
        there.install("exit 127")
        assert "there is no cu-fleet on there" in said()
        there.install("echo noise; echo 'no libpython' >&2; exit 3")
        assert "did not begin: it ended with 3: no libpython" in said()
        there.install('read hello; echo noise; echo \'cu-fleet-machines {"version": "9.1", "speaks": 1}\'; cat')
        assert "is cu-fleet 9.1, and here is cu-fleet" in said()
        there.configure("PubkeyAuthentication no")
        assert "does not let us in" in said()
        there.configure()
        there.cut()
        assert "cannot be reached" in said()


def test_a_lease_on_a_machine_of_another_host(
    house: Home, libvirtd: PrivateLibvirt, store: Path, tmp_path: Path
) -> None:
    """With its connection broken in the middle, and its controller killed."""
    house.write_profile("machine", MACHINE)
    profile = read_profile(house.fleet_home / "profiles" / "machine.yaml")
    beside = LibvirtBackend(Place(tmp_path, "warming"), libvirtd.uri, store)
    run(beside.warm.state(profile), timeout=900)
    with There(libvirtd, house.path, store) as there:
        there.befriend(house.path)
        house.env["CU_FLEET_HYPERVISOR"] = there.uri
        lease = house.cli("lease", "acquire", "--agent", "a", "--profile", "machine", "--wait", "100s")["lease"]
        in_desktop = ("desktop", "exec", lease, "--")
        (tmp_path / "in").write_bytes(os.urandom(1 << 20))
        house.cli("cp", str(tmp_path / "in"), f"{lease}:in")
        assert house.run(*in_desktop, "wc", "-c", "Shared/in").stdout == b"%d Shared/in\n" % (1 << 20)
        snapshot = house.cli("snapshot", "save", lease)["id"]
        house.run(*in_desktop, "touch", "later")
        there.cut()
        there.listen()
        run(until(lambda: _shot(house, lease, tmp_path), timeout=60, every=0.2), timeout=90)
        house.cli("snapshot", "restore", snapshot)
        assert house.run(*in_desktop, "ls").stdout == b"Downloads\nShared\n"
        house.cli("cp", f"{lease}:in", str(tmp_path / "out"))
        assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()
        os.kill(int((house.fleet_home / "controller.lock").read_text()), 9)
        run(until(lambda: _shot(house, lease, tmp_path), timeout=60, every=0.2), timeout=90)  # by its handle
        assert house.cli("lease", "show", lease)["state"] == "active"
        house.cli("lease", "revoke", lease)
        house.cli("down")
        names = beside.hypervisor.now(lambda api: [one.name() for one in api.listAllDomains()])
        fleet = run(house.fleet())
        assert [name for name in names if fleet in name] == []
        assert [*(store / fleet / "desktops").iterdir()] == []
        assert not (house.path / "machines").exists(), "nothing of it lies here"
        run(until(lambda: not knowing(f"HOME={there.folder}/own/home"), timeout=30), timeout=60)
        drop(store / fleet)


def _shot(house: Home, lease: str, folder: Path) -> bool:
    done = house.run("screenshot", lease, "-o", str(folder / "shot.png"))
    return done.returncode == 0 and (folder / "shot.png").read_bytes().startswith(b"\x89PNG")


class TestThere(BackendBase):
    """Of the suite of every backend what goes over streams; the rest of it is `test_far`'s."""

    sharing = True
    gaps: ClassVar = {}
    test_commands = ExecContract.test_commands_have_streams_and_exit_codes
    test_standard_input = ExecContract.test_a_command_reads_what_is_written_to_it
    test_kill = ExecContract.test_a_command_is_killed_and_says_so
    test_freezing = FreezeContract.test_a_frozen_desktop_holds_still_and_goes_on
    content = FilesContract.content
    test_files = FilesContract.test_files_go_in_and_out
    test_half_files = FilesContract.test_a_file_is_whole_or_not_there

    @pytest.fixture(autouse=True, scope="class")
    @staticmethod
    def _there(
        libvirtd: PrivateLibvirt, store: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
    ) -> Iterator[None]:
        hidden = tmp_path_factory.mktemp("hidden")
        with There(libvirtd, hidden, store) as there, pytest.MonkeyPatch.context() as patch:
            there.befriend(hidden)
            patch.setenv("HOME", str(hidden))
            patch.setattr(backend_base, "DEADLINE", 900.0)  # the first of a profile is booted, under emulation
            request.cls.hypervisor, request.cls.store = there.uri, store
            yield

    hypervisor: ClassVar[str]
    store: ClassVar[Path]

    async def make(self) -> Backend:
        place = Place(self.place.home, self.place.fleet, hypervisor=self.hypervisor)
        return where.backends(place)[0]

    async def _clear(self, backend: Backend) -> None:
        await super()._clear(backend)
        await asyncio.to_thread(drop, self.store / self.place.fleet)

    def profile(self) -> Profile:
        return Profile.model_validate({"name": "contract", "backend": "libvirt", "limits": {"memory": "768M"}})
