"""Seeing, on every server that is known: TigerVNC, a desktop through the real controller, Xvfb with x11vnc, QEMU."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from cu_fleet.client import Desktop
from cu_fleet.client.command import Command
from cu_fleet.rfb.screen import Screen
from cu_fleet.testing import easel
from cu_fleet.testing.screen_seeing import Easels, Said, ScreenSight, SeeingContract, Seen, listening
from tests.acceptance.home import Home, home
from tests.rfb.qemu import Qemu, drawn, qemu
from tests.rfb.sights import REST, seen_on
from tests.rfb.x11vnc import WITHIN, x11vnc
from tests.rfb.xvnc import PYTHON, xvnc

pytestmark = [pytest.mark.real, pytest.mark.slow]
_EASEL = Path(easel.__file__).read_text()


class TestTigerVnc(SeeingContract):
    @asynccontextmanager
    async def sight(self) -> AsyncIterator[ScreenSight]:
        with xvnc() as server:
            async with seen_on(server) as one:
                yield one


class Leased(Easels):
    """A desktop as its agent sees it: through the client, HTTP and the controller."""

    def __init__(self, desktop: Desktop, said: Said) -> None:
        self.desktop = desktop
        self.said = said

    async def look(self, *, pointer: bool) -> Seen:
        picture = await self.desktop.screenshot(pointer=pointer)
        return Seen(picture, picture.frame.within)

    async def point(self, x: int, y: int) -> None:
        await self.desktop.move(x, y)


class TestLocalDesktop(SeeingContract):
    looks = 64
    profile: ClassVar[str] = "local"
    rest: ClassVar[str] = REST
    home: ClassVar[Home]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _at_home(cls) -> Iterator[None]:
        with home() as cls.home:
            cls.home.cli("lease", "list")  # starts a controller
            yield

    @asynccontextmanager
    async def sight(self) -> AsyncIterator[Leased]:
        async with self.home.client() as fleet, fleet.lease(agent="seer", profile=self.profile) as desktop:
            await desktop.move(5, 5)
            words = [PYTHON, "-I", "-c", _EASEL, "1", self.rest]
            async with fleet.exec(desktop.lease.desktop or "", words) as command:
                said = Said()
                async with listening(said, _lines(command)):
                    yield Leased(desktop, said)


async def _lines(command: Command) -> AsyncIterator[bytes]:
    rest = b""
    async for stream, data in command:
        assert stream == 1, data.decode()
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line


class TestX11vnc(SeeingContract):
    exact = False
    most = WITHIN
    looks = 120

    @asynccontextmanager
    async def sight(self) -> AsyncIterator[ScreenSight]:
        with x11vnc() as server:
            async with seen_on(server, rest="0.3") as one:
                yield one


class Machine(ScreenSight):
    """A machine in QEMU, whose guest has a pattern of its own."""

    def __init__(self, vm: Qemu, screen: Screen) -> None:
        super().__init__(screen, Said())
        self.vm = vm
        self.enough = False

    async def draw(self) -> None:
        number = 0
        while not self.enough:
            number += 1
            await asyncio.to_thread(self.vm.draw, number)
            self.said.hear(number)
            await asyncio.sleep(0.3 * (number % 3 == 0))

    def numbers(self, picture: Image.Image) -> set[int]:
        found: Any = picture.getcolors(maxcolors=64)
        return {_number(*colour) for _, colour in found if colour != (0x40, 0x40, 0x40)}

    def whole(self, picture: Image.Image) -> bool:
        return drawn(picture.convert("RGBX").tobytes("raw", "BGRX")) in self.numbers(picture)


class TestQemu(SeeingContract):
    looks = 48
    at_one_stroke = False  # the guest writes row after row into its graphics card's memory
    gaps: ClassVar = {
        "test_the_pointer_is_in_the_picture_when_asked_for_and_not_otherwise": "the test's guest has no pointer"
    }

    @asynccontextmanager
    async def sight(self) -> AsyncIterator[Machine]:
        with qemu() as vm:
            screen = await vm.screen()
            machine = Machine(vm, screen)
            drawing = asyncio.create_task(machine.draw(), name="draw in the guest")
            try:
                yield machine
            finally:
                machine.enough = True
                await drawing
                await screen.close()


def _number(red: int, green: int, blue: int) -> int:
    return (blue & 63) << 12 | (green & 63) << 6 | red & 63
