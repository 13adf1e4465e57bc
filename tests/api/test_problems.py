"""What goes wrong says so, in one shape, and nothing of the inside."""

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.api.door import open_door, problem, raw
from tests.support import run

WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("/v1/leases", {"agent": "a"}, "profile", "required"),
    ("/v1/leases", {"agent": "a", "profile": "local", "colour": "red"}, "colour", "no such key"),
    ("/v1/leases", {"agent": "../x", "profile": "local"}, "agent", "letters"),
    ("/v1/leases", {"agent": "a", "profile": "local", "desktop": "a/b"}, "desktop", "letters"),
    ("/v1/leases", {"agent": "a", "profile": "local", "ttl": "soon"}, "ttl", "number"),
    ("/v1/leases", {"agent": "a", "profile": "local", "ttl": 0}, "ttl", "greater"),
    ("/v1/leases", {"agent": "a", "profile": "local", "resources": ["a b"]}, "resources.0", "resource"),
    ("/v1/leases/ls_x/revoke", {"bar": "a while"}, "bar", "number"),
    ("/v1/leases/ls_x/reassign", {"to": "b", "mode": "dirty"}, "mode", "as-is"),
    ("/v1/operators", {"operator": "ana", "role": "king"}, "role", "admin"),
    ("/v1/desktops/dk_x/exec", {"argv": []}, "argv", "at least 1"),
    ("/v1/desktops/dk_x/exec", {"argv": ["ls"], "stdin": "%%"}, "stdin", "base64"),
]


def test_words_that_do_not_fit_name_the_key(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            for path, words, key, part in WRONG:
                answer = await http.post(path, json=words)
                said: dict[str, Any] = answer.json()
                assert answer.status_code == 422, said
                assert part in said["detail"]
                assert said.get("key", key) == key
            assert not (await http.get("/v1/leases")).json()["leases"]

    run(body())


NO_JSON = [
    (b"{", "application/json", "JSON"),
    (b"[]", "application/json", "object"),
    (b'{"agent": "a", "profile": "local"}', "text/plain", "Content-Type"),
    (b"agent=a", "application/x-www-form-urlencoded", "Content-Type"),
    (b"\xff\xfe", "application/json", ""),
]


def test_a_body_that_is_no_json_object_is_refused(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            for data, kind, part in NO_JSON:
                answer = await http.post("/v1/leases", content=data, headers={"Content-Type": kind})
                assert 400 <= answer.status_code < 500, answer.text
                assert answer.headers["content-type"] == "application/problem+json"
                assert part in answer.json()["detail"]

    run(body())


def test_unknown_things_are_not_found_by_name(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            for path, code in (
                ("/v1/leases/ls_nothere000", "no_lease"),
                ("/v1/desktops/dk_nothere000", "no_desktop"),
                ("/v1/desktops/..%2f..%2fetc", "no_such_path"),
                ("/v1/profiles/none", "no_profile"),
                ("/v1/nothing", "no_such_path"),
                ("/docs", "no_such_path"),
                ("/v1/leases/", "no_such_path"),
            ):
                problem(await http.get(path), 404, code)
            answer = await http.patch("/v1/leases")
            problem(answer, 405, "no_such_method")
            assert answer.headers["allow"]
            asked = {"agent": "a", "profile": "nope"}
            said = problem(await http.post("/v1/leases", json=asked), 404, "no_profile")
            assert (said["profile"], "local" in said["detail"]) == ("nope", True)
            assert said["remedy"]

    run(body())


def test_an_unexpected_failure_shows_nothing_of_the_inside_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:

            async def broken(who: object) -> None:
                raise RuntimeError("secret-in-the-works")

            door.fleet.controller.desktops = broken  # type: ignore[method-assign, assignment]
            with caplog.at_level(logging.ERROR):
                answer = await http.get("/v1/desktops")
            problem(answer, 500, "internal")
            assert "secret" not in answer.text
            assert "Traceback" not in answer.text
            assert [r.name for r in caplog.records if r.exc_info] == ["cu_fleet.api"]
            assert (await http.get("/healthz")).status_code == 200

    run(body())


def test_no_log_line_holds_a_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        with caplog.at_level(logging.DEBUG):
            async with open_door(tmp_path) as door:
                token = await door.operator("operator")
                lease = await door.fleet.granted("a")
                for bearer in (token, door.fleet.lease_token(lease.lease), token + "x", "cfo_ana_1_" + "0" * 32):
                    async with door.tcp_client(bearer) as http:
                        await http.get("/v1/status")
                        await http.get(f"/v1/leases/{lease.lease}")
                        await http.post("/v1/leases", json={"bad": bearer})
                        assert bearer not in caplog.text
        assert "GET /v1/status" in caplog.text

    run(body())


def test_an_integer_for_the_record_is_refused_beyond_its_bounds(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            for query in ({"after": -1}, {"limit": 0}, {"limit": 10**9}, {"after": "x"}):
                assert (await http.get("/v1/audit", params=query)).status_code == 422
            assert (await http.post("/v1/leases", json={}, params={"hold": 51})).status_code == 422

    run(body())


def test_garbage_is_answered_and_the_door_stays_open(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door:
            status, _, _ = await raw(door, b"\x16\x03\x01 hello\r\n\r\n")
            assert status == 400
            with suppress(ConnectionError):  # closed while we still send: also an answer
                endless = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * (600 << 10)
                assert (await raw(door, endless))[0] == 400
            async with door.tcp_client() as http:
                assert (await http.get("/healthz")).json()["ok"] is True

    run(body())


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/v1/leases/{lease}/clipboard", {"text": "\ud800"}),
        ("POST", "/v1/leases", {"agent": "b", "profile": "local", "resources": ["\ud800"]}),
        ("POST", "/v1/leases/{lease}/actions", {"actions": [{"type": "type", "text": "a\ud800"}]}),
        ("POST", "/v1/leases/{lease}/actions", {"actions": [{"type": "\ud800"}]}),
        ("POST", "/v1/leases/{lease}/pause", {"reason": "\ud800"}),
    ],
)
def test_half_a_character_is_refused_like_any_wrong_word(
    tmp_path: Path, method: str, path: str, body: dict[str, object]
) -> None:
    async def told() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            where = path.format(lease=(await door.fleet.granted("a")).lease)
            kind = {"Content-Type": "application/json"}
            answer = await http.request(method, where, content=json.dumps(body).encode(), headers=kind)
            assert (answer.status_code, bool(answer.json()["detail"])) == (422, True), answer.text

    run(told())
