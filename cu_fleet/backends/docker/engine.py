"""Talking to a Docker engine: which one, from a few threads of our own, and its refusals in our words.

The SDK blocks, so each call runs in a thread; a caller that is cancelled still waits for it, so that nothing goes on
behind anyone's back, and every call has a time limit. An SDK client is not made for many threads, so each thread has
its own. The SDK is loaded when the engine is first needed: who uses no containers pays nothing for them.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from cu_fleet.model.errors import ConflictError, FleetError, InvalidError, NotFoundError, UnavailableError

if TYPE_CHECKING:
    from docker import APIClient
    from docker.types import LogConfig

T = TypeVar("T")
_AT_ONCE = 8
_SECONDS = 60  # for one answer of the engine
_FULL = "no space left on device"


class Engine:
    """One engine: the one given, or what `DOCKER_HOST` or the current Docker context name, or this machine's own."""

    def __init__(self, host: str | None = None) -> None:
        self._given = host
        self._threads = ThreadPoolExecutor(_AT_ONCE, "docker")
        self._own = threading.local()
        self._clients: list[APIClient] = []
        weakref.finalize(self, _close, self._threads, self._clients)

    @property
    def host(self) -> str:
        return self._given or os.environ.get("DOCKER_HOST") or _of_context() or "unix:///var/run/docker.sock"

    async def do(self, work: Callable[[APIClient], T]) -> T:
        """Run `work` with a client, in a thread."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, partial(self.now, work))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            future.exception()  # seen, so that the loop does not complain of it
            raise

    def now(self, work: Callable[[APIClient], T]) -> T:
        """Run `work` with a client, in this thread, which may block."""
        with in_words(self.host):
            _knock(self.host)
            return work(self._client())

    def _client(self) -> APIClient:
        client: APIClient | None = getattr(self._own, "client", None)
        if client is None:
            client = self._own.client = _connect(self.host)
            self._clients.append(client)
        return client


def _close(threads: ThreadPoolExecutor, clients: list[APIClient]) -> None:
    threads.shutdown(wait=False)
    for client in clients:
        client.close()


def _knock(host: str) -> None:
    """Fail at once, and in plain words, where nobody listens; the SDK would leave its socket open."""
    if host.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_SECONDS)
            try:
                sock.connect(host.removeprefix("unix://"))
            except OSError as e:
                raise _silent(host, e) from e


def _of_context() -> str | None:
    from docker.context import ContextAPI

    context = ContextAPI.get_current_context()
    return context.Host if context else None


def _connect(host: str) -> APIClient:
    from docker import APIClient
    from docker.utils import kwargs_from_env

    more: dict[str, Any] = {} if host.startswith(("unix://", "ssh://")) else dict(kwargs_from_env())
    more |= {"base_url": host, "use_ssh_client": host.startswith("ssh://")}
    return APIClient(version="auto", timeout=_SECONDS, max_pool_size=1, **more)


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
