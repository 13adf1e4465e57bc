"""A real door over a controller of fakes: both sockets, real HTTP, in this process."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from cu_fleet.api.serve import serve
from cu_fleet.model.access import Grants, Role
from cu_fleet.model.profile import Profile
from tests.controller.fleet import ANA, Fleet, running


@dataclass
class Door:
    fleet: Fleet
    url: str
    socket: Path
    stop: asyncio.Event
    shutdowns: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def socket_client(self, token: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.AsyncHTTPTransport(uds=str(self.socket), verify=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=bearer(token)) as http:
            yield http

    @asynccontextmanager
    async def tcp_client(self, token: str | None = None, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.AsyncHTTPTransport(verify=False)  # no TLS here, and no time to load what it needs
        named = {**bearer(token), **headers}
        async with httpx.AsyncClient(transport=transport, base_url=self.url, headers=named) as http:
            yield http

    async def operator(self, role: str, name: str = "") -> str:
        view = await self.fleet.controller.add_operator(ANA, name or f"an-{role}", Role(role))
        return view.token or ""

    async def agent(self, name: str, **grants: Any) -> str:
        return (await self.fleet.controller.add_agent(ANA, name, Grants(**grants))).token or ""


def bearer(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


@asynccontextmanager
async def served(fleet: Fleet, socket: Path | None = None, **more: Any) -> AsyncIterator[Door]:
    """The fleet's controller behind its doors."""
    stop: asyncio.Event = asyncio.Event()
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    door = Door(fleet, "", socket or fleet.home / "controller.sock", stop)

    def shutdown() -> None:
        door.shutdowns.append("asked")
        stop.set()

    named = {"host": "127.0.0.1", "port": 0, **more}
    serving = asyncio.create_task(
        serve(fleet.controller, socket_path=door.socket, ready=ready.set_result, stop=stop, shutdown=shutdown, **named),
        name="the door under test",
    )
    await asyncio.wait([serving, ready], return_when=asyncio.FIRST_COMPLETED)
    try:
        if serving.done():
            await serving
        door.url = await ready
        yield door
    finally:
        stop.set()
        with suppress(asyncio.CancelledError):
            await serving


@asynccontextmanager
async def open_door(home: Path, *profiles: Profile, **more: Any) -> AsyncIterator[Door]:
    async with running(home, *profiles, **more) as fleet, served(fleet) as door:
        yield door


async def raw(door: Door, request: bytes, *, over_socket: bool = False) -> tuple[int, dict[str, str], bytes]:
    """Send bytes as they are; status, headers and body of what comes back until the connection ends."""
    if over_socket:
        reader, writer = await asyncio.open_unix_connection(str(door.socket))
    else:
        host, port = door.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        await writer.drain()
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    status, *rest = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
    return int(status.split()[1]), headers, body


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The answer's problem, which must be this one."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    said: dict[str, Any] = answer.json()
    assert (answer.status_code, said["status"], said["code"]) == (status, status, code), said
    assert said["detail"]
    return said


async def next_events(lines: AsyncIterator[str], count: int) -> list[tuple[int, str, dict[str, Any]]]:
    """The next server-sent events: (id, event, data)."""
    found: list[tuple[int, str, dict[str, Any]]] = []
    fields: dict[str, str] = {}
    async for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
            continue
        if "data" in fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
        fields = {}
        if len(found) == count:
            break
    return found
