"""Foreign viewers, as people have them: TigerVNC's, vncdotool, and noVNC in Chromium."""

import asyncio
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from cu_fleet.client import Desktop, Fleet
from cu_fleet.rfb.picture import image
from tests.acceptance.conftest import SMALL
from tests.acceptance.eyes import events, inside, sink
from tests.acceptance.home import Home, home
from tests.support import run, until
from tests.watch.browser import page
from tests.watch.person import display, seated, viewer
from tests.watch.viewers import entered, stopped

pytestmark = pytest.mark.real
SIZE = (640, 480)
MARKS = itertools.count(1)
_PAINT = """
import sys
from Xlib import X, display
d = display.Display()
window = d.create_resource_object("window", int(open(sys.argv[1]).readline().split()[1]))
for n in range(80):
    gc = window.create_gc(foreground=n * 0x315271 & 0xFFFFFF, line_width=n % 5)
    window.line(gc, n * 8, 0, 640 - n * 7, 480)
    window.draw_text(gc, n * 37 % 600, n * 53 % 480, b"what there is to see")
d.sync()
"""


@pytest.fixture(scope="module")
def house() -> Iterator[Home]:
    with home() as one:
        one.write_profile("small", SMALL)
        one.cli("lease", "list")
        yield one


@asynccontextmanager
async def leased(house: Home) -> AsyncIterator[tuple[Fleet, Desktop]]:
    async with house.client() as fleet, fleet.lease(agent="a", profile="small") as desktop:
        await sink(fleet, desktop.lease.desktop or "")
        paint = '/usr/bin/python3 -I -c "$1" /home/agent/events'
        await inside(fleet, desktop.lease.desktop or "", paint, _PAINT)
        yield fleet, desktop


def differs(one: Image.Image, other: Image.Image) -> bool:
    return (
        one.size != other.size or ImageChops.difference(one.convert("RGB"), other.convert("RGB")).getbbox() is not None
    )


async def heard(fleet: Fleet, desktop: Desktop, *lines: str) -> None:
    """Until the desktop's own window has noted these events, in this order."""

    async def told() -> bool:
        seen = iter(await events(fleet, desktop.lease.desktop or "", next(MARKS)))
        return all(line in seen for line in lines)

    await until(told, every=0.2)


def test_vncdotool_sees_clicks_and_types(house: Home, tmp_path: Path) -> None:
    async def body() -> None:
        async with leased(house) as (fleet, desktop):
            ticket = await fleet.watch(desktop.id, control=True)
            picture = tmp_path / "seen.png"
            words = ["-s", f"127.0.0.1::{ticket.port}", "-p", ticket.ticket]
            words += ["move", "100", "120", "click", "1", "type", "vnc", "pause", "1", "capture", str(picture)]
            command = [sys.executable, "-c", "from vncdotool.command import vncdo; vncdo()", *words]
            process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE)
            _, err = await process.communicate()
            assert process.returncode == 0, err
            await heard(fleet, desktop, "button 1", "buttonup 1", "key 118", "key 110", "keyup 99")
            assert not differs(Image.open(picture), await desktop.screenshot(pointer=True))

    run(body(), timeout=60)


