"""Talking to a Docker engine: which one, from a few threads of our own, and its refusals in our words.

The SDK blocks, so each call runs in a thread; a caller that is cancelled still waits for it, so that nothing goes on
behind anyone's back, and every call has a time limit. What takes long by its nature has threads of its own, so that
nothing quick waits behind it. An SDK client is not made for many threads, so each thread has its own. The SDK is loaded
when the engine is first needed: who uses no containers pays nothing for them.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from cu_fleet.backends.docker.ssh import Forward
from cu_fleet.model.errors import ConflictError, FleetError, InvalidError, NotFoundError, UnavailableError

if TYPE_CHECKING:
    from docker import APIClient
    from docker.tls import TLSConfig
    from docker.types import LogConfig

T = TypeVar("T")
_AT_ONCE, _SLOW_AT_ONCE = 8, 2
_SECONDS = 60  # for one answer of the engine
_OLDEST = "1.24"  # of the engine's protocols, to ask for the newest
_AGAIN = 0.5  # seconds until it is asked again
_FULL = "no space left on device"
_LOCAL = "unix:///var/run/docker.sock"


@dataclass(frozen=True)
class Address:
    """Where an engine is, and what proves us to each other."""

    host: str
    tls: TLSConfig | None = None


class Engine:
    """One engine: the one given, or what `DOCKER_HOST` or the current Docker context name, or this machine's own."""

    def __init__(self, host: str | None = None) -> None:
        self._given = host
        self._threads = ThreadPoolExecutor(_AT_ONCE, "docker")
        self._slow = ThreadPoolExecutor(_SLOW_AT_ONCE, "docker-slow")
        self._own = threading.local()
        self._clients: list[APIClient] = []
        self.near: bool | None = None  # whether it sees the same files as we, once that was tried
        weakref.finalize(self, _close, [self._threads, self._slow], self._clients)

    @property
    def host(self) -> str:
        return self._given or os.environ.get("DOCKER_HOST") or _of_context().host

    @cached_property
    def address(self) -> Address:
        """What is used from the first call on, whatever becomes of the variables and the context."""
        if given := self._given or os.environ.get("DOCKER_HOST"):
            return Address(given, None if given.startswith(("unix://", "ssh://")) else _tls_of_environment())
        return _of_context()

    @cached_property
    def _forward(self) -> Forward:
        return Forward(self.address.host)

    def _socket(self) -> str | None:
        """Its unix socket, if it has one here."""
        if self.address.host.startswith("unix://"):
            return self.address.host.removeprefix("unix://")
        return self._forward.socket() if self.address.host.startswith("ssh://") else None

    async def do(self, work: Callable[[APIClient], T], *, slow: bool = False) -> T:
        """Run `work` with a client, in a thread; `slow` is what takes as long as there is much to do."""
        threads = self._slow if slow else self._threads
        future = asyncio.get_running_loop().run_in_executor(threads, partial(self.now, work))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            future.exception()  # seen, so that the loop does not complain of it
            raise

    async def do_at_once(self, works: Iterable[Callable[[APIClient], object]]) -> None:
        """The same with several pieces of work that need nothing of each other; returns when all have ended."""
        for ended in await asyncio.gather(*map(self.do, works), return_exceptions=True):
            if isinstance(ended, BaseException):
                raise ended

    async def do_patiently(self, work: Callable[[APIClient], T], seconds: float) -> T:
        """The same over a network, which may be about to come back: tried anew for this long while nobody answers."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while True:
            try:
                return await self.do(work)
            except UnavailableError as e:
                if e.code != "no_engine" or loop.time() > until:
                    raise
            await asyncio.sleep(_AGAIN)

    def now(self, work: Callable[[APIClient], T]) -> T:
        """Run `work` with a client, in this thread, which may block."""
        with in_words(self.host):
            return work(self._client(self._socket()))

    def _client(self, path: str | None) -> APIClient:
        times = self._forward.times if self.address.host.startswith("ssh://") else 0
        known: tuple[APIClient, int] | None = getattr(self._own, "client", None)
        if known is None or known[1] != times:
            known = self._own.client = (_connect(self.address, path), times)
            self._clients.append(known[0])
        return known[0]

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A bare connection to the engine."""
        try:
            if path := await asyncio.get_running_loop().run_in_executor(self._threads, self._socket):
                return await asyncio.open_unix_connection(path)
            parts = urlsplit(self.address.host)
            tls = _ssl(self.address.tls) if self.address.tls else None
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 2375, ssl=tls)
        except OSError as e:
            raise _silent(self.host, e) from e
        _cut_when_dead(writer.get_extra_info("socket"))
        return reader, writer


