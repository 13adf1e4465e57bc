"""Controllers over fakes keep but one processor busy, for a minute and a half."""

import pytest

from tests.libvirt.image import MachineImage


@pytest.fixture(scope="package", autouse=True)
def _meanwhile(machine_image: MachineImage) -> None:
    machine_image.begin()
