"""A person at a screen of their own, with TigerVNC's viewer on it: what they see and copy is theirs."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from cu_fleet.model.view import TicketView
from cu_fleet.rfb.hands import Hands
from cu_fleet.rfb.picture import image
from cu_fleet.rfb.screen import Screen
from tests.rfb.xvnc import PYTHON, Xvnc
from tests.support import until

# Without a window manager nobody gives the viewer the keyboard. Says where its picture is.
_FOCUS = """
from Xlib import X, display
d = display.Display()
def viewers(window):
    for child in window.query_tree().children:
        name = child.get_wm_class()
        if name and "vnc" in "".join(name).lower() and child.get_attributes().map_state == X.IsViewable:
            yield child
        yield from viewers(child)
for found in viewers(d.screen().root):
    place = found.translate_coords(d.screen().root, 0, 0)
    found.set_input_focus(X.RevertToPointerRoot, X.CurrentTime)
    d.sync()
    print(-place.x, -place.y)
    break
"""


class Person:
    def __init__(self, display: Xvnc, screen: Screen, at: tuple[int, int]) -> None:
        self.display, self.screen, self.at = display, screen, at
        self.hands = Hands(screen, lambda: None)

    async def sees(self, width: int, height: int) -> Image.Image:
        """What the viewer shows."""
        x, y = self.at
        return image(await self.screen.frame()).crop((x, y, x + width, y + height))


@contextmanager
def display(folder: Path) -> Iterator[Xvnc]:
    one = Xvnc(folder, "-geometry", "800x600")
    try:
        yield one
    finally:
        one.stop()


@contextmanager
def viewer(display: Xvnc, ticket: TicketView, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    env = {"PATH": os.environ["PATH"], "HOME": str(display.path.parent), "LC_ALL": "C.UTF-8"}
    env |= {"DISPLAY": display.display, "VNC_PASSWORD": ticket.ticket}
    words = ["xtigervncviewer", "-geometry", "+0+0", "-AlertOnFatalError=0", "-ReconnectOnError=0", *options]
    with (display.path.parent / "viewer.log").open("wb") as log:
        process = subprocess.Popen([*words, f"{ticket.host}::{ticket.port}"], env=env, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


async def seated(display: Xvnc) -> Person:
    """Once the viewer is there and has the keyboard."""
    screen = await display.screen()
    await screen.frame()

    def place() -> str:
        done = subprocess.run(
            [PYTHON, "-c", _FOCUS], env={"DISPLAY": display.display}, capture_output=True, text=True, check=True
        )
        return done.stdout

    x, y = map(int, (await until(place)).split())
    return Person(display, screen, (x, y))
