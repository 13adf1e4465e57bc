"""A model that says what a script says, on loopback, for a real Codex to ask: what it thinks takes no time.

It speaks as much of OpenAI's Responses API as Codex needs of a provider of its own.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

NAMESPACE = "mcp__cu_fleet"  # where `cu-fleet codex` puts the tools
Call = tuple[str, dict[str, Any]]  # tool, arguments
_SAID = {"type": "message", "role": "assistant", "id": "m", "content": [{"type": "output_text", "text": "done"}]}
_USAGE = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}


class Scripted:
    """Each script is at a base URL of its own: `url`/NAME/v1."""

    def __init__(self, scripts: Mapping[str, Sequence[Call]]) -> None:
        self._scripts = scripts
        self.answers: dict[str, list[str]] = {name: [] for name in scripts}  # texts of what the tools answered
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="scripted model", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def said(self, name: str, asked: Mapping[str, Any]) -> str:
        outputs = [x["output"] for x in asked["input"] if x.get("type") == "function_call_output"]
        self.answers[name] = [_text(output) for output in outputs]
        item: dict[str, Any] = _SAID
        if len(outputs) < len(self._scripts[name]):
            tool, given = self._scripts[name][len(outputs)]
            called = {"namespace": NAMESPACE, "name": tool, "arguments": json.dumps(given)}
            item = {"type": "function_call", "id": f"f{len(outputs)}", "call_id": f"c{len(outputs)}", **called}
        events = [
            {"type": "response.created", "response": {"id": "r"}},
            {"type": "response.output_item.done", "item": item},
            {"type": "response.completed", "response": {"id": "r", "usage": _USAGE}},
        ]
        return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)


def _handler(model: Scripted) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            said = model.said(self.path.split("/")[1], asked).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    return Handler


def _text(output: Any) -> str:
    if isinstance(output, str):
        return output
    return "\n".join(str(part.get("text", "[image]")) for part in output)
