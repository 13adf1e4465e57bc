"""Stages for the acting suite: a bare server with hands on it, and a desktop of the real controller."""

import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any

from cu_fleet.model.action import parse_actions
from cu_fleet.rfb.hands import Hands
from cu_fleet.rfb.screen import Screen
from cu_fleet.testing.screen_stage import Inside
from tests.guest.support import LocalProcess
from tests.support import until


class Bare(Inside):
    """Hands on a server, and nobody inside who helps them."""

    def __init__(self, display: str, screen: Screen) -> None:
        self.display = display
        self.screen = screen
        self.hands = Hands(screen, lambda: None)
        self.width, self.height = screen.width, screen.height

    async def do(self, actions: Sequence[Mapping[str, Any]]) -> None:
        try:
            for action in parse_actions(actions):
                await self.hands.do(action)
        finally:
            await self._arrived()

    async def release(self) -> None:
        await self.hands.release_all()
        await self._arrived()

    async def _arrived(self) -> None:
        """Without a fence, a motion and its return tell that all before has arrived."""
        if self._program and (await self.screen.frame()).within:
            x, y = self.screen.pointer
            for place in ([x - 1 if x else 1, y], [x, y]):
                self.hands.fingers.point(*place)
                await until(partial(self._is_at, place))

    async def _is_at(self, place: list[int]) -> bool:
        return bool(await self.ask(self._sink, "pointer") == place)

    async def copy(self, text: str) -> None:
        await self.screen.set_clipboard(text)

    async def copied(self) -> str | None:
        return await self.screen.clipboard()

    async def start(self, argv: Sequence[str]) -> LocalProcess:
        env = {"DISPLAY": self.display, "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "XAUTHORITY": "/dev/null"}
        return await LocalProcess.start(argv, {**env, "NO_AT_BRIDGE": "1", "GDK_BACKEND": "x11"})


@contextlib.asynccontextmanager
async def bare(server: Any) -> AsyncIterator[Bare]:
    """On a server of `xvnc` or `x11vnc`."""
    stage = Bare(server.display, await server.screen())
    try:
        yield stage
    finally:
        await stage.end()
        await stage.screen.close()