def test_tigervnc_shows_every_pixel_and_takes_keys_clicks_and_the_clipboard(house: Home, tmp_path: Path) -> None:
    async def body() -> None:
        async with leased(house) as (fleet, desktop):
            ticket = await fleet.watch(desktop.id, control=True)
            with display(tmp_path) as mine, viewer(mine, ticket):
                person = await seated(mine)
                x, y = person.at
                await person.hands.claim_pointer()
                person.hands.fingers.point(x + 200, y + 150)
                for buttons in (1, 0):
                    person.hands.fingers.point(buttons=buttons)
                await person.screen.sync()
                await heard(fleet, desktop, "button 1", "buttonup 1")  # the viewer sends keys before buttons
                for key in b"Hi":
                    person.hands.fingers.key(key, down=True)
                    person.hands.fingers.key(key, down=False)
                await person.screen.sync()
                await heard(fleet, desktop, "key 65505", "key 104", "key 105", "keyup 105")

                async def equal() -> bool:
                    return not differs(await person.sees(*SIZE), await desktop.screenshot())

                await until(equal)
                await person.screen.set_clipboard("grüße, 世界")
                await until(lambda: _clipboard(desktop, "grüße, 世界"))
                await desktop.clipboard_set("zurück: π")

                async def came_back() -> bool:
                    return await person.screen.clipboard() == "zurück: π"

                await until(came_back)
                watched = (await fleet.show(desktop.id)).watchers
                assert [(one.control, one.way) for one in watched] == [(True, "tcp")]
                await person.screen.close()

    run(body(), timeout=60)


async def _clipboard(desktop: Desktop, text: str) -> bool:
    return await desktop.clipboard_get() == text


def test_novnc_in_chromium_by_the_printed_link_shows_every_pixel_types_and_copies(house: Home) -> None:
    async def body() -> None:
        async with leased(house) as (fleet, desktop):
            done = house.run("lease", "watch", desktop.id, "--control", "--web")
            link = done.stdout.decode().strip()
            assert link.startswith(f"{desktop.lease.url}/watch/vnc.html#"), done
            async with page(link) as browser:
                connected = "document.documentElement.classList.contains('noVNC_connected')"
                await until(lambda: browser.evaluate(connected))
                left, top, scale = await _place(browser.evaluate)
                await browser.click(left + 100 * scale, top + 200 * scale)
                await browser.type("web")
                await heard(fleet, desktop, "button 1", "buttonup 1", "key 119", "key 101", "keyup 98")

                async def equal() -> bool:
                    return not differs(await browser.picture(), await desktop.screenshot())

                await until(equal)
                panel = "document.querySelector('#noVNC_clipboard_text')"
                await browser.evaluate(
                    f"{panel}.value = 'aus dem Browser: π'; {panel}.dispatchEvent(new Event('change'))"
                )
                await until(lambda: _clipboard(desktop, "aus dem Browser: π"))
                await desktop.clipboard_set("vom Desktop: ü")
                await until(lambda: browser.evaluate(f"{panel}.value == 'vom Desktop: ü'"))
                refused = [line for line in browser.said if "Content Security Policy" in line or "exception" in line]
                assert refused == []
                await fleet.revoke(desktop.id, reason="enough", bar=None)
                gone = "document.documentElement.classList.contains('noVNC_disconnected') || !(" + connected + ")"
                await until(lambda: browser.evaluate(gone))

    run(body(), timeout=60)


async def _place(evaluate: object) -> tuple[float, float, float]:
    box = await evaluate(  # type: ignore[operator]
        "(({x, y, width}) => [x, y, width])(document.querySelector('#noVNC_container canvas').getBoundingClientRect())"
    )
    return box[0], box[1], box[2] / SIZE[0]


def test_two_viewers_and_one_that_stopped_reading_while_the_agent_acts(house: Home) -> None:
    """The agent goes on, and who reads sees what is."""

    async def body() -> None:
        async with leased(house) as (fleet, desktop):
            one = await entered(await fleet.watch(desktop.id))
            two = await entered(await fleet.watch(desktop.id), unix=True)
            asleep = await stopped(await fleet.watch(desktop.id))
            assert len((await fleet.show(desktop.id)).watchers) == 3
            for n in range(40):
                await desktop.act([{"type": "click", "x": 10 + 15 * n, "y": 10 + 11 * n}])
            now = await desktop.screenshot(pointer=True)
            for screen in (one, two):
                await until(lambda screen=screen: _same(screen, now))
                await screen.close()
            asleep.close()

    run(body(), timeout=60)


async def _same(screen: object, picture: Image.Image) -> bool:
    return not differs(image(await screen.frame()), picture)  # type: ignore[attr-defined]
