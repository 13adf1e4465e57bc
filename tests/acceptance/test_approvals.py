"""A person's answer, from the question to the key on a real screen, across a controller that is killed in between."""

import asyncio

import pytest

from cu_fleet.client import Desktop
from tests.acceptance.home import Home, home, serving
from tests.support import run, until

WRITE = [{"type": "type", "text": "echo agreed > ~/agreed\n"}]


@pytest.mark.real
def test_an_agreed_action_reaches_the_screen_once_though_the_controller_is_killed() -> None:
    async def body(one: Home) -> None:
        controller = one.up()
        await serving(one)
        async with one.client() as agent:
            desktop = await agent.acquire(agent="a", profile="local", wait=30, ttl="60s")
            await desktop.launch("terminal")
            await until(lambda: _terminal(desktop))
            asked = await desktop.ask_approval(WRITE, "this writes a file", within="1h")
            waiting = asyncio.create_task(desktop.approval(asked.approval), name="test: wait")
            await asyncio.to_thread(one.kill, controller)
            controller = one.up()
            await serving(one)
            listed = (await asyncio.to_thread(one.cli, "approval", "list"))["approvals"]
            assert [x["approval"] for x in listed] == [asked.approval]
            assert (await agent.show(desktop.id)).approvals == (asked.approval,)
            picture = await agent.frame(asked.frame or "")
            assert picture.startswith(b"\x89PNG")
            early = await asyncio.to_thread(one.run, *act(desktop, asked.approval))
            assert early.returncode == 3
            await asyncio.to_thread(one.cli, "approval", "approve", asked.approval, "--reason", "fine")
            assert ((await waiting).state, (await waiting).answer) == ("approved", "fine")
            await asyncio.to_thread(one.kill, controller)
            controller = one.up()
            await serving(one)
            await desktop.act(WRITE, approval=asked.approval)
            await until(lambda: _agreed(one, desktop))
            again = await asyncio.to_thread(one.cli, *act(desktop, asked.approval), exit_code=3)
            assert again["error"] == "approval_used"
            other = await desktop.ask_approval(WRITE, "once more")
            await agent.take(desktop.id)
            assert (await desktop.approval(other.approval)).state == "void"
            assert await agent.verify_audit() > 0
            await agent.shutdown()
        await asyncio.to_thread(controller.wait, 30)

    with home() as one:
        run(body(one), timeout=120)


def act(desktop: Desktop, approval: str) -> list[str]:
    return ["act", desktop.id, '{"type": "type", "text": "echo agreed > ~/agreed\\n"}', "--approval", approval]


async def _terminal(desktop: Desktop) -> bool:
    return any(window["focused"] and "term" in window["class"].lower() for window in await desktop.windows())


async def _agreed(one: Home, desktop: Desktop) -> bool:
    async with one.client() as fleet:
        told = await fleet.run(desktop.id, ["sh", "-c", "cat /home/agent/agreed || true"])
    return told.stdout == b"agreed\n"
