"""Desktops over HTTP, for operators: what there is, and commands inside."""

import asyncio
import base64
import logging
from collections.abc import AsyncGenerator, AsyncIterator

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from pydantic import Field

from cu_fleet.api.auth import At
from cu_fleet.api.problems import raises, stopping
from cu_fleet.api.stream import NDJSON, Stream, error_line, in_words, line
from cu_fleet.api.words import Answers, Base64, DesktopId, Ok, example
from cu_fleet.backends.base import Process
from cu_fleet.model.errors import TooLongError, UnavailableError
from cu_fleet.model.profile import Seconds
from cu_fleet.model.record import Value
from cu_fleet.model.view import DesktopView

router = APIRouter(prefix="/v1/desktops", tags=["desktops"])
_KILL_WITHIN = 5.0
_log = logging.getLogger("cu_fleet.api")


class Desktops(Value):
    desktops: list[DesktopView]


class Command(Value):
    model_config = example(argv=["sh", "-c", "id; echo $GREETING"], env={"GREETING": "hello"}, timeout=10)
    argv: list[str] = Field(min_length=1, max_length=10_000)
    cwd: str | None = Field(None, max_length=4096)
    env: dict[str, str] = Field({}, max_length=1000)
    stdin: Base64 = Field(b"", description="Fed to it, then its input ends.")
    timeout: Seconds | None = Field(None, gt=0, description="Ended after this; seconds or '5m'.")


@router.get("", summary="List desktops")
async def desktops(at: At) -> Desktops:
    """Every desktop there is, and who has it."""
    return Desktops(desktops=await at.fleet.desktops(at.who))


@router.get("/{desktop}", summary="Show a desktop", responses=raises(404))
async def desktop(desktop: DesktopId, at: At) -> DesktopView:
    """One desktop, by id or name."""
    return await at.fleet.desktop(at.who, desktop)


@router.delete("/{desktop}", summary="Remove a desktop", responses=raises(404, 409))
async def remove(desktop: DesktopId, at: At) -> Ok:
    """With all that lies on it; refused while a lease holds it."""
    await at.fleet.remove_desktop(at.who, desktop)
    return Ok()


OUTPUT: Answers = {
    200: {
        "description": 'Lines of JSON: `{"stream": 1, "data": base64}` as it comes (2: stderr), then '
        '`{"exit": CODE}`, or `{"error": Problem}`.',
        "content": {NDJSON: {"schema": {"type": "string"}}},
    }
}


@router.post(
    "/{desktop}/exec",
    summary="Run a command inside",
    response_class=Response,
    responses=OUTPUT | raises(404, 409, 501),
)
async def execute(desktop: DesktopId, at: At, body: Command) -> Response:
    """The command is ended when the client leaves."""
    process = await at.fleet.exec(at.who, desktop, body.argv, cwd=body.cwd, env=body.env)
    return Stream(
        in_words(_told(process, body.stdin, body.timeout)),
        media_type=NDJSON,
        closing=at.closing,
        farewell=error_line(stopping()),
    )


async def _told(process: Process, stdin: bytes, timeout: float | None) -> AsyncGenerator[bytes, None]:
    """What it says until its end; whoever stops listening ends it."""
    loop = asyncio.get_running_loop()
    until = None if timeout is None else loop.time() + timeout
    feeding = asyncio.create_task(_feed(process, stdin), name="exec: stdin")
    try:
        output = process.output()
        while (chunk := await _next(output, until)) is not None:
            yield line({"stream": chunk[0], "data": base64.b64encode(chunk[1]).decode()})
        async with asyncio.timeout_at(until):
            code = await process.wait()
        yield line({"exit": code})
    except TimeoutError:
        raise TooLongError(
            f"the command did not end within {timeout:g} s, and was ended", code="exec_timeout"
        ) from None
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
        await _end(process)


async def _next(output: AsyncIterator[tuple[int, bytes]], until: float | None) -> tuple[int, bytes] | None:
    async with asyncio.timeout_at(until):
        return await anext(output, None)


async def _feed(process: Process, stdin: bytes) -> None:
    """A command need not read what it is given."""
    try:
        if stdin:
            await process.write(stdin)
        await process.close_stdin()
    except (OSError, UnavailableError) as error:
        _log.debug("a command did not read its input: %s", error)


async def _end(process: Process) -> None:
    killing = asyncio.create_task(process.kill(), name="exec: kill")
    _, late = await asyncio.wait([killing], timeout=_KILL_WITHIN)
    if late:
        killing.cancel()
        _log.error("a command could not be ended within %g s", _KILL_WITHIN)
    await asyncio.gather(killing, return_exceptions=True)


@router.post("/{desktop}/freeze", summary="Freeze a desktop's processes", responses=raises(404, 409, 501))
async def freeze(desktop: DesktopId, at: At) -> DesktopView:
    """Nothing in it runs until `thaw`."""
    return await at.fleet.freeze(at.who, desktop)


@router.post("/{desktop}/thaw", summary="Let a desktop's processes go on", responses=raises(404, 409, 501))
async def thaw(desktop: DesktopId, at: At) -> DesktopView:
    """After `freeze`."""
    return await at.fleet.thaw(at.who, desktop)


@router.get(
    "/{desktop}/logs", summary="Read a desktop's logs", response_class=PlainTextResponse, responses=raises(404, 501)
)
async def logs(desktop: DesktopId, at: At) -> PlainTextResponse:
    """What its screen, window manager and helper said."""
    return PlainTextResponse(await at.fleet.logs(at.who, desktop))
