"""A whole run: the scenes that the wanted rows need, one after another, in a folder that is gone afterwards."""

import asyncio
import signal
import tempfile
from collections.abc import Callable, Collection
from contextlib import aclosing
from pathlib import Path

from cu_fleet.app import checks
from cu_fleet.bench import machine
from cu_fleet.bench.figures import Figure
from cu_fleet.bench.programme import SCENES
from cu_fleet.bench.stage import Plan, Stage
from cu_fleet.model.errors import UnavailableError
from cu_fleet.settings import Settings

_STOPS = (signal.SIGTERM, signal.SIGHUP)


async def run(rows: Collection[str], plan: Plan, tell: Callable[[str], None]) -> tuple[dict[str, object], list[Figure]]:
    """The machine, and the figures of these rows. Cancelled, or told to end by a signal, it takes all down first."""
    task = asyncio.current_task()
    assert task is not None
    for stop in _STOPS:
        asyncio.get_running_loop().add_signal_handler(stop, task.cancel)
    with tempfile.TemporaryDirectory(prefix="cu-fleet-bench-") as name:
        top = Path(name)
        await _refuse_if_lacking(top)
        facts = machine.facts(top)
        figures = list[Figure]()
        for number, (scene, made) in enumerate(SCENES.items()):
            if set(made) & set(rows):
                stage = Stage(top / str(number), plan, tell)
                stage.top.mkdir()
                async with aclosing(scene(stage)) as found:
                    figures += [figure async for figure in found if figure.row in rows]
    return facts, figures


async def _refuse_if_lacking(top: Path) -> None:
    lacking = [check for check in await checks(Settings(home=top)) if check.needed and not check.ok]
    if lacking:
        raise UnavailableError(
            f"desktops cannot be made here: {'; '.join(check.detail for check in lacking)}",
            remedy="cu-fleet doctor --fix",
            code="lacking",
        )
