"""What holds for TigerVNC holds for Xvfb with x11vnc and for QEMU's own server too: greeting, looking, acting."""

from contextlib import AbstractContextManager
from typing import Any

import pytest

from cu_fleet.model.action import parse_actions
from cu_fleet.rfb.hands import Hands
from cu_fleet.rfb.handshake import RfbError
from tests.rfb.qemu import drawn, qemu
from tests.rfb.x11vnc import x11vnc
from tests.rfb.xvnc import xvnc
from tests.support import run

pytestmark = [pytest.mark.real, pytest.mark.slow]
SERVERS = {"tigervnc": xvnc, "x11vnc": x11vnc, "qemu": qemu}
SECRET = "secret12"  # noqa: S105 - eight characters are all that VNC takes


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("password", [None, SECRET])
def test_let_in_with_the_right_password_alone(server: str, password: str | None) -> None:
    async def body(one: Any) -> None:
        screen = await one.screen(password=password)
        frame = await screen.frame()
        assert (frame.width, frame.height) == (screen.width, screen.height)
        assert (frame.within > 0.0) is (server == "x11vnc"), "where a frame may be older than the question it says so"
        await screen.close()
        if password:
            with pytest.raises(RfbError, match="refused us") as e:
                await one.screen(password="wrong")  # noqa: S106
            assert e.value.code == "screen_refused"
            with pytest.raises(RfbError, match="wants a password, and none is known"):
                await one.screen()
            await (await one.screen(password=password + ", of which VNC takes eight characters")).close()
        else:
            with pytest.raises(RfbError, match="asks for no password though one is set"):
                await one.screen(password=SECRET)

    made: AbstractContextManager[Any] = SERVERS[server](password=password)
    with made as one:
        run(body(one), timeout=120)


@pytest.mark.parametrize("version", ["3.3", "3.7", "3.8"])
@pytest.mark.parametrize("password", [None, SECRET])
def test_older_versions_are_spoken(version: str, password: str | None) -> None:
    async def body(one: Any) -> None:
        screen = await one.screen(password=password)
        assert (await screen.frame()).width == 64
        await screen.close()
        with pytest.raises(RfbError) as e:
            await one.screen(password="wrong" if password else SECRET)
        assert e.value.code == "screen_refused"

    with x11vnc("-rfbversion", version, password=password, size="64x48") as one:
        run(body(one), timeout=60)


@pytest.mark.parametrize("server", ["tigervnc", "x11vnc"])
def test_a_screen_is_called_what_its_server_calls_it(server: str) -> None:
    async def body(one: Any) -> None:
        screen = await one.screen()
        assert screen.name == "Grüße, 世界 🌍"
        await screen.close()

    with SERVERS[server]("-desktop", "Grüße, 世界 🌍") as one:
        run(body(one), timeout=60)


def test_a_machine_gets_what_was_sent_and_shows_what_it_draws() -> None:
    async def body(vm: Any) -> None:
        screen = await vm.screen()
        hands = Hands(screen, lambda: None)
        for action in parse_actions([{"type": "key", "keys": "a"}, {"type": "click", "x": 640, "y": 400}]):
            await hands.do(action)
        keys = [(code, value) for kind, code, value in vm.events() if kind == "key"]
        assert keys == [(30, 1), (30, 0), (272, 1), (272, 0)]
        for number in (7, 200_000, 8):
            vm.draw(number)
            assert drawn((await screen.frame()).pixels) == number
        await screen.close()

    with qemu() as vm:
        run(body(vm), timeout=180)


def test_a_server_that_dies_and_comes_again() -> None:
    async def body(one: Any) -> None:
        screen = await one.screen()
        one.process.kill()
        one.process.wait()
        with pytest.raises(RfbError):
            await screen.frame()
        one.serve()
        again = await one.screen()
        assert (await again.frame()).width == 1280
        await again.close()

    with x11vnc() as one:
        run(body(one), timeout=60)
