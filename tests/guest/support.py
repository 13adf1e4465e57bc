"""A bare X server for the guest helper, and the helper beside it as a process of a backend would be."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

NEEDED = ("Xvnc", "openbox", "xterm", "xclip")


class LocalProcess:
    """A process of this machine in the shape of `backends.base.Process`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.pid = process.pid

    @classmethod
    async def start(cls, argv: Sequence[str], env: Mapping[str, str] | None = None) -> "LocalProcess":
        pipe = asyncio.subprocess.PIPE
        return cls(
            await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, stderr=pipe, env=env, limit=1 << 22)
        )

    async def write(self, data: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(data)
        await self.process.stdin.drain()

    async def close_stdin(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        queue: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue(16)

        async def pump(number: int, stream: asyncio.StreamReader | None) -> None:
            assert stream
            while data := await stream.read(65536):
                await queue.put((number, data))
            await queue.put((number, b""))

        pumps = [asyncio.create_task(pump(n, s)) for n, s in ((1, self.process.stdout), (2, self.process.stderr))]
        try:
            left = 2
            while left:
                number, data = await queue.get()
                left -= not data
                if data:
                    yield number, data
        finally:
            for task in pumps:
                task.cancel()

    async def wait(self) -> int:
        code = await self.process.wait()
        return code if code >= 0 else 128 - code

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


class XServer:
    def __init__(self, *, manager: bool = True) -> None:
        read, write = os.pipe()
        self.server = subprocess.Popen(
            f"Xvnc -displayfd {write} -geometry 800x600 -depth 24 -rfbport -1 -SecurityTypes None".split(),
            pass_fds=[write],
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(write)
        with os.fdopen(read) as told:
            self.display = f":{told.readline().strip()}"
        self.env = {
            "DISPLAY": self.display,
            "PATH": "/usr/bin:/bin",
            "HOME": "/tmp",
            "LANG": "C.UTF-8",
        }
        self.started: list[subprocess.Popen[bytes]] = []
        if manager:
            self.run("openbox", "--sm-disable")

    def run(self, *argv: str, stdin: bytes | None = None) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            argv,
            env=self.env,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if stdin is not None and process.stdin:
            process.stdin.write(stdin)
            process.stdin.close()
        self.started.append(process)
        return process

    def close(self) -> None:
        for process in [*self.started, self.server]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def x_server(**options: bool) -> Iterator[XServer]:
    missing = [name for name in NEEDED if not shutil.which(name)]
    assert not missing, f"not installed: {', '.join(missing)}"
    server = XServer(**options)
    yield server
    server.close()
