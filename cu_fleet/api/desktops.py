"""Desktops over HTTP, for operators: what there is, and commands inside.

A command's output comes as it is made. Its input is sent with it, or comes by a second request while it runs: HTTP
has no way to send more after the answer has begun.
"""

import asyncio
import base64
import logging
from collections.abc import AsyncGenerator, AsyncIterator

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import Field

from cu_fleet.api.auth import At
from cu_fleet.api.problems import raises, stopping
from cu_fleet.api.stream import NDJSON, Stream, error_line, in_words, line, until_closing
from cu_fleet.api.words import Answers, Base64, DesktopId, Ok, example
from cu_fleet.backends.base import Process
from cu_fleet.model.access import Caller
from cu_fleet.model.errors import NotFoundError, TooLongError, UnavailableError
from cu_fleet.model.names import new_id
from cu_fleet.model.profile import Seconds
from cu_fleet.model.record import Value
from cu_fleet.model.view import DesktopView

router = APIRouter(prefix="/v1/desktops", tags=["desktops"])
_KILL_WITHIN = 5.0
_fed: dict[str, tuple[Caller, Process]] = {}  # commands that run and whose input is still to come, by their id
_log = logging.getLogger("cu_fleet.api")


class Desktops(Value):
    desktops: list[DesktopView]


class Command(Value):
    model_config = example(argv=["sh", "-c", "id; echo $GREETING"], env={"GREETING": "hello"}, timeout=10)
    argv: list[str] = Field(min_length=1, max_length=10_000)
    cwd: str | None = Field(None, max_length=4096)
    env: dict[str, str] = Field({}, max_length=1000)
    stdin: Base64 = Field(b"", description="Fed to it, then its input ends.")
    input: bool = Field(False, description="Its input comes by PUT …/exec/{command}/input instead.")
    timeout: Seconds | None = Field(None, gt=0, description="Ended after this; seconds or '5m'.")
    linger: Seconds | None = Field(
        None, gt=0, description="When it has ended, what it left running may hold on to its output for so long."
    )


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
        "description": 'Lines of JSON: `{"command": ID}` if its `input` is to come, '
        '`{"stream": 1, "data": base64}` as it comes (2: stderr), then `{"exit": CODE}`, or `{"error": Problem}`.',
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
        in_words(_told(at.who, process, body)),
        media_type=NDJSON,
        closing=at.closing,
        farewell=error_line(stopping()),
    )


async def _told(who: Caller, process: Process, asked: Command) -> AsyncGenerator[bytes, None]:
    """What it says until its end; whoever stops listening ends it."""
    until = None if asked.timeout is None else asyncio.get_running_loop().time() + asked.timeout
    name, feeding = new_id("cm"), None
    if asked.input:
        _fed[name] = (who, process)
    else:
        feeding = asyncio.create_task(_feed(process, asked.stdin), name="exec: stdin")
    ending = asyncio.create_task(process.wait(), name="exec: end")
    try:
        if asked.input:
            yield line({"command": name})
        async for stream, data in _said(process.output(), ending, until, asked.linger):
            yield line({"stream": stream, "data": base64.b64encode(data).decode()})
        async with asyncio.timeout_at(until):
            code = await ending
        yield line({"exit": code})
    except TimeoutError:
        raise TooLongError(
            f"the command did not end within {asked.timeout:g} s, and was ended", code="exec_timeout"
        ) from None
    finally:
        _fed.pop(name, None)
        tasks = [task for task in (feeding, ending) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await _end(process)


async def _said(
    output: AsyncIterator[tuple[int, bytes]], ending: "asyncio.Task[int]", until: float | None, linger: float | None
) -> AsyncGenerator[tuple[int, bytes], None]:
    """Its output to the end; or, with `linger`, until it has ended and been silent for so long."""
    loop = asyncio.get_running_loop()
    coming: asyncio.Task[tuple[int, bytes] | None] | None = None
    try:
        while True:
            coming = coming or asyncio.create_task(_next(output), name="exec: output")
            over = linger is not None and ending.done()
            left = None if until is None else max(0.0, until - loop.time())
            silence = min(left or linger, linger) if over and linger is not None else left
            both = {coming} if over or linger is None else {coming, ending}
            done, _ = await asyncio.wait(both, timeout=silence, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                if over:
                    return
                raise TimeoutError
            if coming in done:
                if (chunk := coming.result()) is None:
                    return
                coming = None
                yield chunk
    finally:
        if coming:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)


async def _next(output: AsyncIterator[tuple[int, bytes]]) -> tuple[int, bytes] | None:
    return await anext(output, None)


@router.put("/{desktop}/exec/{command}/input", summary="Feed a command", responses=raises(404))
async def feed(desktop: DesktopId, command: str, at: At, request: Request) -> Ok:
    """What is sent is the input of a command that runs, and was begun with `input`; its end is the input's end."""
    who, process = _fed.get(command, (None, None))
    if process is None or who != at.who:
        raise NotFoundError(f"no command {command} of yours takes input on desktop {desktop} now", code="no_command")
    del _fed[command]
    await until_closing(at.closing, _pumped(request.stream(), process))
    return Ok()


async def _pumped(data: AsyncIterator[bytes], process: Process) -> None:
    try:
        async for chunk in data:
            await process.write(chunk)
    except (OSError, UnavailableError) as error:
        _log.debug("a command did not read its input: %s", error)
    finally:
        await process.close_stdin()


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
