"""Work on other threads, with as short a way there and back as can be.

`asyncio.to_thread` builds a future for each side and goes through the loop twice; after a pause of a few milliseconds
one such hop takes 0.2 ms, and every answer makes several. Here is one queue, one future and one wake-up.

A caller who is cancelled has either changed nothing, because the work never began, or hears of it once the work is
over: whatever cleans up after it never races with work that still goes on.
"""

import asyncio
import os
import threading
import weakref
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")
Outcome = tuple[T | None, BaseException | None]


class Job(Generic[T]):
    """One piece of work, given and awaited by a loop, done by a thread."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._taken = threading.Lock()  # by the thread that does it, or by the caller who takes it back
        self._waiter: asyncio.Future[None] | None = None
        self._outcome: Outcome[T] | None = None
        self.running = self.over = False

    async def settled(self) -> T:
        """What came of it."""
        try:
            return await self._settled()
        finally:
            self.over = True

    async def _settled(self) -> T:
        cancelled: asyncio.CancelledError | None = None
        while self._outcome is None:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            except asyncio.CancelledError as e:
                if cancelled is None and self._taken.acquire(blocking=False):
                    raise
                cancelled = cancelled or e
        result, error = self._outcome
        try:
            if cancelled is not None:
                raise cancelled from error
            if error is not None:
                raise error
            return result  # type: ignore[return-value]  # there is no error, so this is what the work returned
        finally:
            error = cancelled = self._outcome = None  # an error's traceback leads here: no circle

    def do(self) -> None:
        """On a thread."""
        if self._taken.acquire(blocking=False):
            try:
                self._loop.call_soon_threadsafe(self._settle, self._done())  # no variable keeps an error: no circle
            except RuntimeError:
                return  # the loop is closed: nobody waits any more

    def _done(self) -> Outcome[T]:
        self.running = True
        try:
            return self._work(), None
        except BaseException as e:  # noqa: BLE001 - it is raised where the work is awaited
            return None, e
        finally:
            self.running = False

    def _settle(self, outcome: Outcome[T]) -> None:
        self._outcome = outcome
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)


class Threads:
    """At most so many threads, each made when there is work and none to do it. One alone does everything in order."""

    def __init__(self, name: str, most: int) -> None:
        self._name, self._most, self._count = name, most, 0
        self._queue: SimpleQueue[Job[Any] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)  # as many as wait for work
        self.close = weakref.finalize(self, self._queue.put, None)  # what was given before is still done

    def give(self, work: Callable[[], T]) -> Job[T]:
        job = Job(work)
        self._queue.put(job)
        if not self._idle.acquire(blocking=False) and self._count < self._most:
            name = f"{self._name}-{self._count}"
            threading.Thread(target=_serve, args=(self._queue, self._idle), name=name, daemon=True).start()
            self._count += 1
        return job


def _serve(queue: "SimpleQueue[Job[Any] | None]", idle: threading.Semaphore) -> None:
    while job := _next(queue, idle):
        job.do()
        del job  # what it holds is not kept until the next comes
    queue.put(None)


def _next(queue: "SimpleQueue[Job[Any] | None]", idle: threading.Semaphore) -> Job[Any] | None:
    try:
        return queue.get_nowait()
    except Empty:
        idle.release()
        return queue.get()


_WORKERS = Threads("worker", 4 + (os.cpu_count() or 1))


async def in_thread(work: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
    """Do this on some thread."""
    return await _WORKERS.give(partial(work, *args, **more)).settled()
