"""`/mcp` as clients of both protocols meet it: what is listed, what is done, and what is said when it cannot be."""

import asyncio
import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from cu_fleet.mcp import short, tools
from cu_fleet.model.access import Role
from cu_fleet.model.action import TYPES
from tests.api.door import Door, problem, raw
from tests.controller.fleet import ANA, profile
from tests.mcp.house import NEW, OLD, client, failed, house, images, text
from tests.support import run, until

BOTH = pytest.mark.parametrize("mode", [OLD, NEW])
LOOKING = {"screenshot", "zoom", "wait", "clipboard_get", "windows", "ui", "file_get", "lease_status"}
ACTING = {"click", "double_click", "drag", "move", "scroll", "key", "type", "act"}
INTERFACE = LOOKING | ACTING | {"clipboard_set", "launch", "file_put", "approval_wait", "release"}


async def _leased(door: Door, agent: str = "a") -> tuple[str, str]:
    view = await door.fleet.granted(agent)
    return view.lease, door.fleet.lease_token(view.lease)


def _events(door: Door) -> list[tuple[object, ...]]:
    (desktop,) = door.fleet.world.desktops.values()
    return desktop.events


@BOTH
def test_tools_are_those_of_the_interface_and_each_leaves_nothing_open(tmp_path: Path, mode: str) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            _, token = await _leased(door)
            async with client(door, token, mode) as session:
                listed = {tool.name: tool for tool in (await session.list_tools()).tools}
        assert set(listed) >= INTERFACE
        for tool in listed.values():
            hints = tool.annotations
            assert hints
            assert None not in (hints.read_only_hint, hints.destructive_hint, hints.idempotent_hint)
            assert (hints.destructive_hint, hints.open_world_hint) == (False, False), "Codex would ask, or refuse"
            assert tool.output_schema is None
            assert tool.input_schema["additionalProperties"] is False
            assert 20 < len(tool.description or "") < 350
            assert "$ref" not in json.dumps(tool.input_schema)
        acting = set(listed) - {"lease_status"}
        assert all("intent" in listed[name].input_schema["properties"] for name in acting)
        looking = {name for name, tool in listed.items() if tool.annotations and tool.annotations.read_only_hint}
        assert looking == LOOKING

    run(body())


@BOTH
def test_instructions_explain_the_lease(tmp_path: Path, mode: str) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            _, token = await _leased(door)
            async with client(door, token, mode) as session:
                words = session.instructions or ""
        assert all(word in words for word in ("lease", "revoke", "rolled back", "screenshot", "act"))
        assert len(words) < 900

    run(body())


@BOTH
def test_an_agent_looks_clicks_types_and_sees_what_came_of_it(tmp_path: Path, mode: str) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            _, token = await _leased(door)
            async with client(door, token, mode) as session:
                seen = await session.call_tool("screenshot", {"intent": "look around"})
                assert not seen.is_error
                assert not seen.structured_content
                (shot,) = images(seen)
                assert Image.open(io.BytesIO(base64.b64decode(shot.data))).size == (200, 120)
                assert "200x120" in text(seen)
                before = len(_events(door))
                assert text(await session.call_tool("click", {"x": 50, "y": 60, "intent": "press it"})) == "Done."
                assert ("pointer", 50, 60, 1) in _events(door)[before:]
                batch = [{"type": "type", "text": "ab"}, {"type": "key", "keys": "enter"}]
                done = await session.call_tool("act", {"actions": batch})
                assert text(done).startswith("2 actions done. Picture fr_")
                assert len(images(done)) == 1
                assert ("key", ord("b"), True) in _events(door)
            entries = await door.fleet.controller.audit(ANA, limit=1000)
            assert {"look around", "press it"} <= {entry.intent for entry in entries}

    run(body())


