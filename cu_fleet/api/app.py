"""The nouns put together into one ASGI app, with its OpenAPI document."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cu_fleet import __version__
from cu_fleet.api import (
    approvals,
    desktops,
    files,
    frames,
    leases,
    people,
    profiles,
    record,
    screen,
    service,
    snapshots,
    ui,
    watch,
    worktrees,
)
from cu_fleet.api.direct import Direct, Operation
from cu_fleet.api.guard import Guard
from cu_fleet.api.problems import (
    EVERYWHERE,
    MEDIA_TYPE,
    Problem,
    on_fleet_error,
    on_http_exception,
    on_unexpected,
    on_wrong_words,
    raises,
)
from cu_fleet.model.errors import FleetError

if TYPE_CHECKING:
    from cu_fleet.controller import Controller

_NOUNS = (
    leases,
    screen,
    watch,
    approvals,
    worktrees,
    ui,
    frames,
    files,
    desktops,
    snapshots,
    people,
    profiles,
    record,
    service,
)
_DIRECT: dict[tuple[str, str], Operation] = {("GET", "screenshot"): screen.screenshot, ("POST", "actions"): screen.act}
_OPEN = frozenset({"/healthz"})  # needs no token


def build(
    controller: "Controller",
    *,
    shutdown: Callable[[], None],
    closing: asyncio.Event | None = None,
    hosts: Collection[str] = (),
    doors: Mapping[str, ASGIApp] | None = None,
) -> ASGIApp:
    """The door's app. `shutdown` is called when a client asks for it; `closing` ends whatever waits.

    `doors` are others, each with its path, that stand behind the same guard.
    """
    app = FastAPI(
        title="cu-fleet",
        version=__version__,
        description="Every AI agent gets its own isolated desktop: lease, drive, supervise, record.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
    )
    app.state.controller = controller
    app.state.shutdown = shutdown
    app.state.closing = closing = closing or asyncio.Event()
    for noun in _NOUNS:
        app.include_router(noun.router)
    app.router.routes.extend(Route(path, pages) for path, pages in watch.ROUTES)
    app.add_exception_handler(FleetError, on_fleet_error)
    app.add_exception_handler(RequestValidationError, on_wrong_words)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(Exception, on_unexpected)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's own way to extend it
    return Guard(_by_path(doors or {}, Direct(app, controller, closing, _DIRECT)), hosts, closing)


def _by_path(doors: Mapping[str, ASGIApp], rest: ASGIApp) -> ASGIApp:
    """Past the framework, which has nothing to say to them."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        door = doors.get(scope["path"], rest) if scope["type"] == "http" else rest
        await door(scope, receive, send)

    return app


def _operation_id(route: APIRoute) -> str:
    return f"{route.endpoint.__module__.rpartition('.')[2]}.{route.name}"


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, in which every error is a Problem."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = document["components"]["schemas"]
        schemas["Problem"] = Problem.model_json_schema()
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for path, operations in document["paths"].items():
            for operation in operations.values():
                _document_errors(operation, everywhere=path not in _OPEN)
        app.openapi_schema = document
    return app.openapi_schema


def _document_errors(operation: dict[str, Any], *, everywhere: bool) -> None:
    answers: dict[str, Any] = operation["responses"]
    answers.pop("422", None)
    if everywhere:
        answers.update({str(status): dict(words) for status, words in EVERYWHERE.items()})
    if "requestBody" in operation:
        answers.update({str(status): dict(words) for status, words in raises(408, 413).items()})
    problem = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for status, words in answers.items():
        if status >= "400":
            words["content"] = problem
    operation["responses"] = dict(sorted(answers.items()))