def _cut_when_dead(sock: socket.socket) -> None:
    """Notice within 20 seconds that nobody is there any more."""
    for option, value in (
        (socket.TCP_KEEPIDLE, 5),
        (socket.TCP_KEEPINTVL, 5),
        (socket.TCP_KEEPCNT, 3),
        (socket.TCP_USER_TIMEOUT, 20_000),
        (socket.TCP_NODELAY, 1),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _close(pools: list[ThreadPoolExecutor], clients: list[APIClient]) -> None:
    for pool in pools:
        pool.shutdown(wait=False)
    for client in clients:
        client.close()


def _of_context() -> Address:
    """What `docker context use` or `DOCKER_CONTEXT` chose."""
    from docker.context import ContextAPI

    name = os.environ.get("DOCKER_CONTEXT")
    context = ContextAPI.get_context(name)
    if context is None:
        raise UnavailableError(
            f"there is no Docker context {name!r}",
            remedy="docker context ls; then set DOCKER_CONTEXT",
            code="no_engine",
        )
    host = str(context.Host or _LOCAL)
    return Address(host.replace("http+unix://", "unix://"), context.TLSConfig)


def _tls_of_environment() -> TLSConfig | None:
    from docker.utils import kwargs_from_env

    found: TLSConfig | None = kwargs_from_env().get("tls")
    return found


def _ssl(tls: TLSConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.ca_cert or None)
    if tls.cert:
        context.load_cert_chain(*tls.cert)
    if not tls.verify:  # its owner said so: DOCKER_TLS_VERIFY is empty, or the context skips it
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _connect(address: Address, path: str | None) -> APIClient:
    from docker import APIClient

    url, tls = (f"unix://{path}", None) if path else (address.host, address.tls)
    client = APIClient(url, version=_OLDEST, timeout=_SECONDS, max_pool_size=1, tls=tls or False)
    client.trust_env = False  # or certificates and proxies meant for the web would be taken for the engine, too
    if path:
        from cu_fleet.backends.docker.unix import UnixAdapter

        client.mount("http+docker://", UnixAdapter(path, _SECONDS, max_pool_size=1))
        client.headers["Connection"] = "close"  # the SDK would keep one for each of the last so many paths
    try:
        client._version = client._retrieve_server_version()  # type: ignore[attr-defined]  # noqa: SLF001
    except BaseException:
        client.close()
        raise
    return client


def image_of(api: APIClient, name: str) -> dict[str, Any] | None:
    """What the engine says of an image, or None if it has none of this name."""
    from docker.errors import ImageNotFound

    try:
        found: dict[str, Any] = api.inspect_image(name)  # type: ignore[no-untyped-call]
    except ImageNotFound:
        return None
    return found


@contextmanager
def patient(api: APIClient, seconds: int) -> Iterator[None]:
    """For calls that take as long as there is much to do."""
    usual, api.timeout = api.timeout, seconds
    try:
        yield
    finally:
        api.timeout = usual


def short_log(most: str) -> LogConfig:
    """Where the engine keeps what a container's first process says, and how much of it."""
    from docker.types import LogConfig

    return LogConfig(type=LogConfig.types.JSON, config={"max-size": most, "max-file": "1"})


@contextmanager
def in_words(host: str) -> Iterator[None]:
    """What the engine refuses, or that it does not answer, as our own errors."""
    try:
        from docker.errors import APIError, DockerException
        from requests.exceptions import RequestException
    except ImportError:
        raise UnavailableError(
            "desktops in containers need a package that is not installed",
            remedy='pip install "cu-fleet-controller[docker]"',
            code="missing_package",
        ) from None
    try:
        yield
    except APIError as e:
        raise _refusal(e.status_code, str(e.explanation or e)) from e
    except (DockerException, RequestException) as e:
        raise _silent(host, e) from e


def _silent(host: str, e: BaseException) -> UnavailableError:
    return UnavailableError(
        f"the Docker engine at {host} does not answer: {_innermost(e)}",
        remedy="see whether it runs (docker info), or set DOCKER_HOST",
        code="no_engine",
    )


def _refusal(status: int | None, said: str) -> FleetError:
    if _FULL in said:
        return UnavailableError(
            f"the Docker engine's disk is full: {said}", remedy="make room: docker system df", code="disk_full"
        )
    if status == 404:
        return NotFoundError(f"the Docker engine says: {said}", code="engine_has_not")
    if status == 409:
        return ConflictError(f"the Docker engine says: {said}", code="engine_conflict")
    if status == 400:
        return InvalidError(f"the Docker engine refuses it: {said}", code="engine_refused")
    return UnavailableError(f"the Docker engine failed: {said}", code="engine_failed")


def _innermost(e: BaseException) -> str:
    """The cause that says most; the SDK and what it rests on wrap theirs many times."""
    seen = {id(e)}
    while (inner := e.__cause__ or e.__context__ or _argument(e)) and id(inner) not in seen:
        e = inner
        seen.add(id(e))
    return str(e)


def _argument(e: BaseException) -> BaseException | None:
    return next((arg for arg in e.args if isinstance(arg, BaseException)), None)
