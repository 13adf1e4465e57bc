"""Acting and seeing in containers: as on every desktop, here and on an engine elsewhere."""

import contextlib
import io
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from docker import APIClient

from cu_fleet.backends.docker.engine import Engine
from cu_fleet.testing.dockerd import PrivateDocker
from cu_fleet.testing.screen_acting import ScreenActingContract
from cu_fleet.testing.screen_stage import Stage
from tests.acceptance.home import home
from tests.docker.remote import Relay, hide, unhide
from tests.rfb.stages import leased
from tests.rfb.test_acting import TIGERVNC
from tests.rfb.test_seeing import TestLocalDesktop as _Seeing

pytestmark = [pytest.mark.real, pytest.mark.slow]
PROFILE = "backend: docker\nimage: cu-fleet-test/desktop\ngates: none\n"


IMAGE = "cu-fleet-test/desktop"


@pytest.fixture(scope="module")
def with_gtk(engine: PrivateDocker) -> Iterator[PrivateDocker]:
    """With an image in which the suite's programs run, too: they want GTK's names for Python, and these are data."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for path in Path("/usr/lib").glob("*/girepository-1.0"):
            tar.add(path, str(path)[1:])

    def make(api: APIClient) -> None:
        made = api.create_container("cu-fleet/desktop", ["true"], user="0")["Id"]
        api.put_archive(made, "/", data.getvalue())
        api.commit(made, IMAGE, "latest")
        api.remove_container(made)

    Engine(engine.host).now(make)
    yield engine
    Engine(engine.host).now(lambda api: api.remove_image(IMAGE, force=True))


@pytest.fixture(scope="module")
def elsewhere(with_gtk: PrivateDocker) -> Iterator[str]:
    """The engine over a network, and all temporary folders out of its sight."""
    with tempfile.TemporaryDirectory(prefix="cf-far-") as folder, pytest.MonkeyPatch.context() as patch:
        engine = with_gtk
        hide(engine, Path(folder))
        patch.setattr(tempfile, "tempdir", folder)
        with Relay(f"{engine.folder}/sock") as relay:
            yield relay.host
        unhide(engine, Path(folder))


class TestActingElsewhere(ScreenActingContract):
    gaps = {**TIGERVNC}
    long = 500

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _engine(cls, elsewhere: str) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOCKER_HOST", elsewhere)
            yield

    @classmethod
    @contextlib.asynccontextmanager
    async def stage(cls) -> AsyncIterator[Stage]:
        async with leased("docker", image=IMAGE) as stage:
            yield stage


class TestSeeingElsewhere(_Seeing):
    profile: ClassVar[str] = "container"
    looks = 16

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _at_home(cls, elsewhere: str) -> Iterator[None]:
        with home() as cls.home:
            cls.home.env["DOCKER_HOST"] = elsewhere
            cls.home.write_profile("container", PROFILE)
            cls.home.cli("lease", "list")  # starts a controller
            yield
