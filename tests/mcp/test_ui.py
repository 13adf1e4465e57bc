"""`ui` on a real desktop: GTK, Qt and Chromium told apart from Tk and plain X, found, clicked and typed into."""

import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

from cu_fleet.client import Fleet
from cu_fleet.model.errors import ConflictError
from tests.acceptance.home import Home, home
from tests.mcp.house import failed, text
from tests.support import run, until

pytestmark = [pytest.mark.real, pytest.mark.slow]

GTK = """
import gi; gi.require_version("Gtk", "3.0")
from gi.repository import Gtk
w = Gtk.Window(title="Gtk form"); box = Gtk.VBox(); w.add(box)
entry = Gtk.Entry(); entry.get_accessible().set_name("Name"); box.add(entry)
button = Gtk.Button(label="Greet"); box.add(button)
button.connect("clicked", lambda _: button.set_label("Hello " + entry.get_text()))
w.set_default_size(300, 100); w.show_all(); w.move(400, 300); Gtk.main()
"""
QT = """
from PyQt5.QtWidgets import *
a = QApplication([]); w = QWidget(); w.setWindowTitle("Qt window"); b = QPushButton("Qt press me", w)
b.clicked.connect(lambda: b.setText("Qt was pressed")); b.setGeometry(5, 5, 150, 30)
w.setGeometry(20, 400, 200, 50); w.show(); a.exec_()
"""
TK = 'import tkinter as t; w = t.Tk(); w.title("Tk window"); t.Button(w, text="hidden").pack(); w.mainloop()'
PAGE = """<title>Shop</title><label>Item <input></label><button onclick="this.textContent='Bought'">Buy</button>
<a href="#t">Terms</a><div style="height:3000px"></div><button>Far below</button>"""
PROFILE = f"""
backend: local
gates: none
limits: {{memory: 3G, processes: 1024, cpus: 2}}
launch:
  gtk: {{command: [/usr/bin/python3, -c, {json.dumps(GTK)}]}}
  qt: {{command: [/usr/bin/python3, -c, {json.dumps(QT)}]}}
  tk: {{command: [/usr/bin/python3, -c, {json.dumps(TK)}]}}
  browser:
    command: [chromium, --no-first-run, --password-store=basic, --disable-gpu, --force-renderer-accessibility]
"""


@pytest.fixture(scope="module")
def house() -> Iterator[Home]:
    with home() as one:
        one.write_profile("forms", PROFILE)
        one.cli("lease", "list")
        yield one


@asynccontextmanager
async def leased(house: Home) -> AsyncIterator[tuple[Client, dict[str, Any]]]:
    lease = house.cli("lease", "acquire", "--agent", "a", "--profile", "forms")
    headers = {"Authorization": f"Bearer {lease['token']}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60, trust_env=False) as http,
        Client(streamable_http_client(lease["mcp_url"], http_client=http), mode="legacy") as session,
    ):
        yield session, lease
    house.cli("lease", "release", lease["lease"])


async def lines(session: Client, **asked: str) -> list[str]:
    result = await session.call_tool("ui", asked)
    assert not result.is_error, text(result)
    return text(result).splitlines()


async def found(session: Client, wanted: str, **asked: str) -> str:
    """The reference of the element whose line has this in it, once it is there."""

    async def look() -> str | None:
        ours = [line for line in await lines(session, **asked) if wanted in line and not line.startswith("Window")]
        return ours[0].split()[0] if ours else None

    return str(await until(look, timeout=40, every=0.2))


async def window(session: Client, words: str) -> str:
    async def look() -> str | None:
        return next((line for line in await lines(session) if line.startswith("Window") and words in line), None)

    return str(await until(look, timeout=40, every=0.2))


async def start(session: Client, name: str, *args: str) -> None:
    result = await session.call_tool("launch", {"name": name, "args": list(args)})
    assert not result.is_error, text(result)


