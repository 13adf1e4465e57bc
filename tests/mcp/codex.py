"""The real Codex CLI against a scripted model on loopback: what a model would answer, a script answers here.

Codex comes from the npm registry, once, into the Python environment that the tests run in.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.acceptance.home import Home

VERSION = "0.169.0"
DESKTOP, OWN, AGENTS = "mcp__desktop", "mcp__cu_fleet", "multi_agent_v1"
Call = tuple[str, str, dict[str, Any]]  # namespace, tool, arguments
Script = list[Callable[[list[str]], Call]]  # each is given the answers so far


def installed() -> str:
    folder = Path(sys.prefix) / "codex"
    program = folder / "node_modules" / ".bin" / "codex"
    if not program.exists():
        words = ["npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(folder)]
        subprocess.run([*words, f"@openai/codex@{VERSION}"], check=True, timeout=300, stdin=subprocess.DEVNULL)
    return str(program)


def desktop(tool: str, **given: Any) -> Callable[[list[str]], Call]:
    return lambda _: (DESKTOP, tool, given)


def own(tool: str, **given: Any) -> Callable[[list[str]], Call]:
    """As the tools are called under `cu-fleet codex`."""
    return lambda _: (OWN, tool, given)


def shell(command: str) -> Callable[[list[str]], Call]:
    """Codex's own tool, on the machine it runs on."""
    return lambda _: ("", "exec_command", {"cmd": command, "login": False})


@dataclass
class Thread:
    """One thread of one Codex, as its model sees it."""

    tools: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)  # texts of the tools' answers, with `[image]` for each picture
    pictures: list[bytes] = field(default_factory=list)  # all that it was shown


class Model:
    """Scripts by name, each at a base URL of its own; a sub-agent's thread has the script NAME-sub."""

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {}
        self.threads: dict[str, Thread] = {}
        self.errors: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._running = threading.Thread(target=self._server.serve_forever, name="scripted model", daemon=True)

    def __enter__(self) -> "Model":
        self._running.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._running.join(10)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        model = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                sub = "-sub" if self.headers.get("x-codex-parent-thread-id") else ""
                said = model.answer(self.path.split("/")[1] + sub, asked).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

        return Handler

    def answer(self, name: str, asked: dict[str, Any]) -> str:
        thread = self.threads.setdefault(name, Thread())
        thread.tools = [x["name"] for t in asked["tools"] if t.get("name") in (DESKTOP, OWN) for x in t["tools"]]
        outputs = [x["output"] for x in asked["input"] if x.get("type") == "function_call_output"]
        thread.answers = [_text(output) for output in outputs]
        thread.pictures = [picture for output in outputs for picture in _pictures(output)]
        number, script = len(thread.answers), self.scripts[name]
        item: dict[str, Any] = {"type": "message", "role": "assistant", "id": "m", "content": _SAID}
        if number < len(script):
            try:
                namespace, tool, given = script[number](thread.answers)
            except Exception as e:  # noqa: BLE001 - told by the test, which waits for all of them
                self.errors.append(f"{name}: {e!r}")
            else:
                called = {
                    "name": tool,
                    "arguments": json.dumps(given),
                    **({"namespace": namespace} if namespace else {}),
                }
                item = {"type": "function_call", "id": f"f{number}", "call_id": f"c{number}", **called}
        done = {"id": "r", "usage": {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2, **_DETAILS}}
        events = [
            {"type": "response.created", "response": {"id": "r"}},
            {"type": "response.output_item.done", "item": item},
            {"type": "response.completed", "response": done},
        ]
        return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)


_SAID = [{"type": "output_text", "text": "all done"}]
_DETAILS = {"input_tokens_details": None, "output_tokens_details": None}


def _text(output: Any) -> str:
    if isinstance(output, str):
        return output
    return "\n".join("[image]" if part["type"] == "input_image" else part["text"] for part in output)


def _pictures(output: Any) -> list[bytes]:
    parts = [] if isinstance(output, str) else output
    return [base64.b64decode(x["image_url"].partition(",")[2]) for x in parts if x["type"] == "input_image"]


@dataclass
class Codex:
    """Starts `codex exec` in a home of its own, with the desktop that `cu-fleet mcp-config` tells it of."""

    home: Home
    model: Model

    def start(self, name: str, *, agent: str = "", token: str = "") -> "subprocess.Popen[bytes]":
        """With its own `cu-fleet mcp` for this agent, or over HTTP with the token of a lease."""
        place = self.home.path / f"codex-{name}"
        (place / ".codex").mkdir(parents=True)
        way = ["--http"] if token else ["--agent", agent, "--profile", "small"]
        told = self.home.cli("mcp-config", "--client", "codex", *way)
        (place / ".codex" / "config.toml").write_text(f"{self._provider(name)}{told['configuration']}\n")
        words = [installed(), "exec", "--json", "--skip-git-repo-check", "-C", str(place), f"work on {name}"]
        env = {"HOME": str(place), "PATH": os.environ["PATH"], "CU_FLEET_LEASE_TOKEN": token}
        with (place / "log").open("wb") as log:
            return subprocess.Popen(words, env=env, cwd=place, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def run(self, name: str, *own: str) -> "subprocess.Popen[bytes]":
        """By `cu-fleet codex`, with nothing of a desktop in its configuration."""
        place = self.home.path / f"codex-{name}"
        (place / ".codex").mkdir(parents=True)
        (place / ".codex" / "config.toml").write_text(self._provider(name))
        path = f"{Path(installed()).parent}:{os.environ['PATH']}"
        words = ["exec", "--json", "--skip-git-repo-check", f"work on {name}"]
        words[-1:-1] = ["--sandbox", "danger-full-access"] if "--worktree" in own else ["-C", str(place)]
        return self.home.start("codex", "--profile", "small", *own, "--", *words, HOME=str(place), PATH=path)

    def _provider(self, name: str) -> str:
        provider = f'[model_providers.scripted]\nname = "scripted"\nbase_url = "{self.model.url}/{name}/v1"\n'
        return f'model = "scripted"\nmodel_provider = "scripted"\n{provider}wire_api = "responses"\n'

    def log(self, name: str) -> str:
        return (self.home.path / f"codex-{name}" / "log").read_text()[-3000:]


@contextmanager
def codexes(home: Home) -> Iterator[Codex]:
    assert shutil.which("npm"), "npm is missing: tests/run.sh installs it"
    with Model() as model:
        yield Codex(home, model)
