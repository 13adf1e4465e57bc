"""One engine for all tests here, with the images of desktops as they are really built."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cu_fleet.backends.docker import images
from cu_fleet.backends.docker.engine import Engine
from cu_fleet.backends.docker.recipes import Recipe
from cu_fleet.testing.dockerd import PrivateDocker, need_engine
from tests.libvirt.image import MachineImage
from tests.support import run


@pytest.fixture(scope="session")
def archive(request: pytest.FixtureRequest, machine_image: MachineImage) -> Path:
    """The plain image's file system, built from packages; kept from run to run until its recipe changes."""
    assert request.config.cache
    folder = Path(request.config.cache.mkdir("desktop-image"))
    wanted = folder / f"{Recipe('desktop').digest('')}.tar"
    if not wanted.exists():
        machine_image.begin()
        for old in folder.iterdir():
            old.unlink()
        partial = wanted.with_suffix(".partial")
        images.from_packages("desktop", partial, print)
        partial.rename(wanted)
    return wanted


@pytest.fixture(scope="session")
def engine(archive: Path) -> Iterator[PrivateDocker]:
    need_engine()
    yield from _with_image(PrivateDocker(), archive)


@pytest.fixture(scope="package")
def own_engine(archive: Path) -> Iterator[PrivateDocker]:
    """One that a test may kill, and whose disk it may fill."""
    need_engine()
    yield from _with_image(PrivateDocker(room="1G"), archive)


def _with_image(engine: PrivateDocker, archive: Path) -> Iterator[PrivateDocker]:
    with engine:
        Engine(engine.host).now(lambda api: images.load(api, "desktop", archive, print, tag="latest"))
        yield engine


def _built(engine: PrivateDocker, name: str) -> PrivateDocker:
    """With this image too: on top of the plain one, and proved, as the command does it."""
    run(images.build(Engine(engine.host), name, print), timeout=400)
    return engine


@pytest.fixture(scope="session")
def with_browser(engine: PrivateDocker) -> PrivateDocker:
    return _built(engine, "browser")


@pytest.fixture(scope="session")
def with_xvfb(engine: PrivateDocker) -> PrivateDocker:
    return _built(engine, "xvfb")
