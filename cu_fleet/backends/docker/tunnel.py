"""The doors of a desktop whose engine is elsewhere: over one command's standard input and output, in its container.

A connection to a door is one end of a socket pair whose other end is a stream of the tunnel, so whoever uses the door
knows no difference; see `cu_fleet.guest.tunnel` for how the streams share it. A tunnel is begun when somebody first
needs it. When it is cut, all its streams end, and the next who needs one begins another: the desktop itself does not
notice. What comes out of it was written by the desktop, so it is bounded, and nonsense ends it.
"""

import array
import asyncio
import json
import os
import socket
import weakref
from collections.abc import Awaitable, Callable, Iterable

from cu_fleet.backends.docker.engine import Engine
from cu_fleet.backends.docker.layout import Desk
from cu_fleet.guest import init as guest
from cu_fleet.guest import tunnel as inside
from cu_fleet.guest.tunnel import MOST_WAITING, Mux, NonsenseError, Stream
from cu_fleet.model.errors import FleetError, UnavailableError

_COMMAND = ["/usr/bin/python3", "-I", "-S", f"{guest.SETUP}/tunnel.py"]
_SECONDS = 30.0  # to begin one
PATIENCE = 10.0  # seconds that an engine out of reach is waited for
_MOST_HEAD = 64 << 10
_STDOUT = 1


class Tunnels:
    """The tunnels of one backend."""

    def __init__(self, engine: Engine, explain: Callable[[Desk], Awaitable[None]]) -> None:
        self._engine = engine
        self._explain = explain  # raises why a desktop's container cannot be talked to
        self._open: dict[str, Tunnel] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        weakref.finalize(self, _let_go, self._open)

    async def of(self, desk: Desk) -> "Tunnel":
        lock = self._opening.setdefault(desk.id, asyncio.Lock())
        async with lock:
            found = self._open.get(desk.id)
            if found is None or not found.works:
                found = self._open[desk.id] = await self._begin(desk)
        return found

    async def _begin(self, desk: Desk) -> "Tunnel":
        try:
            async with asyncio.timeout(_SECONDS):
                return await Tunnel.begin(self._engine, desk)
        except FleetError as e:
            if e.code != "no_engine":
                await self._explain(desk)
            raise
        except TimeoutError:
            raise UnavailableError(
                f"desktop {desk.id} cannot be reached through the Docker engine at {self._engine.host}",
                code="no_answer",
            ) from None

    async def drop(self, desk: Desk) -> None:
        self._opening.pop(desk.id, None)
        if tunnel := self._open.pop(desk.id, None):
            await tunnel.close()


def _let_go(tunnels: "dict[str, Tunnel]") -> None:
    """Nobody can use these any more."""
    for tunnel in tunnels.values():
        tunnel.cancel()


