"""Three real Codex runs at once, each with a desktop of its own, beside one alone.

What they think is scripted, so what is measured is Codex, our doors and the desktops. Each types lines of its own into
a file on its desktop, looking at the screen after each, and reads the file in the end: were a line missing, or
another's among them, the run would fail.
"""

import asyncio
import os
import shutil
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path

from cu_fleet.bench.figures import Figure, Series
from cu_fleet.bench.house import PROFILE, House, house
from cu_fleet.bench.scripted import Call, Scripted
from cu_fleet.bench.stage import Stage, terminal
from cu_fleet.model.errors import BrokenError, UnavailableError

_AT_ONCE = 3
_LINES = 10
_WITHIN = 300.0
_KEEP = ["-e", "sh", "-c", "mkdir -p ~/Shared/out; exec cat >~/Shared/out/typed"]
_CONFIG = """model = "scripted"
model_provider = "scripted"
[model_providers.scripted]
name = "scripted"
base_url = "{url}/{name}/v1"
wire_api = "responses"
"""


async def codexes(stage: Stage) -> AsyncGenerator[Figure, None]:
    codex = shutil.which("codex")
    if codex is None:
        raise UnavailableError("codex is not on PATH", remedy="npm install -g @openai/codex", code="no_codex")
    alone, together = list[float](), list[float]()
    async with house(stage.top, {"launch": terminal(), "warm": _AT_ONCE}, most=2 * _AT_ONCE) as at:
        rounds = min(stage.plan.rounds, 5)
        for number in range(rounds + 1):
            stage.tell(f"Codex runs: {number} of {rounds}")
            for count, took in ((1, alone), (_AT_ONCE, together)):
                await at.settled()
                took.append(await _runs(at, stage.top / f"codex-{number}-{count}", count))
    calls = _AT_ONCE * len(_script(""))
    ours = Series("s", tuple(together[1:]), f"{_AT_ONCE} Codex runs at once, from their start until all have ended")
    beside = Series("s", tuple(alone[1:]), "one alone")
    facts = {"calls_of_tools": calls, "ms_a_call": round(1000 * ours.median / calls, 1), "lines_mixed_up": 0}
    yield Figure("codex-at-once", ours, beside, facts=facts)


def _script(name: str) -> list[Call]:
    typed = [{"type": "click", "x": 300, "y": 200}, {"type": "type", "text": f"{name}\n"}]
    begun: list[Call] = [
        ("launch", {"name": "terminal", "args": _KEEP}),
        ("wait", {"until": "change", "seconds": 20}),
        ("wait", {"until": "stable", "seconds": 20}),
    ]
    ended = {"actions": [{"type": "key", "keys": "ctrl+d"}, {"type": "wait", "seconds": 0.5}], "picture": False}
    return [*begun, *[("act", {"actions": typed})] * _LINES, ("act", ended), ("file_get", {"path": "out/typed"})]


async def _runs(at: House, top: Path, count: int) -> float:
    """The seconds that so many take."""
    names = [f"run{number}" for number in range(count)]
    with Scripted({name: _script(name) for name in names}) as model:
        began = time.perf_counter()
        await asyncio.gather(*(_run(at, top / name, name, model.url) for name in names))
        seconds = time.perf_counter() - began
        for name in names:
            lines = model.answers[name][-1].rpartition("Output:")[2].split()
            if lines != [name] * _LINES:
                raise BrokenError(f"{name} typed {_LINES} lines of its own, and its desktop has: {lines}")
    return seconds


async def _run(at: House, place: Path, name: str, url: str) -> None:
    (place / ".codex").mkdir(parents=True)
    (place / ".codex" / "config.toml").write_text(_CONFIG.format(url=url, name=name))
    own = [sys.executable, "-m", "cu_fleet", "codex", "--agent", name, "--profile", PROFILE, "--"]
    words = ["exec", "--skip-git-repo-check", "-C", str(place), "type"]
    with (place / "log").open("wb") as log:
        env = {"HOME": str(place), "PATH": os.environ["PATH"], "CU_FLEET_HOME": str(at.home)}
        process = await asyncio.create_subprocess_exec(
            *own, *words, env=env, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            async with asyncio.timeout(_WITHIN):
                await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
    if process.returncode:
        raise BrokenError(f"{name} ended with {process.returncode}: {(place / 'log').read_text()[-1000:]}")
