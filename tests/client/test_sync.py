"""The blocking client: the same names, in one thread's words."""

import asyncio
import inspect
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import cu_fleet
from cu_fleet import client, sync
from cu_fleet.model.errors import ConflictError, LeaseOverError, NotFoundError
from cu_fleet.model.view import LeaseView
from tests.api.door import Door, open_door
from tests.controller.fleet import ANA


class Server:
    """A door that is served in a thread of its own, so that the test may block."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.loop = asyncio.new_event_loop()
        self.door: Door
        self._opened, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="door in a thread")

    def __enter__(self) -> "Server":
        self._thread.start()
        assert self._opened.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        self.loop.close()

    def _run(self) -> None:
        self.loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        async with open_door(self.home) as self.door:
            self._opened.set()
            await self._stop.wait()

    def states(self) -> dict[str, str]:
        async def look() -> dict[str, str]:
            views = await self.door.fleet.controller.leases(ANA, everything=True, agent=None)
            return {view.agent: view.state for view in views}

        return asyncio.run_coroutine_threadsafe(look(), self.loop).result(20)

    def acquired(self, agent: str) -> LeaseView:
        """A lease for the agent, granted."""
        granted = self.door.fleet.granted(agent)
        return asyncio.run_coroutine_threadsafe(granted, self.loop).result(20)


@contextmanager
def connected(home: Path) -> Iterator[tuple[Server, sync.Fleet]]:
    with Server(home) as server, sync.Fleet.connect(home=home, start=False) as fleet:
        yield server, fleet


PAIRS = [
    (client.Fleet, sync.Fleet),
    (client.Desktop, sync.Desktop),
]


@pytest.mark.parametrize(("asynchronous", "blocking"), PAIRS)
def test_every_name_has_its_twin_with_the_same_arguments(asynchronous: type, blocking: type) -> None:
    names = [name for name, _ in inspect.getmembers(asynchronous) if not name.startswith("_")]
    assert len(names) > 20
    for name in names:
        theirs, ours = inspect.getattr_static(asynchronous, name), inspect.getattr_static(blocking, name, None)
        assert ours is not None, f"{blocking.__name__}.{name} is missing"
        if inspect.isfunction(theirs):
            assert inspect.signature(theirs) == inspect.signature(ours), name
            assert name == "close" or inspect.getdoc(theirs) == inspect.getdoc(ours), name


def test_a_lease_from_end_to_end(tmp_path: Path) -> None:
    with connected(tmp_path) as (server, fleet):
        with fleet.lease(agent="a", profile="local") as desktop:
            desktop.click(3, 4)
            desktop.type("hi")
            image = desktop.screenshot(max_edge=100)
            assert desktop.screenshot(max_edge=100, if_changed_since=image.frame.id) is None
            assert (image.size, image.frame.generation) == ((100, 60), desktop.lease.generation)
            assert desktop.put_file("x", b"hello") == 5
            assert desktop.get_file("x") == b"hello"
            where = desktop.lease.desktop or ""
            assert fleet.run(where, ["echo", "hi"]).stdout == b"hi\n"
            with fleet.exec(where, ["echo", "a", "b"]) as command:
                assert list(command) == [(1, b"a b\n")]
                assert command.exit_code == 0
            assert server.states() == {"a": "active"}
        assert server.states() == {"a": "released"}
        with pytest.raises(LeaseOverError):
            desktop.click(1, 1)
        assert [view.state for view in fleet.leases(everything=True)] == ["released"]


def test_an_error_in_the_block_gives_the_lease_back(tmp_path: Path) -> None:
    with connected(tmp_path) as (server, fleet):
        with pytest.raises(ZeroDivisionError), fleet.lease(agent="a", profile="local"):
            raise ZeroDivisionError
        assert server.states() == {"a": "released"}


def test_acquire_open_and_refusals(tmp_path: Path) -> None:
    with connected(tmp_path) as (_, fleet):
        desktop = fleet.acquire(agent="a", profile="local", desktop="one")
        fleet.open(desktop.id).move(1, 1)
        with pytest.raises(ConflictError):
            fleet.acquire(agent="b", profile="local", desktop="one", wait=0)
        with pytest.raises(NotFoundError):
            fleet.show("ls_nothere000")
        assert fleet.release(desktop.id).state == "released"


def test_events_and_the_record_are_iterated(tmp_path: Path) -> None:
    with connected(tmp_path) as (_, fleet):
        fleet.add_operator("bea")
        for entry in fleet.events(after=0):
            if entry.what == "operator.added":
                break
        assert [e.seq for e in fleet.export_audit()] == list(range(1, fleet.verify_audit() + 1))


def test_interrupted_while_it_waits_the_request_is_withdrawn(tmp_path: Path) -> None:
    with connected(tmp_path) as (server, fleet):
        fleet.acquire(agent="a", profile="local", desktop="one")
        interrupted = threading.Thread(target=_interrupt_when_waiting, args=(server,))
        interrupted.start()
        with pytest.raises(KeyboardInterrupt), fleet.lease(agent="b", profile="local", desktop="one", wait=None):
            raise AssertionError("granted")
        interrupted.join()
        assert server.states() == {"a": "active", "b": "cancelled"}
        assert fleet.status()["fleet"] == "f1"  # it goes on


def _interrupt_when_waiting(server: Server) -> None:
    while server.states().get("b") != "waiting":
        pass
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def test_interrupted_in_the_block_the_lease_is_given_back(tmp_path: Path) -> None:
    with connected(tmp_path) as (server, fleet):
        with pytest.raises(KeyboardInterrupt), fleet.lease(agent="a", profile="local"):
            signal.raise_signal(signal.SIGINT)
        assert server.states() == {"a": "released"}


def test_no_thread_stays_when_it_is_closed(tmp_path: Path) -> None:
    with Server(tmp_path):
        with sync.Fleet.connect(home=tmp_path, start=False) as fleet:
            fleet.status()
            assert "cu-fleet client" in {thread.name for thread in threading.enumerate()}
        fleet.close()
        assert "cu-fleet client" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(cu_fleet.UnavailableError), sync.Fleet.connect(home=tmp_path, start=False):
        raise AssertionError("connected")
    assert "cu-fleet client" not in {thread.name for thread in threading.enumerate()}


def test_a_person_is_asked_and_answers(tmp_path: Path) -> None:
    with connected(tmp_path) as (_, fleet), fleet.lease(agent="a", profile="local") as desktop:
        keys = [{"type": "key", "keys": "a"}]
        asked = desktop.ask_approval(keys, "save it")
        fleet.approve(asked.approval)
        assert desktop.approval(asked.approval).state == "approved"
        assert desktop.act(keys, approval=asked.approval).done[0].ok
        assert [x.state for x in fleet.approvals(everything=True)] == ["used"]
