"""The controller killed at its calls to a real engine, while it starts a desktop, rolls it back, saves and restores.

The next controller finishes or undoes it: a request is granted, nobody's files reach anybody else, one that was told
that a snapshot is saved has it, and the engine holds exactly what is on record.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from docker import APIClient

from cu_fleet.backends.base import Place
from cu_fleet.backends.docker import DockerBackend
from cu_fleet.backends.docker.engine import Engine
from cu_fleet.controller import Controller
from cu_fleet.model.desktop import NOT_GONE, Desktop, Stage
from cu_fleet.model.errors import FleetError
from cu_fleet.model.lease import LeaseState
from cu_fleet.model.snapshot import Snapshot
from cu_fleet.model.view import LeaseView
from cu_fleet.testing.dockerd import PrivateDocker
from tests.controller import fleet as fakes
from tests.controller.fleet import ANA, SECRET
from tests.docker.support import said_by
from tests.support import run, until

pytestmark = [pytest.mark.real, pytest.mark.slow]
STRIDE = 3  # with 1 it tries every call
T = TypeVar("T")
_RECOVERED = 60.0
SMALL = fakes.profile("small", backend="docker", screen={"width": 320, "height": 240})


class Killed(BaseException):
    """What stands in for SIGKILL: nothing catches it, and what is done after it reaches nobody."""


class Calls:
    """Counts calls to the engine. Number `at` may be the last that arrives: from then on nothing is done or stored."""

    def __init__(self) -> None:
        self.at, self.seen, self.last = 0, 0, ""

    def next(self, at: int) -> None:
        self.at, self.seen = at, 0

    @property
    def died(self) -> bool:
        return bool(self.at) and self.seen >= self.at

    def while_alive(self, transact: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        async def one(*words: Any, **more: Any) -> T:
            if self.died:
                raise Killed
            return await transact(*words, **more)

        return one

    def counted(self, send: Callable[..., Any]) -> Callable[..., Any]:
        """What changes something is done by the engine, but its answer never heard; a question is not even asked."""

        def one(client: APIClient, request: Any, **more: Any) -> Any:
            if not self.at:
                return send(client, request, **more)
            self.seen += 1
            if self.seen == self.at:
                self.last = f"{request.method} {request.path_url}"
            if self.seen > self.at or (self.seen == self.at and request.method == "GET"):
                raise Killed
            answer = send(client, request, **more)
            if self.seen >= self.at:
                raise Killed
            return answer

        return one


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    monkeypatch.setattr(APIClient, "send", calls.counted(APIClient.send))
    return calls


class Fleet(fakes.Fleet):
    """The same controller, with desktops on an engine."""

    def __init__(self, home: Path, engine: PrivateDocker, calls: Calls) -> None:
        super().__init__(home, SMALL, max_desktops=1)
        self.id, self.host, self.calls = "kills" + secrets.token_hex(4), engine.host, calls
        self.eyes = Engine(engine.host)  # of the test, whatever becomes of the controllers

    async def start(self) -> Controller:
        self.docker = DockerBackend(Place(self.home, self.id), self.host)
        own = {"fleet": self.id, "secret": SECRET, "clock": self.clock}
        backends = {"docker": self.docker}
        store = await self.store()
        store.transact = self.calls.while_alive(store.transact)  # type: ignore[method-assign]
        self.controller = Controller(self.settings, store, backends, self.profiles, **own)
        await self.controller.start()
        return self.controller

    async def killed_in(self, at: int, work: Callable[[], Coroutine[Any, Any, object]]) -> bool:
        """Do the work until it dies; a new controller takes over. False if there was no such call any more."""
        self.calls.next(at)
        task = asyncio.ensure_future(work())
        await until(lambda: task.done() or self.calls.died, timeout=_RECOVERED, every=0.005)
        died = self.calls.died
        task.cancel()
        with contextlib.suppress(Killed, FleetError, asyncio.CancelledError):
            await task
        await self.kill()
        self.calls.next(0)
        await self.start()
        return died

    async def lease(self, agent: str) -> LeaseView:
        return await self.served((await self.acquire(agent, "small")).lease)

    async def served(self, lease: str) -> LeaseView:
        async def there() -> LeaseView | None:
            view = await self.controller.lease(ANA, lease)
            return view if view.state == LeaseState.ACTIVE.value else None

        return await until(there, timeout=_RECOVERED)  # type: ignore[no-any-return]

    async def rests(self) -> None:
        await until(self._at_rest, timeout=_RECOVERED)

    async def release(self, lease: str) -> None:
        await self.controller.release(ANA, lease)
        await self.rests()

    async def sh(self, script: str) -> tuple[int, str]:
        """In the one desktop that there is."""
        (desktop,) = await self.controller.core.read(lambda tx: tx.find(Desktop, stage=NOT_GONE))
        assert self.docker.abilities.exec
        return await said_by(await self.docker.abilities.exec.exec(desktop.handle, ["sh", "-c", script]))

    async def as_recorded(self) -> None:
        """Every desktop on record has its container and volumes, every snapshot its image; there is nothing else."""
        desktops, saved = await self.controller.core.read(
            lambda tx: (tx.find(Desktop, stage=NOT_GONE), tx.find(Snapshot))
        )
        assert all(one.state == "saved" for one in saved)
        layout = self.docker.house.layout
        desks = [layout.desk(one.id) for one in desktops]
        wanted = {f"/{desk.name}: running" for desk in desks} | {name for desk in desks for name in desk.volumes}
        wanted |= {f"cu-fleet/snapshot:{layout.snapshot_name(one.id)}" for one in saved}

        def there(api: APIClient) -> set[str]:
            mine = {"label": f"cu-fleet.fleet={self.id}"}
            found = {f"{one['Names'][0]}: {one['State']}" for one in api.containers(all=True, filters=mine)}
            found |= {one["Name"] for one in api.volumes(filters=mine).get("Volumes") or []}
            found |= {one["Name"] for one in api.networks(filters=mine)}
            return found | {tag for one in api.images(filters=mine) for tag in one["RepoTags"] or [one["Id"]]}

        counting = {f"/{desk.counting}" for desk in desks}  # goes with the next count, or with its desktop
        found = {one for one in self.eyes.now(there) if one.partition(":")[0] not in counting}
        assert found == wanted, self.calls.last
        await self.check()

    async def end(self) -> None:
        for one in await self.controller.snapshots(ANA, None):
            await self.controller.delete_snapshot(ANA, one.id)
        await self.controller.shut_down()
        await self.controller.close()
        assert await self.docker.found() == []


def through(
    fleet: Fleet, body: Callable[[int], Awaitable[bool]], first: Callable[[], Awaitable[object]] | None = None
) -> None:
    """Once for each call that there is, and once beyond."""

    async def whole() -> None:
        asyncio.get_running_loop().set_exception_handler(_but_killed)
        await fleet.start()
        try:
            if first:
                await first()
            for at in range(1, 100, STRIDE):
                if not await body(at):
                    assert at > 4, "there were hardly any"
                    return
            raise AssertionError("it does not end")
        finally:
            fleet.calls.next(0)
            await fleet.end()

    run(whole(), 200)


def _but_killed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Nobody is told of a task that was killed."""
    if not isinstance(context.get("exception"), Killed):
        loop.default_exception_handler(context)


