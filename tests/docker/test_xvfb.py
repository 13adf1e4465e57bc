"""Containers on Xvfb with x11vnc keep what desktops promise, but for what that pair lacks, each by name."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import ClassVar

import pytest

from cu_fleet.testing.dockerd import PrivateDocker
from cu_fleet.testing.screen_acting import ScreenActingContract
from cu_fleet.testing.screen_stage import Stage
from tests.acceptance.home import home
from tests.rfb import test_seeing
from tests.rfb.stages import leased
from tests.rfb.test_acting import X11VNC
from tests.rfb.x11vnc import WITHIN

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def _on_an_engine(with_xvfb: PrivateDocker) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", with_xvfb.host)
        yield


class TestActing(ScreenActingContract):
    # The helper inside sees to the clipboard, and so to any text, and to the buttons that VNC lacks.
    gaps: ClassVar = {gap: why for gap, why in X11VNC.items() if gap != "the_clipboard_both_ways"}
    long = 500

    @classmethod
    @contextlib.asynccontextmanager
    async def stage(cls) -> AsyncIterator[Stage]:
        async with leased("docker", image="cu-fleet/xvfb") as stage:
            yield stage


class TestSeeing(test_seeing.TestLocalDesktop):
    profile = "docker-xvfb"
    rest = "0.3"  # it needs moments in which nothing is drawn
    exact = False
    most = WITHIN
    looks = 16

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _at_home(cls, with_xvfb: PrivateDocker) -> Iterator[None]:
        with home() as cls.home:
            cls.home.env["DOCKER_HOST"] = with_xvfb.host
            cls.home.cli("lease", "list")  # starts a controller
            yield
