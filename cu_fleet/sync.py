"""The Python client, blocking: for test suites, notebooks and scripts.

    with Fleet.connect() as fleet:
        with fleet.lease(agent="codex-a", profile="local") as desktop:
            desktop.click(640, 400)

The same names as `cu_fleet.client`, with the same arguments: each method runs its asynchronous one in an event loop
that the Fleet keeps in a thread, and waits. ^C cancels what is being waited for, lets it clean up after itself, and is
then raised as usual.
"""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from cu_fleet import client
from cu_fleet.client import Completed, Frame, Result
from cu_fleet.model.view import LeaseView

__all__ = ["Command", "Completed", "Desktop", "Fleet", "Frame", "Leasing", "Result"]

P = ParamSpec("P")
T = TypeVar("T")
A = TypeVar("A")
W = TypeVar("W")
Inner = TypeVar("Inner", covariant=True)  # a method of a part of the client is one of the whole
_CLEAN_UP = 30.0
_END: Any = object()


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cu-fleet client", daemon=True)
        self._thread.start()

    def run(self, work: Awaitable[T]) -> T:
        """Wait for it here; what breaks the waiting off cancels it, and waits for its end."""
        result: Future[T] = Future()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            tasks.append(self._loop.create_task(_awaited(work), name="blocking call"))
            tasks[0].add_done_callback(lambda task: _settle(result, task))

        def cancel() -> None:
            tasks[0].cancel()

        self._loop.call_soon_threadsafe(begin)
        try:
            return result.result()
        except BaseException:
            if not result.done():
                self._loop.call_soon_threadsafe(cancel)  # after `begin`, always
                wait([result], _CLEAN_UP)
            raise

    @property
    def closed(self) -> bool:
        return self._loop.is_closed()

    def close(self) -> None:
        self.run(_wound_up())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _wound_up() -> None:
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()


async def _awaited(work: Awaitable[T]) -> T:
    return await work


def _settle(result: "Future[T]", task: "asyncio.Task[T]") -> None:
    if task.cancelled():
        result.set_exception(CancelledError())
    elif error := task.exception():
        result.set_exception(error)
    else:
        result.set_result(task.result())


class Blocking(Generic[Inner]):
    """Something of the asynchronous client, and the loop it lives in."""

    def __init__(self, inner: Inner, loop: Loop) -> None:
        self.inner, self.loop = inner, loop


def waits(method: Callable[Concatenate[A, P], Awaitable[T]]) -> Callable[Concatenate[Blocking[A], P], T]:
    @wraps(method)
    def call(self: Blocking[A], /, *args: P.args, **more: P.kwargs) -> T:
        return self.loop.run(method(self.inner, *args, **more))

    return call


def _gives(
    method: Callable[Concatenate[A, P], T], kind: Callable[[T, Loop], W]
) -> Callable[Concatenate[Blocking[A], P], W]:
    """What the method returns, in its blocking form."""

    @wraps(method)
    def call(self: Blocking[A], /, *args: P.args, **more: P.kwargs) -> W:
        return kind(method(self.inner, *args, **more), self.loop)

    return call


def _waits_and_gives(
    method: Callable[Concatenate[A, P], Awaitable[T]], kind: Callable[[T, Loop], W]
) -> Callable[Concatenate[Blocking[A], P], W]:
    @wraps(method)
    def call(self: Blocking[A], /, *args: P.args, **more: P.kwargs) -> W:
        return kind(self.loop.run(method(self.inner, *args, **more)), self.loop)

    return call


def _each(source: AsyncIterator[T], loop: Loop) -> Iterator[T]:
    """What comes, one by one; leaving the iteration ends the source."""
    try:
        while (item := loop.run(anext(source, _END))) is not _END:
            yield item
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            loop.run(close())


class Desktop(Blocking[client.Desktop]):
    """One leased desktop; see `cu_fleet.client.Desktop`."""

    @property
    def lease(self) -> LeaseView:
        return self.inner.lease

    @property
    def id(self) -> str:
        return self.inner.id

    act = waits(client.Desktop.act)
    click = waits(client.Desktop.click)
    double_click = waits(client.Desktop.double_click)
    move = waits(client.Desktop.move)
    press = waits(client.Desktop.press)
    release = waits(client.Desktop.release)
    drag = waits(client.Desktop.drag)
    scroll = waits(client.Desktop.scroll)
    key = waits(client.Desktop.key)
    key_down = waits(client.Desktop.key_down)
    key_up = waits(client.Desktop.key_up)
    hold_key = waits(client.Desktop.hold_key)
    type = waits(client.Desktop.type)
    paste = waits(client.Desktop.paste)
    wait = waits(client.Desktop.wait)
    wait_stable = waits(client.Desktop.wait_stable)
    wait_change = waits(client.Desktop.wait_change)
    screenshot = waits(client.Desktop.screenshot)
    ui = waits(client.Desktop.ui)
    windows = waits(client.Desktop.windows)
    focus = waits(client.Desktop.focus)
    launch = waits(client.Desktop.launch)
    clipboard_get = waits(client.Desktop.clipboard_get)
    clipboard_set = waits(client.Desktop.clipboard_set)
    files = waits(client.Desktop.files)
    put_file = waits(client.Desktop.put_file)
    get_file = waits(client.Desktop.get_file)
    download = waits(client.Desktop.download)
    remove_file = waits(client.Desktop.remove_file)
    ask_approval = waits(client.Desktop.ask_approval)
    approval = waits(client.Desktop.approval)
    renew = waits(client.Desktop.renew)
    refresh = waits(client.Desktop.refresh)


