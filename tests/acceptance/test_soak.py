"""What is used for hours must not grow: thousands of looks and actions leave everything where it was.

Counts decide, never times. The long soak is `cu-fleet bench --only soak`; this one would still notice a few kilobytes,
or any descriptor, thread, task or X client, that each look or action leaves behind.
"""

import asyncio
import os
import tempfile
from pathlib import Path

import pytest

from cu_fleet.bench.house import house
from cu_fleet.bench.machine import descriptors
from cu_fleet.bench.soak import ACTIONS, SHOTS, State, soak
from cu_fleet.bench.stage import terminal, with_page
from tests.support import run, until

_WARM = 5 * len(SHOTS) * len(ACTIONS)
_TIMES = 500
_MOST_MEMORY = 4 << 20


@pytest.mark.real
@pytest.mark.slow
def test_looking_and_acting_leave_everything_where_it_was() -> None:
    async def body(top: Path) -> None:
        async with house(top, {"launch": terminal()}, most=2) as at:
            desktop = await with_page(at)
            await soak(desktop, _WARM)
            before = await State.of(at, desktop)
            ours = (descriptors_of_us(), len(asyncio.all_tasks()))
            await soak(desktop, _TIMES, _WARM)
            after = await State.of(at, desktop, before.counts)
            assert after.counts == before.counts
            assert after.entries - before.entries >= 3 * _TIMES  # each look, each intent and each result
            assert after.memory - before.memory < _MOST_MEMORY
            await until(lambda: (descriptors_of_us(), len(asyncio.all_tasks())) == ours)  # the client's too

    with tempfile.TemporaryDirectory(prefix="so-") as name:  # short: sockets lie below it
        run(body(Path(name)), timeout=240)


def descriptors_of_us() -> int:
    return descriptors(os.getpid())
