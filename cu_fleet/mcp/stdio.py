"""`cu-fleet mcp`: the tools over standard input and output, for a client that starts its own server.

It ends at the end of input, when its parent dies (whoever else may hold the other end of the pipe), and by SIGTERM,
SIGHUP or SIGINT; and gives its desktop back, whichever it was. Nothing but messages reaches standard output.
"""

import asyncio
import os
import signal
import stat
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from typing import Any, cast

import anyio
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, CallToolRequestParams, ListToolsResult, PaginatedRequestParams

from cu_fleet import __version__
from cu_fleet.mcp.answers import Answer, refused
from cu_fleet.mcp.desk import AGAIN, WITHIN, Desk, Way
from cu_fleet.mcp.words import INSTRUCTIONS, LEASES_ITSELF
from cu_fleet.model.errors import FleetError, TooLongError

_MOST_LINE = 32 << 20


async def serve(opened: Callable[[], Awaitable[Way]], profile: str) -> None:
    """Serve until there is nobody to serve. The way to the controller is opened by the first who needs it."""
    over, place = asyncio.Event(), Place(opened, profile)
    loop = asyncio.get_running_loop()
    with ExitStack() as undo:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            loop.add_signal_handler(number, over.set)
            undo.callback(loop.remove_signal_handler, number)
        _watch_parent(over, undo)
        serving = asyncio.create_task(_speak(place), name="speak MCP on stdio")
        ending = asyncio.create_task(over.wait(), name="wait for the end")
        try:
            await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (serving, ending):
                task.cancel()
            await asyncio.wait({serving, ending}, timeout=5)
            await place.close()
    if serving.done() and not serving.cancelled():
        serving.result()


class Place:
    """The desk, once somebody has asked for it."""

    def __init__(self, opened: Callable[[], Awaitable[Way]], profile: str) -> None:
        self._opened, self._profile = opened, profile
        self._opening = asyncio.Lock()
        self._way: Way | None = None
        self._desk: Desk | None = None

    async def desk(self) -> Desk:
        async with self._opening:
            if self._desk is None:
                self._way = await self._opened()
                self._desk = Desk(self._way, self._profile)
            return self._desk

    async def close(self) -> None:
        try:
            if self._desk:
                await self._desk.close()
        finally:
            if self._way:
                await self._way.close()


def _server(place: Place) -> Server[Any]:
    async def listing(_: ServerRequestContext[Any, Any], __: PaginatedRequestParams | None) -> ListToolsResult:
        try:
            async with asyncio.timeout(WITHIN):
                return ListToolsResult.model_validate(await (await place.desk()).listing())
        except FleetError as error:
            raise MCPError(INTERNAL_ERROR, str(error)) from None
        except TimeoutError:
            raise MCPError(INTERNAL_ERROR, f"the controller did not answer within {WITHIN:g} s") from None

    async def call(_: ServerRequestContext[Any, Any], asked: CallToolRequestParams) -> Answer:
        try:
            async with asyncio.timeout(WITHIN):
                return await (await place.desk()).call(asked.name, asked.arguments)
        except FleetError as error:
            return refused(error)
        except TimeoutError:
            return refused(TooLongError(f"{asked.name[:100]} took longer than {WITHIN:g} s", remedy=AGAIN))

    return Server(
        "cu-fleet",
        version=__version__,
        title="A desktop of your own",
        instructions=INSTRUCTIONS + LEASES_ITSELF,
        on_list_tools=listing,
        on_call_tool=call,
    )


async def _speak(place: Place) -> None:
    server = _server(place)
    lines, out = await _input(os.dup(0)), await _output(os.dup(1))
    os.dup2(2, 1)  # what anything else prints is no message
    async with stdio_server(cast("anyio.AsyncFile[str]", lines), cast("anyio.AsyncFile[str]", out)) as (
        messages,
        answers,
    ):
        await server.run(messages, answers, server.create_initialization_options())


# Threads that read or write would outlive a cancellation: these are plain descriptors in the loop.


class _Lines:
    """Lines as `async for` gives them; one that is too long ends the input."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    def __aiter__(self) -> "_Lines":
        return self

    async def __anext__(self) -> str:
        try:
            line = await self._reader.readline()
        except ValueError:
            print(f"a message of more than {_MOST_LINE} bytes: ending", file=sys.stderr)
            line = b""
        if not line:
            raise StopAsyncIteration
        return line.decode("utf-8", "replace")


class _Out:
    def __init__(self, descriptor: int, writer: asyncio.StreamWriter | None) -> None:
        self._descriptor, self._writer = descriptor, writer

    async def write(self, text: str) -> None:
        if self._writer is None:
            os.write(self._descriptor, text.encode())
        else:
            self._writer.write(text.encode())

    async def flush(self) -> None:
        if self._writer is not None:
            await self._writer.drain()


async def _input(descriptor: int) -> _Lines:
    reader = asyncio.StreamReader(limit=_MOST_LINE)
    if _waits(descriptor):
        loop, pipe = asyncio.get_running_loop(), os.fdopen(descriptor, "rb", buffering=0)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    else:
        with os.fdopen(descriptor, "rb") as file:
            reader.feed_data(file.read(_MOST_LINE))
        reader.feed_eof()
    return _Lines(reader)


async def _output(descriptor: int) -> _Out:
    if not _waits(descriptor):
        return _Out(descriptor, None)
    loop, pipe = asyncio.get_running_loop(), os.fdopen(descriptor, "wb", buffering=0)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, pipe)
    return _Out(descriptor, asyncio.StreamWriter(transport, protocol, None, loop))


def _waits(descriptor: int) -> bool:
    """Whether it is something to wait for: a pipe, a socket or a terminal, and no file."""
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)


def _watch_parent(over: asyncio.Event, undo: ExitStack) -> None:
    """Hear of our parent's death, however it comes. (Of one outside our PID namespace only the end of input tells.)"""
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        parent = os.pidfd_open(os.getppid())
        loop.add_reader(parent, over.set)
        undo.callback(os.close, parent)
        undo.callback(loop.remove_reader, parent)
