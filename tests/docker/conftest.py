"""One engine for all tests here, with the image of desktops as it is really built, kept from run to run."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cu_fleet.backends.docker import images
from cu_fleet.backends.docker.engine import Engine
from cu_fleet.testing.dockerd import PrivateDocker, need_engine


@pytest.fixture(scope="session")
def archive(request: pytest.FixtureRequest) -> Path:
    """The image's file system, built from packages; made anew when its recipe changes."""
    assert request.config.cache
    folder = Path(request.config.cache.mkdir("desktop-image"))
    recipe = [images.IMAGES / "setup", images.IMAGES / "desktop/packages"]
    wanted = folder / (hashlib.sha256(b"\0".join(path.read_bytes() for path in recipe)).hexdigest()[:16] + ".tar")
    if not wanted.exists():
        for old in folder.iterdir():
            old.unlink()
        partial = wanted.with_suffix(".partial")
        images.from_packages("desktop", partial, print)
        partial.rename(wanted)
    return wanted


@pytest.fixture(scope="session")
def engine(archive: Path) -> Iterator[PrivateDocker]:
    need_engine()
    with PrivateDocker() as one:
        Engine(one.host).now(lambda api: images.load(api, "desktop", archive, print, tag="latest"))
        yield one
