"""Acting and seeing on a machine's screen, which is QEMU's own server with the helper inside; through the controller.

What is long there is tried only where `CU_FLEET_EVERY_STEP=1` asks for it: under emulation, where no more than fifty
keys a second get through, all of it takes some four minutes; and a double click is none any more where a busy host
gives the machine no time for a third of a second.
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
_LONG_ACTING = """every_printable_key_pressed_singly every_combination_of_modifiers text_arrives_in_an_application
    a_long_text_arrives_whole_and_in_order any_text_arrives a_long_text_of_any_kind_arrives_whole_and_in_order
    double_and_triple_clicks_are_understood single_clicks_stay_single"""
_LONG_SEEING = """what_was_drawn_before_the_question_is_in_the_picture_and_whole looks_at_once_are_as_true
    the_pointer_is_in_the_picture_when_asked_for_and_not_otherwise"""
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


if not _WHOLE:
    for _suite, _long in ((TestActing, _LONG_ACTING), (TestSeeing, _LONG_SEEING)):
        for _name in _long.split():
            assert getattr(_suite, f"test_{_name}")
            setattr(_suite, f"test_{_name}", None)
