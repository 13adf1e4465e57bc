"""An engine as from another machine: its files are hidden from it, and it is reached over a network that can fail."""

import asyncio
import subprocess
import threading
from pathlib import Path
from typing import Self

from cu_fleet.testing.dockerd import PrivateDocker


class Relay:
    """A port on loopback that leads to a socket elsewhere, as slow as one likes, until it is cut. In a thread."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.delay = 0.0  # seconds, each way
        self.carried = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay")

    def __enter__(self) -> Self:
        self._thread.start()
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def host(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def listen(self) -> None:
        """Also again, at the same port."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def cut(self, *, listening: bool = False) -> None:
        """Break all connections; unless `listening`, also refuse new ones."""
        asyncio.run_coroutine_threadsafe(self._cut(listening), self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _cut(self, listening: bool) -> None:
        if self._server and not listening:
            self._server.close()
            self._server = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            there, back = await asyncio.open_unix_connection(self.path)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._carry(reader, back), name="relay there")
                    both.create_task(self._carry(there, writer), name="relay back")
            finally:
                back.transport.abort()
        except* (OSError, asyncio.CancelledError):  # cut, which is what it is for
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(1000)

        async def late() -> None:
            while True:
                at, data = await queue.get()
                if (left := at - loop.time()) > 0:
                    await asyncio.sleep(left)
                if not data:
                    writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()

        async with asyncio.TaskGroup() as both:
            both.create_task(late(), name="relay late")
            while data := await reader.read(65536):
                self.carried += len(data)
                await queue.put((loop.time() + self.delay, data))
            await queue.put((loop.time() + self.delay, b""))


def hide(engine: PrivateDocker, folder: Path) -> None:
    """Let the engine see something else where this folder is, as on another machine."""
    subprocess.run(engine.beside("mount", "-t", "tmpfs", "tmpfs", str(folder)), check=True)


def unhide(engine: PrivateDocker, folder: Path) -> None:
    subprocess.run(engine.beside("umount", "--lazy", str(folder)), check=True)
