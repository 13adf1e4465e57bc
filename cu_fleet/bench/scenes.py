"""The scenes of the `local` backend: leases one by one, and many desktops at once."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import cast

from cu_fleet.bench import bare, machine
from cu_fleet.bench.figures import Figure, Series, megabytes, milliseconds
from cu_fleet.bench.house import House, house
from cu_fleet.bench.stage import AGENT, REST, Stage, click, lease, look, terminal, timed
from cu_fleet.client import Desktop
from cu_fleet.model.audit import Entry
from cu_fleet.model.errors import BrokenError
from cu_fleet.model.view import LeaseView
from cu_fleet.rfb.link import deadline

WIDTH, HEIGHT = 1280, 800
_BEGIN_BUS = (  # the session bus starts with its first caller; what it answers says that it runs
    "import os, socket; bus = socket.socket(socket.AF_UNIX);"
    "bus.connect(os.environ['DBUS_SESSION_BUS_ADDRESS'].partition('=')[2]); bus.sendall(b'\\0AUTH\\r\\n'); bus.recv(1)"
)
_EACH_SECOND = 2  # screenshots, and as many actions, that each of many desktops takes


# one lease at a time


async def starting(stage: Stage) -> AsyncGenerator[Figure, None]:
    """Cold starts and rollbacks, each beside a bare start."""
    ours, theirs, opengl, back = list[float](), list[float](), list[float](), list[float]()
    async with house(stage.top, {}, most=2) as at:
        for number in range(stage.plan.rounds + 1):
            stage.tell(f"cold starts and rollbacks: {number} of {stage.plan.rounds}")
            await asyncio.sleep(REST)
            theirs.append(await bare.first_frame(stage.top, WIDTH, HEIGHT))
            await asyncio.sleep(REST)
            opengl.append(await bare.first_frame(stage.top, WIDTH, HEIGHT, opengl=True))
            await asyncio.sleep(REST)
            cold, desktop = await timed(lease(at))
            ours.append(cold)
            await asyncio.sleep(REST)
            back.append(await rolled_back(at, desktop.lease))
            await at.fleet.remove_desktop(str(desktop.lease.desktop))
    cold_series = milliseconds(ours[1:], "a lease of a desktop that does not exist yet, until its first frame is seen")
    bare_series = milliseconds(theirs[1:], "bwrap Xvnc until its first frame")
    beside = {"bare_with_opengl_ms": round(milliseconds(opengl[1:]).median, 1)}
    yield Figure("cold-start", cold_series, bare_series, most=2.5, facts=beside)
    rolled = milliseconds(back[1:], "from a lease's release until its desktop is proved clean and ready")
    cold_start = Series(cold_series.unit, cold_series.values, "cold-start")
    yield Figure("rollback", rolled, cold_start, most=1.0)


async def granting(stage: Stage) -> AsyncGenerator[Figure, None]:
    """Leases of a desktop that stands ready; the next is being made ready meanwhile, as it is in use."""
    async with house(stage.top, {"warm": 1}, most=3) as at:
        grants = await granted_warm(stage, at, "warm grants")
    yield Figure("warm-grant", milliseconds(grants, "a lease of a desktop that stands ready"), most=10)


async def granted_warm(stage: Stage, at: House, what: str) -> list[float]:
    """The seconds of each but the first."""
    grants = list[float]()
    for number in range(stage.plan.rounds + 1):
        stage.tell(f"{what}: {number} of {stage.plan.rounds}")
        await at.settled()
        await asyncio.sleep(REST)
        seconds, desktop = await timed(lease(at))
        grants.append(seconds)
        await at.settled()
        await at.fleet.release(desktop.id)
        await at.settled()
    return grants[1:]


async def rolled_back(at: House, held: LeaseView) -> float:
    """Release it; the seconds until the record says that its desktop is ready."""
    last = int((await at.fleet.status())["audit"]["entries"])
    began = time.perf_counter()
    await at.fleet.release(held.lease)
    events = cast("AsyncGenerator[Entry, None]", at.fleet.events(after=last))
    async with deadline(60.0, f"desktop {held.desktop} was not rolled back"), aclosing(events):
        async for entry in events:
            if entry.desktop == held.desktop and entry.what in ("desktop.failed", "desktop.died"):
                raise BrokenError(f"desktop {held.desktop} could not be rolled back: {dict(entry.facts)}")
            if entry.desktop == held.desktop and entry.what == "desktop.rolled_back":
                break
    return time.perf_counter() - began


# many desktops


async def standing(stage: Stage) -> AsyncGenerator[Figure, None]:
    """All desktops at once: how long until they stand, what they cost while nothing happens, and then in use."""
    count = stage.plan.desktops
    async with house(stage.top, {"launch": terminal()}, most=count + 1) as at:
        first = await lease(at, "first")  # loads what is loaded once
        stage.tell(f"{count} desktops at once")
        began = time.perf_counter()
        many = await asyncio.gather(*(lease(at, f"{AGENT}-{number}") for number in range(count)))
        stand = Series("s", (time.perf_counter() - began,), f"{count} leases asked for at once, until all are granted")
        await at.fleet.release(first.id)
        await at.settled()
        yield Figure("many-start", stand)
        for desktop in many:
            await at.fleet.run(str(desktop.lease.desktop), ["python3", "-c", _BEGIN_BUS])
        yield _memory_of_desktops(at, many, await _helpers_memory(at, many[0]))
        stage.tell(f"{count} desktops at rest, for {stage.plan.seconds:g} s")
        memory = await machine.steady_memory(at.pid)
        yield Figure("many-memory", megabytes([memory], f"the controller's own private memory, with {count} desktops"))
        idle = await _shares(at, asyncio.sleep(stage.plan.seconds))
        rest = Series("%", (idle["controller"],), "of one core: the controller while its desktops rest")
        yield Figure("many-idle", rest, facts={"percent_of_one_core": idle})
        stage.tell(f"{count} desktops in use, for {stage.plan.seconds:g} s")
        async for figure in _in_use(at, many, stage.plan.seconds):
            yield figure


def _memory_of_desktops(at: House, many: list[Desktop], helper: int) -> Figure:
    each = [machine.of_desktop(at.marker(str(desktop.lease.desktop))) for desktop in many[1:] or many]
    programs = sorted({name for memory in each for name in memory})
    by_program = {name: round(megabytes([memory.get(name, 0) for memory in each]).median, 2) for name in programs}
    return Figure(
        "memory",
        megabytes(
            [sum(memory.values()) for memory in each],
            "private memory of an idle desktop with window manager and session bus",
        ),
        most=40,
        facts={"by_program_mb": by_program, "helper_mb": round(helper / 1e6, 2)},
    )


async def _helpers_memory(at: House, desktop: Desktop) -> int:
    """What the helper adds, which is started when it is first needed."""
    marker = at.marker(str(desktop.lease.desktop))
    before = sum(machine.of_desktop(marker).values())
    await desktop.windows()
    return sum(machine.of_desktop(marker).values()) - before


async def _shares(at: House, work: Awaitable[object]) -> dict[str, float]:
    """Who used how much meanwhile, in per cent of one core; the machine's is everybody's, and of all its cores."""
    began, before = time.perf_counter(), _used(at)
    await work
    wall, after = time.perf_counter() - began, _used(at)
    return {who: round(100 * (after[who] - before[who]) / wall, 2) for who in before}


def _used(at: House) -> dict[str, float]:
    """CPU seconds so far."""
    return {
        "controller": machine.cpu_seconds(at.pid),
        "this_client": machine.cpu_seconds(os.getpid()),
        "machine": machine.busy_seconds(),
    }


async def _in_use(at: House, many: list[Desktop], seconds: float) -> AsyncGenerator[Figure, None]:
    """Each desktop takes its screenshots and actions at its own moments, as well as the machine can follow."""
    looks, acts = list[float](), list[float]()
    end = time.perf_counter() + seconds

    async def use(desktop: Desktop, delay: float) -> None:
        due = time.perf_counter() + delay
        while max(due, time.perf_counter()) < end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            looks.append(await look(at, desktop))
            acts.append(await click(desktop, len(acts)))
            due += 1 / _EACH_SECOND

    work = asyncio.gather(*(use(one, number / len(many) / _EACH_SECOND) for number, one in enumerate(many)))
    shares = await _shares(at, work)
    rates = {
        "screenshots_a_second": round(len(looks) / seconds, 1),
        "actions_a_second": round(len(acts) / seconds, 1),
        "percent_of_one_core": shares,
    }
    words = f"while {len(many)} desktops each take {_EACH_SECOND} screenshots and {_EACH_SECOND} actions a second"
    yield Figure("many-busy", Series("%", (shares["controller"],), f"of one core: the controller {words}"), facts=rates)
    memory = await machine.steady_memory(at.pid)
    yield Figure("many-busy-memory", megabytes([memory], "the controller's own private memory after that"))
    yield Figure("many-screenshot", milliseconds(looks, f"a screenshot {words}"))
    yield Figure("many-action", milliseconds(acts, f"a click {words}"))
