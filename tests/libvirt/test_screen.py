"""Acting and seeing on a machine's screen, which is QEMU's own server with the helper inside; through the controller.

Only where `CU_FLEET_EVERY_STEP=1` asks for it: under emulation it takes many minutes, and what this server lacks is not
all named in `gaps` yet. Text, single keys, places, buttons, drags and the clipboard arrived; the named keys, the wheel
and clicks with modifiers did not all do so on a machine with much else to do.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from cu_fleet.backends.base import Place
from cu_fleet.backends.libvirt import LibvirtBackend
from cu_fleet.model.profile import Profile
from cu_fleet.testing.libvirtd import PrivateLibvirt
from cu_fleet.testing.screen_acting import ScreenActingContract
from cu_fleet.testing.screen_leased import Leased
from cu_fleet.testing.screen_stage import Stage
from tests.acceptance.home import home
from tests.rfb.stages import ANA, leased
from tests.rfb.test_acting import QEMU_ITSELF, SWITCHING
from tests.rfb.test_seeing import TestLocalDesktop as _Seeing
from tests.support import run

pytestmark = [pytest.mark.real, pytest.mark.slow]
_WHOLE = bool(os.environ.get("CU_FLEET_EVERY_STEP"))
_MEMORY = "768M"  # as the contract's, so that both are forks of one state
_TYPELIBS = (
    "/home/agent/Shared/typelibs"  # GTK's names for Python, which the suite's programs want, and the image lacks
)

_WANTED = "Gtk Gdk GdkPixbuf GdkX11 Gio GLib GModule GObject Pango PangoCairo PangoFT2 PangoXft Atk HarfBuzz cairo"
_WANTED += " fontconfig freetype2 xlib"
TYPELIBS = [
    path for path in Path("/usr/lib").glob("*/girepository-1.0/*.typelib") if path.name.split("-")[0] in _WANTED.split()
]


@pytest.fixture(scope="module", autouse=True)
def _warm(libvirtd: PrivateLibvirt, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What desktops here are forks of, made before anybody waits for one."""
    profile = Profile.model_validate({"name": "contract", "backend": "libvirt", "limits": {"memory": _MEMORY}})
    place = Place(tmp_path_factory.mktemp("home"), "screens", machines=store)
    run(_warmed(LibvirtBackend(place, libvirtd.uri), profile), 900)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIBVIRT_DEFAULT_URI", libvirtd.uri)
        patch.setattr("cu_fleet.backends.libvirt.layout.STORE", store)
        yield


async def _warmed(backend: LibvirtBackend, profile: Profile) -> None:
    await backend.warm.state(profile)


class TestActing(ScreenActingContract):
    __test__ = _WHOLE
    gaps = {**SWITCHING, **QEMU_ITSELF}
    long = 200

    @classmethod
    @contextlib.asynccontextmanager
    async def stage(cls) -> AsyncIterator[Stage]:
        async with leased("libvirt", limits={"memory": _MEMORY}, env={"GI_TYPELIB_PATH": _TYPELIBS}) as stage:
            await _give_typelibs(stage)
            yield stage


async def _give_typelibs(stage: Leased) -> None:
    for path in TYPELIBS:
        data = _chunks(path.read_bytes())
        await stage.controller.put_file(ANA, stage.lease.lease, f"typelibs/{path.name}", data, 0o644)


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    yield data


class TestSeeing(_Seeing):
    __test__ = _WHOLE
    profile: ClassVar[str] = "contract"
    looks = 16
    at_one_stroke = False  # QEMU reads the card's memory while the machine writes there: on a busy host it shows

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _at_home(cls, store: Path, libvirtd: PrivateLibvirt) -> Iterator[None]:
        with home(machines=store) as cls.home:
            cls.home.env["LIBVIRT_DEFAULT_URI"] = libvirtd.uri
            cls.home.write_profile("contract", f"backend: libvirt\ngates: none\nlimits: {{memory: {_MEMORY}}}\n")
            cls.home.cli("lease", "list")  # starts a controller
            yield
