"""The short way to look and act says the same as the framework's, whatever it is asked."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from cu_fleet.api.direct import Direct
from tests.api.door import Door, bearer, open_door
from tests.support import run

_VARY = ("date", "cu-fleet-frame", "cu-fleet-age")
_CLICK = json.dumps({"actions": [{"type": "click", "x": 1, "y": 2}]}).encode()
_JSON = {"Content-Type": "application/json"}
LOOKS: list[tuple[str, dict[str, str]]] = [
    ("", {}),
    ("?format=jpeg&quality=50&pointer=true&region=0,0,50,40&max_edge=20", {}),
    ("?format=png&format=jpeg", {}),
    ("?format=&intent=", {}),
    ("?intent=%E2%82%AC+and+more&unknown=1", {}),
    ("?format=gif", {}),
    ("?quality=0", {}),
    ("?region=1,2", {}),
    ("?region=0,0,5000,5", {}),
    ("?pointer=perhaps", {}),
    ("?if_changed_since=fr_unknown", {}),
    ("?format=jpeg&if_changed_since=fr_unknown", {}),
    ("?format=gif&if_changed_since=fr_unknown", {}),
    ("?if_changed_since=fr_unknown&pointer=true", {}),
    ("?if_changed_since=fr_one&if_changed_since=fr_two", {}),
    (f"?if_changed_since={'x' * 101}", {}),
    ("?if_changed_since=%66r", {}),
    ("?if_changed_since=", {}),
    ("?intent=if_changed_since=fr_one", {}),
    ("", {"Authorization": "Basic abc"}),
    ("", {"Authorization": "Bearer"}),
    ("", {"Authorization": "Bearer cfl_ls_x_0"}),
    ("", {"Authorization": "bearer TOKEN"}),
    ("", {"Origin": "http://elsewhere"}),
]
ACTS: list[tuple[bytes, dict[str, str]]] = [
    (_CLICK, _JSON),
    (_CLICK, {"Content-Type": "application/json; charset=utf-8"}),
    (_CLICK, {"Content-Type": "text/plain"}),
    (_CLICK, {}),
    (b"", _JSON),
    (b"{", _JSON),
    (b"[" * 100_000, _JSON),
    (b'{"actions": NaN}', _JSON),
    (b'{"actions": [{"type": "explode"}]}', _JSON),
    (b'{"actions": [], "more": 1}', _JSON),
    (b'{"actions": [{"type": "click", "x": 1, "y": 99999}]}', _JSON),
    (b'{"actions": [], "approval": "ap_1"}', _JSON),
    (b'{"actions": [], "screenshot": {"format": "jpeg"}}', _JSON),
    (b'\xff\xfe{"actions": []}', _JSON),
]


@contextmanager
def the_frameworks_way() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Direct, "_short", lambda self, scope: None)
        yield


async def said(http: httpx.AsyncClient, method: str, path: str, **more: Any) -> tuple[Any, ...]:
    answer = await http.request(method, path, **more)
    headers = {name: value for name, value in answer.headers.items() if name not in _VARY}
    body = answer.content
    if headers.get("content-type", "").endswith("json"):
        body = answer.json()
        for key in ("frame", "age"):
            ((body.get("screenshot") or {}) if isinstance(body, dict) else {}).pop(key, None)
        headers.pop("content-length", None)
    return answer.status_code, headers, body


async def both(door: Door, method: str, path: str, headers: dict[str, str], **more: Any) -> None:
    async with door.tcp_client() as http:
        short = await said(http, method, path, headers=headers, **more)
        with the_frameworks_way():
            long = await said(http, method, path, headers=headers, **more)
    assert short == long, (path, headers, more)


def test_looking_is_answered_alike(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door:
            lease = await door.fleet.granted("a")
            token = door.fleet.lease_token(lease.lease)
            for query, headers in LOOKS:
                given = {**bearer(token), **{key: value.replace("TOKEN", token) for key, value in headers.items()}}
                await both(door, "GET", f"/v1/leases/{lease.lease}/screenshot{query}", given)
            for path in (
                "ls_none/screenshot",
                "%2e%2e/screenshot",
                "a%2Fb/screenshot",
                f"{'x' * 101}/screenshot",
                "/screenshot",
            ):
                await both(door, "GET", f"/v1/leases/{path}", bearer(token))
            await both(door, "GET", f"/v1/leases/{lease.lease}/screenshot", {})
            await both(door, "PUT", f"/v1/leases/{lease.lease}/screenshot", bearer(token))

    run(body(), timeout=60)


def test_acting_is_answered_alike(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door:
            lease = await door.fleet.granted("a")
            given = bearer(door.fleet.lease_token(lease.lease))
            where = f"/v1/leases/{lease.lease}/actions"
            for content, headers in ACTS:
                await both(door, "POST", where, {**given, **headers}, content=content)

            async def pieces() -> Any:
                for at in range(0, len(_CLICK), 10):
                    yield _CLICK[at : at + 10]

            async with door.tcp_client() as http:
                answer = await http.post(where, headers={**given, **_JSON}, content=pieces())
                assert answer.json()["done"] == [{"ok": True}]

    run(body(), timeout=60)


def test_the_framework_is_not_asked_for_what_is_as_it_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    call = FastAPI.__call__

    async def counted(self: FastAPI, scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        await call(self, scope, receive, send)

    monkeypatch.setattr(FastAPI, "__call__", counted)

    async def body() -> None:
        async with open_door(tmp_path) as door:
            lease = await door.fleet.granted("a")
            async with door.tcp_client(door.fleet.lease_token(lease.lease)) as http:
                assert (await http.get(f"/v1/leases/{lease.lease}/screenshot?format=jpeg")).status_code == 200
                done = await http.post(f"/v1/leases/{lease.lease}/actions", content=_CLICK, headers=_JSON)
                assert done.status_code == 200
        assert asked == []

    run(body())


def test_an_unexpected_failure_shows_nothing_of_the_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door:
            lease = await door.fleet.granted("a")

            async def broken(*_: object, **__: object) -> None:
                raise ZeroDivisionError("secret")

            monkeypatch.setattr(door.fleet.controller, "screenshot", broken)
            async with door.tcp_client(door.fleet.lease_token(lease.lease)) as http:
                answer = await http.get(f"/v1/leases/{lease.lease}/screenshot")
                assert (answer.status_code, answer.json()["code"]) == (500, "internal")
                assert "secret" not in answer.text
        assert "ZeroDivisionError" in caplog.text

    run(body())


def test_an_operation_that_wants_more_than_words_is_refused_when_the_door_is_built() -> None:
    async def takes(lease: str, at: object, request: httpx.Request) -> Any:
        return request

    with pytest.raises(TypeError, match="request"):
        Direct(FastAPI(), None, None, {("GET", "x"): takes})  # type: ignore[arg-type]