@pytest.fixture
def fleet(engine: PrivateDocker, tmp_path: Path, calls: Calls) -> Fleet:
    return Fleet(tmp_path, engine, calls)


def test_while_it_starts(fleet: Fleet) -> None:
    async def body(at: int) -> bool:
        asked: list[str] = []

        async def ask() -> None:
            asked.append((await fleet.acquire(f"a{at}", "small")).lease)
            await fleet.served(asked[0])

        died = await fleet.killed_in(at, ask)
        lease = await fleet.served(asked[0])
        await fleet.as_recorded()
        assert await fleet.sh("ls") == (0, "Downloads\nShared\n")
        await fleet.release(lease.lease)
        await fleet.controller.remove_desktop(ANA, lease.desktop or "")
        await fleet.as_recorded()
        return died

    through(fleet, body)


def test_while_it_is_rolled_back(fleet: Fleet) -> None:
    async def body(at: int) -> bool:
        lease = await fleet.lease(f"a{at}")
        assert await fleet.sh("ls && touch mine /tmp/mine Shared/mine") == (0, "Downloads\nShared\n")
        died = await fleet.killed_in(at, lambda: fleet.release(lease.lease))
        if (await fleet.controller.lease(ANA, lease.lease)).state == LeaseState.ACTIVE.value:
            await fleet.controller.release(ANA, lease.lease)
        await fleet.rests()
        await fleet.as_recorded()
        return died

    through(fleet, body)


def test_while_it_is_saved(fleet: Fleet) -> None:
    async def first() -> None:
        await fleet.lease("a")
        await fleet.controller.save(ANA, await only(fleet), "")

    async def body(at: int) -> bool:
        desktop = await only(fleet)
        before = {one.id for one in await fleet.controller.snapshots(ANA, None)}
        told: list[str] = []

        async def save() -> None:
            told.append((await fleet.controller.save(ANA, desktop, "")).id)

        died = await fleet.killed_in(at, save)
        assert await fleet.sh("echo on") == (0, "on\n"), "it does not stand still any more"
        now = {one.id for one in await fleet.controller.snapshots(ANA, None)}
        assert before <= now
        assert set(told) <= now
        await fleet.as_recorded()
        return died

    through(fleet, body, first)


def test_while_it_is_restored(fleet: Fleet) -> None:
    saved: list[str] = []

    async def first() -> None:
        await fleet.lease("a")
        await fleet.sh("echo whole >mine")
        saved.append((await fleet.controller.save(ANA, await only(fleet), "")).id)

    async def body(at: int) -> bool:
        await fleet.sh("rm mine; touch later")
        died = await fleet.killed_in(at, lambda: fleet.controller.restore(ANA, saved[0]))
        await until(lambda: held(fleet), timeout=_RECOVERED)
        assert await fleet.sh("cat mine; ls later") == (
            2,
            "whole\nls: cannot access 'later': No such file or directory\n",
        )
        await fleet.as_recorded()
        return died

    through(fleet, body, first)


async def only(fleet: Fleet) -> str:
    (desktop,) = await fleet.controller.core.read(lambda tx: tx.find(Desktop, stage=NOT_GONE))
    return desktop.id


async def held(fleet: Fleet) -> bool:
    (desktop,) = await fleet.controller.core.read(lambda tx: tx.find(Desktop, stage=NOT_GONE))
    return desktop.stage is Stage.HELD
