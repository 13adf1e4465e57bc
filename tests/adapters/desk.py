"""A desktop of the fake backend, through the real door and client; what reached its screen; and pictures as sent."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from cu_fleet.backends.memory_screen import Screen
from cu_fleet.client import Desktop, Fleet
from cu_fleet.model.keys import keysym
from tests.api.door import Door, open_door
from tests.controller.fleet import profile

WIDE = {"screen": {"width": 400, "height": 240, "view": 200}}  # shown at half its size


@dataclass
class Desk:
    door: Door
    desktop: Desktop

    @property
    def screen(self) -> Screen:
        return self.door.fleet.world.desktops[self.desktop.lease.desktop or ""].screen

    def struck(self) -> list[tuple[object, object]]:
        """Keys as they went down and up."""
        return [(event[1], event[2]) for event in self.screen.events if event[0] == "key"]

    def pointer(self) -> list[tuple[object, ...]]:
        return [event[1:] for event in self.screen.events if event[0] == "pointer"]

    def pressed(self) -> list[tuple[object, ...]]:
        """Where a button went down, and which: each once, however often it is told."""
        found: list[tuple[object, ...]] = []
        before: object = 0
        for x, y, buttons in self.pointer():
            if buttons and not before:
                found.append((x, y, buttons))
            before = buttons
        return found

    def down(self) -> set[object]:
        """Keys that are down now."""
        held: set[object] = set()
        for key, is_down in self.struck():
            (held.add if is_down else held.discard)(key)
        return held


@asynccontextmanager
async def desk(home: Path, **more: Any) -> AsyncIterator[Desk]:
    async with (
        open_door(home, profile(**more)) as door,
        Fleet.connect(home=home, start=False) as fleet,
        fleet.lease(agent="a", profile="local") as desktop,
    ):
        made = Desk(door, desktop)
        await desktop.screenshot()  # what a screen is greeted with is none of an agent's doing
        made.screen.events.clear()
        yield made


def both(*names: str) -> list[tuple[int, bool]]:
    """These keys pressed together: down in order, up in reverse."""
    syms = [keysym(name) for name in names]
    return [*((sym, True) for sym in syms), *((sym, False) for sym in reversed(syms))]


def picture(data: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(data)))
