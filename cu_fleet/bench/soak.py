"""A soak: one desktop, looked at and acted on thousands of times in every way, and what has grown afterwards.

A first tenth of it is not counted: caches fill, pools of threads and of memory reach their size. Memory is what would
come free if the controller ended; descriptors, threads and tasks are the controller's; X clients are counted by the
desktop's own server. What is counted is read again until it is back where it was: what was just answered is still being
put away.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass
from typing import Any, Self

from cu_fleet.bench import machine
from cu_fleet.bench.figures import Figure, Series
from cu_fleet.bench.house import House, house
from cu_fleet.bench.others import inside
from cu_fleet.bench.stage import Stage, spot, terminal, with_page
from cu_fleet.client import Desktop

ACTIONS: list[dict[str, Any]] = [
    {"type": "click", "x": 640, "y": 792},
    {"type": "key", "keys": "ctrl+l"},
    {"type": "move", "x": 12, "y": 700},
    {"type": "type", "text": "Hello, world\n"},
    {"type": "scroll", "x": 640, "y": 400, "dy": 1},
    {"type": "drag", "path": [[600, 790], [620, 790]]},
    {"type": "key", "keys": "F5"},
]
SHOTS: list[dict[str, Any]] = [
    {},
    {"format": "jpeg"},
    {"region": (100, 100, 400, 300)},
    {"format": "webp", "max_edge": 640},
    {"pointer": True},
    {"max_bytes": 30_000},
]
_SETTLED_WITHIN = 20.0
_CLIPBOARD_EVERY = 50  # text that goes by the helper and the clipboard, which is where X clients used to be left


@dataclass(frozen=True)
class Counts:
    """What must be as it was, to the last one."""

    descriptors: int
    threads: int
    tasks: int
    clients: int

    @classmethod
    async def of(cls, at: House, desktop: Desktop) -> Self:
        clients = int((await inside(at, desktop, "clients"))["result"])
        told = dict(line.split() for line in (await at.fleet.metrics()).splitlines() if not line.startswith("#"))
        threads, tasks = (int(told[f"cu_fleet_{name}"]) for name in ("threads", "tasks"))
        return cls(machine.descriptors(at.pid), threads, tasks, clients)


@dataclass(frozen=True)
class State:
    memory: int
    entries: int
    counts: Counts

    @classmethod
    async def of(cls, at: House, desktop: Desktop, before: Counts | None = None) -> Self:
        """What it is; given what it was, as soon as it is that again, or at last."""
        end = time.monotonic() + _SETTLED_WITHIN
        counts = await Counts.of(at, desktop)
        while counts != before and time.monotonic() < end:
            await asyncio.sleep(0.5)
            counts, last = await Counts.of(at, desktop), counts
            if before is None and counts == last:
                break
        entries = int((await at.fleet.status())["audit"]["entries"])
        return cls(await machine.steady_memory(at.pid), entries, counts)


async def soak(desktop: Desktop, times: int, first: int = 0) -> None:
    """So many screenshots, and as many actions."""
    for number in range(first, first + times):
        await desktop.screenshot(**SHOTS[number % len(SHOTS)])
        await desktop.act([_elsewhere(ACTIONS[number % len(ACTIONS)], number)])
        if number % _CLIPBOARD_EVERY == 0:
            await desktop.clipboard_set(f"γειά σου {number}")
            assert await desktop.clipboard_get() == f"γειά σου {number}"


def _elsewhere(action: dict[str, Any], number: int) -> dict[str, Any]:
    """A click at another place than the last, which would be kept apart from it."""
    return {**action, "x": spot(number)} if action["type"] == "click" else action


async def soaking(stage: Stage) -> AsyncGenerator[Figure, None]:
    """Whether thousands of looks and actions leave memory, descriptors and X clients where they were."""
    times = stage.plan.soak
    warm, step = max(1, times // 10), max(1, times // 20)
    async with house(stage.top, {"launch": terminal()}, most=2) as at:
        desktop = await with_page(at)
        await soak(desktop, warm)
        before, began = await State.of(at, desktop), time.perf_counter()
        for done in range(0, times, step):
            stage.tell(f"soak: {done} of {times}")
            await soak(desktop, min(step, times - done), warm + done)
        seconds, after = time.perf_counter() - began, await State.of(at, desktop, before.counts)
    for figure in _grown(before, after, times):
        yield figure
    yield Figure("soak-rate", Series("/s", (2 * times / seconds,), "screenshots and actions, one after another"))


def _grown(before: State, after: State, times: int) -> list[Figure]:
    words = f"after {times} screenshots and {times} actions, compared with what they were after {max(1, times // 10)}"
    grown = (after.memory - before.memory) / 1e6
    facts = {"before_mb": round(before.memory / 1e6, 1), "entries_written": after.entries - before.entries}
    figures = [Figure("soak-memory", Series("MB", (grown,), f"more memory {words}"), most=8, facts=facts)]
    for name, was in asdict(before.counts).items():
        more = asdict(after.counts)[name] - was
        figures.append(Figure(f"soak-{name}", Series("more", (more,), f"of {was}, {words}"), most=0))
    return figures
