"""Hops to threads: what comes back, in which order, and what a cancelled caller may rely on."""

import asyncio
import gc
import threading
import time

import pytest

from cu_fleet.threads import Threads, in_thread
from tests.support import run, until


def test_what_the_work_returns_or_raises_comes_back() -> None:
    async def body() -> None:
        assert await in_thread(lambda a, b: a + b, 1, b=2) == 3
        with pytest.raises(KeyError, match="gone"):
            await in_thread({}.__getitem__, "gone")
        assert await in_thread(threading.get_ident) != threading.get_ident()

    run(body())


def test_one_thread_does_all_in_the_order_it_was_given() -> None:
    async def body() -> None:
        line, done = Threads("line", most=1), list[int]()
        jobs = [line.give(lambda number=number: done.append(number)) for number in range(200)]  # type: ignore[misc]
        await asyncio.gather(*(job.settled() for job in jobs))
        assert done == list(range(200))
        line.close()

    run(body())


def test_several_threads_work_at_once_and_no_more_than_allowed() -> None:
    async def body() -> None:
        threads, both = Threads("pair", most=2), threading.Barrier(2, timeout=10)
        names = set[str]()

        def meet() -> None:
            names.add(threading.current_thread().name)
            both.wait()

        await asyncio.gather(*(threads.give(meet).settled() for _ in range(20)))
        assert names == {"pair-0", "pair-1"}
        threads.close()

    run(body())


def test_nothing_waits_for_one_thread_that_is_busy_while_another_may_be_made() -> None:
    async def body() -> None:
        threads, begun, go = Threads("pair", most=2), threading.Event(), threading.Event()

        def busy() -> bool:
            begun.set()
            return go.wait(10)

        first = asyncio.create_task(threads.give(busy).settled())
        await until(begun.is_set)
        await threads.give(go.set).settled()
        assert await first
        threads.close()

    run(body())


def test_cancelled_before_it_began_nothing_is_done() -> None:
    async def body() -> None:
        line, go, done = Threads("line", most=1), threading.Event(), list[str]()
        first = asyncio.create_task(line.give(go.wait).settled())
        second = asyncio.create_task(line.give(lambda: done.append("second")).settled())
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        go.set()
        await first
        await line.give(lambda: done.append("third")).settled()
        assert done == ["third"]
        line.close()

    run(body())


def test_cancelled_later_the_caller_hears_of_it_when_the_work_is_over() -> None:
    async def body() -> None:
        began, go, done = threading.Event(), threading.Event(), list[str]()

        def work() -> None:
            began.set()
            go.wait(10)
            done.append("work")
            raise ValueError("and it failed")

        task = asyncio.create_task(in_thread(work))
        await until(began.is_set)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await task
        assert done == ["work"]
        assert isinstance(cancelled.value.__cause__, ValueError)

    run(body())


def test_a_loop_that_is_gone_does_not_stop_the_thread() -> None:
    line, go, done = Threads("line", most=1), threading.Event(), list[str]()

    async def leave() -> None:
        line.give(go.wait)

    async def later() -> None:
        await line.give(lambda: done.append("later")).settled()

    run(leave())
    go.set()
    run(later())
    assert done == ["later"]
    line.close()


def test_threads_that_nobody_knows_any_more_end() -> None:
    async def body() -> None:
        threads = Threads("forgotten", most=2)
        await asyncio.gather(*(threads.give(time.monotonic).settled() for _ in range(10)))

    run(body())
    gc.collect()
    run(until(lambda: not any(thread.name.startswith("forgotten") for thread in threading.enumerate())))


def test_a_failure_keeps_nothing_alive() -> None:
    """An error's traceback leads to where it was awaited: nothing there may lead back to the error."""

    class Big:
        pass

    async def fail() -> None:
        big = Big()

        def work() -> None:
            raise ValueError(big)

        try:
            await in_thread(work)
        except ValueError as e:
            assert e.args == (big,)  # noqa: PT017 - what pytest.raises gives is such a circle itself
        else:
            raise AssertionError

    gc.collect()
    gc.disable()
    try:
        run(fail())
        assert not [each for each in gc.get_objects() if isinstance(each, Big)]
    finally:
        gc.enable()
