"""One libvirtd for all tests here, and one store kept from run to run: image and warm states take the time."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cu_fleet.backends.base import Place
from cu_fleet.backends.libvirt import images
from cu_fleet.backends.libvirt.layout import Layout
from cu_fleet.testing.libvirtd import PrivateLibvirt, need_libvirtd

STORE = Path("/var/tmp/cu-fleet-tests-machines")  # where machines, which run as users of their own, can reach it


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The place of machines, with the image as it is really built; made anew when its recipe changes."""
    need_libvirtd()
    layout = Layout(Place(tmp_path_factory.mktemp("home"), "image"), STORE)
    if not images.look(layout, "vm-desktop").current:
        images.adopt(layout, images.build(layout, "vm-desktop", print, "for tests"))
    return STORE


@pytest.fixture(scope="session")
def libvirtd() -> Iterator[PrivateLibvirt]:
    need_libvirtd()
    with PrivateLibvirt() as one:
        yield one
