"""A screen of this machine, with the easel drawing on it."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from cu_fleet.rfb.hands import Hands
from cu_fleet.testing import easel
from cu_fleet.testing.screen_seeing import Said, ScreenSight, listening
from tests.rfb.xvnc import PYTHON

REST = "0.1"


@asynccontextmanager
async def drawing(display: str, rest: str = REST) -> AsyncIterator[Said]:
    """The easel on a display of this machine."""
    env = {"DISPLAY": display, "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "XAUTHORITY": "/dev/null"}
    words = [PYTHON, easel.__file__, "1", rest]
    process = await asyncio.create_subprocess_exec(*words, env=env, stdout=asyncio.subprocess.PIPE)
    said = Said()
    try:
        assert process.stdout
        async with listening(said, process.stdout):
            yield said
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def seen_on(server: Any, rest: str = REST, **more: Any) -> AsyncIterator[ScreenSight]:
    screen = await server.screen(**more)
    try:
        await Hands(screen, lambda: None).claim_pointer()
        async with drawing(server.display, rest) as said:
            yield ScreenSight(screen, said)
    finally:
        await screen.close()
