"""A short way to the two calls that agents make all the time: look and act.

The framework takes longer to find an operation and to read its words than the controller takes to record it. Here the
very same functions are called with the very same words, read by their own annotations. A request that is not entirely
as it should be takes the framework's way, which says what is wrong with it. Agents ask the same again and again, and
between two questions the processor has forgotten how to read them: so what a query says is remembered.
"""

import asyncio
import inspect
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, get_type_hints
from urllib.parse import parse_qsl

from fastapi import params
from pydantic import BaseModel, create_model
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cu_fleet.api.auth import SOCKET_OWNER, Call
from cu_fleet.api.leaving import unless_left
from cu_fleet.api.problems import on_unexpected
from cu_fleet.model.errors import FleetError

if TYPE_CHECKING:
    from cu_fleet.controller import Controller

Operation = Callable[..., Awaitable[Response]]
Headers = Mapping[bytes, bytes]
_TOP = "/v1/leases/"
_LONGEST = 100  # characters of a lease's id
_LARGE = 1 << 20  # bytes of a body that need not hurry
_KNOWN_NAME = "if_changed_since"
_KNOWN = b"if_changed_since="
_PLAIN = re.compile(rb"\w{1,100}")  # a frame's id
_QUERY = 1000  # bytes of a query that need not either


class Direct:
    """`operations` are those below a lease, by method and the last step of their path."""

    def __init__(
        self,
        app: ASGIApp,
        controller: "Controller",
        closing: asyncio.Event,
        operations: Mapping[tuple[str, str], Operation],
    ) -> None:
        self._app, self._controller, self._closing = app, controller, closing
        self._words = {key: _Words(operation) for key, operation in operations.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        words = self._short(scope) if scope["type"] == "http" else None
        if words is None:
            await self._app(scope, receive, send)
        elif not words.has_body:
            await self._served(words, scope, receive, send)
        else:
            async with unless_left(receive) as watched:
                await self._served(words, scope, watched, send)

    async def _served(self, words: "_Words", scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        body, receive = await _body(headers, receive) if words.has_body else (None, receive)
        asked: tuple[str | None, dict[str, Any]] | None
        try:
            asked = _token(headers), words.read(scope, headers, body)
        except (ValueError, RecursionError):
            asked = None
        if asked:
            answer = await self._answer(scope, receive, send, words.operation, *asked)
            await answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _short(self, scope: Scope) -> "_Words | None":
        top, _, name = scope["path"].rpartition("/")
        return self._words.get((scope["method"], name)) if top.startswith(_TOP) else None

    async def _answer(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        operation: Operation,
        token: str | None,
        arguments: dict[str, Any],
    ) -> Response:
        try:
            who = await self._controller.caller(token, socket_owner=scope.get(SOCKET_OWNER))
            return await operation(at=Call(self._controller, who, self._closing), **arguments)
        except FleetError:
            raise  # the guard puts it into words
        except Exception as error:
            await (await on_unexpected(Request(scope), error))(scope, receive, send)
            raise


class _Words:
    """How an operation is asked: a lease, a query, and perhaps a body."""

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        hints = get_type_hints(operation, include_extras=True)
        query: dict[str, Any] = {}
        for name, parameter in inspect.signature(operation).parameters.items():
            if name not in ("lease", "at", "body"):
                if not any(isinstance(said, params.Query) for said in getattr(hints[name], "__metadata__", ())):
                    raise TypeError(f"{operation.__name__} cannot be called directly: {name} is not of its query")
                query[name] = (hints[name], parameter.default)
        self._query = create_model(operation.__name__, **query)
        self._said = lru_cache(256)(self._read)
        self._may_know = _KNOWN_NAME in query
        self._body: type[BaseModel] | None = hints.get("body")

    @property
    def has_body(self) -> bool:
        return self._body is not None

    def read(self, scope: Scope, headers: Headers, body: bytes | None) -> dict[str, Any]:
        """The operation's arguments; a ValueError if anything is unusual."""
        lease = scope["path"].removeprefix(_TOP).rpartition("/")[0]
        if len(headers) != len(scope["headers"]) or "/" in lease or not 0 < len(lease) <= _LONGEST:
            raise ValueError
        arguments: dict[str, Any] = {"lease": lease, **self._of_query(scope["query_string"])}
        if self._body:
            if body is None or headers.get(b"content-type") != b"application/json":
                raise ValueError
            arguments["body"] = self._body.model_validate(json.loads(body))
        return arguments

    def _of_query(self, query: bytes) -> dict[str, Any]:
        """What is said again and again, and the frame that the caller has, which is another each time."""
        rest, known, frame = query.rpartition(_KNOWN)
        if not known or (rest and not rest.endswith(b"&")) or not _PLAIN.fullmatch(frame) or not self._may_know:
            return self._said(query)
        return {**self._said(rest), _KNOWN_NAME: frame.decode()}

    def _read(self, query: bytes) -> dict[str, Any]:
        if len(query) > _QUERY:
            raise ValueError
        return dict(self._query.model_validate(dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))))


def _token(headers: Headers) -> str | None:
    authorization = headers.get(b"authorization")
    if authorization is None:
        return None
    scheme, _, token = authorization.decode("latin-1").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise ValueError
    return token


async def _body(headers: Headers, receive: Receive) -> tuple[bytes | None, Receive]:
    """The body, if it is short and came in one piece; and the way to receive it once more."""
    if not 0 < int(headers.get(b"content-length", 0)) < _LARGE:
        return None, receive
    first = await receive()
    kept = [first]

    async def again() -> Message:
        return kept.pop() if kept else await receive()

    return None if first.get("more_body") else first.get("body"), again
