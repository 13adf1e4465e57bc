"""The scenes of the `docker` backend, on the engine that it would use, with the image of its profile.

What a desktop costs at the very least is a bare container of the same image with the same screen server and the same
limits: no home, no window manager, no walls, nothing on record. It has no network, as our desktops have none, which is
faster than the engine's own default.
"""

import asyncio
import contextlib
import os
import secrets
import socket
import tempfile
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING

from cu_fleet.app import place_of
from cu_fleet.backends import inside
from cu_fleet.backends.docker import DockerBackend
from cu_fleet.backends.docker.options import IMAGE, options
from cu_fleet.backends.docker.walls import limits
from cu_fleet.bench.figures import Figure, Series, megabytes, milliseconds
from cu_fleet.bench.house import House, house
from cu_fleet.bench.scenes import granted_warm, rolled_back
from cu_fleet.bench.stage import AGENT, REST, Stage, lease, timed
from cu_fleet.guest import init as guest
from cu_fleet.model.errors import UnavailableError
from cu_fleet.model.profile import Profile
from cu_fleet.rfb.screen import Screen
from cu_fleet.settings import read_settings

if TYPE_CHECKING:
    from docker import APIClient

DESKTOPS = 20
_WITHIN = 60.0
_RECIPE = {"backend": "docker", "image": IMAGE}


async def beginning(stage: Stage) -> AsyncGenerator[Figure, None]:
    """Cold starts beside bare ones, snapshots and rollbacks."""
    ours, theirs, saved, back = list[float](), list[float](), list[float](), list[float]()
    async with house(stage.top, _RECIPE, most=2) as at:
        backend = _backend(at)
        await _refuse_if_lacking(backend)
        for number in range(stage.plan.rounds + 1):
            stage.tell(f"containers: {number} of {stage.plan.rounds}")
            await asyncio.sleep(REST)
            theirs.append(await _bare(backend, stage.top))
            await asyncio.sleep(REST)
            cold, desktop = await timed(lease(at))
            ours.append(cold)
            await asyncio.sleep(REST)
            seconds, snapshot = await timed(at.fleet.save(str(desktop.lease.desktop)))
            saved.append(seconds)
            await at.fleet.delete_snapshot(snapshot.id)
            back.append(await rolled_back(at, desktop.lease))
            await at.fleet.remove_desktop(str(desktop.lease.desktop))
    cold_series = milliseconds(
        ours[1:], "a lease of a container that does not exist yet, until its first frame is seen"
    )
    bare_series = milliseconds(theirs[1:], "a bare container of the same image, until its first frame")
    yield Figure("docker-cold-start", cold_series, bare_series, most=1.3)
    rolled = milliseconds(back[1:], "from a lease's release until its container is a new one, proved clean and ready")
    yield Figure("docker-rollback", rolled, Series("ms", cold_series.values, "docker-cold-start"))
    yield Figure("docker-snapshot", milliseconds(saved[1:], "a snapshot of a small home, as an image"))


async def standing_ready(stage: Stage) -> AsyncGenerator[Figure, None]:
    async with house(stage.top, {**_RECIPE, "warm": 1}, most=3) as at:
        await _refuse_if_lacking(_backend(at))
        grants = await granted_warm(stage, at, "warm containers")
    yield Figure("docker-warm-grant", milliseconds(grants, "a lease of a container that stands ready"), most=15)


async def many(stage: Stage) -> AsyncGenerator[Figure, None]:
    async with house(stage.top, _RECIPE, most=DESKTOPS) as at:
        backend = _backend(at)
        await _refuse_if_lacking(backend)
        stage.tell(f"{DESKTOPS} containers at once")
        began = time.perf_counter()
        held = await asyncio.gather(*(lease(at, f"{AGENT}-{number}") for number in range(DESKTOPS)))
        seconds = time.perf_counter() - began
        words = f"{DESKTOPS} leases of containers asked for at once, until all are granted"
        yield Figure("docker-many-start", Series("s", (seconds,), words))
        await at.settled()
        assert backend.abilities.meter
        used = [await backend.abilities.meter.usage({"desktop": str(one.lease.desktop)}) for one in held]
        what = "memory of an idle container with window manager, as its engine counts what is its own"
        yield Figure("docker-memory", megabytes([one.memory_bytes or 0 for one in used], what), most=40)


def _backend(at: House) -> DockerBackend:
    """The same as the controller's: it finds what that one makes."""
    return DockerBackend(place_of(read_settings(at.home, env={}), at.label))


async def _refuse_if_lacking(backend: DockerBackend) -> None:
    lacking = [check for check in await backend.check(Profile(name="bench", backend="docker")) if not check.ok]
    if lacking:
        raise UnavailableError("; ".join(check.detail for check in lacking), remedy="cu-fleet doctor", code="lacking")


async def _bare(backend: DockerBackend, top: Path) -> float:
    """Start one; the seconds until a whole frame of it was in hand. Nothing of it is left afterwards."""
    do, name = backend.house.engine.do, f"cu-fleet-bare-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory(dir=top, prefix="bare-") as folder:
        began = time.perf_counter()
        try:
            await do(lambda api: _run(api, name, folder))
            screen = await Screen.open(await _connected(f"{folder}/rfb.sock"))
            await screen.frame()
            seconds = time.perf_counter() - began
            await screen.close()
        finally:
            await do(lambda api: api.remove_container(name, v=True, force=True))
    return seconds


def _run(api: "APIClient", name: str, folder: str) -> None:
    profile = Profile(name="bench", backend="docker")
    words = inside.screen(profile, "bare", opengl=False)
    most = limits(profile, options(profile).shm)
    bound = api.create_host_config(binds={folder: {"bind": guest.RUN, "mode": "rw"}}, network_mode="none", **most)
    api.create_container(IMAGE, words, name=name, user=str(os.geteuid()), host_config=bound, network_disabled=True)
    api.start(name)


async def _connected(path: str) -> socket.socket:
    async with asyncio.timeout(_WITHIN):
        while True:
            sock = socket.socket(socket.AF_UNIX)
            with contextlib.suppress(OSError):
                sock.connect(path)
                sock.setblocking(False)
                return sock
            sock.close()
            await asyncio.sleep(0.001)
