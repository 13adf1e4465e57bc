"""Servers that many tests share."""

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import hypothesis
import pytest

# Time decides no test, and in CI the examples are the same each time: new ones are looked for where somebody looks.
hypothesis.settings.register_profile("here", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("here")
pytest.register_assert_rewrite("cu_fleet.testing")  # the suites there are tests too: show the values they compared

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts with & ignore it

if TYPE_CHECKING:
    from cu_fleet.testing.postgres import PrivatePostgres
    from tests.libvirt.image import MachineImage


@pytest.fixture(scope="session")
def postgres() -> "Iterator[PrivatePostgres]":
    """A PostgreSQL of our own; ask it for `new_database()`."""
    from cu_fleet.testing.postgres import PrivatePostgres, need_programs

    with PrivatePostgres(need_programs()) as server:
        yield server


@pytest.fixture(scope="session")
def machine_image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[MachineImage]":
    """Here, and not with the tests of machines: it is built while others run."""
    from tests.libvirt.image import MachineImage

    wanted = any({"store", "libvirtd"} <= {*getattr(item, "fixturenames", ())} for item in request.session.items)
    one = MachineImage(tmp_path_factory.mktemp("home"), wanted=wanted)
    yield one
    one.close()
