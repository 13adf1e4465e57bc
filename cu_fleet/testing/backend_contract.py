"""What every backend must do, as tests.

    class TestMine(BackendContract):
        async def make(self): return MyBackend(self.place)
        def profile(self): return Profile(name="contract", backend="mine")

Each test has a place of its own; `make` may be called again within a test, and stands for a restarted controller:
the new object must see what the old one left. An ability that a backend lacks is skipped with the reason that its
`gaps` must give, and so is a test named there; whatever is skipped shows in the report. Where desktops have no shell
and no Python (`shell = False`), only echo, cat, tee, test, rm, true, false and sleep are used inside.
"""

from cu_fleet.testing.backend_inside import ExecContract, FilesContract, FreezeContract
from cu_fleet.testing.backend_state import SnapshotsContract
from cu_fleet.testing.backend_verbs import VerbsContract
from cu_fleet.testing.backend_walls import WallsContract


class BackendContract(VerbsContract, ExecContract, FreezeContract, FilesContract, SnapshotsContract, WallsContract):
    """For every backend."""
