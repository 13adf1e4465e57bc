"""`cu-fleet mcp` as clients start it: over real pipes, with all the ways in which it can end."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from tests.api.door import Door
from tests.cli.support import TOP
from tests.controller.fleet import ANA
from tests.mcp.house import NEW, OLD, house, images, text
from tests.support import run, until

pytestmark = pytest.mark.real  # processes of their own

SERVER = [sys.executable, "-m", "cu_fleet", "mcp", "--agent"]
HELLO = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}


def _environment(home: Path) -> dict[str, str]:
    return {"CU_FLEET_HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(TOP)}


@pytest.mark.parametrize("mode", [OLD, NEW])
def test_a_client_of_either_protocol_gets_a_desktop(tmp_path: Path, mode: str) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            own = StdioServerParameters(command=SERVER[0], args=[*SERVER[1:], "a"], env=_environment(tmp_path))
            async with Client(stdio_client(own), mode=mode) as session:
                assert "Your first call leases" in (session.instructions or "")
                assert "launch" in {tool.name for tool in (await session.list_tools()).tools}
                assert len(images(await session.call_tool("screenshot", {}))) == 1
                assert text(await session.call_tool("click", {"x": 7, "y": 8})) == "Done."
            (lease,) = await door.fleet.controller.leases(ANA, everything=True)
            assert (lease.agent, lease.state) == ("a", "released")

    run(body(), timeout=60)


class Server:
    """One that runs, spoken to by hand."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def ask(self, method: str, **params: Any) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        await self.process.stdin.drain()
        return json.loads(await self.process.stdout.readline())

    async def click(self) -> None:
        await self.ask("initialize", **HELLO)
        answer = await self.ask("tools/call", name="click", arguments={"x": 1, "y": 1})
        assert answer["result"]["content"][0]["text"] == "Done.", answer


@asynccontextmanager
async def server(home: Path, agent: str, *before: str) -> AsyncIterator[Server]:
    pipe = asyncio.subprocess.PIPE
    words = [*before, *SERVER, agent]
    process = await asyncio.create_subprocess_exec(
        *words, stdin=pipe, stdout=pipe, env=_environment(home), limit=1 << 22
    )
    try:
        yield Server(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _states(door: Door) -> dict[str, str]:
    return {x.agent: x.state for x in await door.fleet.controller.leases(ANA, everything=True)}


def test_every_end_gives_the_desktop_back(tmp_path: Path) -> None:
    """End of input; SIGTERM; SIGHUP; and the parent's death, while somebody else holds the pipe open."""

    async def body() -> None:
        async with (
            house(tmp_path, max_desktops=4) as door,
            server(tmp_path, "eof") as by_eof,
            server(tmp_path, "term") as by_term,
            server(tmp_path, "hup") as by_hup,
            server(tmp_path, "orphan", "sh", "-c", 'exec 3<&0; "$@" <&3 & wait', "sh") as orphan,
        ):
            await asyncio.gather(*(x.click() for x in (by_eof, by_term, by_hup, orphan)))
            assert set((await _states(door)).values()) == {"active"}
            assert by_eof.process.stdin
            by_eof.process.stdin.close()
            by_term.process.send_signal(signal.SIGTERM)
            by_hup.process.send_signal(signal.SIGHUP)
            orphan.process.kill()

            async def ended() -> bool:
                return set((await _states(door)).values()) == {"released"}

            await until(ended)
            assert [await x.process.wait() for x in (by_eof, by_term, by_hup)] == [0, 0, 0]

    run(body(), timeout=60)


def test_killed_outright_its_desktop_is_free_within_a_minute(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door, server(tmp_path, "killed") as one:
            await one.click()
            one.process.kill()
            await one.process.wait()
            await door.fleet.clock.advance(50)
            assert await _states(door) == {"killed": "active"}, "a lease does not end with a connection"
            await door.fleet.clock.advance(11)

            async def over() -> bool:
                return await _states(door) == {"killed": "expired"}

            await until(over)
            await door.fleet.settled()

    run(body(), timeout=60)


def test_rubbish_is_answered_and_does_not_end_it(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path), server(tmp_path, "a") as one:
            assert one.process.stdin
            assert one.process.stdout
            one.process.stdin.write(b'rubbish\n{"jsonrpc": "2.0"}\n\xff\xfe\n')
            await one.ask("initialize", **HELLO)
            answer = await one.ask("tools/call", name="nonsense", arguments={})
            while answer.get("id") != 1 or "content" not in answer.get("result", {}):
                answer = json.loads(await one.process.stdout.readline())
            assert "there is no tool" in answer["result"]["content"][0]["text"]

    run(body(), timeout=60)


def test_messages_from_a_file_are_answered_too(tmp_path: Path) -> None:
    messages = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
    ]
    asked, told = tmp_path / "asked", tmp_path / "told"
    asked.write_text("".join(json.dumps(message) + "\n" for message in messages))

    async def body() -> None:
        with asked.open("rb") as stdin, told.open("wb") as stdout:
            env = _environment(tmp_path / "nowhere")
            process = await asyncio.create_subprocess_exec(*SERVER, "a", stdin=stdin, stdout=stdout, env=env)
            assert await process.wait() == 0

    run(body(), timeout=60)
    assert json.loads(told.read_text())["result"]["serverInfo"]["name"] == "cu-fleet"
