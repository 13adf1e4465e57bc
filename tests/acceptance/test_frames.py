"""What is seen of a real desktop through the real command line: view, zoom, settled, unchanged, blank, kept."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from cu_fleet.model.errors import FleetError
from tests.acceptance.eyes import events, inside, sink, terminal
from tests.acceptance.home import Home, home
from tests.support import run, until

SEEN = """
backend: local
screen: {width: 640, height: 480, view: 320}
frames: actions
gates: none
launch:
  terminal: {command: [xterm, -fa, "DejaVu Sans Mono", -fs, "10"]}
"""
BLANK = """
from Xlib import X, display
d = display.Display()
root = d.screen().root
window = root.create_window(0, 0, 2000, 2000, 0, d.screen().root_depth, override_redirect=True,
                            background_pixel=0x102030, event_mask=X.ExposureMask)
window.map()
while d.next_event().type != X.Expose: pass
print("blank", flush=True)
while True: d.next_event()
"""


@pytest.mark.real
@pytest.mark.slow
def test_what_an_agent_sees_and_where_its_clicks_go(tmp_path: Path) -> None:
    with home() as one:
        one.write_profile("seen", SEEN)
        view = one.cli("lease", "acquire", "--agent", "a", "--profile", "seen")
        assert (view["width"], view["height"], view["scale"]) == (320, 240, 0.5)
        lease = view["lease"]
        _write_something(one, lease)
        whole = look(one, lease, tmp_path / "whole.png")
        assert seen(tmp_path / "whole.png").size == (320, 240)
        _zoom_and_act(one, lease, tmp_path)
        _unchanged(one, lease, tmp_path)
        _kept(one, lease, tmp_path)
        _blank(one, lease, tmp_path)
        refused = one.cli("act", lease, "--frame", whole["frame"], '{"type": "move", "x": 320, "y": 0}', exit_code=2)
        assert refused["error"] == "off_screen"
        stranger = one.cli("lease", "acquire", "--agent", "b", "--profile", "seen")["lease"]
        refused = one.cli("act", stranger, "--frame", whole["frame"], '{"type": "move", "x": 1, "y": 0}', exit_code=3)
        assert refused["error"] == "other_lease"
        assert one.cli("audit", "verify")["ok"] is True


def look(one: Home, lease: str, file: Path, *options: str, exit_code: int = 0) -> dict[str, Any]:
    return dict(one.cli("screenshot", lease, "-o", str(file), *options, exit_code=exit_code))


def seen(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


def _write_something(one: Home, lease: str) -> None:
    async def body() -> None:
        async with one.client() as fleet:
            desktop = await fleet.open(lease)
            await terminal(desktop)
            await desktop.type("clear; echo hello; tput civis\n")
            await desktop.wait_stable()

    run(body(), timeout=60)


def _zoom_and_act(one: Home, lease: str, out: Path) -> None:
    """A part with all its pixels; a point in it is that point of the screen, and the pointer is drawn there."""
    zoom = look(one, lease, out / "zoom.png", "--region", "0,0,100,50", "--max-edge", "1000")
    plain = seen(out / "zoom.png")
    assert plain.size == (zoom["width"], zoom["height"]) == (200, 100)
    assert zoom["scale"] == 1.0
    move = json.dumps({"type": "move", "x": 150, "y": 60})
    one.cli("act", lease, "--frame", zoom["frame"], move)
    again = ["--region", "0,0,200,100", "--frame", zoom["frame"], "--max-edge", "1000"]
    look(one, lease, out / "pointer.png", *again, "--pointer")
    drawn = ImageChops.difference(plain, seen(out / "pointer.png")).getbbox()
    assert drawn
    assert drawn[0] - 1 <= 150 <= drawn[2] + 1
    assert drawn[1] - 1 <= 60 <= drawn[3] + 1
    look(one, lease, out / "without.png", *again)
    assert ImageChops.difference(plain, seen(out / "without.png")).getbbox() is None


def _unchanged(one: Home, lease: str, out: Path) -> None:
    first = look(one, lease, out / "first.png")
    same = look(one, lease, out / "none.png", "--if-changed-since", first["frame"])
    assert (same["unchanged"], same["file"], same["frame"]) == (True, None, first["frame"])
    assert not (out / "none.png").exists()
    after = out / "after.png"
    key = json.dumps([{"type": "type", "text": "echo more\n"}])
    done = one.cli("act", lease, key, "--screenshot", str(after), "--if-changed-since", first["frame"])
    assert done["screenshot"]["settled"] is True
    assert not done["screenshot"]["unchanged"]
    assert hashlib.sha256(after.read_bytes()).hexdigest() == done["screenshot"]["sha256"]
    now = look(one, lease, out / "now.png", "--if-changed-since", done["screenshot"]["frame"])
    assert now["unchanged"], "it had settled"


def _kept(one: Home, lease: str, out: Path) -> None:
    """Each action names the whole screen before and after it, and the pictures can be had."""
    one.cli("act", lease, json.dumps({"type": "move", "x": 200, "y": 20}))  # seen at once, as the pointer is ours
    entries = one.cli("audit", "show", "--lease", lease, "--what", "act.done")["entries"]
    before, after = entries[-1]["frames"]
    for sha256, name in ((before, "before"), (after, "after")):
        told = one.cli("frames", "get", sha256[:16], "-o", str(out / f"{name}.png"))
        assert told["sha256"] == sha256 == hashlib.sha256((out / f"{name}.png").read_bytes()).hexdigest()
        assert seen(out / f"{name}.png").size == (640, 480)
    kept = one.cli("frames", "list", "--lease", lease)["frames"]
    assert {before, after} <= {frame["sha256"] for frame in kept}
    pruned = one.cli("frames", "prune", "--lease", lease)
    assert (pruned["removed"], pruned["left"]) == (len(kept), 0)
    assert one.cli("frames", "get", before, "-o", str(out / "gone.png"), exit_code=5)["error"] == "no_kept_frame"


def _blank(one: Home, lease: str, out: Path) -> None:
    async def cover() -> None:
        async with one.client() as fleet:
            script = f"setsid -f /usr/bin/python3 -I -c '{BLANK}' </dev/null >/tmp/blank 2>&1; true"
            await inside(fleet, lease, script)

            async def covered() -> bool:
                return (await fleet.run(lease, ["grep", "-q", "blank", "/tmp/blank"])).exit_code == 0

            await until(covered)

    run(cover(), timeout=60)
    told = look(one, lease, out / "blank.png", exit_code=1)
    assert (told["error"], told["colour"]) == ("blank_screen", "#102030")
    done = one.cli("act", lease, '{"type": "move", "x": 1, "y": 1}', "--screenshot", str(out / "x.png"), exit_code=1)
    assert done["done"] == [{"ok": True}]
    assert done["not_shown"]["code"] == "blank_screen"
    assert look(one, lease, out / "blank.png", "--allow-blank")["width"] == 320


@pytest.mark.real
def test_a_screen_of_another_size_is_said_and_acted_on_again_when_it_is_set_back(house: Home) -> None:
    async def body() -> None:
        async with house.client() as fleet, fleet.lease(agent="a", profile="local") as desktop:
            before = await desktop.screenshot()
            await inside(fleet, desktop.id, "xrandr -s 1024x768")

            async def refused() -> FleetError | None:
                try:
                    await desktop.screenshot()
                except FleetError as e:
                    return e
                return None

            error = await until(refused)
            assert error.code == "wrong_size"
            assert "1024x768" in str(error)
            seen = await desktop.screenshot(allow_blank=True)
            assert seen.frame.size == (1024, 768)
            for frame, code in ((None, "wrong_size"), (before.frame.id, "other_geometry")):
                with pytest.raises(FleetError) as told:
                    await desktop.click(5, 5, frame=frame)
                assert told.value.code == code
            await desktop.move(1023, 767, frame=seen.frame.id)
            await inside(fleet, desktop.id, "xrandr -s 1280x800")
            await until(lambda: _right(desktop))
            await desktop.click(5, 5, frame=before.frame.id)

    run(body(), timeout=60)


async def _right(desktop: Any) -> bool:
    try:
        return (await desktop.screenshot()).size == (1280, 800)
    except FleetError:
        return False


@pytest.mark.real
def test_clicks_in_a_view_reach_the_very_pixel(house: Home) -> None:
    """What X delivered, for a view whose pixels do not divide the screen's."""

    async def body() -> None:
        async with house.client() as fleet, fleet.lease(agent="a", profile="small", view=300) as desktop:
            assert (desktop.lease.width, desktop.lease.height) == (300, 225)
            await sink(fleet, desktop.id)
            points = [(0, 0), (299, 224), (150, 112), (7, 201)]
            for x, y in points:
                await desktop.click(x, y)
                assert await _pointer(fleet, desktop.id) == ((2 * x + 1) * 640 // 600, (2 * y + 1) * 480 // 450)
            assert (await events(fleet, desktop.id, 1)).count("button 1") == len(points)

    run(body(), timeout=60)


async def _pointer(fleet: Any, lease: str) -> tuple[int, int]:
    ask = "from Xlib import display; p = display.Display().screen().root.query_pointer(); print(p.root_x, p.root_y)"
    x, y = (await inside(fleet, lease, f"/usr/bin/python3 -I -c '{ask}' | tail -1")).split()
    return int(x), int(y)
