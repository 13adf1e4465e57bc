"""OpenAI's calls on a desktop of the fake backend: what reaches the screen, and what is sent back."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cu_fleet.adapters.openai import WAIT, Computer
from cu_fleet.model.errors import DeniedError, InvalidError, LeaseOverError, UnavailableError
from cu_fleet.model.keys import keysym
from tests.adapters.desk import WIDE, Desk, both, desk, picture
from tests.controller.fleet import ANA
from tests.support import run, until

CHECK = {"id": "cu_sc_1", "code": "malicious_instructions", "message": "The screen asks for a password."}


def call(*actions: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "type": "computer_call",
        "id": "cu_1",
        "call_id": "call_1",
        "actions": [*actions],
        "pending_safety_checks": [],
        "status": "completed",
        **more,
    }


def error_of(items: list[dict[str, Any]]) -> str:
    assert items[0]["type"] == "computer_call_output"
    assert items[1]["role"] == "developer"
    return str(items[1]["content"][0]["text"])


def shown(items: list[dict[str, Any]]) -> Any:
    (item,) = items
    kind, _, data = item["output"]["image_url"].partition(";base64,")
    assert kind == "data:image/png"
    return picture(data)


def test_a_batch_is_done_in_order_and_answered_with_the_picture(tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path) as d:
            items = await Computer(d.desktop).answer(
                call(
                    {"type": "screenshot"},
                    {"type": "move", "x": 5, "y": 6, "keys": None},
                    {"type": "click", "button": "wheel", "x": 50, "y": 60},
                    {"type": "double_click", "x": 90, "y": 70},
                    {"type": "type", "text": "ok"},
                    {"type": "keypress", "keys": ["CTRL", "S"]},
                )
            )
            assert (items[0]["call_id"], set(items[0])) == ("call_1", {"type", "call_id", "output"})
            assert shown(items).getpixel((50, 60)) != shown(items).getpixel((55, 69)), "the click is on the picture"
            assert d.pointer()[0] == (5, 6, 0)
            assert d.pressed() == [(50, 60, 2), (90, 70, 1), (90, 70, 1)]
            assert d.struck() == [*both("o"), *both("k"), *both("ctrl", "s")]

    run(body())


def test_the_preview_has_one_action_a_call(tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path) as d:
            computer = Computer(d.desktop, kind="computer_use_preview")
            assert computer.tool == {
                "type": "computer_use_preview",
                "display_width": 200,
                "display_height": 120,
                "environment": "linux",
            }
            assert Computer(d.desktop).tool == {"type": "computer"}
            action = {"type": "click", "button": "right", "x": 7, "y": 8}
            assert shown(await computer.answer({**call(action=action), "actions": None})).size == (200, 120)
            assert d.pressed() == [(7, 8, 4)]

    run(body())


PRESSES: list[tuple[list[str], list[tuple[int, bool]]]] = [
    (["ENTER"], both("enter")),
    (["CTRL", "SHIFT", "T"], both("ctrl", "shift", "T")),
    (["CTRL", "+"], both("ctrl", "+")),
    (["ctrl+c"], both("ctrl", "c")),
    (["TAB", "TAB"], both("tab") * 2),
    (["CTRL", "K", "CTRL", "S"], both("ctrl", "k") + both("ctrl", "s")),
    (["CMD"], both("super")),
    (["ARROWLEFT"], both("Left")),
]


def test_keys_are_pressed_as_named(tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path) as d:
            for keys, pressed in PRESSES:
                d.screen.events.clear()
                shown(await Computer(d.desktop).answer(call({"type": "keypress", "keys": keys})))
                assert d.struck() == pressed

    run(body())


def test_keys_are_held_while_the_mouse_acts_and_lifted_after(tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path) as d:
            for action in (
                {"type": "click", "button": "left", "x": 5, "y": 5, "keys": ["SHIFT", "CTRL", "CONTROL"]},
                {"type": "drag", "path": [{"x": 1, "y": 1}, {"x": 40, "y": 50}], "keys": ["SPACE"]},
                {"type": "move", "x": 9, "y": 9, "keys": ["ALT"]},
            ):
                d.screen.events.clear()
                shown(await Computer(d.desktop).answer(call(action)))
                kinds = [event[0] for event in d.screen.events]
                held = [keysym(name) for name in dict.fromkeys(action["keys"]) if name != "CONTROL"]  # type: ignore[attr-defined]
                assert [key for key, down in d.struck() if down] == held
                assert not d.down()
                assert kinds[0] == kinds[-1] == "key"
                assert "pointer" in kinds

    run(body())


def test_pixels_of_a_page_become_notches(tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path) as d:
            for (across, down), bits in (
                ((0, 300), [16] * 3),
                ((0, -40), [8]),
                ((250, 0), [64] * 2),
                ((-100, 0), [32]),
                ((0, 0), []),
            ):
                d.screen.events.clear()
                scroll = {"type": "scroll", "x": 50, "y": 50, "scroll_x": across, "scroll_y": down}
                shown(await Computer(d.desktop).answer(call(scroll)))
                assert [buttons for _, _, buttons in d.pointer() if buttons] == bits

    run(body())


def test_the_declared_size_is_scaled_to_the_view_and_back(tmp_path: Path) -> None:
    """The screen has 400x240, the view half of that, and the display is declared as neither, with another shape."""

    async def body() -> None:
        async with desk(tmp_path, **WIDE) as d:
            computer = Computer(d.desktop, (100, 100))
            click = {"type": "click", "button": "left", "x": 99, "y": 50}
            scroll = {"type": "scroll", "x": 0, "y": 0, "scroll_x": 0, "scroll_y": 100}
            assert shown(await computer.answer(call(click, scroll))).size == (100, 100)
            (x, y, button), *wheel = d.pressed()
            assert button == 1
            assert abs(x - 398) <= 1  # type: ignore[operator]
            assert abs(y - 121) <= 1  # type: ignore[operator]
            assert len(wheel) == 2, "100 pixels of this display are 240 of the screen"
            assert computer.display.pointer == (0, 0)

    run(body())


def test_what_is_off_the_display_or_unknown_sends_nothing_and_says_so(tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path) as d:
            computer = Computer(d.desktop, (100, 60))
            good = {"type": "type", "text": "a"}
            for wrong, word in (
                ({"type": "click", "button": "left", "x": 100, "y": 0}, "off the display, which is 100x60"),
                ({"type": "keypress", "keys": ["NOKEY"]}, "NOKEY"),
                ({"type": "drag", "path": [{"x": 1, "y": 1}]}, "path"),
            ):
                assert word in error_of(await computer.answer(call(good, wrong)))
            assert not d.screen.events
            with pytest.raises(InvalidError, match="levitate"):
                await computer.answer(call({"type": "levitate"}))
            with pytest.raises(InvalidError, match="incomplete"):
                await computer.answer(call(good, status="incomplete"))
            assert not d.screen.events

    run(body())


def test_a_failed_action_ends_the_batch_and_is_told_with_the_picture(tmp_path: Path) -> None:
    """Nobody on the fake desktop takes what is pasted, as characters that no key has must be."""

    async def body() -> None:
        async with desk(tmp_path) as d:
            texts = [{"type": "type", "text": text} for text in ("a", "日", "never")]
            said = error_of(await Computer(d.desktop).answer(call(*texts)))
            assert "type was not done" in said
            assert "what comes after it was not" in said
            struck = {key for key, _ in d.struck()}
            assert keysym("a") in struck
            assert keysym("n") not in struck

    run(body())


# safety checks


def test_safety_checks_are_closed_without_a_person(tmp_path: Path) -> None:
    async def body() -> None:
        async def truthy(*_: Any) -> Any:
            return "no"

        def no(*_: Any) -> bool:
            return False

        async with desk(tmp_path) as d:
            asked = call({"type": "type", "text": "a"}, pending_safety_checks=[CHECK])
            for confirm in (truthy, no):
                with pytest.raises(DeniedError, match="asks for a password") as caught:
                    await Computer(d.desktop, confirm=confirm).answer(asked)
                assert (caught.value.code, caught.value.facts["checks"]) == ("safety_check", [CHECK])
            assert not d.screen.events

    run(body())


def test_what_a_person_confirms_is_done_acknowledged_and_on_record(tmp_path: Path) -> None:
    async def body() -> None:
        heard: list[Any] = []

        async def yes(checks: list[Any], asked: Any) -> bool:
            heard.append((checks, asked["actions"]))
            return True

        async with desk(tmp_path) as d:
            action = {"type": "type", "text": "a"}
            computer = Computer(d.desktop, confirm=yes)
            (item,) = await computer.answers([{"type": "reasoning"}, call(action, pending_safety_checks=[CHECK])])
            assert item["acknowledged_safety_checks"] == [CHECK]
            assert heard == [([CHECK], [action])]
            assert d.struck() == both("a")
            assert await _intents(d) == {"confirmed: malicious_instructions"}

    run(body())


async def waiting(d: Desk) -> Any:
    """The question that has reached the operator."""
    found = await until(lambda: d.door.fleet.controller.approvals(ANA))
    return found[0]


def test_by_default_the_operator_is_asked_and_a_yes_does_it(tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path, **WIDE) as d:
            computer = Computer(d.desktop, (100, 60))
            click = {"type": "click", "button": "left", "x": 50, "y": 30}
            asked = call(click, {"type": "type", "text": "a"}, pending_safety_checks=[{**CHECK, "more": None}])
            answering = asyncio.create_task(computer.answer(asked), name="test: answer")
            question = await waiting(d)
            assert [check.model_dump() for check in question.checks] == [CHECK]
            assert [action["type"] for action in question.actions] == ["click", "type"]
            assert (question.actions[1]["text"], bool(question.frame)) == ("a", True)
            assert not d.struck()
            await d.door.fleet.controller.answer(ANA, question.approval, approve=True)
            (item,) = await answering
            assert item["acknowledged_safety_checks"][0]["id"] == CHECK["id"]
            assert d.struck() == both("a")
            (x, y, _) = d.pressed()[0]
            assert (question.actions[0]["x"], question.actions[0]["y"]) == (x, y), "what was shown is what was done"
            assert (await d.door.fleet.controller.approval(ANA, question.approval)).state == "used"
            assert await _intents(d) == {"confirmed: malicious_instructions"}

    run(body())


def test_without_the_operators_yes_nothing_is_done(tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path) as d:
            controller = d.door.fleet.controller
            asked = call({"type": "type", "text": "a"}, pending_safety_checks=[CHECK])
            for end, words in (("deny", "operator ana said no: not there"), ("late", "nobody answered in time")):
                answering = asyncio.create_task(Computer(d.desktop).answer(asked), name="test: answer")
                question = await waiting(d)
                if end == "deny":
                    await controller.answer(ANA, question.approval, approve=False, reason="not there")
                else:
                    await d.door.fleet.clock.advance(601)
                with pytest.raises(DeniedError, match=words) as caught:
                    await answering
                assert (caught.value.code, caught.value.facts["approval"]) == ("safety_check", question.approval)
            answering = asyncio.create_task(Computer(d.desktop).answer(asked), name="test: answer")
            await waiting(d)
            await controller.take(ANA, d.desktop.id, reason="let me")
            with pytest.raises(DeniedError, match="the question is void: a person has taken over"):
                await answering
            assert "taken over by operator ana: let me" in error_of(await Computer(d.desktop).answer(asked))
            await controller.resume(ANA, d.desktop.id)
            off = call({"type": "move", "x": 5000, "y": 1}, pending_safety_checks=[CHECK])
            assert "nothing was done" in error_of(await Computer(d.desktop).answer(off)), "nobody is asked about that"
            assert await controller.approvals(ANA) == []
            answering = asyncio.create_task(Computer(d.desktop).answer(asked), name="test: answer")
            await waiting(d)
            assert not d.struck()
            await controller.revoke(ANA, d.desktop.id, reason="enough")
            with pytest.raises(LeaseOverError, match="enough"):
                await answering

    run(body())


async def _intents(d: Desk) -> set[str]:
    entries = await d.door.fleet.controller.audit(ANA, lease=d.desktop.id)
    return {entry.intent for entry in entries if entry.intent}


# the lease


def test_wait_takes_its_time_on_the_desktop() -> None:
    steps = Computer.steps(object.__new__(Computer), {"type": "wait"})
    assert steps == [{"type": "wait", "seconds": WAIT}]


def test_that_the_lease_is_over_ends_the_loop(tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path) as d:
            computer = Computer(d.desktop)
            await d.door.fleet.controller.revoke(ANA, d.desktop.id, reason="enough")
            with pytest.raises(LeaseOverError, match="enough"):
                await computer.answer(call({"type": "type", "text": "a"}))

    run(body())


def test_that_it_is_paused_is_told_with_the_picture(tmp_path: Path) -> None:
    async def body() -> None:
        async with desk(tmp_path) as d:
            await d.door.fleet.controller.pause(ANA, d.desktop.id, reason="let me look")
            said = error_of(await Computer(d.desktop).answer(call({"type": "type", "text": "a"})))
            assert "let me look" in said
            assert "nothing was done" in said
            assert not d.screen.events

    run(body())


def test_a_blank_screen_is_shown_as_it_is(tmp_path: Path) -> None:
    """Of others a blank screen is refused; this API can be answered with a picture only."""

    async def body() -> None:
        async with desk(tmp_path) as d:
            d.screen.fill(0, 0, 200, 120, (1, 2, 3))
            image = shown(await Computer(d.desktop).answer(call({"type": "wait"})))
            assert image.convert("RGB").getcolors() == [(200 * 120, (1, 2, 3))]

    run(body())


def test_an_answer_that_was_lost_is_not_told_as_nothing_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with desk(tmp_path) as d:

            async def lost(*_: Any, **__: Any) -> Any:
                raise UnavailableError("the controller broke off", code="broken_off")

            monkeypatch.setattr(d.desktop, "act", lost)
            said = error_of(await Computer(d.desktop).answer(call({"type": "type", "text": "a"})))
            assert "not known what was done" in said

    run(body())
