"""The vendors' tools in blocking form: the same answers, and a person who is asked holds up nobody else."""

from pathlib import Path
from typing import Any

import pytest

from cu_fleet.adapters import anthropic, openai, sync
from cu_fleet.model.errors import DeniedError
from tests.adapters.desk import picture
from tests.client.test_sync import connected

CHECK = {"id": "cu_sc_1", "code": "sensitive_domain", "message": "This looks like a bank."}


def call(*actions: dict[str, Any], checks: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {"type": "computer_call", "call_id": "c1", "actions": [*actions], "pending_safety_checks": [*checks]}


def test_openais_calls_are_done_and_a_person_is_asked_while_all_else_goes_on(tmp_path: Path) -> None:
    with connected(tmp_path) as (_, fleet), fleet.lease(agent="a", profile="local") as desktop:
        asked: list[str] = []

        def confirm(checks: Any, _: Any) -> bool:
            asked.append(f"{checks[0]['code']} {desktop.refresh().state}")  # a call of its own, meanwhile
            return len(asked) > 1

        computer = sync.OpenAI(desktop, confirm=confirm)
        assert computer.tool == openai.Computer(desktop.inner).tool
        (output,) = computer.answers(iter([call({"type": "click", "button": "left", "x": 9, "y": 5})]))
        assert picture(output["output"]["image_url"].partition(",")[2]).size == (200, 120)
        with pytest.raises(DeniedError, match="looks like a bank"):
            computer.answer(call({"type": "type", "text": "pin"}, checks=(CHECK,)))
        (output,) = computer.answer(call({"type": "type", "text": "pin"}, checks=(CHECK,)))
        assert output["acknowledged_safety_checks"] == [CHECK]
        assert asked == ["sensitive_domain active"] * 2
        assert computer.display.pointer == (9, 5)


def test_anthropics_tool_uses_are_done(tmp_path: Path) -> None:
    with connected(tmp_path) as (_, fleet), fleet.lease(agent="a", profile="local") as desktop:
        computer = sync.Anthropic(desktop, (100, 60), kind="computer_20250124")
        own = anthropic.Computer(desktop.inner, (100, 60), kind="computer_20250124")
        assert (computer.tool, computer.beta) == (own.tool, own.beta)
        uses = [{"action": "left_click", "coordinate": [5, 5]}, {"action": "cursor_position"}, {"action": "nonsense"}]
        blocks = [{"type": "tool_use", "id": str(n), "name": "computer", "input": x} for n, x in enumerate(uses)]
        clicked, where, wrong = computer.answers(blocks)
        assert picture(clicked["content"][0]["source"]["data"]).size == (100, 60)
        assert where["content"][0]["text"].startswith("X=5,Y=5")
        assert (wrong["is_error"], computer.display.pointer) == (True, (5, 5))
