"""The fake backend keeps the same contract as the real ones, and shows what was done to it."""

from pathlib import Path

from cu_fleet.backends.base import Backend, Place
from cu_fleet.backends.memory import MemoryBackend, MemoryWorld
from cu_fleet.model.profile import Profile
from cu_fleet.testing.backend_contract import PlainBackendContract


class TestMemoryContract(PlainBackendContract):
    def new_place(self, folder: Path) -> Place:
        self.world = MemoryWorld()
        return super().new_place(folder)

    async def make(self) -> Backend:
        return MemoryBackend(self.place, self.world)

    def profile(self) -> Profile:
        return Profile(name="contract", backend="memory")
