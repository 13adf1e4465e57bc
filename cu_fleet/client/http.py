"""How the Python client reaches a controller: over a URL, or over the home's unix socket, starting one on demand.

Nothing here knows what is asked for. A refusal becomes the FleetError it was; a controller that is not there is
started, once for all who ask for it at the same moment, and the request goes out again: a connection that was never
made has sent nothing.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import httpx
from pydantic import BaseModel

from cu_fleet.client.start import start_controller
from cu_fleet.model import errors
from cu_fleet.model.errors import BrokenError, FleetError, InvalidError, UnavailableError

M = TypeVar("M", bound=BaseModel)
Send = Callable[[httpx.Request], Awaitable[httpx.Response]]
TIMEOUT = 60.0  # seconds without a byte of an answer, beyond what the call itself may wait
CONNECT_TIMEOUT = 5.0
_LONGEST_ADDRESS = 107  # bytes of a unix socket's path
_KINDS: dict[int, type[FleetError]] = {
    kind.status: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, FleetError) and kind.status != FleetError.status
}
_SHAPE = frozenset({"type", "title", "status", "detail", "code", "remedy"})


class Wire:
    """One controller, as this process reaches it. `home` is used when there is no `url`."""

    def __init__(self, *, url: str | None, token: str | None, home: Path, start: bool) -> None:
        self.url, self.home, self._start = url, home, start and url is None
        self._token = token
        self._send: Send | None = None
        self._starting = asyncio.Lock()
        self._held = AsyncExitStack()

    @property
    def where(self) -> str:
        return self.url or str(self.home)

    async def open(self) -> None:
        """Make sure that a controller answers."""
        await self.call("GET", "/healthz")

    async def close(self) -> None:
        self._send = None
        await self._held.aclose()

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        query: Mapping[str, object] | None = None,
        token: str | None = None,
        content: bytes | AsyncIterator[bytes] | None = None,
        patience: float | None = 0.0,
        start: bool = True,
    ) -> httpx.Response:
        """Ask, and read the whole answer. `patience`: how many seconds the call itself may take to answer.

        With `start=False` a controller that is not there is not started for this: what goes on in the background, or
        belongs to a lease of a controller that was stopped, must not undo that.
        """
        async with self.stream(
            method, path, body=body, query=query, token=token, content=content, patience=patience, start=start
        ) as answer:
            with _words(self.where):
                await answer.aread()
            return answer

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        query: Mapping[str, object] | None = None,
        token: str | None = None,
        content: bytes | AsyncIterator[bytes] | None = None,
        patience: float | None = 0.0,
        headers: Mapping[str, str] | None = None,
        start: bool = True,
    ) -> AsyncIterator[httpx.Response]:
        """Ask, and read the answer as it comes; with `patience=None` however long it is silent."""
        given = {key: _plain(value) for key, value in (query or {}).items() if value is not None}
        where = f"{path}?{urlencode(given)}" if given else path
        waits = {"connect": CONNECT_TIMEOUT, "write": TIMEOUT, "pool": None}
        waits["read"] = None if patience is None else TIMEOUT + patience

        async def send() -> httpx.Response:
            return await self._ask(
                method,
                where,
                waits,
                json=body,
                content=content,
                headers={**self._authorization(token), **(headers or {})},
            )

        with _words(self.where):
            answer = await self._sent(send, start and self._start)
        try:
            if answer.status_code >= 400:
                with _words(self.where):
                    raise refusal(await answer.aread(), answer.status_code)
            yield answer
        finally:
            await answer.aclose()

    async def _sent(self, send: Callable[[], Awaitable[httpx.Response]], start: bool) -> httpx.Response:
        try:
            return await send()
        except (httpx.ConnectError, FileNotFoundError):
            if not start:
                raise
        async with self._starting:
            if not await self._answers():
                await start_controller(self.home, self._answers)
        return await send()

    async def _answers(self) -> bool:
        """Whether a controller is there and speaks."""
        try:
            answer = await self._ask("GET", "/healthz", dict.fromkeys(("connect", "read", "write"), CONNECT_TIMEOUT))
            await answer.aread()
        except (httpx.TransportError, FileNotFoundError):
            return False
        return answer.status_code == 200

    def _authorization(self, token: str | None) -> dict[str, str]:
        token = token or self._token
        return {"Authorization": f"Bearer {token}"} if token else {}

    async def _ask(self, method: str, where: str, waits: Mapping[str, float | None], **more: Any) -> httpx.Response:
        """Straight to the transport: the rest of httpx's client, which we have no use for, costs as much again."""
        send = self._send = self._send or self._way()
        url = self._base.copy_with(raw_path=self._base.raw_path.rstrip(b"/") + where.encode("ascii"))
        return await send(httpx.Request(method, url, extensions={"timeout": waits}, **more))

    def _way(self) -> Send:
        """Made when it is first needed: a long socket path needs its folder open, which must exist by then."""
        self._base = httpx.URL(self.url or "http://localhost")
        limits = httpx.Limits(max_connections=None, keepalive_expiry=30)
        if self._base.scheme == "https":
            client = httpx.AsyncClient(limits=limits)  # by a proxy, if the environment names one
            self._held.push_async_callback(client.aclose)
            return partial(client.send, stream=True)
        uds = None if self.url else self._socket()
        transport = httpx.AsyncHTTPTransport(verify=False, uds=uds, limits=limits, trust_env=False)
        self._held.push_async_callback(transport.aclose)
        return transport.handle_async_request

    def _socket(self) -> str:
        """The socket's path, short enough for an address, whatever the home's is."""
        path = self.home / "controller.sock"
        if len(os.fsencode(path)) <= _LONGEST_ADDRESS:
            return str(path)
        folder = os.open(self.home, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._held.callback(os.close, folder)
        return f"/proc/self/fd/{folder}/{path.name}"


async def chunks(wire: Wire, answer: httpx.Response) -> AsyncIterator[bytes]:
    with _words(wire.where):
        async for chunk in answer.aiter_bytes():
            yield chunk


async def lines(wire: Wire, answer: httpx.Response) -> AsyncIterator[str]:
    with _words(wire.where):
        async for line in answer.aiter_lines():
            yield line


def refusal(body: bytes, status: int) -> FleetError:
    """The error that a problem answer was made from."""
    try:
        problem = json.loads(body)
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or "detail" not in problem:
        return BrokenError(f"something that is no cu-fleet controller answered with status {status}", code="not_ours")
    return error_of(problem)


def error_of(problem: Mapping[str, Any]) -> FleetError:
    status, code, remedy = problem.get("status", 500), str(problem.get("code", "")), str(problem.get("remedy", ""))
    kind = _KINDS.get(status, InvalidError if 400 <= status < 500 else FleetError)
    if status == BrokenError.status:
        kind = BrokenError if code != "internal" else FleetError
    what = str(problem["detail"])
    facts = {key: value for key, value in problem.items() if key not in _SHAPE | {"what"}}
    return kind(what.removesuffix(f"; {remedy}") if remedy else what, remedy=remedy, code=code, **facts)


def v1(*steps: str) -> str:
    """`/v1/…`, each step quoted: a name is never more than one step."""
    return "/v1/" + "/".join(quote(step, safe="") for step in steps)


def given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def read(kind: type[M], data: Mapping[str, Any]) -> M:
    """A record from an answer; a newer controller may say more than we know."""
    try:
        return kind.model_validate({key: value for key, value in data.items() if key in kind.model_fields})
    except ValueError as error:
        raise BrokenError(f"the controller's answer is not understood: {error}", code="not_understood") from None


def read_line(line: str) -> dict[str, Any]:
    """One line of a stream; an error there is the error."""
    value: dict[str, Any] = json.loads(line)
    if "error" in value:
        raise error_of(value["error"])
    return value


@contextmanager
def _words(where: str) -> Iterator[None]:
    """What can go wrong on the way, in ours."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, FileNotFoundError):
        raise UnavailableError(
            f"no controller runs at {where}", remedy="start one: cu-fleet up", code="not_running"
        ) from None
    except httpx.TimeoutException:
        raise UnavailableError(f"the controller at {where} does not answer", code="no_answer") from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise InvalidError(f"{where!r} is not a controller's URL: {error}", remedy="http://HOST:PORT") from None
    except httpx.TransportError as error:
        why = str(error) or type(error).__name__
        raise UnavailableError(f"the controller at {where} broke off: {why}", code="broken_off") from error


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
