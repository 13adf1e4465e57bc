"""A terminal, an editor and a form, driven at once on a desktop; and as many desktops at once as there are workers.

    pytest -n 4 examples/gui_suite                                   # on this machine
    pytest -n 4 examples/gui_suite --desktop-profile docker          # in four containers
    cu-fleet run --beside -n 4 -p docker -- pytest -n 4 examples/gui_suite

Each test has words of its own, begins when all the others have their desktops too, and finds in the end its own words
and nobody else's: in its windows' files, in its clipboard, and in what the terminal makes of them.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cu_fleet.sync import Desktop
from cu_fleet.testing.leased import Leased

FORM = Path(__file__).with_name("form.py")
OUT = "/home/agent/Shared/out"
ROUNDS = 2


def until(what: str, look: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What `look` gives, once that is something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.1)
    pytest.fail(f"{what}: not within {seconds:g} s")


def window(desktop: Desktop, title: str) -> dict[str, Any]:
    """The window of this title, once it is there."""
    return until(f"a window {title!r}", lambda: next((w for w in desktop.windows() if title in w["title"]), None))


def type_into(desktop: Desktop, title: str, text: str) -> None:
    desktop.focus(window(desktop, title)["id"])
    desktop.type(text)


def content(desktop: Desktop, name: str) -> str:
    there = (file.path for file in desktop.files("out"))
    return desktop.get_file(f"out/{name}").decode() if f"out/{name}" in there else ""


@pytest.fixture
def together(desktop: Leased) -> Leased:
    """A desktop, when all workers have theirs."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    until("all desktops", lambda: sum(lease.state == "active" for lease in desktop.fleet.leases()) >= workers, 120)
    return desktop


@pytest.mark.parametrize("name", ["Ada", "Бен", "Zoë", "陳"])
def test_three_programs_at_once(together: Leased, name: str) -> None:
    desktop = together
    desktop.put_file("form.py", FORM)
    desktop.put_file("out/note.txt", b"")
    desktop.launch("terminal", "-geometry", "70x12+0+0", "-T", "Terminal")
    desktop.launch("editor", f"{OUT}/note.txt")
    window(desktop, "note.txt")
    type_into(desktop, "Terminal", f"python3 ~/Shared/form.py {OUT}/orders &\n")
    form = window(desktop, "Order form")

    for number in range(1, ROUNDS + 1):
        type_into(desktop, "Order form", f"{name}\t{number}")
        desktop.click(form["x"] + 180, form["y"] + 170)  # the button
        type_into(desktop, "note.txt", f"{name} ordered {number}\n")
        type_into(desktop, "Terminal", f"echo {name} {number} >>{OUT}/log\n")

    desktop.focus(window(desktop, "note.txt")["id"])
    desktop.key("ctrl+s")
    desktop.key("ctrl+a")
    desktop.key("ctrl+c")
    note = "".join(f"{name} ordered {number}\n" for number in range(1, ROUNDS + 1))
    orders = "".join(f"{name} {number}\n" for number in range(1, ROUNDS + 1))
    until("the clipboard", lambda: desktop.clipboard_get() == note)
    until("the note", lambda: content(desktop, "note.txt") == note)
    until("the orders", lambda: content(desktop, "orders") == orders)
    type_into(desktop, "Terminal", f"cd {OUT} && cat orders log note.txt >all\n")
    until("all of it", lambda: content(desktop, "all") == orders + orders + note)