@BOTH
def test_every_pointing_tool_reaches_the_screen(tmp_path: Path, mode: str) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            _, token = await _leased(door)
            async with client(door, token, mode) as session:
                for name, given in {
                    "double_click": {"x": 11, "y": 12, "modifiers": ["ctrl"]},
                    "drag": {"path": [[21, 22], [31, 32]]},
                    "move": {"x": 41, "y": 42},
                    "scroll": {"x": 51, "y": 52, "dy": 2},
                    "key": {"keys": "ctrl+a"},
                    "wait": {"seconds": 0.01},
                }.items():
                    result = await session.call_tool(name, given)
                    assert not result.is_error, text(result)
                events = _events(door)
        at = {event[1:3] for event in events if event[0] == "pointer"}
        assert {(11, 12), (21, 22), (31, 32), (41, 42), (51, 52)} <= at
        assert ("pointer", 51, 52, 16) in events

    run(body())


def test_zoomed_pictures_have_coordinates_of_their_own(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            _, token = await _leased(door)
            async with client(door, token) as session:
                near = await session.call_tool("zoom", {"x": 100, "y": 60, "width": 50, "height": 40})
                frame = text(near).split()[1].rstrip(",")
                assert "50x40" in text(near)
                await session.call_tool("click", {"x": 5, "y": 6, "frame": frame})
                assert ("pointer", 105, 66, 1) in _events(door)
                words = failed(await session.call_tool("click", {"x": 55, "y": 6, "frame": frame}), "off_screen")
                assert "50x40" in words
                failed(await session.call_tool("click", {"x": 5, "y": 6, "frame": "fr_unknown123"}), "no_frame")

    run(body())


def test_an_unchanged_screen_costs_no_pixels(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            _, token = await _leased(door)
            async with client(door, token) as session:
                frame = text(await session.call_tool("screenshot", {})).split()[1].rstrip(",")
                again = await session.call_tool("screenshot", {"if_changed_since": frame})
                assert images(again) == []
                assert frame in text(again)
                assert "Nothing has changed" in text(again)

    run(body())


def test_pictures_stay_within_what_clients_take(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path, profile(screen={"width": 2000, "height": 1500})) as door:
            _, token = await _leased(door)
            (desktop,) = door.fleet.world.desktops.values()
            desktop.screen.show(_noise(2000 * 1500))
            async with client(door, token) as session:
                (shot,) = images(await session.call_tool("screenshot", {}))
                assert len(shot.data) <= 1 << 20
                assert Image.open(io.BytesIO(base64.b64decode(shot.data))).size == (2000, 1500)

    run(body(), timeout=60)


def _noise(pixels: int) -> bytes:
    import random

    return random.Random(1).randbytes(4 * pixels)


def test_waiting_shows_the_screen_also_when_what_it_waits_for_does_not_come(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            _, token = await _leased(door)
            (desktop,) = door.fleet.world.desktops.values()
            async with client(door, token) as session:
                quiet = await session.call_tool("wait", {"until": "stable", "seconds": 20})
                assert text(quiet).startswith("Done. Picture")
                await session.call_tool("click", {"x": 5, "y": 5})
                changed = await session.call_tool("wait", {"until": "change", "seconds": 20})
                assert text(changed).startswith("Done. Picture")
                restless = asyncio.create_task(_flicker(desktop.screen))
                late = await session.call_tool("wait", {"until": "stable", "seconds": 1})
                restless.cancel()
                assert not late.is_error
                assert "did not keep still" in text(late)
                assert len(images(late)) == 1

    run(body())


async def _flicker(screen: Any) -> None:
    while True:
        for red in (10, 200):
            screen.fill(0, 0, 50, 50, (red, 0, 0))
            await asyncio.sleep(0.01)


WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("click", {"x": "5", "y": 6}, "bad_argument", "x:"),
    ("click", {"x": 5}, "bad_argument", "give x and y, or the ref"),
    ("move", {"x": 5}, "bad_argument", "y: is needed"),
    ("click", {"x": 5, "y": 6, "colour": "red"}, "bad_argument", "click takes no such argument; only intent"),
    ("click", {"x": 500, "y": 6}, "off_screen", "x goes from 0 to 199"),
    ("click", {"x": 5, "y": 6, "button": "third"}, "bad_argument", "button:"),
    ("key", {"keys": "ctrl+nokey"}, "bad_action", "nokey"),
    ("act", {"actions": []}, "bad_argument", "actions:"),
    ("act", {"actions": [{"type": "clack"}]}, "bad_action", "did you mean click"),
    ("act", {"actions": [{"type": "wait"}]}, "bad_action", "actions[0].seconds"),
    ("file_put", {"path": "a"}, "bad_argument", "text or base64"),
    ("file_put", {"path": "a", "base64": "%"}, "bad_argument", "cannot be read"),
    ("launch", {"name": "rm"}, "not_launchable", "only terminal"),
    ("wait", {"seconds": 3600}, "bad_argument", "30"),
    ("drag", {"path": [[1, 2]]}, "bad_action", "path"),
    ("cilck", {}, "no_tool", "one of screenshot"),
]


def test_wrong_words_are_refused_and_say_what_is_right(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            _, token = await _leased(door)
            before = len(_events(door))
            async with client(door, token) as session:
                for tool, given, code, words in WRONG:
                    assert words in failed(await session.call_tool(tool, given), code), (tool, given)
            assert len(_events(door)) == before, "something was sent"

    run(body())


def test_a_batch_says_which_action_failed_and_what_was_done(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            _, token = await _leased(door)
            waits = {"type": "wait_change", "timeout_ms": 50, "ignore": [[0, 0, 200, 120]]}
            batch = [{"type": "wait", "seconds": 0}, waits, {"type": "wait", "seconds": 0}]
            async with client(door, token) as session:
                words = failed(await session.call_tool("act", {"actions": batch}), "no_change")
        assert words.startswith("actions[1] failed: the screen did not change")
        assert "the 1 after it were not sent" in words

    run(body())


def test_the_batch_schema_knows_every_action(tmp_path: Path) -> None:
    properties = tools.take.schema_of(tools.take.Act)["properties"]["actions"]
    assert properties["items"]["properties"]["type"]["enum"] == list(TYPES)
    assert all(f"{kind} {{" in properties["description"] for kind in TYPES)


def test_files_go_in_and_out(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(picture, "PNG")
    raw_bytes = base64.b64encode(b"\0\xff\x01").decode()

    async def body() -> None:
        async with house(tmp_path) as door:
            _, token = await _leased(door)
            async with client(door, token) as session:
                assert "4 bytes" in text(await session.call_tool("file_put", {"path": "out/a.txt", "text": "grü"}))
                assert text(await session.call_tool("file_get", {"path": "out/a.txt"})) == "grü"
                await session.call_tool("file_put", {"path": "b", "base64": raw_bytes, "intent": "its input"})
                assert raw_bytes in text(await session.call_tool("file_get", {"path": "b"}))
                encoded = base64.b64encode(picture.getvalue()).decode()
                await session.call_tool("file_put", {"path": "p.png", "base64": encoded})
                shown = await session.call_tool("file_get", {"path": "p.png"})
                assert (images(shown)[0].mime_type, images(shown)[0].data) == ("image/png", encoded)
                listed = text(await session.call_tool("file_get", {"path": "/"}))
                assert "out/" in listed
                assert "b 3 bytes" in listed
                failed(await session.call_tool("file_get", {"path": "none"}), "no_file")
                big = {"path": "big", "text": "x" * 800_000}
                await session.call_tool("file_put", big)
                entries = await door.fleet.controller.audit(ANA, limit=1000)
                assert [x.intent for x in entries if x.what == "file.put"][1] == "its input"
                failed(await session.call_tool("file_get", {"path": "big"}), "too_large")

    run(body())


def test_what_the_profile_does_not_grant_is_not_listed(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path, profile()) as door:
            _, token = await _leased(door)
            async with client(door, token) as session:
                assert "launch" not in {tool.name for tool in (await session.list_tools()).tools}

    run(body())


def test_programs_of_the_profile_are_named_with_their_titles(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            _, token = await _leased(door)
            async with client(door, token) as session:
                (tool,) = [tool for tool in (await session.list_tools()).tools if tool.name == "launch"]
        assert tool.input_schema["properties"]["name"]["enum"] == ["terminal"]
        assert "terminal: Terminal" in (tool.description or "")

    run(body())


# the lease


@BOTH
def test_paused_and_revoked_are_told_with_their_reason(tmp_path: Path, mode: str) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            lease, token = await _leased(door)
            fleet = door.fleet.controller
            async with client(door, token, mode) as session:
                await fleet.pause(ANA, lease, reason="let me see", looking=True)
                words = failed(await session.call_tool("click", {"x": 1, "y": 1}), "lease_paused")
                assert "paused by operator ana: let me see; wait until it is resumed" in words
                assert len(images(await session.call_tool("screenshot", {}))) == 1
                assert '"control":"paused"' in text(await session.call_tool("lease_status", {}))
                await fleet.resume(ANA, lease)
                assert text(await session.call_tool("click", {"x": 1, "y": 1})) == "Done."
                await fleet.revoke(ANA, lease, reason="wrong account", bar=60.0, snapshot=False)
                for tool in ("click", "screenshot", "windows"):
                    given = {"x": 1, "y": 1} if tool == "click" else {}
                    words = failed(await session.call_tool(tool, given), "lease_revoked")
                    assert "was revoked by operator ana: wrong account; stop" in words
                assert '"state":"revoked"' in text(await session.call_tool("lease_status", {}))
            async with client(door, token, mode) as session:  # a new session opens, and hears why too
                assert (await session.list_tools()).tools
                failed(await session.call_tool("screenshot", {}), "lease_revoked")

    run(body())


def test_release_gives_the_desktop_back(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            lease, token = await _leased(door)
            async with client(door, token) as session:
                assert "released" in text(await session.call_tool("release", {"intent": "all done"}))
                failed(await session.call_tool("click", {"x": 1, "y": 1}), "lease_released")
            view = await door.fleet.controller.lease(ANA, lease)
            assert (view.state, view.reason) == ("released", "all done")

    run(body())


def test_a_token_whose_lease_is_forgotten_still_hears_why(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door, client(door, door.fleet.lease_token("ls_0000000000")) as session:
            assert "no longer remembered" in failed(await session.call_tool("screenshot", {}), "forgotten_lease")
            assert '"ls_' not in text(await session.call_tool("lease_status", {}))

    run(body())


def test_one_lease_opens_no_other(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            mine, _ = await _leased(door)
            _, token = await _leased(door, "b")
            async with client(door, token) as session:
                assert mine not in text(await session.call_tool("lease_status", {}))
                await session.call_tool("click", {"x": 77, "y": 7})
            touched = [x for x in door.fleet.world.desktops.values() if ("pointer", 77, 7, 1) in x.events]
            assert len(touched) == 1

    run(body())


@pytest.mark.parametrize("token", [None, "cfl_ls_0123456789_forged", "rubbish"])
def test_who_is_not_known_is_refused(tmp_path: Path, token: str | None) -> None:
    async def body() -> None:
        async with house(tmp_path) as door, door.tcp_client(token) as http:
            answer = await http.post("/mcp", json=CALL, headers=HEADERS)
            problem(answer, 401, "unknown_token" if token else "unauthorized")
            assert not token or token not in answer.text

    run(body())


@pytest.mark.parametrize("kind", ["agent", "operator"])
def test_other_tokens_list_tools_and_open_no_desktop(tmp_path: Path, kind: str) -> None:
    async def body() -> None:
        async with house(tmp_path, profile(), profile("rich", launch={"x": {"command": ["x"]}})) as door:
            token = await door.agent("a") if kind == "agent" else await door.operator(Role.OPERATOR)
            async with client(door, token, query="?profile=rich") as session:
                assert "launch" in {tool.name for tool in (await session.list_tools()).tools}
                words = failed(await session.call_tool("screenshot", {}), "needs_lease_token")
                assert "cu-fleet lease acquire" in words
            async with client(door, token, query="?profile=local") as session:
                assert "launch" not in {tool.name for tool in (await session.list_tools()).tools}

    run(body())


# bad input, and clients that leave

HEADERS = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}
CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "screenshot", "arguments": {}}}

LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}


def test_malformed_messages_are_answered(tmp_path: Path) -> None:
    rubbish = [b"{", b"[]", b'{"jsonrpc": "2.0", "id": 1}', b'"x"', b"\xff" * 100, b"", b"[" * 100_000]

    async def body() -> None:
        async with house(tmp_path) as door:
            _, token = await _leased(door)
            async with door.tcp_client(token) as http:
                for content in rubbish:
                    told = HEADERS | {"Content-Type": "application/json"}
                    answer = await http.post("/mcp", content=content, headers=told)
                    assert (answer.status_code, "error" in answer.json()) == (400, True), content[:20]

    run(body())


def test_methods_nobody_knows_and_wrong_types_are_told(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            _, token = await _leased(door)
            async with door.tcp_client(token) as http:
                for params in ({"name": 5}, {"name": "key", "arguments": 5}, {}):
                    answer = await http.post("/mcp", json=CALL | {"params": params}, headers=HEADERS)
                    assert answer.json()["error"]["code"] == -32602
                answer = await http.post("/mcp", json=CALL | {"method": "tools/shout"}, headers=HEADERS)
                assert answer.json()["error"]["code"] == -32601

    run(body())


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
def test_only_messages_are_taken(tmp_path: Path, method: str) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            _, token = await _leased(door)
            async with door.tcp_client(token) as http:
                answer = await http.request(method, "/mcp", headers=HEADERS)
                assert (answer.status_code, answer.headers["allow"]) == (405, "POST")

    run(body())


@pytest.mark.parametrize(("name", "code"), [("Host", "wrong_host"), ("Origin", "foreign_origin")])
def test_a_page_cannot_come_here(tmp_path: Path, name: str, code: str) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            _, token = await _leased(door)
            async with door.tcp_client(token) as http:
                problem(await http.post("/mcp", json=CALL, headers=HEADERS | {name: "http://evil.example"}), 403, code)

    run(body())


def test_a_body_without_end_is_cut(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            _, token = await _leased(door)
            async with door.tcp_client(token) as http:
                answer = await http.post("/mcp", content=b" " * (17 << 20), headers=HEADERS)
                assert answer.status_code == 413

    run(body())


@BOTH
def test_keys_go_up_when_a_client_leaves_in_the_middle(tmp_path: Path, mode: str) -> None:
    """The call is cancelled as its connection ends, whatever it was waiting for."""
    held = [{"type": "hold_key", "keys": "shift", "seconds": 40}]
    asked: dict[str, Any] = CALL | {"params": {"name": "act", "arguments": {"actions": held}}}
    headers = HEADERS
    if mode == NEW:
        headers = HEADERS | {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "act"}
        meta = {"protocolVersion": "2026-07-28", "clientCapabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        own = {f"io.modelcontextprotocol/{key}": value for key, value in meta.items()}
        asked["params"] = {**asked["params"], "_meta": own}

    async def body() -> None:
        async with house(tmp_path) as door:
            _, token = await _leased(door)
            shift = ("key", 0xFFE1)
            async with door.tcp_client(token) as http:
                calling = asyncio.create_task(http.post("/mcp", json=asked, headers=headers, timeout=60))
                await until(lambda: (*shift, True) in _events(door) or (calling.done() and calling.result().text))
                assert not calling.done(), calling.result().text
                calling.cancel()
                await asyncio.gather(calling, return_exceptions=True)
            await until(lambda: (*shift, False) in _events(door))
            async with client(door, token) as session:  # and the desktop is free for the next
                assert text(await session.call_tool("click", {"x": 3, "y": 3})) == "Done."

    run(body())


def test_a_call_that_takes_too_long_is_ended_with_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            _, token = await _leased(door)
            async with client(door, token) as session:
                await session.list_tools()
                monkeypatch.setattr("cu_fleet.mcp.server.WITHIN", 0.2)
                batch = [{"type": "hold_key", "keys": "shift", "seconds": 40}]
                words = failed(await session.call_tool("act", {"actions": batch}), "waited_too_long")
                assert "half done; take a screenshot" in words
                assert ("key", 0xFFE1, False) in _events(door)

    run(body())


def test_tokens_are_in_no_log_no_error_and_no_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")

    async def body() -> None:
        async with house(tmp_path) as door:
            lease, token = await _leased(door)
            async with client(door, token) as session:
                said = text(await session.call_tool("lease_status", {}))
                await door.fleet.controller.revoke(ANA, lease, reason="", bar=None, snapshot=False)
                said += text(await session.call_tool("screenshot", {}))
            async with door.tcp_client(f"{token}x") as http:
                said += (await http.post("/mcp", json=CALL, headers=HEADERS)).text
            record = "".join(entry.model_dump_json() for entry in await door.fleet.controller.audit(ANA, limit=1000))
            ours = "".join(r.getMessage() for r in caplog.records if not r.name.startswith("http"))  # the clients'
            assert token not in said + record + ours

    run(body())


def test_calls_leave_no_task_behind(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            _, token = await _leased(door)
            async with door.tcp_client(token) as http:

                async def ask() -> None:
                    answer = await http.post("/mcp", json=LIST, headers=HEADERS)
                    assert answer.status_code == 200

                await ask()
                before = len(asyncio.all_tasks())
                await asyncio.gather(*(ask() for _ in range(30)))
                await until(lambda: len(asyncio.all_tasks()) <= before + 1)

    run(body())


def test_the_raw_socket_of_the_home_needs_a_lease_too(tmp_path: Path) -> None:
    """Its owner is an operator, and an operator's own hands are the command line."""

    async def body() -> None:
        async with house(tmp_path) as door:
            asked = json.dumps(CALL).encode()
            head = "".join(f"{key}: {value}\r\n" for key, value in HEADERS.items())
            request = f"POST /mcp HTTP/1.1\r\nHost: x\r\n{head}Content-Type: application/json\r\nConnection: close\r\n"
            status, _, answer = await raw(
                door, f"{request}Content-Length: {len(asked)}\r\n\r\n".encode() + asked, over_socket=True
            )
            assert status == 200
            assert "opens no desktop" in json.loads(answer)["result"]["content"][0]["text"]

    run(body())


# the short way, and the SDK's


_CLICKED: dict[str, Any] = {"name": "click", "arguments": {"x": 1, "y": 1}}
CALLS: list[tuple[dict[str, Any], dict[str, str]]] = [
    (CALL, {}),
    (CALL | {"id": "a name"}, {}),
    (CALL | {"id": 1.5}, {}),
    (CALL | {"id": True}, {}),
    (CALL | {"id": None}, {}),
    (CALL | {"jsonrpc": "1.0"}, {}),
    (CALL | {"more": 1}, {}),
    (CALL | {"params": {"name": "screenshot"}}, {}),
    (CALL | {"params": {"name": "screenshot", "arguments": None}}, {}),
    (CALL | {"params": {"name": "screenshot", "_meta": {"progressToken": 1}}}, {}),
    (CALL | {"params": {"name": "screenshot", "more": 1}}, {}),
    (CALL | {"params": {"name": "nonsense", "arguments": {}}}, {}),
    (CALL | {"params": {"name": "click", "arguments": {"x": "a"}}}, {}),
    (CALL | {"params": _CLICKED}, {}),
    (CALL | {"params": _CLICKED | {"arguments": {"x": 1, "y": 1, "z": 2}}}, {}),
    (CALL | {"params": {"name": "type", "arguments": {"text": "\ud800"}}}, {}),
    (CALL, {"MCP-Protocol-Version": "2025-03-26"}),
    (CALL, {"MCP-Protocol-Version": "1999-01-01"}),
    (CALL, {"Accept": "application/json"}),
    (CALL, {"Accept": "text/html"}),
    (CALL, {"Accept": "*/*"}),
    (CALL, {"Content-Type": "application/json; charset=utf-8"}),
    (CALL, {"Content-Type": "text/plain"}),
    (CALL, {"Mcp-Session-Id": "none of ours"}),
]


def test_the_short_way_says_what_the_sdk_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def said(http: httpx.AsyncClient, message: dict[str, Any], headers: dict[str, str]) -> object:
        content = json.dumps(message).encode()
        told = HEADERS | {"Content-Type": "application/json"} | headers
        answer = await http.post("/mcp", content=content, headers=told)
        names = sorted(name for name in answer.headers if name not in ("date", "content-length"))
        text = re.sub(r"fr_[a-z0-9]+", "fr_x", answer.text)
        return answer.status_code, names, json.loads(text) if answer.status_code == 200 else text

    async def body() -> None:
        taken = []
        read = short.read

        def noted(*words: Any) -> Any:
            taken.append(read(*words))
            return taken[-1]

        async with house(tmp_path) as door:
            _, token = await _leased(door)
            async with door.tcp_client(token) as http:
                await said(http, CALL, {})
                for message, headers in CALLS:
                    monkeypatch.setattr(short, "read", noted)
                    ours = await said(http, message, headers)
                    monkeypatch.setattr(short, "read", lambda *_: None)
                    assert ours == await said(http, message, headers), (message, headers)
        assert 8 <= sum(call is not None for call in taken) < len(CALLS), "some take it, some do not"

    run(body())


def test_a_fault_of_ours_is_an_answer_and_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        async with house(tmp_path) as door:
            _, token = await _leased(door)

            async def broken(*_: object, **__: object) -> None:
                raise RuntimeError("secret-in-the-works")

            monkeypatch.setattr(door.fleet.controller, "windows", broken)
            for mode in (OLD, NEW):
                async with client(door, token, mode) as session:
                    words = failed(await session.call_tool("windows", {}), "internal")
                    assert "secret" not in words
            async with door.tcp_client(token) as http:
                asked = CALL | {"params": {"name": "windows"}}
                answer = await http.post("/mcp", json=asked, headers=HEADERS)
                assert "the controller failed at this" in answer.text

    run(body())
    assert [x.message for x in caplog.records if x.exc_info] == ["windows failed"] * 3


def test_what_a_desktop_tells_is_bounded_and_whatever_it_tells_can_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program names its windows as it likes."""
    titles = ["half a \ud800 character", *("x" * 10_000 for _ in range(200))]

    async def windows(*_: object, **__: object) -> list[dict[str, object]]:
        return [{"id": number, "title": title} for number, title in enumerate(titles)]

    async def body() -> None:
        async with house(tmp_path) as door:
            _, token = await _leased(door)
            monkeypatch.setattr(door.fleet.controller, "windows", windows)
            for mode in (OLD, NEW):
                async with client(door, token, mode) as session:
                    told = text(await session.call_tool("windows", {}))
                    assert "half a ? character" in told
                    assert len(told) < 201_000
                    assert "more characters" in told[-60:]

    run(body())