class Tunnel(Mux):
    """One that runs. Its task lives until it is closed or cut."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
        super().__init__()
        self._reader, self._writer = reader, writer
        self._loop = asyncio.get_running_loop()
        self._next = 1
        self._doors: dict[int, socket.socket] = {}  # whose first request has not come yet
        self._watched: set[int] = set()  # descriptors the loop looks at
        self._flushing = asyncio.Event()
        self._flushed = asyncio.Event()
        self.said = b""  # on its standard error
        self._task = self._loop.create_task(self._run(), name=f"tunnel {name}")

    @classmethod
    async def begin(cls, engine: Engine, desk: Desk) -> "Tunnel":
        command, version = await engine.do_patiently(
            lambda api: (api.exec_create(desk.name, _COMMAND, stdin=True)["Id"], api.api_version), PATIENCE
        )
        reader, writer = await engine.dial()
        try:
            await upgrade(reader, writer, f"/v{version}/exec/{command}/start", {"Detach": False, "Tty": False})
        except BaseException:
            writer.close()
            raise
        return cls(reader, writer, desk.id)

    @property
    def works(self) -> bool:
        return not self._task.done() and self._loop is asyncio.get_running_loop()

    def connect(self, door: str) -> socket.socket:
        """A connected, non-blocking socket."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        number, self._next = self._next, self._next + 4
        if door == "exec.sock":  # how many descriptors it comes with is seen in its first request
            self._doors[number] = ours
            ours.setblocking(False)
            self._loop.add_reader(ours.fileno(), self._request, number)
        else:
            self._join(number, ours, door, 0)
        return theirs

    def _join(self, number: int, ours: socket.socket, door: str, pipes: int) -> None:
        self.frame(inside.OPEN, number, f"{door}\0{pipes}".encode())
        fd = ours.detach()
        self.join(number, Stream(fd, os.dup(fd)))
        self._look([number])

    def _request(self, number: int) -> None:
        """The first of a connection to the exec door, with the descriptors of a command's streams beside it."""
        ours = self._doors[number]
        try:
            data, beside, _, _ = ours.recvmsg(inside.CHUNK, socket.CMSG_SPACE(12), socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, beside = b"", []
        self._loop.remove_reader(ours.fileno())
        del self._doors[number]
        if not data:
            ours.close()
            return
        fds = array.array("i", b"".join(packed for _, _, packed in beside)).tolist()
        self._join(number, ours, "exec.sock", len(fds))
        if fds:
            self.join(number + 1, Stream(source=fds[0]))
            self.join(number + 2, Stream(sink=fds[1]))
            self.join(number + 3, Stream(sink=fds[2]))
        self.send(number, data)
        self._look(range(number, number + 4))

    # moving

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._write_out(), name=f"{self._task.get_name()}: out")
                await self._read_in()
        except* (OSError, EOFError, NonsenseError):
            pass
        finally:
            self._end()

    async def _read_in(self) -> None:
        while True:
            head = await self._reader.readexactly(8)  # the engine's: which of its two outputs, and how much
            left = int.from_bytes(head[4:], "big")
            while left:
                data = await self._reader.read(min(left, inside.CHUNK))
                if not data:
                    raise EOFError
                left -= len(data)
                if head[0] == _STDOUT:
                    self._look(self.feed(data))
                else:
                    self.said = (self.said + data)[-2000:]
            while len(self.out) > 4 * MOST_WAITING:  # who does not read is not listened to
                self._flushed.clear()
                await self._flushed.wait()

    async def _write_out(self) -> None:
        while True:
            await self._flushing.wait()
            self._flushing.clear()
            while self.out:
                data = bytes(self.out)
                self.out.clear()
                self._writer.write(data)
                await self._writer.drain()
            self._flushed.set()
            self._look(list(self.streams))

    def _look(self, numbers: Iterable[int]) -> None:
        """Have the loop look at what these streams wait for, and at nothing else."""
        for number in numbers:
            if stream := self.streams.get(number):
                self._watch(stream.source, self.wants_read(stream), self._loop.add_reader, self.read, number)
                self._watch(stream.sink, bool(stream.waiting), self._loop.add_writer, self.write, number)
        if self.out:
            self._flushing.set()

    def _watch(self, fd: int, wanted: bool, add: Callable[..., None], move: Callable[[int], None], number: int) -> None:
        if fd >= 0 and wanted and fd not in self._watched:
            self._watched.add(fd)
            add(fd, self._ready, move, number)
        elif not wanted:
            self.dropping(fd)

    def _ready(self, move: Callable[[int], None], number: int) -> None:
        if number in self.streams:
            move(number)
        self._look([number])

    def dropping(self, fd: int) -> None:
        if fd in self._watched:
            self._watched.discard(fd)
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)

    def _end(self) -> None:
        for door in self._doors.values():
            self._loop.remove_reader(door.fileno())
            door.close()
        self._doors.clear()
        self.shut()
        self._writer.close()

    def cancel(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._task.cancel)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


async def upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, asked: object) -> None:
    """Ask the engine for a stream, and return when this connection is it."""
    body = json.dumps(asked).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n"
    head += f"Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    try:
        answer = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError) as e:
        raise UnavailableError(f"the Docker engine hung up: {e}", code="no_engine") from e
    status = answer.split(None, 2)[1]
    if status not in (b"101", b"200"):
        said = (await reader.read(_MOST_HEAD)).decode("utf-8", "replace").strip()
        raise UnavailableError(f"the Docker engine refuses a command: {said}", code="engine_failed")
