"""A short way for the message that agents send all the time: a tool's call, by a client of the protocols with sessions.

For each message of theirs the SDK makes a transport, a dispatcher, three streams and half a dozen tasks, and writes the
picture out through two models. Here the very same function is called, and its answer written once. A message that is
not entirely as it should be takes the SDK's way, which says what is wrong with it; so do all other messages, and all
clients of 2026-07-28, whose messages it answers as they come.
"""

from dataclasses import dataclass
from typing import Any

from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic_core import from_json, to_json
from starlette.types import Scope, Send

from cu_fleet.mcp.answers import Answer

_VERSIONS = {version.encode() for version in HANDSHAKE_PROTOCOL_VERSIONS}
_MESSAGE = {"jsonrpc", "id", "method", "params"}
_CALL = {"name", "arguments", "_meta"}
_LARGE = 1 << 20  # bytes of a message that need not hurry


@dataclass(frozen=True)
class Call:
    id: int | str
    tool: str
    arguments: dict[str, Any]


def read(scope: Scope, body: bytes) -> Call | None:
    """The call, if this is one and nothing about it is unusual."""
    if len(body) > _LARGE or not _usual(dict(scope["headers"])):
        return None
    try:
        message = from_json(body, allow_inf_nan=False)
    except ValueError:
        return None
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0" or message.get("method") != "tools/call":
        return None
    number, params = message.get("id"), message.get("params")
    if not isinstance(number, int | str) or isinstance(number, bool):
        return None
    if not isinstance(params, dict) or message.keys() - _MESSAGE:
        return None
    tool, arguments = params.get("name"), params.get("arguments", {})
    if not isinstance(tool, str) or not isinstance(arguments, dict) or params.keys() - _CALL:
        return None
    return Call(number, tool, arguments) if isinstance(params.get("_meta", {}), dict) else None


def _usual(headers: dict[bytes, bytes]) -> bool:
    return (
        headers.get(b"content-type") == b"application/json"
        and b"application/json" in headers.get(b"accept", b"").split(b";")[0].replace(b" ", b"").split(b",")
        and headers.get(b"mcp-protocol-version") in _VERSIONS
    )


async def answer(call: Call, told: Answer, send: Send) -> None:
    result = told.model_dump(by_alias=True, exclude_none=True, exclude={"result_type"})
    body = to_json({"jsonrpc": "2.0", "id": call.id, "result": result})
    length = str(len(body)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
