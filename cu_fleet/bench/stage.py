"""What every scene has: the plan, a folder, someone to tell how far it is; and the few steps that many take.

A scene is told which rounds to make, and yields its figures. The clock is the client's own: it runs from the call to
the answer in hand, over TCP.
"""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cu_fleet.bench.figures import Figure
from cu_fleet.bench.house import PROFILE, House
from cu_fleet.client import Desktop
from cu_fleet.client.http import v1

T = TypeVar("T")
AGENT = "bench"
REST = 0.25  # seconds: what ended just now still frees its memory, what began still loads
# A terminal full of text, to take pictures of; what is typed is shown, read and forgotten.
PAGE = ["-e", "sh", "-c", "ls -l /usr/bin; stty -icanon; exec cat >/dev/null"]


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int
    desktops: int
    seconds: float  # how long idleness and load are watched
    soak: int  # looks and actions of a soak, each

    @property
    def calls(self) -> int:
        """Of what takes milliseconds, in each round."""
        return 25


@dataclass(frozen=True)
class Stage:
    top: Path
    plan: Plan
    tell: Callable[[str], None]


Scene = Callable[[Stage], AsyncGenerator[Figure, None]]


def terminal(columns: int = 120, lines: int = 36) -> dict[str, object]:
    """For a profile's `launch`."""
    size = ["-fa", "DejaVu Sans Mono", "-fs", "11", "-geometry", f"{columns}x{lines}"]
    return {"terminal": {"command": ["xterm", *size], "title": "Terminal"}}


async def lease(at: House, agent: str = AGENT) -> Desktop:
    return await at.fleet.acquire(agent=agent, profile=PROFILE, wait=300)


async def with_page(at: House) -> Desktop:
    """A leased desktop that shows a terminal full of text."""
    desktop = await lease(at)
    await desktop.launch("terminal", *PAGE)
    await desktop.wait_stable()
    return desktop


async def timed(work: Awaitable[T]) -> tuple[float, T]:
    began = time.perf_counter()
    result = await work
    return time.perf_counter() - began, result


async def click(desktop: Desktop, number: int, below: int = 792) -> float:
    return (await timed(desktop.click(spot(number), below)))[0]


def spot(number: int) -> int:
    """Where to click next: a second click at the same place would be kept from becoming a double click."""
    return 8 + number * 24 % 1200


async def look(at: House, desktop: Desktop) -> float:
    """Without decoding it, which is the caller's affair."""
    where = v1("leases", desktop.id, "screenshot")
    return (await timed(at.wire.call("GET", where, token=desktop.lease.token)))[0]
