"""The ways to a lease's viewers beside the HTTP door: a unix socket in the home, and a port on loopback.

The socket lies in a folder that only its owner may enter. The kernel chooses the port: none is guessed or shared.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from cu_fleet.controller.core import folder
from cu_fleet.model.errors import UnavailableError
from cu_fleet.watch.viewer import Wire
from cu_fleet.watch.wires import StreamWire

log = logging.getLogger(__name__)
_LONGEST_PATH = 107  # bytes of a unix socket's address
_BACKLOG = 16

Serve = Callable[[str, Wire, str], Awaitable[None]]


@dataclass
class _Door:
    path: Path | None
    port: int
    servers: list[asyncio.Server] = field(default_factory=list)

    async def close(self) -> None:
        for server in self.servers:
            server.close()
        if self.path:
            self.path.unlink(missing_ok=True)


class Listening:
    def __init__(self, home: Path, serve: Serve) -> None:
        self._home = home
        self._serve = serve
        self._doors: dict[str, _Door] = {}
        self._opening = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def leases(self) -> Collection[str]:
        return self._doors.keys()

    async def open(self, lease: str) -> tuple[Path | None, int]:
        """Where viewers of this lease are let in; no path where the home's is too long for a socket."""
        async with self._opening:
            if lease not in self._doors:
                self._doors[lease] = await self._open(lease)
        door = self._doors[lease]
        return door.path, door.port

    async def _open(self, lease: str) -> _Door:
        path = folder(self._home) / f"{lease}.sock"
        door = _Door(path if len(bytes(path)) <= _LONGEST_PATH else None, 0)
        try:
            tcp = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
            door.port = tcp.getsockname()[1]
            door.servers.append(await asyncio.start_server(self._accepter(lease, "tcp"), sock=tcp))
            if door.path:
                door.path.unlink(missing_ok=True)  # of a controller that was killed
                at_path = await asyncio.start_unix_server(self._accepter(lease, "unix"), door.path, backlog=_BACKLOG)
                door.servers.append(at_path)
        except OSError as e:
            await door.close()
            raise UnavailableError(f"viewers of lease {lease} cannot be let in: {e.strerror}") from None
        except BaseException:
            await door.close()
            raise
        return door

    def _accepter(self, lease: str, way: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            serving = self._serve(lease, StreamWire(reader, writer), way)
            task = asyncio.ensure_future(serving)
            task.set_name(f"viewer of {lease} ({way})")
            self._tasks.add(task)
            task.add_done_callback(self._served)

        return accept

    def _served(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            log.error("%s failed", task.get_name(), exc_info=task.exception())

    def clear(self) -> None:
        """Remove the sockets that a killed controller left."""
        for left in self._home.glob("*.sock"):
            left.unlink(missing_ok=True)

    async def keep(self, leases: Collection[str]) -> None:
        """Close the ways to all others."""
        for lease in [lease for lease in self._doors if lease not in leases]:
            await self._doors.pop(lease).close()

    async def close(self) -> None:
        await self.keep(())
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
