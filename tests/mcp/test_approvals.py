"""An agent asks a person over MCP, waits for the answer, and acts with it."""

import asyncio
from pathlib import Path
from typing import Any

from mcp.client import Client

from cu_fleet.model.view import ApprovalView
from tests.api.door import Door
from tests.controller.fleet import ANA
from tests.mcp.house import client, failed, house, text
from tests.support import run, until

KEYS = [{"type": "key", "keys": "ctrl+s"}, {"type": "type", "text": "pin"}]


async def ask(session: Client, **more: Any) -> Any:
    given = {"actions": KEYS, "intent": "this pays the bill", "seconds": 0, **more}
    return await session.call_tool("approval_wait", given)


async def question(door: Door) -> ApprovalView:
    found: list[ApprovalView] = await until(lambda: door.fleet.controller.approvals(ANA))
    return found[0]


def keys(door: Door) -> list[object]:
    (desktop,) = door.fleet.world.desktops.values()
    return [event for event in desktop.events if event[0] == "key"]


def test_an_agent_asks_waits_and_acts_with_the_answer(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            lease = await door.fleet.granted("a")
            async with client(door, door.fleet.lease_token(lease.lease)) as session:
                first = await ask(session)
                asked = await question(door)
                assert (asked.reason, asked.asked_by, asked.lease) == ("this pays the bill", "agent a", lease.lease)
                assert not first.is_error
                assert f"Call approval_wait with approval {asked.approval} again" in text(first)
                early = await session.call_tool("act", {"actions": KEYS, "approval": asked.approval})
                assert f"Call approval_wait with approval {asked.approval}." in failed(early, "approval_waiting")
                call = session.call_tool("approval_wait", {"approval": asked.approval, "seconds": 45})
                waiting = asyncio.create_task(call, name="test: wait")
                await door.fleet.controller.answer(ANA, asked.approval, approve=True, reason="as agreed")
                yes = text(await waiting)
                assert yes.startswith(
                    "operator ana said yes: as agreed. Now call act, once, with the very same actions"
                )
                other = await session.call_tool("act", {"actions": KEYS[:1], "approval": asked.approval})
                assert "asked for other actions" in failed(other, "other_actions")
                assert not keys(door)
                done = await session.call_tool("act", {"actions": KEYS, "approval": asked.approval, "picture": False})
                assert text(done) == "2 actions done."
                assert keys(door)
                again = await session.call_tool("act", {"actions": KEYS, "approval": asked.approval})
                assert "used already" in failed(again, "approval_used")
                used = await session.call_tool("approval_wait", {"approval": asked.approval})
                assert "it was used already" in text(used)

    run(body())


def test_a_no_and_an_end_are_told(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            lease = await door.fleet.granted("a")
            async with client(door, door.fleet.lease_token(lease.lease)) as session:
                await ask(session)
                asked = await question(door)
                await door.fleet.controller.answer(ANA, asked.approval, approve=False, reason="not today")
                told = text(await session.call_tool("approval_wait", {"approval": asked.approval}))
                assert told == "operator ana said no: not today. Do not try it another way; ask what to do instead."
                act = await session.call_tool("act", {"actions": KEYS, "approval": asked.approval})
                assert "was denied by operator ana: not today" in failed(act, "approval_denied")
                await ask(session)
                late = await question(door)
                await door.fleet.controller.revoke(ANA, lease.lease, reason="enough")
                told = text(await session.call_tool("approval_wait", {"approval": late.approval}))
                assert "allows nothing: void: the lease was revoked: enough" in told
                assert not keys(door)

    run(body())


def test_what_is_asked_wrongly_asks_nobody(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            lease, other = await door.fleet.granted("a"), await door.fleet.granted("b")
            async with client(door, door.fleet.lease_token(lease.lease)) as session:
                for given, words in (
                    ({}, "give an approval to wait for, or actions"),
                    ({"approval": "ap_1", "actions": KEYS}, "give an approval to wait for, or actions"),
                    ({"actions": KEYS}, "a person reads it"),
                    ({"actions": KEYS, "intent": "x", "seconds": 60}, "less than or equal to 45"),
                ):
                    assert words in failed(await session.call_tool("approval_wait", given), "bad_argument")
                off = await ask(session, actions=[{"type": "click", "x": 9000, "y": 1}])
                assert "is off the view" in failed(off, "off_screen")
                failed(await session.call_tool("approval_wait", {"approval": "ap_0000000000"}), "no_approval")
                assert await door.fleet.controller.approvals(ANA) == []
            async with client(door, door.fleet.lease_token(other.lease)) as session:
                await ask(session)
            theirs = await question(door)
            async with client(door, door.fleet.lease_token(lease.lease)) as session:
                failed(await session.call_tool("approval_wait", {"approval": theirs.approval}), "not_yours")

    run(body())
