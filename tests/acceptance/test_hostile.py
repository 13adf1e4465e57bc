"""A program inside a real desktop takes the place of its VNC server: its lease hears why, and nobody else notices."""

import contextlib

import pytest

from cu_fleet.client import Desktop, Fleet
from cu_fleet.model.errors import FleetError, UnavailableError
from tests.acceptance.eyes import inside
from tests.acceptance.home import Home
from tests.rfb.hostile import hello
from tests.support import run, until

pytestmark = pytest.mark.real

# Whoever connects is greeted, and flooded; nothing is read. Then the true server is asked to send its viewers away.
USURPER = """
import os, socket, subprocess, sys, threading
path = "/run/cu-fleet/rfb.sock"
os.rename(path, path + ".true")
door = socket.socket(socket.AF_UNIX)
door.bind(path)
door.listen(20)
if os.fork() == 0:
    os.setsid()
    for fd in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), fd)
    def flood(guest):
        guest.sendall(bytes.fromhex(sys.argv[1]))
        while True:
            guest.sendall(bytes.fromhex(sys.argv[2]) * 10000)
    while True:
        threading.Thread(target=flood, args=[door.accept()[0]]).start()
subprocess.run(["vncconfig", "-disconnect"], check=True)
"""


@pytest.mark.parametrize(
    ("greeting", "flood", "words"),
    [(hello(1280, 800), b"\2", "nobody asked for"), (hello(65535, 65535), b"\0", "a screen of 65535x65535")],
    ids=["bells", "a huge screen"],
)
def test_a_usurped_desktop_is_given_up_and_others_go_on(house: Home, greeting: bytes, flood: bytes, words: str) -> None:
    async def body() -> None:
        async with house.client() as fleet:
            bad, good = [await fleet.acquire(agent=agent, profile="local") for agent in ("a", "b")]
            script = '/usr/bin/python3 -I -c "$1" "$2" "$3"'
            with contextlib.suppress(UnavailableError):  # it may be over before it has been told so
                await inside(fleet, bad.lease.desktop or "", script, USURPER, greeting.hex(), flood.hex())
            await until(lambda: _lost(fleet, bad, good), timeout=60)
            view = await fleet.show(bad.id)
            assert view.state == "lost"
            assert words in view.reason
            await good.click(100, 100)
            again = await fleet.acquire(agent="a", profile="local")
            assert again.lease.desktop != bad.lease.desktop
            assert (await again.screenshot()).size == (1280, 800)

    run(body(), timeout=150)


async def _lost(fleet: Fleet, bad: Desktop, good: Desktop) -> bool:
    """Whether the bad one is given up; meanwhile both are used."""
    await good.screenshot()
    try:
        await bad.click(10, 10)
    except FleetError:
        return (await fleet.show(bad.id)).state != "active"
    return False
