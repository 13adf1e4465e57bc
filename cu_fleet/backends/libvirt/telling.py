"""Work that may take minutes, and what to tell meanwhile."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

_SECONDS = 5.0  # between two words of it


async def telling(work: Coroutine[Any, Any, object], words: Callable[[float], str]) -> AsyncGenerator[str, None]:
    """Tell, every few seconds until it is done, what goes on; what it raises is raised. Dropped, it ends the work."""
    now = asyncio.get_running_loop().time
    begun, task = now(), asyncio.create_task(work, name="told of")
    try:
        while not (await asyncio.wait([task], timeout=_SECONDS))[0]:
            if said := words(now() - begun):
                yield said
        task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