class Leasing(Blocking[client.Leasing]):
    """`with fleet.lease(…) as desktop`."""

    def __enter__(self) -> Desktop:
        try:
            return Desktop(self.loop.run(self.inner.__aenter__()), self.loop)
        except BaseException as error:  # ^C may come when it has just been granted
            if self.inner.held:
                self.loop.run(self.inner.__aexit__(type(error), error, None))
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.loop.run(self.inner.__aexit__(kind, error, trace))


class Command(Blocking[client.Command]):
    """`with fleet.exec(…) as command: for stream, data in command: …`, and then `command.exit_code`."""

    @property
    def exit_code(self) -> int | None:
        return self.inner.exit_code

    def __enter__(self) -> Self:
        self.loop.run(self.inner.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.loop.run(self.inner.__aexit__(kind, error, trace))

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        return _each(aiter(self.inner), self.loop)


class Fleet(Blocking[client.Fleet]):
    """A controller; see `cu_fleet.client.Fleet`."""

    @classmethod
    def connect(
        cls,
        url: str | None = None,
        token: str | None = None,
        home: str | os.PathLike[str] | None = None,
        start: bool = True,
    ) -> Self:
        return cls(client.Fleet.connect(url, token, home, start), Loop())

    def __enter__(self) -> Self:
        try:
            self.loop.run(self.inner.__aenter__())
        except BaseException:
            self.loop.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End what is under way, and the thread. Leases that are not released live on until their time is over."""
        if self.loop.closed:
            return
        try:
            self.loop.run(self.inner.close())
        finally:
            self.loop.close()

    ask = waits(client.Fleet.ask)
    lease = _gives(client.Fleet.lease, Leasing)
    acquire = _waits_and_gives(client.Fleet.acquire, Desktop)
    open = _waits_and_gives(client.Fleet.open, Desktop)
    leases = waits(client.Fleet.leases)
    show = waits(client.Fleet.show)
    renew = waits(client.Fleet.renew)
    release = waits(client.Fleet.release)
    pause = waits(client.Fleet.pause)
    watch = waits(client.Fleet.watch)
    resume = waits(client.Fleet.resume)
    take = waits(client.Fleet.take)
    revoke = waits(client.Fleet.revoke)
    reassign = waits(client.Fleet.reassign)
    desktops = waits(client.Fleet.desktops)
    desktop = waits(client.Fleet.desktop)
    remove_desktop = waits(client.Fleet.remove_desktop)
    freeze = waits(client.Fleet.freeze)
    thaw = waits(client.Fleet.thaw)
    logs = waits(client.Fleet.logs)
    exec = _gives(client.Fleet.exec, Command)
    run = waits(client.Fleet.run)
    save = waits(client.Fleet.save)
    snapshots = waits(client.Fleet.snapshots)
    restore = waits(client.Fleet.restore)
    delete_snapshot = waits(client.Fleet.delete_snapshot)
    approvals = waits(client.Fleet.approvals)
    approval = waits(client.Fleet.approval)
    approve = waits(client.Fleet.approve)
    deny = waits(client.Fleet.deny)
    frames = waits(client.Fleet.frames)
    frame = waits(client.Fleet.frame)
    prune_frames = waits(client.Fleet.prune_frames)
    agents = waits(client.Fleet.agents)
    add_agent = waits(client.Fleet.add_agent)
    rotate_agent = waits(client.Fleet.rotate_agent)
    unbar_agent = waits(client.Fleet.unbar_agent)
    remove_agent = waits(client.Fleet.remove_agent)
    operators = waits(client.Fleet.operators)
    add_operator = waits(client.Fleet.add_operator)
    rotate_operator = waits(client.Fleet.rotate_operator)
    remove_operator = waits(client.Fleet.remove_operator)
    profiles = waits(client.Fleet.profiles)
    profile = waits(client.Fleet.profile)
    audit = waits(client.Fleet.audit)
    verify_audit = waits(client.Fleet.verify_audit)
    export_audit = _gives(client.Fleet.export_audit, _each)
    events = _gives(client.Fleet.events, _each)
    status = waits(client.Fleet.status)
    metrics = waits(client.Fleet.metrics)
    shutdown = waits(client.Fleet.shutdown)
