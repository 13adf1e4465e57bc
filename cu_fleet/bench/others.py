"""Who else takes pictures and moves pointers: scrot with base64, vncdotool and xdotool, on the very desktop we drive.

scrot and xdotool run inside it; the time is taken there, around the program alone. vncdotool holds a connection to the
desktop's own server. One that is not on this machine is missing, and said to be; nothing is put in its place.
"""

import asyncio
import contextlib
import json
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cu_fleet.bench.figures import Series, milliseconds
from cu_fleet.bench.house import House
from cu_fleet.client import Desktop
from cu_fleet.model.errors import BrokenError
from cu_fleet.rfb.link import deadline

PYTHON = "/usr/bin/python3"  # the distribution's own, which knows X
_SCRIPT = (Path(__file__).parent / "inside.py").read_text()
_WITHIN = 90.0


async def inside(at: House, desktop: Desktop, *words: str) -> dict[str, Any]:
    """Let `inside.py` do something in the desktop."""
    ended = await at.fleet.run(str(desktop.lease.desktop), [PYTHON, "-c", _SCRIPT, *words], timeout=_WITHIN)
    if ended.exit_code:
        raise BrokenError(f"{words[0]} failed inside the desktop: {ended.stderr.decode('utf-8', 'replace').strip()}")
    return dict(json.loads(ended.stdout))


class Others:
    """What they took is kept by what they did, until `series` is asked for it."""

    def __init__(self, at: House, desktop: Desktop, vncdotool: asyncio.subprocess.Process) -> None:
        self._at, self._desktop, self._vncdotool = at, desktop, vncdotool
        self._missing = {name: _lacking(name) for name in ("scrot", "xdotool") if not shutil.which(name)}
        self._took: dict[tuple[str, str], list[float]] = {}

    async def go(self, name: str, *words: str | int, key: str = "") -> None:
        """Let one of them do something once. The first time is not counted: it loads what is loaded once."""
        if name in self._missing:
            return
        if name == "vncdotool":
            seconds = float(await self._told(words))
        else:
            seconds = (await inside(self._at, self._desktop, *map(str, words)))["seconds"]
        took = self._took.setdefault((name, key or str(words[0])), [])
        took.append(seconds)

    def series(self, **did: str) -> dict[str, Series | str]:
        """Of each of these what it did: `series(scrot="scrot", vncdotool="capture")`."""
        found: dict[str, Series | str] = {}
        for name, what in did.items():
            found[name] = self._missing.get(name) or milliseconds(self._took[name, what][1:])
        return found

    async def _told(self, words: tuple[str | int, ...]) -> str:
        process = self._vncdotool
        assert process.stdin
        process.stdin.write(json.dumps(words).encode() + b"\n")
        return await _line(process)


@asynccontextmanager
async def others(at: House, desktop: Desktop) -> AsyncIterator[Others]:
    socket = at.screen_of(str(desktop.lease.desktop))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cu_fleet.bench.vncdo", socket.name, str(at.home)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=socket.parent,  # a socket's whole path may be too long for an address
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"},
    )
    try:
        await _line(process)
        yield Others(at, desktop, process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout
    async with deadline(_WITHIN, "vncdotool did not answer"):
        line = await process.stdout.readline()
    if not line:
        raise BrokenError("vncdotool ended by itself")
    return line.decode()


def _lacking(name: str) -> str:
    return f"{name} is not installed here: apt-get install {name}"
