"""The suite every backend passes, against containers of a real engine."""

import pytest

from cu_fleet.backends.base import Backend
from cu_fleet.backends.docker import DockerBackend
from cu_fleet.model.desktop import Handle
from cu_fleet.model.profile import Profile
from cu_fleet.testing.backend_base import BackendBase
from cu_fleet.testing.backend_contract import BackendContract
from cu_fleet.testing.dockerd import PrivateDocker

pytestmark = [pytest.mark.real, pytest.mark.slow]


class OnDocker(BackendBase):
    """On the engine that all tests here share."""

    @pytest.fixture(autouse=True)
    def _engine(self, engine: PrivateDocker) -> None:
        self.host = engine.host

    async def make(self) -> Backend:
        return DockerBackend(self.place, self.host)

    def profile(self) -> Profile:
        return Profile(name="contract", backend="docker")

    async def boot_of(self, backend: Backend, handle: Handle) -> str:
        """Its init knows; the screen's name is for people."""
        assert isinstance(backend, DockerBackend)
        return (await backend.ping(backend.desk(handle)))[0]


class TestDocker(OnDocker, BackendContract):
    sharing = True
