"""The embedded backend keeps the contract with real desktops."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cu_fleet.backends import door
from cu_fleet.backends.base import Backend
from cu_fleet.backends.local import LocalBackend
from cu_fleet.model.desktop import Handle
from cu_fleet.model.profile import Profile
from cu_fleet.testing.backend_contract import BackendContract


@pytest.mark.real
class TestLocalContract(BackendContract):
    @pytest.fixture
    def contract_folder(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="cu-fleet-") as folder:  # the paths of sockets must be short
            yield Path(folder)

    async def make(self) -> Backend:
        return LocalBackend(self.place)

    def profile(self) -> Profile:
        return Profile(name="contract", backend="local")

    async def boot_of(self, backend: Backend, handle: Handle) -> str:
        assert isinstance(backend, LocalBackend)
        desk = backend.desk(handle)
        return (await door.ping(desk, backend.house.uid(desk)))[0]
