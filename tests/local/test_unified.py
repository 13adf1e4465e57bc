"""Cgroups of version 2 alone, on the kernel's own hierarchy: joined, frozen, thawed by a rollback, removed.

Where version 1 has the controllers, as here, there are no limits to be had from it; those are tried on files.
"""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from cu_fleet.backends.local.cgroups import Cgroups, is_frozen
from cu_fleet.model.desktop import Handle
from tests.local.support import SOMEBODY, WHO, Fleet, in_fleet, last

pytestmark = pytest.mark.real
_MOUNTS = Path("/proc/self/mounts").read_text().splitlines()


@pytest.fixture
def scope() -> Iterator[Path]:
    """A group that was delegated to an ordinary user; we are in it."""
    top = next(Path(line.split()[1]) for line in _MOUNTS if line.split()[2] == "cgroup2")
    own = next(x for x in Path("/proc/self/cgroup").read_text().splitlines() if x.startswith("0::"))
    before, made = top / own.removeprefix("0::/"), top / f"cu-test-{secrets.token_hex(4)}.scope"
    made.mkdir()
    for path in (made, made / "cgroup.procs", made / "cgroup.subtree_control", made / "cgroup.threads"):
        os.chown(path, SOMEBODY, SOMEBODY)
    (made / "cgroup.procs").write_text("0")
    try:
        yield made
    finally:
        (before / "cgroup.procs").write_text("0")
        for inner in made.iterdir():
            if inner.is_dir():
                inner.rmdir()
        made.rmdir()


@WHO
def test_a_desktop_lives_in_its_group_and_is_held_still_by_it(who: str, scope: Path) -> None:
    async def body(fleet: Fleet) -> None:
        only = "\n".join(line for line in _MOUNTS if line.split()[2] == "cgroup2")
        fleet.backend.house.cgroups = Cgroups(fleet.id, mounts=only)
        spec = fleet.spec("dk_a")
        handle = await last(fleet.backend.start(spec))
        home = scope if who == "user" else scope.parent
        group = home / f"cu-fleet-{fleet.id}/dk_a"
        assert str(handle["pid"]) in (group / "cgroup.procs").read_text().split()
        await fleet.sh(handle, "echo mine >~/mine")
        freeze, snapshots = fleet.backend.abilities.freeze, fleet.backend.abilities.snapshots
        assert freeze
        assert snapshots
        await freeze.freeze(handle)
        assert is_frozen(group)
        fresh: Handle = await last(snapshots.restore(handle, spec))
        assert not is_frozen(group)
        assert await fleet.sh(fresh, "cat ~/mine") == (1, "cat: /home/agent/mine: No such file or directory\n")
        assert str(fresh["pid"]) in (group / "cgroup.procs").read_text().split()
        await fleet.backend.stop(fresh)
        assert not group.exists()

    in_fleet(who, body)
