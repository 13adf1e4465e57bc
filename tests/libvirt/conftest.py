"""One libvirtd for all tests here, and one store kept from run to run: image and warm states take the time."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cu_fleet.testing.libvirtd import PrivateLibvirt, need_libvirtd
from tests.libvirt.image import MachineImage


@pytest.fixture(scope="session")
def store(machine_image: MachineImage) -> Path:
    need_libvirtd()
    return machine_image.store()


@pytest.fixture(scope="session")
def libvirtd() -> Iterator[PrivateLibvirt]:
    need_libvirtd()
    with PrivateLibvirt() as one:
        yield one
