"""How commands reach the controller: one short visit each, over the client's own wire.

The wire is all of the client they need: commands show what the controller answers as it is, and start quickly without
the client's objects. A visit ends cleanly whatever ends it: ^C and SIGTERM cancel its work, so that what must be undone
is undone (a waiting request is withdrawn) before the process leaves.
"""

import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import typer

from cu_fleet.cli.errors import TERMINATED
from cu_fleet.model.errors import BrokenError, ConflictError, UnavailableError

if TYPE_CHECKING:
    import threading

    from cu_fleet.client.http import Wire as Wire
else:
    Wire = Any  # imported with httpx when the first visit needs it

T = TypeVar("T")
NOT_RUNNING = "not_running"  # the wire's code for a controller that is not there
LONG = 600.0  # how long a change (a rollback, a batch of actions) may be silent before we give up


def run(work: Callable[[Wire], Awaitable[T]], *, start: bool = True, token: str | None = None) -> T:
    """Do `work` with the controller, starting one on demand; with this token, or else the environment's."""
    import asyncio

    return asyncio.run(_visit(work, start, token))


def run_if_up(work: Callable[[Wire], Awaitable[T]]) -> T | None:
    """Do `work` with the controller that runs; None if none does."""
    try:
        return run(work, start=False)
    except UnavailableError as error:
        if error.code != NOT_RUNNING:
            raise
        return None


async def _visit(work: Callable[[Wire], Awaitable[T]], start: bool, token: str | None) -> T:
    from asyncio import CancelledError

    ended = _cancelled_by_sigterm()
    wire = _wire(start, token)
    try:
        return await work(wire)
    except CancelledError:
        if ended.is_set():
            raise typer.Exit(TERMINATED) from None
        raise
    finally:
        await wire.close()


def _wire(start: bool, token: str | None) -> Wire:
    # httpx brings a command line of its own, and with it all of Rich: a seventh of the time that a command takes.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # None: "do not import", as Python has it
    from cu_fleet.client.http import Wire
    from cu_fleet.settings import default_home

    url, token = os.environ.get("CU_FLEET_URL") or None, token or os.environ.get("CU_FLEET_TOKEN") or None
    return Wire(url=url.rstrip("/") if url else None, token=token, home=default_home(), start=start)


def _cancelled_by_sigterm() -> "threading.Event":
    """SIGTERM cancels the running task, as asyncio itself does for ^C."""
    import asyncio
    import signal
    import threading

    ended, task = threading.Event(), asyncio.current_task()

    def end() -> None:
        ended.set()
        if task is not None:
            task.cancel()

    if threading.current_thread() is threading.main_thread():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end)
    return ended


def path(*parts: str) -> str:
    """`/v1/…`, each part quoted: a name is never more than one step of a path."""
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


# asking


def get(where: str, **query: Any) -> Any:
    """One question, on a visit of its own."""
    return run(lambda wire: ask(wire, "GET", where, **query))


def post(where: str, body: object) -> Any:
    return run(lambda wire: ask(wire, "POST", where, body))


async def ask(wire: Wire, method: str, where: str, body: object = None, *, start: bool = True, **query: object) -> Any:
    """The JSON answer to one request. With `start=False` a controller that was stopped meanwhile stays so."""
    hold = query.get("hold")
    patience = float(hold) if isinstance(hold, int | float) and hold else 0.0 if method == "GET" else LONG
    answer = await wire.call(method, where, body=body, query=query, patience=patience, start=start)
    return answer.json()


async def text(wire: Wire, where: str) -> str:
    return (await wire.call("GET", where)).text


async def picture(wire: Wire, lease: str, query: Mapping[str, object]) -> tuple[dict[str, Any], bytes]:
    """A screenshot's bytes, none if it is unchanged, and what its headers say of it."""
    answer = await wire.call("GET", path("leases", lease, "screenshot"), query=query, patience=60.0)
    return {**_told(answer.headers), "unchanged": answer.status_code == 304}, answer.content


async def kept(wire: Wire, sha256: str) -> tuple[dict[str, Any], bytes]:
    """A kept frame's bytes, and what its headers say of it."""
    answer = await wire.call("GET", path("frames", sha256))
    return _told(answer.headers), answer.content


def _told(headers: Mapping[str, str]) -> dict[str, Any]:
    """What `Cu-Fleet-…` headers say, as JSON has it."""
    told = {
        name.lower()[9:].replace("-", "_"): headers[name] for name in headers if name.lower().startswith("cu-fleet-")
    }
    return {name: _KINDS.get(name, str)(value) for name, value in told.items()}


_WHOLE, _PARTS = ("width", "height", "screen_width", "screen_height", "generation"), ("age", "within", "scale")
_KINDS: dict[str, Callable[[str], object]] = {
    **dict.fromkeys(_WHOLE, int),
    **dict.fromkeys(_PARTS, float),
    "settled": "true".__eq__,
}


async def lines(
    wire: Wire, method: str, where: str, body: object = None, **query: object
) -> AsyncIterator[dict[str, Any]]:
    """The answer's lines of JSON as they come; an error among them is raised."""
    from cu_fleet.client.http import error_of
    from cu_fleet.client.http import lines as lines_of

    headers = {"Accept": "application/x-ndjson"}
    async with wire.stream(method, where, body=body, query=query, patience=None, headers=headers) as answer:
        async for line in lines_of(wire, answer):
            value = json.loads(line)
            if set(value) == {"error"}:
                raise error_of(value["error"])
            yield value


async def events(wire: Wire, after: int) -> AsyncIterator[dict[str, Any]]:
    """Entries of the record as they are written, from after this one on."""
    from cu_fleet.client.http import lines as lines_of

    async with wire.stream("GET", "/v1/events", query={"after": after}, patience=None, start=False) as answer:
        async for line in lines_of(wire, answer):
            if line.startswith("data:"):
                yield json.loads(line[5:])


def broken_off(what: str) -> BrokenError:
    return BrokenError(f"{what} broke off before its end", code="broken_off")


async def upload(wire: Wire, where: str, data: AsyncIterator[bytes], **query: object) -> None:
    await wire.call("PUT", where, content=data, query=query, patience=LONG)


async def download(wire: Wire, where: str) -> AsyncIterator[bytes]:
    from cu_fleet.client.http import chunks

    async with wire.stream("GET", where, patience=LONG) as answer:
        async for chunk in chunks(wire, answer):
            yield chunk


# what people call things


async def lease(wire: Wire, name: str) -> dict[str, Any]:
    return dict(await ask(wire, "GET", path("leases", await lease_id(wire, name))))


async def lease_id(wire: Wire, name: str) -> str:
    """A lease's id, given itself or the desktop it holds, by id or name."""
    if name.startswith("ls_"):
        return name
    view = await ask(wire, "GET", path("desktops", name))
    if not view["lease"]:
        raise ConflictError(
            f"no agent holds desktop {name}", remedy="see cu-fleet lease list", code="not_held", desktop=name
        )
    return str(view["lease"])


async def desktop_id(wire: Wire, name: str) -> str:
    """A desktop's id or name, given itself or the lease that holds it."""
    if not name.startswith("ls_"):
        return name
    view = await ask(wire, "GET", path("leases", name))
    if not view["desktop"]:
        raise ConflictError(
            f"lease {name} has no desktop: it is {view['state']}", code="no_desktop", lease=name, state=view["state"]
        )
    return str(view["desktop"])
