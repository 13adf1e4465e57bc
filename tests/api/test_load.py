"""Many connections on which nothing goes on, and clients that are slow: bounded, told, and in nobody's way."""

import asyncio
import json
import resource
import socket
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cu_fleet import sync
from cu_fleet.api import guard
from tests.api.door import Door, raw
from tests.cli.test_live import Controller
from tests.controller.fleet import ANA
from tests.mcp.house import house
from tests.support import run, until

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
SOON = 10.0  # seconds in which an agent's call is answered, however loaded the machine is
HEALTHY = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
MCP = "POST /mcp HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nMCP-Protocol-Version: 2025-06-18\r\n"


@pytest.fixture(autouse=True)
def descriptors() -> None:
    """Both ends of all connections are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else 65536
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(most, 65536)), hard))


async def connected(door: Door, sent: bytes = b"") -> Stream:
    host, port = door.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    return reader, writer


@asynccontextmanager
async def opened(door: Door, count: int, sent: bytes, answer: bytes = b"") -> AsyncIterator[list[Stream]]:
    streams = [await connected(door, sent) for _ in range(count)]
    try:
        for reader, _ in streams:
            if answer:
                assert answer in await reader.readuntil(b"\r\n\r\n")
        yield streams
    finally:
        for _, writer in streams:
            writer.transport.abort()


def post(head: str, token: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    own = (
        f"{head}Authorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return own.encode() + data


class Agent:
    """At work over connections of its own: one that it keeps, and a new one for each step."""

    def __init__(self, door: Door, lease: str, token: str, kept: Stream) -> None:
        self.door, self.lease, self.token, self.kept = door, lease, token, kept
        self.clicks = 0

    async def works(self) -> None:
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
        look = call | {"params": {"name": "screenshot", "arguments": {}}}
        where = f"POST /v1/leases/{self.lease}/actions HTTP/1.1\r\nHost: localhost\r\n"
        fresh = await connected(self.door)
        for stream in (fresh, self.kept):
            x, y = 5 + 10 * (self.clicks % 19), 5 + 50 * (self.clicks % 2)  # a second click in one place would wait
            click = call | {"params": {"name": "click", "arguments": {"x": x, "y": y}}}
            actions = {"actions": [{"type": "click", "x": x, "y": y + 25}]}
            assert b"Done." in await self.asked(stream, post(MCP, self.token, click))
            assert b'"image/png"' in await self.asked(stream, post(MCP, self.token, look))
            assert b'"ok":true' in await self.asked(stream, post(where, self.token, actions))
            self.clicks += 2
        fresh[1].close()

    async def asked(self, stream: Stream, request: bytes) -> bytes:
        reader, writer = stream
        writer.write(request)
        async with asyncio.timeout(SOON):
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head, head
            (length,) = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
            return await reader.readexactly(int(length.split(b":")[1]))

    async def on_record(self) -> int:
        entries = await self.door.fleet.controller.audit(ANA, limit=10_000)
        return sum(x.what == "act.done" and x.result == "ok" for x in entries)


@pytest.mark.slow
def test_a_thousand_idle_connections_are_in_nobodys_way(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            view, operator = await door.fleet.granted("a"), await door.operator("observer")
            token = door.fleet.lease_token(view.lease)
            agent = Agent(door, view.lease, token, await connected(door, HEALTHY))
            await agent.kept[0].readuntil(b'"f1"}')
            await agent.works()
            tasks, files = len(asyncio.all_tasks()), _descriptors()
            half = post(MCP, token, {"jsonrpc": "2.0", "id": 1, "method": "tools/list"})[:-3]
            events = f"GET /v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {operator}\r\n\r\n".encode()
            async with (
                opened(door, 300, HEALTHY, b" 200 "),
                opened(door, 300, HEALTHY[:-9]),
                opened(door, 100, half),
                opened(door, 100, MCP.encode() + b"Content-Length: 99\r\n\r\n{"),
                opened(door, 50, events, b"event-stream"),
            ):
                await agent.works()
                async with opened(door, 700, b""):
                    await agent.works()
                    assert len(asyncio.all_tasks()) < tasks + 1000, "the number of connections is bounded"
                await agent.works()
            await until(lambda: _descriptors() <= files)
            await until(lambda: len(asyncio.all_tasks()) <= tasks)
            assert await agent.on_record() == agent.clicks
            agent.kept[1].close()

    run(body(), timeout=90)


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_body_that_trickles_is_given_up_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_WITHIN", 0.3)

    async def body() -> None:
        async with house(tmp_path) as door:
            view = await door.fleet.granted("a")
            token = f"Authorization: Bearer {door.fleet.lease_token(view.lease)}\r\n"
            ways = [MCP, f"POST /v1/leases/{view.lease}/actions HTTP/1.1\r\nHost: localhost\r\n"]
            ways += [f"PUT /v1/leases/{view.lease}/files/x HTTP/1.1\r\nHost: localhost\r\n"]
            for way in ways:
                head = f"{way}{token}Content-Type: application/json\r\nContent-Length: 500\r\n\r\n"
                status, headers, said = await raw(door, head.encode() + b"{")
                assert (status, headers["connection"]) == (408, "close"), way
                assert json.loads(said)["code"] == "too_slow"
            assert (await door.fleet.controller.lease(ANA, view.lease)).state == "active"
            assert not await door.fleet.controller.files(ANA, view.lease, "")

    run(body())


def test_what_is_kept_of_all_bodies_together_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_BODIES", 100_000)

    async def body() -> None:
        async with house(tmp_path) as door:
            token = door.fleet.lease_token((await door.fleet.granted("a")).lease)
            listed = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": {"x": "y" * 30_000}}}
            large = post(f"{MCP}Connection: close\r\n", token, listed)
            said = b""

            async def answered(status: int) -> bool:
                nonlocal said
                found, _, said = await raw(door, large)
                return found == status

            nobody = b"POST /v1/leases HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000\r\n\r\n"
            async with opened(door, 1, nobody + b" " * 80_000):
                await until(lambda: answered(503))
                assert json.loads(said)["code"] == "too_much"
            await until(lambda: answered(200))
            assert b'"tools"' in said

    run(body())


def test_who_does_not_read_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cu_fleet.api.serve.READ_WITHIN", 0.2)

    async def body() -> None:
        async with house(tmp_path) as door:
            view = await door.fleet.granted("a")
            token = door.fleet.lease_token(view.lease)
            async with door.tcp_client(token) as http:
                await http.put(f"/v1/leases/{view.lease}/files/big", content=b"x" * (16 << 20))
            ask = f"GET /v1/leases/{view.lease}/files/big HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
            files = _descriptors()
            stream = await connected(door, ask.replace("Host: x", "Host: localhost").encode())
            stream[1].transport.pause_reading()  # type: ignore[attr-defined]
            began = time.monotonic()
            await until(lambda: _descriptors() > files)
            await until(lambda: _descriptors() <= files + 1, timeout=SOON)  # our own end is still open
            assert time.monotonic() - began < SOON
            stream[1].transport.abort()

    run(body())


FEW = 120  # descriptors
FEW_ONLY = ["sh", "-c", f'ulimit -n {FEW}; exec "$@"', "sh"]


@pytest.mark.real
@pytest.mark.slow
def test_a_controller_with_few_descriptors_is_not_brought_down_by_many_connections(tmp_path: Path) -> None:
    """Neither by strangers over TCP nor by the home's owner over its socket; and it has them back afterwards."""
    house = Controller(tmp_path / "home")
    process = house.start(*FEW_ONLY)
    try:
        url = str(house.ready()["url"])
        host, port = url.removeprefix("http://").split(":")
        files = Path(f"/proc/{process.pid}/fd")
        with sync.Fleet.connect(home=house.home, start=False) as fleet:
            lease = fleet.acquire(agent="a", profile="mem").lease
            before = len(list(files.iterdir()))
            with ExitStack() as many:
                for _ in range(3 * FEW):
                    many.enter_context(socket.create_connection((host, int(port))))
                    owner = many.enter_context(socket.socket(socket.AF_UNIX))
                    owner.connect(str(house.home / "controller.sock"))
                run(until(lambda: before + FEW // 2 < len(list(files.iterdir())) < FEW))
                with sync.Fleet.connect(url=url, token=lease.token) as agent:
                    desktop = agent.open(lease.lease)
                    desktop.click(5, 5)
                    assert desktop.screenshot().size == (320, 200)
                with sync.Fleet.connect(home=house.home, start=False) as another:
                    assert [x.state for x in another.leases()] == ["active"]
            run(until(lambda: len(list(files.iterdir())) <= before + 4))
            assert fleet.verify_audit() > 0
    finally:
        house.end()
