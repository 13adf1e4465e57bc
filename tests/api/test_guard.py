"""What stands before every request: a page in a browser, a body without end."""

import json
from pathlib import Path

import pytest

from cu_fleet.api import guard
from tests.api.door import bearer, open_door, problem, raw, served
from tests.controller.fleet import running
from tests.support import run


def test_only_our_own_names_are_answered_to(tmp_path: Path) -> None:
    async def body() -> None:
        foreign = ["evil.example", "evil.example:8700", "127.0.0.1.evil.example", "", "[::2]", "10.0.0.1"]
        ours = ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8700", "[::1]:8700", "[::1]"]
        async with open_door(tmp_path) as door, door.tcp_client(await door.operator("admin")) as http:
            for host in foreign:
                for path in ("/healthz", "/v1/status"):
                    problem(await http.get(path, headers={"Host": host}), 403, "wrong_host")
            for host in ours:
                assert (await http.get("/v1/status", headers={"Host": host})).status_code == 200, host

    run(body())


def test_the_configured_host_is_ours(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet, served(fleet, host="127.0.0.2") as door:
            assert door.url.startswith("http://127.0.0.2:")
            async with door.tcp_client() as http:
                assert (await http.get("/healthz")).status_code == 200
        async with running(tmp_path) as fleet, served(fleet, host="0.0.0.0") as door:  # noqa: S104
            for host, status in (("10.1.2.3:8700", 200), ("evil.example", 403)):
                async with door.tcp_client(Host=host) as http:
                    assert (await http.get("/healthz")).status_code == status

    run(body())


def test_a_page_from_elsewhere_reaches_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door:
            token = await door.operator("admin")
            foreign = ("http://evil.example", "null", "http://127.0.0.1:1", "https://localhost.evil.example")
            async with door.tcp_client(token) as tcp, door.socket_client() as unix:
                for origin in foreign:
                    named = {"Origin": origin, "Access-Control-Request-Method": "POST"}
                    for http in (tcp, unix):
                        problem(await http.get("/v1/status", headers=named), 403, "foreign_origin")
                        answer = await http.post("/v1/leases", json={"agent": "a", "profile": "local"}, headers=named)
                        problem(answer, 403, "foreign_origin")
                        answer = await http.options("/v1/leases", headers=named)
                        assert answer.status_code == 403
                        assert "access-control-allow-origin" not in answer.headers
                assert (await tcp.get("/v1/status", headers={"Origin": door.url})).status_code == 200

    run(body())


def test_a_body_said_to_be_too_large_is_refused_unread(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door:
            size = guard.MAX_BODY + 1
            head = f"POST /v1/leases HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode()
            status, headers, text = await raw(door, head, over_socket=True)
            assert (status, headers["connection"]) == (413, "close")
            assert b'"code":"too_large"' in text

    run(body())


def test_a_body_that_does_not_end_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        monkeypatch.setattr(guard, "MAX_BODY", 1000)
        monkeypatch.setattr(guard, "MAX_FILE", 5000)
        async with open_door(tmp_path) as door:
            lease = await door.fleet.granted("a")
            async with door.socket_client() as http:

                async def endless(size: int = 6000):  # type: ignore[no-untyped-def]
                    for _ in range(size // 100):
                        yield b" " * 100

                answer = await http.post("/v1/leases", content=endless(), headers={"Content-Type": "application/json"})
                problem(answer, 413, "too_large")
                where = f"/v1/leases/{lease.lease}/files/x"
                problem(await http.put(where, content=endless()), 413, "too_large")
                assert (await http.get(f"/v1/leases/{lease.lease}/files")).json()["files"] == []
                assert (await http.put(where, content=endless(4000))).status_code == 201
                where = f"/v1/desktops/{lease.desktop}/exec"
                async with http.stream("POST", where, json={"argv": ["cat"], "input": True}) as command:
                    name = json.loads(await anext(aiter(command.aiter_lines())))["command"]
                    fed = await http.put(f"{where}/{name}/input", content=endless())
                assert fed.status_code == 200, "it goes straight on, and is kept nowhere"
                assert (await http.get("/healthz")).status_code == 200

    run(body())


def test_nothing_is_cached_or_guessed(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.tcp_client() as http:
            for path in ("/healthz", "/v1/status", "/nothing"):
                answer = await http.get(path, headers=bearer("wrong"))
                assert answer.headers["cache-control"] == "no-store"
                assert answer.headers["x-content-type-options"] == "nosniff"
                assert "server" not in answer.headers

    run(body())