def test_toolkits_are_told_apart_and_their_elements_are_used(house: Home) -> None:
    async def body() -> None:
        async with leased(house) as (session, lease):
            await start(session, "tk")
            assert "tells nothing of what is in it, use the picture" in await window(session, '"Tk window"')
            await start(session, "qt")
            button = await found(session, '"Qt press me"', window="Qt window")
            assert "Qt," in await window(session, '"Qt window"') or "Qt)" in await window(session, '"Qt window"')
            assert text(await session.call_tool("click", {"ref": button})) == "Done."
            await found(session, '"Qt was pressed"', window="Qt window")
            await start(session, "gtk")
            entry = await found(session, '"Name"', window="Gtk form", role="text")
            greet = await found(session, '"Greet"', window="Gtk form", role="button")
            await session.call_tool("type", {"text": "Ünal", "ref": entry})
            await found(session, "= 'Ünal'", window="Gtk form")
            assert text(await session.call_tool("click", {"ref": greet})) == "Done."
            await found(session, '"Hello Ünal"', window="Gtk form")
            assert text(await session.call_tool("type", {"text": "!", "ref": entry})) == "2 actions done."
            assert text(await session.call_tool("click", {"ref": greet})) == "Done.", (
                "it was told again by its new name"
            )

            async def stale() -> str | None:  # once the program has changed it, and nobody has looked since
                told = await session.call_tool("click", {"ref": greet})
                return failed(told, "helper_stale") if told.is_error else None

            words = await until(stale, timeout=20, every=0.5)
            assert 'was the push button "Hello Ünal", and is the push button "Hello' in words
            assert "ask ui again" in words
            await found(session, '"Hello', window="Gtk form", role="button")
            await by_the_client(lease)

    run(body(), timeout=180)


async def by_the_client(lease: dict[str, Any]) -> None:
    """The same with the Python client: found by role and text, clicked and typed into by reference."""
    async with Fleet.connect(url=lease["url"], token=lease["token"]) as fleet:
        desktop = await fleet.open(lease["lease"])
        told = await desktop.ui(role="button")
        assert {window.toolkit for window in told.windows} >= {"gtk", "Qt", ""}
        (entry,) = (await desktop.ui(window="Gtk form", role="text")).nodes
        (greet,) = (await desktop.ui(window="Gtk form", text="Hello")).nodes
        await desktop.key("ctrl+a")
        await desktop.type("Özil", ref=entry.ref, intent="greet another")
        await desktop.click(ref=greet.ref)

        async def greeted() -> bool:
            return bool((await desktop.ui(window="Gtk form", text="Özil", role="push button")).nodes)

        await until(greeted, timeout=20, every=0.2)
        with pytest.raises(ConflictError, match="ask ui again"):
            await desktop.click(ref="e99999")


def test_a_page_in_chromium_is_read_and_used(house: Home) -> None:
    async def body() -> None:
        async with leased(house) as (session, _):
            await session.call_tool("file_put", {"path": "shop.html", "text": PAGE})
            await start(session, "browser", "file:///home/agent/Shared/shop.html")
            buy = await found(session, 'push button "Buy"', window="Shop")
            seen = "\n".join(await lines(session, window="Shop"))
            assert 'link "Terms"' in seen
            assert 'entry "Item' in seen
            assert "Far below" not in seen, "it is not on the screen"
            assert "(Chromium, Chromium, active)" in await window(session, "Shop")
            entry = await found(session, 'entry "Item', window="Shop")
            await session.call_tool("type", {"text": "tea", "ref": entry})
            await found(session, "= 'tea'", window="Shop")
            assert text(await session.call_tool("click", {"ref": buy})) == "Done."
            await found(session, 'push button "Bought"', window="Shop")
            began = time.monotonic()
            await lines(session, text="Terms")
            assert time.monotonic() - began < 6, "a look at a page takes a fraction of a second"

    run(body(), timeout=180)


def test_keys_come_after_the_click_that_they_follow_however_slow_the_window_manager_is(house: Home) -> None:
    """It has the X server hold each click back until it has looked at it, and keys would overtake it."""
    stop = 'for p in /proc/[0-9]*; do [ "$(cat $p/comm)" = openbox ] && p=${p#/proc/} && kill -STOP $p && break; done'

    async def body() -> None:
        async with leased(house) as (session, lease), house.client() as fleet:
            await start(session, "gtk")
            entry = await found(session, '"Name"', window="Gtk form", role="text")
            greet = await found(session, '"Greet"', window="Gtk form", role="button")
            assert text(await session.call_tool("click", {"ref": greet})) == "Done."
            await found(session, '"Hello', window="Gtk form", role="button")
            await fleet.run(lease["desktop"], ["sh", "-c", f"{stop}; (sleep 1; kill -CONT $p) >/dev/null 2>&1 &"])
            assert text(await session.call_tool("type", {"text": "after", "ref": entry})) == "2 actions done."
            await found(session, "= 'after'", window="Gtk form")

    run(body(), timeout=120)
