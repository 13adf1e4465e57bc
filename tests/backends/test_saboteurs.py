"""The saboteurs do what they say, once, and are otherwise the backend they betray."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cu_fleet.backends.base import Backend, Place, Spec
from cu_fleet.backends.memory import MemoryBackend, MemoryWorld
from cu_fleet.model.errors import UnavailableError
from cu_fleet.model.names import new_id
from cu_fleet.model.profile import Profile
from cu_fleet.testing.backend_base import chunks, take
from cu_fleet.testing.backend_contract import PlainBackendContract
from cu_fleet.testing.saboteurs import CHECKPOINTS, DIE, HANG, LIE, VANISH, Saboteur
from tests.support import run, until

PROFILE = Profile(name="contract", backend="memory")


class TestSaboteurWithoutTraps(PlainBackendContract):
    """It passes for what it wraps."""

    def new_place(self, folder: Path) -> Place:
        self.world = MemoryWorld()
        return super().new_place(folder)

    async def make(self) -> Backend:
        return Saboteur(MemoryBackend(self.place, self.world))

    def profile(self) -> Profile:
        return PROFILE


@pytest.fixture
def saboteur(tmp_path: Path) -> Saboteur:
    return Saboteur(MemoryBackend(Place(tmp_path, "f")))


def spec(**changes: str) -> Spec:
    return Spec(changes.get("desktop", new_id("dk")), PROFILE, new_id("bt"), "test", changes.get("snapshot"))


async def call(saboteur: Saboteur, checkpoint: str, asked: Spec) -> None:
    """Call what the checkpoint is about, on the desktop of `asked`."""
    handle, a = {"desktop": asked.desktop}, saboteur.abilities
    assert a.snapshots
    assert a.exec
    assert a.freeze
    assert a.files
    assert a.logs
    assert a.meter
    snapshots, files = a.snapshots, a.files
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "start": lambda: take(saboteur.start(asked)),
        "stop": lambda: saboteur.stop(handle),
        "endpoint": lambda: saboteur.endpoint(handle),
        "found": saboteur.found,
        "check": saboteur.check,
        "snapshots.save": lambda: snapshots.save(handle, "sn_1"),
        "snapshots.restore": lambda: take(snapshots.restore(handle, asked)),
        "snapshots.delete": lambda: snapshots.delete("sn_1"),
        "snapshots.saved": snapshots.saved,
        "exec.exec": lambda: a.exec.exec(handle, ["true"]),  # type: ignore[union-attr]
        "freeze.freeze": lambda: a.freeze.freeze(handle),  # type: ignore[union-attr]
        "freeze.thaw": lambda: a.freeze.thaw(handle),  # type: ignore[union-attr]
        "files.put": lambda: files.put(handle, "x", chunks([b"x"])),
        "files.get": lambda: anext(files.get(handle, "there")),
        "files.listing": lambda: files.listing(handle),
        "files.remove": lambda: files.remove(handle, "x"),
        "logs.logs": lambda: a.logs.logs(handle),  # type: ignore[union-attr]
        "meter.usage": lambda: a.meter.usage(handle),  # type: ignore[union-attr]
    }
    assert calls.keys() == set(CHECKPOINTS)
    await calls[checkpoint]()


async def started(saboteur: Saboteur) -> Spec:
    asked = spec()
    handle = (await take(saboteur.start(asked)))[-1]
    assert saboteur.abilities.files
    await saboteur.abilities.files.put(handle, "there", chunks([b"x"]))
    return asked


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_it_dies_once_everywhere(saboteur: Saboteur, checkpoint: str) -> None:
    async def body() -> None:
        asked = await started(saboteur)
        saboteur.at(checkpoint, DIE, call=2)
        await call(saboteur, checkpoint, asked)
        saboteur.backend.world.snapshots.clear()  # type: ignore[attr-defined]
        if checkpoint == "stop":
            await take(saboteur.start(asked))
        with pytest.raises(UnavailableError, match="sabotage"):
            await call(saboteur, checkpoint, asked)
        await call(saboteur, checkpoint, asked)
        assert saboteur.sprung == [(checkpoint, DIE)]

    run(body())


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_it_hangs_until_cancelled(saboteur: Saboteur, checkpoint: str) -> None:
    async def body() -> None:
        asked = await started(saboteur)
        saboteur.at(checkpoint, HANG)
        task = asyncio.create_task(call(saboteur, checkpoint, asked))
        await until(lambda: saboteur.sprung, every=0)
        assert not task.done()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()

    run(body())


def test_it_dies_after_a_handle_was_given(saboteur: Saboteur) -> None:
    async def body() -> None:
        saboteur.at("start", DIE, after_yields=1)
        handles = saboteur.start(asked := spec())
        assert (await anext(handles))["desktop"] == asked.desktop
        with pytest.raises(UnavailableError):
            await anext(handles)

    run(body())


def test_it_dies_after_the_work_is_done(saboteur: Saboteur) -> None:
    async def body() -> None:
        asked = await started(saboteur)
        saboteur.at("stop", DIE, after=True)
        with pytest.raises(UnavailableError):
            await saboteur.stop({"desktop": asked.desktop})
        assert await saboteur.found() == []

    run(body())


def test_it_lies(saboteur: Saboteur) -> None:
    async def body() -> None:
        asked = await started(saboteur)
        handle = {"desktop": asked.desktop}
        snapshots = saboteur.abilities.snapshots
        assert snapshots
        saboteur.at("snapshots.save", LIE)
        assert (await snapshots.save(handle, "sn_1")).size_bytes
        assert await snapshots.saved() == []
        saboteur.at("snapshots.restore", LIE)
        await take(snapshots.restore(handle, spec(desktop=asked.desktop)))
        assert saboteur.backend.desktop(asked.desktop).spec.boot == asked.boot  # type: ignore[attr-defined]
        saboteur.at("stop", LIE)
        await saboteur.stop(handle)
        assert [f.desktop for f in await saboteur.found()] == [asked.desktop]
        saboteur.at("found", LIE)
        [invented] = await saboteur.found()
        assert invented.desktop != asked.desktop
        saboteur.at("start", LIE)
        other = (await take(saboteur.start(spec())))[-1]
        assert await saboteur.endpoint(other) is None

    run(body())


def test_it_shows_a_screen_of_another_size(saboteur: Saboteur) -> None:
    async def body() -> None:
        asked = await started(saboteur)
        saboteur.at("endpoint", LIE)
        endpoint = await saboteur.endpoint({"desktop": asked.desktop})
        assert endpoint
        reader, writer = await asyncio.open_connection(sock=await endpoint.connect())
        greeting = await reader.readexactly(12 + 2 + 4 + 24)
        assert greeting[18:22] == (640).to_bytes(2, "big") + (37).to_bytes(2, "big")
        writer.close()
        await writer.wait_closed()

    run(body())


def test_the_desktop_vanishes_under_it(saboteur: Saboteur) -> None:
    async def body() -> None:
        asked = await started(saboteur)
        saboteur.at("endpoint", VANISH)
        assert await saboteur.endpoint({"desktop": asked.desktop}) is None
        assert await saboteur.found() == []

    run(body())


def test_a_trap_that_cannot_be_is_refused(saboteur: Saboteur) -> None:
    for checkpoint, how in (("nowhere", DIE), ("stop", "sulk"), ("exec.exec", LIE)):
        with pytest.raises(ValueError, match=r"trap|lie"):
            saboteur.at(checkpoint, how)
