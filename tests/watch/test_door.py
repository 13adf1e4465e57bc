"""Viewers in a browser: the WebSocket behind the guard, and the pages."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cu_fleet.api import watch
from cu_fleet.rfb.handshake import RfbError
from cu_fleet.rfb.screen import Screen
from tests.api.door import Door, open_door
from tests.controller.fleet import ANA
from tests.support import run, until

BINARY: Any = "binary"


def way(door: Door, lease: str) -> str:
    return f"{door.url.replace('http', 'ws', 1)}/v1/leases/{lease}/watch"


@asynccontextmanager
async def browser(door: Door, lease: str, password: str) -> AsyncIterator[tuple[Screen, ClientConnection]]:
    """A viewer of ours at the end of a WebSocket."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    async with connect(way(door, lease), subprotocols=[BINARY], origin=door.url) as ws:  # type: ignore[arg-type]
        assert ws.subprotocol == "binary"

        async def up() -> None:
            while data := await reader.read(1 << 16):
                await ws.send(data)

        async def down() -> None:
            async for data in ws:
                assert isinstance(data, bytes)
                writer.write(data)
            writer.close()

        tasks = [asyncio.create_task(up(), name="up"), asyncio.create_task(down(), name="down")]
        try:
            screen = await Screen.open(theirs, password=password)
            yield screen, ws
            await screen.close()
        finally:
            theirs.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            writer.close()


async def ticketed(door: Door, **body: Any) -> dict[str, Any]:
    view = await door.fleet.granted("a")
    async with door.tcp_client(await door.operator("operator")) as http:
        answer = await http.post(f"/v1/leases/{view.lease}/watch", json=body)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())


def test_a_browser_watches_and_hears_why_it_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def body() -> None:
        async with open_door(tmp_path) as door:
            ticket = await ticketed(door, control=True)
            lease = ticket["lease"]
            assert ticket["ws_url"] == way(door, lease)
            async with browser(door, lease, ticket["ticket"]) as (screen, ws):
                picture = await screen.frame()
                assert (picture.width, picture.height) == (200, 120)
                async with door.socket_client() as http:
                    seen = (await http.get(f"/v1/leases/{lease}")).json()["watchers"]
                    assert [(one["control"], one["way"]) for one in seen] == [(True, "web")]
                    await http.post(f"/v1/leases/{lease}/revoke", json={"reason": "wrong account"})
                await ws.wait_closed()
                assert ws.close_code == 1008
                assert "wrong account" in (ws.close_reason or "")
            assert ticket["ticket"] not in caplog.text

    run(body())


def test_a_wrong_ticket_and_no_lease_are_told_alike(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door:
            ticket = await ticketed(door)
            for lease, password in ((ticket["lease"], "AAAAAAAA"), ("ls_none", ticket["ticket"])):
                with pytest.raises(RfbError, match="wrong, used or too old"):
                    async with browser(door, lease, password):
                        pass

    run(body())


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}],
    ids=["origin", "sandboxed", "host"],
)
def test_a_page_from_elsewhere_gets_no_socket(tmp_path: Path, headers: dict[str, str]) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door:
            at = door.url.removeprefix("http://")
            host, _, port = at.partition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            sent = {"Host": at, "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
            sent |= {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", **headers}
            lines = ["GET /v1/leases/ls_x/watch HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
            writer.write("\r\n".join([*lines, "", ""]).encode())
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 403 ")
            assert b"problem+json" in answer
            writer.close()

    run(body())


def test_a_socket_leads_to_viewers_and_nowhere_else(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door:
            for path in ("/v1/events", "/mcp", "/v1/leases", "/healthz"):
                with pytest.raises(InvalidStatus) as refused:
                    await connect(door.url.replace("http", "ws", 1) + path)
                assert refused.value.response.status_code == 403

    run(body())


@pytest.mark.parametrize(("words", "code"), [("text", 1003), (b"GET / HTTP/1.1", 1008), (b"", 1003)])
def test_what_is_no_viewer_is_told_so(tmp_path: Path, words: str | bytes, code: int) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, connect(way(door, "ls_x")) as ws:
            assert await ws.recv() == b"RFB 003.008\n"
            await ws.send(words)
            with pytest.raises(ConnectionClosed):
                await ws.recv()
            assert ws.close_code == code

    run(body())


def test_the_pages_are_shut_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = tmp_path / "novnc"
    pages.mkdir()
    (pages / "vnc.html").write_text("<p>hello")
    (tmp_path / "secret").write_text("x")
    monkeypatch.setattr(watch, "_NOVNC", pages)

    async def body() -> None:
        async with open_door(tmp_path) as door, door.tcp_client() as http:
            answer = await http.get("/watch/vnc.html")
            assert (answer.status_code, answer.text) == (200, "<p>hello")
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert (
                f"connect-src 'self' {door.url.replace('http', 'ws', 1)} " in answer.headers["content-security-policy"]
            )
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert (await http.get("/watch/")).headers["location"] == "/watch/vnc.html"
            for path in ("/watch/../secret", "/watch/%2e%2e/secret", "/watch//etc/passwd", "/watch/none"):
                assert (await http.get(path)).status_code == 404, path
            link = (await ticketed(door))["web_url"]
            before, _, after = link.partition("#")
            assert before == f"{door.url}/watch/vnc.html"
            assert "password=" in after
            (pages / "vnc.html").unlink()
            answer = await http.get("/watch/vnc.html")
            assert (answer.status_code, answer.json()["code"]) == (404, "no_novnc")
            assert "novnc" in answer.json()["remedy"]

    run(body())


def test_a_viewer_in_a_browser_that_never_reads_is_cut(tmp_path: Path) -> None:
    """Also when it has to go: its socket does not stay, whatever waits for it there."""

    async def body() -> None:
        async with open_door(tmp_path) as door:
            ticket = await ticketed(door)
            async with browser(door, ticket["lease"], ticket["ticket"]) as (screen, ws):
                await screen.frame()
                ws.transport.pause_reading()
                watching = door.fleet.controller.watching
                await door.fleet.controller.release(ANA, ticket["lease"])
                assert watching.of_lease(ticket["lease"]) == ()
                ws.transport.resume_reading()
                await until(lambda: ws.close_code is not None)

    run(body())
