"""The agent loops of `examples/`, as a user runs them: the vendor's own SDK, a scripted model, a fake desktop."""

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from cu_fleet.backends.memory_screen import Screen
from cu_fleet.model.keys import keysym
from tests.adapters.desk import picture
from tests.api.door import Door, open_door
from tests.controller.fleet import ANA
from tests.support import run, until

pytestmark = pytest.mark.slow

TOP = Path(__file__).resolve().parents[2]
CHECK = {"id": "cu_sc_1", "code": "sensitive_domain", "message": "This looks like a bank."}


class Model:
    """An endpoint on loopback that says its lines one by one, and keeps what it was asked."""

    def __init__(self, *lines: dict[str, Any]) -> None:
        self.lines = [*lines]
        self.asked: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.url = ""

    def answer(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
        self.asked.append((path, body, headers))
        return (200, self.lines.pop(0)) if self.lines else (400, {"error": {"message": "nothing left to say"}})

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, body, _ in self.asked]


@contextmanager
def served(model: Model) -> Iterator[Model]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            headers = {key.lower(): value for key, value in self.headers.items()}
            status, said = model.answer(self.path, body, headers)
            data = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        model.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield model
        finally:
            server.shutdown()
            thread.join()


def looped(
    home: Path,
    example: str,
    agent: str,
    model: Model,
    variables: Callable[[str], dict[str, str]],
    *,
    says: bool | None = None,
) -> tuple[int, str, str, list[tuple[object, ...]]]:
    """Run the example against the model: its exit code, output, errors, and what its screen has seen.

    `says`: what the operator answers when asked.
    """

    async def body() -> tuple[int, str, str, list[tuple[object, ...]]]:
        async with open_door(home) as door:
            named = {"CU_FLEET_URL": door.url, "CU_FLEET_TOKEN": await door.agent(agent, profiles=("local",), leases=1)}
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, str(TOP / "examples" / example), "press s"),
                env={**os.environ, "PYTHONPATH": _paths(), "NO_PROXY": "*", **named, **variables(model.url)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            screen = asyncio.create_task(_screen(door), name="find the screen")
            if says is not None:
                (question,) = await until(lambda: door.fleet.controller.approvals(ANA), timeout=60)
                await door.fleet.controller.answer(ANA, question.approval, approve=says, reason="so I decide")
            out, err = await process.communicate()
            screen.cancel()
            await asyncio.wait({screen})
            views = await door.fleet.controller.leases(ANA, everything=True, agent=agent)
            assert [view.state for view in views] == ["released"], err.decode()
            seen = [] if screen.cancelled() else screen.result().events
            return process.returncode or 0, out.decode(), err.decode(), seen

    with served(model):
        return run(body(), timeout=90)


async def _screen(door: Door) -> Screen:
    """The one that the loop leases, while it is there."""
    while True:
        for view in await door.fleet.controller.leases(ANA, everything=False, agent=None):
            if view.desktop and view.desktop in door.fleet.world.desktops:
                return door.fleet.world.desktops[view.desktop].screen
        await asyncio.sleep(0.02)


def _paths() -> str:
    return os.pathsep.join([str(TOP), *filter(None, [os.environ.get("PYTHONPATH")])])


def keys(seen: list[tuple[object, ...]]) -> list[object]:
    return [event[1] for event in seen if event[0] == "key" and event[2]]


def only(given: dict[str, Any], kind: Any) -> None:
    """Nothing is in there that the vendor's own type does not have."""
    assert set(given) <= set(get_type_hints(kind)), given


def response(number: int, *output: dict[str, Any]) -> dict[str, Any]:
    """One of OpenAI's Responses, which its own SDK reads without complaint."""
    from openai.types.responses import Response

    said = {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": 1,
        "model": "gpt-5.4",
        "output": [*output],
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
    }
    Response.model_validate(said)
    return said


def computer_call(number: int, *actions: dict[str, Any], checks: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {
        "type": "computer_call",
        "id": f"cu_{number}",
        "call_id": f"call_{number}",
        "status": "completed",
        "actions": [*actions],
        "pending_safety_checks": [*checks],
    }


def words(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}


def openai_at(url: str) -> dict[str, str]:
    return {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "sk-none"}


def test_openai_loop(tmp_path: Path) -> None:
    from openai.types.responses.response_input_item_param import ComputerCallOutput

    model = Model(
        response(1, computer_call(1, {"type": "screenshot"})),
        response(2, computer_call(2, {"type": "click", "button": "left", "x": 999, "y": 5})),
        response(3, computer_call(3, {"type": "move", "x": 9, "y": 5}, {"type": "keypress", "keys": ["CTRL", "S"]})),
        response(4, words("It is saved.")),
    )
    code, out, err, seen = looped(tmp_path, "openai_loop.py", "openai-agent", model, openai_at)
    assert (code, out) == (0, "It is saved.\n"), err
    assert keys(seen) == [keysym("ctrl"), keysym("s")]
    first, second, third, fourth = model.bodies
    assert {path for path, _, _ in model.asked} == {"/v1/responses"}
    assert (first["tools"], first["input"][0]["content"]) == ([{"type": "computer"}], "press s")
    assert [body["previous_response_id"] for body in (second, third, fourth)] == ["resp_1", "resp_2", "resp_3"]
    (output,) = second["input"]
    only(output, ComputerCallOutput)
    assert (output["type"], output["call_id"]) == ("computer_call_output", "call_1")
    assert picture(output["output"]["image_url"].partition(",")[2]).size == (200, 120)
    assert "off the display" in third["input"][1]["content"][0]["text"]
    assert len(fourth["input"]) == 1


def test_openai_loop_does_what_is_unsafe_when_the_operator_says_so(tmp_path: Path) -> None:
    call = computer_call(1, {"type": "keypress", "keys": ["p"]}, checks=(CHECK,))
    model = Model(response(1, call), response(2, words("Done.")))
    code, out, err, seen = looped(tmp_path, "openai_loop.py", "openai-agent", model, openai_at, says=True)
    assert (code, out, keys(seen)) == (0, "Done.\n", [keysym("p")]), err
    assert model.bodies[1]["input"][0]["acknowledged_safety_checks"] == [CHECK]


def test_openai_loop_does_nothing_unsafe_against_the_operators_word(tmp_path: Path) -> None:
    model = Model(response(1, computer_call(1, {"type": "type", "text": "pin"}, checks=(CHECK,))))
    code, out, err, seen = looped(tmp_path, "openai_loop.py", "openai-agent", model, openai_at, says=False)
    assert (code, out) == (1, "")
    assert "This looks like a bank." in err
    assert "so I decide" in err
    assert len(model.asked) == 1
    assert not keys(seen)


def message(stop: str, *content: dict[str, Any]) -> dict[str, Any]:
    """One of Anthropic's messages, which its own SDK reads without complaint."""
    from anthropic.types.beta import BetaMessage

    said = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-opus-4-6",
        "content": [*content],
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }
    BetaMessage.model_validate(said)
    return said


def tool_use(number: int, action: str, **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{number}", "name": "computer", "input": {"action": action, **given}}


def test_anthropic_loop(tmp_path: Path) -> None:
    from anthropic.types.beta import BetaToolComputerUse20251124Param, BetaToolResultBlockParam

    model = Model(
        message("tool_use", {"type": "text", "text": "Let me look."}, tool_use(1, "screenshot")),
        message("tool_use", tool_use(2, "left_click", coordinate=[999, 5]), tool_use(3, "type", text="never")),
        message("tool_use", tool_use(4, "zoom", region=[0, 0, 100, 60]), tool_use(5, "key", text="ctrl+s")),
        message("end_turn", {"type": "text", "text": "It is saved."}),
    )
    code, out, err, seen = looped(
        tmp_path,
        "anthropic_loop.py",
        "anthropic-agent",
        model,
        lambda url: {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "none"},
    )
    assert (code, out) == (0, "It is saved.\n"), err
    assert keys(seen) == [keysym("ctrl"), keysym("s")]
    assert {headers["anthropic-beta"] for _, _, headers in model.asked} == {"computer-use-2025-11-24"}
    first, *_, last = model.bodies
    (tool,) = first["tools"]
    only(tool, BetaToolComputerUse20251124Param)
    assert (tool["type"], tool["display_width_px"], tool["display_height_px"]) == ("computer_20251124", 200, 120)
    results = [block for said in last["messages"][2::2] for block in said["content"]]
    for result in results:
        only(result, BetaToolResultBlockParam)
    assert [result["tool_use_id"] for result in results] == [f"toolu_{number}" for number in range(1, 6)]
    assert [bool(result.get("is_error")) for result in results] == [False, True, True, False, False]
    assert picture(results[0]["content"][0]["source"]["data"]).size == (200, 120)


def test_http_loop(tmp_path: Path) -> None:
    model = Model(
        {"actions": [{"type": "click", "x": 999, "y": 5}]},
        {"actions": [{"type": "key", "keys": "ctrl+s"}]},
        {"answer": "It is saved."},
    )
    code, out, err, seen = looped(tmp_path, "http_loop.py", "http-agent", model, lambda url: {"MODEL_URL": url})
    assert (code, out) == (0, "It is saved.\n"), err
    assert keys(seen) == [keysym("ctrl"), keysym("s")]
    first, second, third = model.bodies
    assert (first["task"], first["width"], first["height"], first["done"]) == ("press s", 200, 120, [])
    assert picture(first["image"]).size == (200, 120)
    assert "off the screen" in second["done"][0]["detail"]
    assert picture(second["image"]).size == (200, 120)
    assert third["done"] == [{"ok": True}]
