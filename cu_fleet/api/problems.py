"""Errors as the outside sees them: `application/problem+json` (RFC 9457), one shape for everything that goes wrong.

A FleetError becomes itself; words that do not fit a schema become an InvalidError that names the key, without
repeating the value (it may be a secret); anything unexpected says only that it happened, and is logged by the guard.
"""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticSerializationError, to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from cu_fleet.model import errors
from cu_fleet.model.errors import FleetError, InvalidError, UnavailableError

MEDIA_TYPE = "application/problem+json"
_CODES = {404: "no_such_path", 405: "no_such_method", 408: "too_slow", 413: "too_large", 503: "too_much"}


class Problem(BaseModel):
    """What went wrong: for people in `detail`, for programs in `code`, with the facts beside them."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Conflict",
                    "status": 409,
                    "detail": 'lease denied: agent b asked for desktop "finance", but agent a holds it (lease '
                    "ls_3k9m2c7d1x) until it is released, revoked or runs out at 12:00:00Z",
                    "code": "taken",
                    "remedy": "",
                    "agent": "b",
                    "desktop": "finance",
                    "holder": {"agent": "a", "lease": "ls_3k9m2c7d1x", "until": "2026-01-01T12:00:00Z"},
                }
            ]
        },
    )

    type: str = "about:blank"
    title: str = Field(description="The status in words.")
    status: int
    detail: str = Field(description="What happened and what helps, for a person.")
    code: str = Field(description="Stable, for programs.")
    remedy: str = Field("", description="What helps.")


class ProblemResponse(Response):
    media_type = MEDIA_TYPE


def problem_of(error: FleetError) -> dict[str, Any]:
    return {
        **error.facts,
        "type": "about:blank",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": str(error),
        "code": error.code,
        "remedy": error.remedy,
    }


def encoded(problem: Mapping[str, Any]) -> bytes:
    try:
        return to_json(problem, inf_nan_mode="null", fallback=str)
    except PydanticSerializationError:  # half a character was asked for, and is told by its number
        return json.dumps(problem, default=str).encode()


def answer(error: FleetError) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if error.status == HTTPStatus.UNAUTHORIZED else None
    return ProblemResponse(encoded(problem_of(error)), error.status, headers)


async def on_fleet_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, FleetError)
    return answer(error)


async def on_wrong_words(request: Request, error: Exception) -> Response:
    """A query, path or body that does not fit: which key, and what was expected there."""
    assert isinstance(error, RequestValidationError)
    found = [(*_place(e["loc"]), str(e["msg"]).removeprefix("Value error, "), e["type"]) for e in error.errors()]
    kind = request.headers.get("content-type", "")
    if any(where == "body" and not key for where, key, _, _ in found) and "json" not in kind:
        return answer(
            InvalidError(
                "the body must be a JSON object", remedy="send it with Content-Type: application/json", key="body"
            )
        )
    words = [
        f"{key or where}: {'no such key' if type_ == 'extra_forbidden' else msg}" for where, key, msg, type_ in found
    ]
    return answer(InvalidError("; ".join(words), key=found[0][1] or found[0][0], where=found[0][0]))


def _place(loc: Sequence[str | int]) -> tuple[str, str]:
    """("body", "grants.leases") of pydantic's path to a value; a JSON syntax error's offset is no key."""
    where, *path = loc
    return str(where), ".".join(str(part) for part in path if isinstance(part, str) or len(path) > 1)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: an unknown path or method, a body too large or not readable."""
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # what it says of a body that is neither text nor JSON
        return answer(InvalidError("the body cannot be read", remedy="send a JSON object, in UTF-8", key="body"))
    said = error.detail if isinstance(error.detail, str) else HTTPStatus(error.status_code).phrase
    words = {
        404: f"there is nothing at {request.url.path}",
        405: f"{request.method} is nothing one can do at {request.url.path}",
    }
    problem = {
        "type": "about:blank",
        "title": HTTPStatus(error.status_code).phrase,
        "status": error.status_code,
        "detail": words.get(error.status_code, said),
        "code": _CODES.get(error.status_code, "invalid"),
        "remedy": "see /openapi.json" if error.status_code in (404, 405) else "",
    }
    return ProblemResponse(encoded(problem), error.status_code, error.headers)


async def on_unexpected(_: Request, __: Exception) -> Response:
    """Nothing of the inside shows; the guard logs it."""
    return answer(FleetError("the controller failed at this; its log says more", code="internal"))


def stopping() -> FleetError:
    return UnavailableError("the controller is stopping", remedy="ask again when it is back", code="stopping")


def raises(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors an operation documents, in addition to those that any may answer."""
    return {status: {"description": _WORDS[status]} for status in statuses}


_WORDS = {
    kind.status: " ".join((kind.__doc__ or "It does not exist.").split())
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, FleetError)
} | {413: "The body is larger than allowed.", 500: "It failed here; the controller's log says more."}
EVERYWHERE = raises(401, 403, 422, 500, 503)
