"""What every backend must do, as tests.

    class TestMine(BackendContract):
        async def make(self): return MyBackend(self.place)
        def profile(self): return Profile(name="contract", backend="mine")

Each test has a place of its own; `make` may be called again within a test, and stands for a restarted controller:
the new object must see what the old one left. An ability that a backend lacks counts as a known gap, with the reason
that its `gaps` must give; so does a test named there. Both show in the report as expected failures.

Where desktops have no shell and no Python, `PlainBackendContract` uses only echo, cat, tee, test, rm, true, false and
sleep inside.
"""

from cu_fleet.testing.backend_inside import (
    ExecContract,
    ExecInShellContract,
    FilesContract,
    FilesInShellContract,
    FreezeContract,
)
from cu_fleet.testing.backend_lending import LendingContract, LendingInShellContract
from cu_fleet.testing.backend_state import SnapshotsContract, SnapshotsInShellContract
from cu_fleet.testing.backend_verbs import VerbsContract
from cu_fleet.testing.backend_walls import WallsContract, WallsInShellContract


class PlainBackendContract(
    VerbsContract, ExecContract, FreezeContract, FilesContract, LendingContract, SnapshotsContract, WallsContract
):
    """For every backend."""


class BackendContract(
    PlainBackendContract,
    ExecInShellContract,
    FilesInShellContract,
    LendingInShellContract,
    SnapshotsInShellContract,
    WallsInShellContract,
):
    """For every backend with real desktops."""
