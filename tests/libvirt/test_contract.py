"""The suite every backend passes, against machines of a real libvirtd."""

import re
import socket
from pathlib import Path
from typing import ClassVar

import pytest

from cu_fleet.backends.base import Backend
from cu_fleet.backends.libvirt import LibvirtBackend
from cu_fleet.backends.libvirt.layout import drop
from cu_fleet.backends.libvirt.wire import wire
from cu_fleet.controller.helper import SOURCE, Helper
from cu_fleet.model.desktop import Handle
from cu_fleet.model.profile import Profile
from cu_fleet.testing import backend_base
from cu_fleet.testing.backend_contract import BackendContract
from cu_fleet.testing.libvirtd import PrivateLibvirt
from tests.local.test_isolation import network_address

pytestmark = [pytest.mark.real, pytest.mark.slow]
_REACHES = """
import json, socket, sys
def reaches(host, port):
    try: socket.create_connection((host, int(port)), 60).close()
    except ConnectionRefusedError: return False
    return True
world, outside, loopback = sys.argv[1:]
print(json.dumps({"world": reaches(world, outside), "router": reaches("10.0.2.2", loopback),
    "loopback": reaches("127.0.0.1", loopback), "resolver": open("/etc/resolv.conf").read()}))
"""


_DEVICES = """
import ctypes, json
gdk, pointer = ctypes.CDLL("libgdk-3.so.0"), ctypes.c_void_p
class Listed(ctypes.Structure): pass
Listed._fields_ = [("data", pointer), ("next", ctypes.POINTER(Listed))]
gdk.gdk_display_get_default_seat.restype = gdk.gdk_display_get_default.restype = pointer
gdk.gdk_seat_get_slaves.restype, gdk.gdk_device_get_name.restype = ctypes.POINTER(Listed), ctypes.c_char_p
gdk.gdk_init(None, None)
one = gdk.gdk_seat_get_slaves(pointer(gdk.gdk_display_get_default_seat(pointer(gdk.gdk_display_get_default()))), 15)
found = []
while one:
    device, one = pointer(one.contents.data), one.contents.next
    found.append([gdk.gdk_device_get_name(device).decode(), gdk.gdk_device_get_source(device)])
print(json.dumps(found))
"""
_MOUSE = 0  # as GDK counts what devices are


class TestLibvirt(BackendContract):
    sharing = True
    gaps: ClassVar = {"lending": "no folder of this machine can lie in another's disk"}

    @pytest.fixture(autouse=True)
    def _hypervisor(self, libvirtd: PrivateLibvirt, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.uri, self.store = libvirtd.uri, store
        monkeypatch.setattr(backend_base, "DEADLINE", 900.0)  # the first of a profile is booted, under emulation

    @pytest.mark.parametrize("size", [(1280, 800)])
    def test_the_screen_has_the_size_of_the_profile(self, size: tuple[int, int]) -> None:
        """QEMU's VNC serves widths in steps of 16 only; the next case has another of them, too."""
        super().test_the_screen_has_the_size_of_the_profile(size)

    def test_one_of_another_size_with_a_network_reaches_the_world_and_no_loopback(self) -> None:
        """In one, as both take a machine of their own that is booted."""
        world = network_address()

        async def body(backend: Backend) -> None:
            profile = self.profile()
            other = profile.but(screen=profile.screen.but(width=336, height=555), network="full")
            handle = await self.start(backend, self.spec(profile=other))
            greeting = await self.greet(backend, handle)
            assert (greeting.width, greeting.height) == (336, 555)
            with socket.create_server((world, 0)) as outside, socket.create_server(("127.0.0.1", 0)) as loopback:
                ports = [str(server.getsockname()[1]) for server in (outside, loopback)]
                got = await self.python(backend, handle, _REACHES, world, *ports)
            assert got == {"world": True, "router": False, "loopback": False, "resolver": "nameserver 10.0.2.3\n"}

        self.run(body)

    @backend_base.borrows
    def test_no_program_has_to_look_through_all_fonts(self) -> None:
        """A disk keeps no parts of a second, and caches are told by their times to be of the fonts that are there."""

        async def body(backend: Backend) -> None:
            handle = await self.borrow(backend)
            said = (await self.command(backend, handle, "fc-cache", "--system-only", "--verbose")).out.decode()
            assert "/usr/share/fonts/truetype/dejavu: skipping" in said
            assert re.search(r"new cache contents: [1-9]\d* fonts", said) is None, said

        self.run(body)

    @backend_base.borrows
    def test_gtk_takes_what_points_to_places_for_a_mouse(self) -> None:
        """On a touch screen, which GTK tells by names, a drag would select nothing."""

        async def body(backend: Backend) -> None:
            handle = await self.borrow(backend)
            devices = await self.python(backend, handle, _DEVICES)
            assert ["mouse", _MOUSE] in devices
            assert not [name for name, _ in devices if "Tablet" in name]

        self.run(body)

    def test_a_helper_stands_ready_for_the_first_who_asks(self) -> None:
        async def body(backend: Backend) -> None:
            handle, standing = await self.start(backend), backend.abilities.standing
            assert standing
            assert await standing.take(handle, SOURCE + "\n# of another version") is None
            ready = await standing.take(handle, SOURCE)
            assert ready
            assert await standing.take(handle, SOURCE) is None
            helper = Helper(ready, str(handle["desktop"]))
            assert (await helper.call("hello", timeout=30))["manager"]
            await helper.close()

        self.run(body)

    async def make(self) -> Backend:
        return LibvirtBackend(self.place, self.uri, self.store)

    def profile(self) -> Profile:
        """Of the size that profiles have anyway, and one of the cases asks for: another is one more machine to boot."""
        return Profile.model_validate({"name": "contract", "backend": "libvirt", "limits": {"memory": "768M"}})

    async def _clear(self, backend: Backend) -> None:
        await super()._clear(backend)
        drop(self.store / self.place.fleet)

    async def boot_of(self, backend: Backend, handle: Handle) -> str:
        """The machine knows; the screen's name is its domain's."""
        assert isinstance(backend, LibvirtBackend)
        desk = backend.desk(handle)
        async with wire(desk.port, desk.id) as one:
            return str((await one.ask("p"))["boot"])
