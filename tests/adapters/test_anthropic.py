"""Anthropic's tool uses on a desktop of the fake backend: what reaches the screen, and what is sent back."""

from pathlib import Path
from typing import Any

import pytest

from cu_fleet.adapters.anthropic import Computer
from cu_fleet.model.errors import LeaseOverError
from cu_fleet.model.keys import keysym
from tests.adapters.desk import WIDE, both, desk, picture
from tests.controller.fleet import ANA
from tests.support import run


def use(action: str, **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{action}", "name": "computer", "input": {"action": action, **given}}


def failed(result: dict[str, Any]) -> str:
    assert result["is_error"] is True, result
    return str(result["content"][0]["text"])


def shown(result: dict[str, Any]) -> Any:
    assert "is_error" not in result, result
    (part,) = result["content"]
    assert (part["type"], part["source"]["type"], part["source"]["media_type"]) == ("image", "base64", "image/png")
    return picture(part["source"]["data"])


def said(result: dict[str, Any]) -> str:
    assert "is_error" not in result, result
    (part,) = result["content"]
    return str(part["text"])


CLICKS = {
    "left_click": [1],
    "right_click": [4],
    "middle_click": [2],
    "double_click": [1, 1],
    "triple_click": [1, 1, 1],
}


def test_each_click_there_and_where_the_pointer_is(tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path) as d:
            for action, buttons in CLICKS.items():
                computer = Computer(d.desktop)
                assert "not known" in failed(await computer.answer(use(action)))
                d.screen.events.clear()
                result = await computer.answer(use(action, coordinate=[50, 60]))
                assert (result["type"], result["tool_use_id"]) == ("tool_result", f"toolu_{action}")
                assert shown(result).size == (200, 120)
                assert d.pressed() == [(50, 60, button) for button in buttons]
                d.screen.events.clear()
                shown(await computer.answer(use("mouse_move", coordinate=[8, 9])))
                shown(await computer.answer(use(action, text="ctrl+shift")))
                assert d.pressed() == [(8, 9, button) for button in buttons]
                assert d.struck() == both("ctrl", "shift")

    run(body())


def test_the_button_is_held_and_let_go_where_the_pointer_is(tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path) as d:
            computer = Computer(d.desktop)
            for block in (
                use("mouse_move", coordinate=[10, 20]),
                use("left_mouse_down"),
                use("mouse_move", coordinate=[30, 40]),
                use("left_mouse_up"),
            ):
                shown(await computer.answer(block))
            assert next(event for event in d.pointer() if event[2]) == (10, 20, 1)
            assert (30, 40, 1) in d.pointer()
            assert d.pointer()[-1] == (30, 40, 0)

    run(body())


def test_a_drag_goes_from_its_start_with_keys_held(tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path) as d:
            computer = Computer(d.desktop)
            drag = use("left_click_drag", start_coordinate=[10, 20], coordinate=[90, 80], text="shift")
            shown(await computer.answer(drag))
            down = [event[:2] for event in d.pointer() if event[2]]
            assert (down[0], down[-1], d.struck()) == ((10, 20), (90, 80), both("shift"))
            assert "X=90,Y=80" in said(await computer.answer(use("cursor_position")))
            d.screen.events.clear()
            shown(await computer.answer(use("left_click_drag", coordinate=[100, 90])))
            assert d.pressed() == [(90, 80, 1)]

    run(body())


def test_scrolling_counts_notches(tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path) as d:
            for way, bit in (("up", 8), ("down", 16), ("left", 32), ("right", 64)):
                d.screen.events.clear()
                scroll = use("scroll", coordinate=[50, 60], scroll_direction=way, scroll_amount=3, text="ctrl")
                shown(await Computer(d.desktop).answer(scroll))
                assert [buttons for _, _, buttons in d.pointer() if buttons] == [bit] * 3
                assert d.struck() == both("ctrl")

    run(body())


PRESSES: list[tuple[dict[str, Any], list[tuple[int, bool]]]] = [
    ({"text": "ctrl+s"}, both("ctrl", "s")),
    ({"text": "Return"}, both("Return")),
    ({"text": "alt+Tab"}, both("alt", "Tab")),
    ({"text": "KP_0"}, both("KP_0")),
    ({"text": "Down Down ctrl+a"}, both("Down") * 2 + both("ctrl", "a")),
    ({"text": "Page Down"}, both("Page_Down")),
    ({"text": "Tab", "repeat": 3}, both("Tab") * 3),
]


def test_keys_are_xdotools(tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path) as d:
            for given, pressed in PRESSES:
                d.screen.events.clear()
                shown(await Computer(d.desktop).answer(use("key", **given)))
                assert d.struck() == pressed

    run(body())


def test_typing_holding_and_waiting(tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path) as d:
            computer = Computer(d.desktop)
            shown(await computer.answer(use("type", text="hi\n")))
            shown(await computer.answer(use("hold_key", text="shift+a", duration=0.05)))
            shown(await computer.answer(use("wait", duration=0.05)))
            assert d.struck() == [*both("h"), *both("i"), *both("Return"), *both("shift", "A")]

    run(body())


def test_long_times_come_in_pieces(tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path) as d:
            computer = Computer(d.desktop)
            pieces = [{"type": "wait", "seconds": seconds} for seconds in (60, 60, 30)]
            assert computer.steps("wait", {"duration": 150}) == pieces
            hold, up = {"type": "key_down", "key": "a"}, {"type": "key_up", "key": "a"}
            assert computer.steps("hold_key", {"text": "a", "duration": 150}) == [hold, *pieces, up]
            assert "300" in failed(await computer.answer(use("wait", duration=301)))

    run(body())


def test_zoom_shows_all_pixels_of_a_part_and_changes_no_coordinates(tmp_path: Path) -> None:
    """The screen has 400x240, and the display half of that."""

    async def body() -> None:
        async with desk(tmp_path, **WIDE) as d:
            computer = Computer(d.desktop)
            d.screen.fill(202, 100, 1, 20, (255, 0, 0))  # finer than the view can show
            whole = shown(await computer.answer(use("screenshot")))
            near = shown(await computer.answer(use("zoom", region=[100, 50, 150, 60])))
            assert (whole.size, near.size) == ((200, 120), (200, 40))
            red = {x // 2 for x in range(200) if near.getpixel((x, 20))[0] > 200 and near.getpixel((x, 20))[1] < 60}
            assert red == {2}, "two pixels of the picture are one of the screen"
            shown(await computer.answer(use("left_click", coordinate=[101, 50])))
            ((x, y, _),) = d.pressed()
            assert abs(x - 202) <= 1  # type: ignore[operator]
            assert abs(y - 101) <= 1  # type: ignore[operator]
            assert "not on the display" in failed(await computer.answer(use("zoom", region=[0, 0, 201, 60])))
            old = Computer(d.desktop, kind="computer_20250124")
            assert "no zoom" in failed(await old.answer(use("zoom", region=[0, 0, 20, 20])))

    run(body())


def test_the_declared_size_is_scaled_to_the_view_and_back(tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path, **WIDE) as d:
            computer = Computer(d.desktop, (1000, 600))
            assert shown(await computer.answer(use("left_click", coordinate=[999, 3]))).size == (1000, 600)
            ((x, y, _),) = d.pressed()
            assert abs(x - 398) <= 1  # type: ignore[operator]
            assert abs(y - 1) <= 1  # type: ignore[operator]
            assert said(await computer.answer(use("cursor_position"))).startswith("X=999,Y=3 ")
            assert shown(await computer.answer(use("screenshot"))).size == (1000, 600)
            assert shown(await computer.answer(use("zoom", region=[0, 0, 500, 300]))).size == (1000, 600)

    run(body())


def test_the_tools_are_declared_as_the_api_wants_them(tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path) as d:
            size = {"name": "computer", "display_width_px": 200, "display_height_px": 120}
            new, old = Computer(d.desktop), Computer(d.desktop, kind="computer_20250124")
            assert new.tool == {"type": "computer_20251124", **size, "enable_zoom": True}
            assert old.tool == {"type": "computer_20250124", **size}
            assert (new.beta, old.beta) == ("computer-use-2025-11-24", "computer-use-2025-01-24")

    run(body())


def test_the_toolset_names_the_action_by_the_tool(tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path) as d:
            computer = Computer(d.desktop, kind="computer_toolset_20260801")
            assert (computer.tool, computer.beta) == ({"type": "computer_toolset_20260801"}, None)
            block = {"type": "tool_use", "id": "t1", "name": "key", "toolset_name": "computer", "input": {"text": "a"}}
            (result,) = await computer.answers([{"type": "text", "text": "so"}, block])
            assert (result["toolset_name"], shown(result).size, d.struck()) == ("computer", (200, 120), both("a"))

    run(body())


WRONG: list[tuple[dict[str, Any], str]] = [
    (use("levitate"), "no action 'levitate'"),
    (use("left_click", coordinate=[200, 0]), "off the display, which is 200x120"),
    (use("left_click", coordinate=[1, 2, 3]), "coordinate"),
    (use("left_click", coordinate=[1, 2], text="hyperdrive"), "no key 'hyperdrive'"),
    (use("key"), "key needs text"),
    (use("key", text="nokey"), "no key 'nokey'"),
    (use("scroll", coordinate=[1, 2], scroll_direction="sideways", scroll_amount=1), "scroll_direction"),
    (use("scroll", coordinate=[1, 2], scroll_direction="up"), "scroll needs scroll_amount"),
    (use("mouse_move"), "mouse_move needs coordinate"),
    (use("zoom"), "zoom needs region"),
    (use("cursor_position"), "not known"),
    ({"type": "tool_use", "id": "t", "name": "computer", "input": None}, "no action ''"),
]


def test_what_is_wrong_sends_nothing_and_says_what(tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path) as d:
            for block, words in WRONG:
                assert words in failed(await Computer(d.desktop).answer(block))
            assert not d.screen.events

    run(body())


def test_what_follows_a_failure_in_one_message_is_not_done(tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path) as d:
            blocks = [
                use("type", text="a"),
                {"type": "tool_use", "id": "other", "name": "bash", "input": {}},
                use("left_click", coordinate=[900, 0]),
                use("type", text="secret"),
                use("screenshot"),
            ]
            first, second, third, last = await Computer(d.desktop).answers(blocks)
            assert shown(first).size == shown(last).size == (200, 120)
            assert "off the display" in failed(second)
            assert "what came before it failed" in failed(third)
            assert d.struck() == both("a")

    run(body())


def test_keys_held_for_what_fails_go_up(tmp_path: Path) -> None:
    """Nobody on the fake desktop takes what is pasted, as characters that no key has must be."""

    async def body() -> None:
        async with desk(tmp_path) as d:
            down, up = {"type": "key_down", "key": "space"}, {"type": "key_up", "key": "space"}
            shown = await Computer(d.desktop).display.act([down, {"type": "type", "text": "日"}, up])
            assert "type was not done" in shown.error
            assert shown.image
            assert (keysym("space"), True) in d.struck()
            assert not d.down()

    run(body())


def test_a_pause_is_told_and_the_end_of_the_lease_raised(tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path) as d:
            computer, controller = Computer(d.desktop), d.door.fleet.controller
            await controller.pause(ANA, d.desktop.id, reason="let me look", looking=False)
            assert "let me look" in failed(await computer.answer(use("screenshot")))
            computer.display.pointer = (1, 2)
            result = await computer.answer(use("type", text="a"))
            assert "let me look" in failed(result)
            assert "no picture" in result["content"][1]["text"]
            assert "not known" in failed(await computer.answer(use("cursor_position"))), "a person may be at it"
            await controller.revoke(ANA, d.desktop.id, reason="enough")
            with pytest.raises(LeaseOverError, match="enough"):
                await computer.answer(use("screenshot"))

    run(body())
