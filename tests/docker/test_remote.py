"""Desktops whose engine is elsewhere: the same promises, over TCP, TLS and SSH, and when the network breaks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cu_fleet.testing.dockerd import PrivateDocker
from tests.docker.remote import Relay, hide, unhide
from tests.docker.test_contract import TestDocker as _TestDocker

pytestmark = [pytest.mark.real, pytest.mark.slow]


class TestFar(_TestDocker):
    """The suite of every backend, over TCP to an engine that does not see our files."""

    @pytest.fixture(autouse=True)
    def _engine(self, engine: PrivateDocker, tmp_path: Path) -> Iterator[None]:
        hide(engine, tmp_path)
        with Relay(f"{engine.folder}/sock") as relay:
            self.host = relay.host
            yield
        unhide(engine, tmp_path)
