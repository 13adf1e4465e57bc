"""Leases on machines, with the real command line, whose controller is killed; the next command starts another.

What a kill between any two steps leaves of a machine, and that the next controller makes it good, `test_kills` shows.
"""

import os
import signal
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from cu_fleet.backends.base import Place
from cu_fleet.backends.libvirt import LibvirtBackend
from cu_fleet.model.profile import read_profile
from cu_fleet.testing.libvirtd import PrivateLibvirt
from tests.acceptance.home import Home, check_grants, home, knowing
from tests.libvirt.test_together import MACHINE
from tests.support import command_lines, run, until

pytestmark = [pytest.mark.real, pytest.mark.slow]
_MUCH = 8 << 20  # bytes of a machine's memory, of hundreds of millions
_MOVE = '{"type": "move", "x": 320, "y": 240}'


class House:
    """A home whose machines are forks, and what there is of them on this machine."""

    def __init__(self, at: Home, backend: LibvirtBackend) -> None:
        self.at = at
        self.backend = backend

    @cached_property
    def folder(self) -> Path:
        """Of its fleet, among all machines."""
        return self.backend.layout.store / run(self.at.fleet())

    def machines(self) -> dict[str, int]:
        """The process of each machine, by its desktop."""
        mark = f"guest=cu-fleet-{self.folder.name}-"
        return {
            words.partition(mark)[2].partition(",")[0]: pid for pid, words in command_lines().items() if mark in words
        }

    def saved(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "snapshots").glob("*"))

    def kill(self) -> None:
        """The controller, whoever started it."""
        known = knowing(f"CU_FLEET_HOME={self.at.fleet_home}")
        [pid] = [pid for pid, words in command_lines().items() if str(pid) in known and "--on-demand" in words]
        fd = os.pidfd_open(pid)
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        os.close(fd)
        run(until(lambda: not Path(f"/proc/{pid}/exe").exists(), timeout=30))

    def inside(self, lease: str, script: str) -> bytes:
        return self.at.run("desktop", "exec", lease, "--", "sh", "-c", script).stdout

    def acquire(self, agent: str) -> dict[str, Any]:
        words = ("lease", "acquire", "--agent", agent, "--profile", "machine", "--wait", "120s")
        lease: dict[str, Any] = self.at.cli(*words)
        return lease


@pytest.fixture
def house(libvirtd: PrivateLibvirt, store: Path) -> Iterator[House]:
    settings: dict[str, object] = {"machines": store, "memory": "4G", "start_timeout": 120, "backend_timeout": 60}
    with home(**settings) as one:
        one.env["LIBVIRT_DEFAULT_URI"] = libvirtd.uri
        one.write_profile("machine", MACHINE)
        one.write_profile("local", "backend: local\ngates: none\nwarm: 0\n")
        backend = LibvirtBackend(Place(one.path / "warming", "leases"), libvirtd.uri, store)
        run(backend.warm.state(read_profile(one.fleet_home / "profiles" / "machine.yaml")), timeout=900)
        yield House(one, backend)


def test_a_controller_is_killed_under_a_lease_while_it_saves_and_while_it_rolls_back(house: House) -> None:
    lease = house.acquire("a")
    name = str(lease["lease"])
    house.inside(name, "echo before >~/note; echo before >/dev/shm/note; (sleep 1000 &) >/dev/null 2>&1")
    kept = house.at.cli("snapshot", "save", name)
    assert house.saved() == [kept["id"]]
    machines = house.machines()
    assert list(machines) == [lease["desktop"]]

    house.kill()  # while nothing is under way
    after = house.at.cli("lease", "show", name)
    same = ("lease", "desktop", "generation", "state", "control")
    assert [after[one] for one in same] == [lease[one] for one in same]
    house.at.cli("act", name, _MOVE)
    house.inside(name, "echo after >~/note")

    saving = house.at.start("snapshot", "save", name)
    run(until(lambda: any(_size(path) > _MUCH for path in _half(house)), timeout=60), 70)
    house.kill()  # while it saves
    assert saving.wait(60) != 0, "what was not saved is not said to be"
    assert [one["id"] for one in house.at.cli("snapshot", "list")["snapshots"]] == [kept["id"]]
    house.at.cli("act", name, _MOVE)
    assert house.inside(name, "cat ~/note; pgrep -c sleep") == b"after\n1\n", "it goes on"
    assert house.machines() == machines, "the very machine"
    house.at.cli("snapshot", "restore", kept["id"])
    assert house.inside(name, "cat ~/note /dev/shm/note; pgrep -c sleep") == b"before\nbefore\n1\n", "that one is whole"

    [before] = house.machines().values()
    revoking = house.at.start("lease", "revoke", name, "--reason", "enough", "--bar", "none")
    run(until(lambda: not Path(f"/proc/{before}/exe").exists(), timeout=60), 70)
    house.kill()  # while it rolls back
    revoking.wait(60)
    assert house.at.cli("lease", "show", name)["state"] == "revoked"
    following = house.acquire("b")
    assert following["desktop"] == lease["desktop"], "it is rolled back, not thrown away"
    assert house.inside(following["lease"], "cat ~/note /dev/shm/note; pgrep -c sleep") == b"0\n", "it is clean"
    assert set(house.machines()) == {one["desktop"] for one in house.at.cli("desktop", "list")["desktops"]}
    assert house.saved() == [kept["id"]], "nothing half is left"

    house.at.cli("audit", "verify")
    house.at.cli("snapshot", "delete", kept["id"])
    house.at.cli("down")
    assert house.machines() == {}
    assert house.saved() == []
    assert [*(house.folder / "desktops").iterdir()] == []
    assert check_grants(run(house.at.record())) == 2


def _half(house: House) -> list[Path]:
    return [*(house.folder / "snapshots").glob(".*/memory"), *(house.folder / "snapshots").glob("*.new/memory")]


def _size(path: Path) -> int:
    return path.stat().st_blocks * 512 if path.exists() else 0
