"""What an agent waits for after an action is that action's effect, not what happened before."""

from pathlib import Path

import pytest

from cu_fleet.controller.acting import waited_for
from cu_fleet.model.action import parse_actions
from tests.controller.fleet import Fleet, running
from tests.support import run

LIFT = {"type": "key_up", "key": "a"}  # the memory backend's screen shows nothing of it
PRESS = {"type": "key", "keys": "a"}
CHANGE = {"type": "wait_change", "timeout_ms": 300}


async def _codes(fleet: Fleet, lease: str, *actions: dict[str, object]) -> list[str | None]:
    who = await fleet.controller.caller(fleet.lease_token(lease))
    acted = await fleet.controller.act(who, lease, parse_actions(list(actions)))
    return [done.code for done in acted.done]


def test_a_change_before_the_action_is_not_its_effect(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            lease = await fleet.granted("a")
            desktop = fleet.backend.desktop(lease.desktop or "")
            desktop.screen.fill(0, 0, 40, 40, (1, 2, 3))
            assert await _codes(fleet, lease.lease, LIFT, CHANGE) == [None, "no_change"]
            assert await _codes(fleet, lease.lease, PRESS, CHANGE) == [None, None]

    run(body())


@pytest.mark.parametrize(
    ("actions", "marked"),
    [
        ([PRESS, CHANGE], [0]),
        ([PRESS, PRESS, {"type": "wait", "seconds": 0.1}, CHANGE, PRESS], [1]),
        ([CHANGE, PRESS], []),
        ([PRESS, {"type": "wait_stable"}, PRESS], []),
    ],
)
def test_only_an_action_whose_effect_is_waited_for_costs_a_look(
    actions: list[dict[str, object]], marked: list[int]
) -> None:
    parsed = parse_actions(actions)
    assert [number for number in range(len(parsed)) if waited_for(parsed, number)] == marked
