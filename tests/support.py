"""What all tests share."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T], timeout: float = 30.0) -> T:
    """Run a test's coroutine to its end; hanging is a failure, not a hang."""

    async def bounded() -> T:
        async with asyncio.timeout(timeout):
            return await work

    return asyncio.run(bounded(), debug=False)


async def until(condition: Callable[[], Awaitable[object] | object], timeout: float = 20.0, every: float = 0.02) -> Any:
    """Poll until `condition` gives something true, and return it; its last answer is in the error."""
    last: object = None
    try:
        async with asyncio.timeout(timeout):
            while True:
                last = condition()
                if isinstance(last, Awaitable):
                    last = await last
                if last:
                    return last
                await asyncio.sleep(every)
    except TimeoutError:
        raise AssertionError(f"not reached within {timeout} s; the last answer was {last!r}") from None


def command_lines() -> dict[int, str]:
    """What runs on this machine, with a blank after each word."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            found[int(path.parent.name)] = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found
