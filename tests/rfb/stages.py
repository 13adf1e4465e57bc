"""Stages for the acting suite: a bare server with hands on it, and a desktop of the real controller."""

import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cu_fleet.app import controller_of
from cu_fleet.model.access import Caller, Role
from cu_fleet.model.action import parse_actions
from cu_fleet.model.profile import Profile
from cu_fleet.model.request import Acquire
from cu_fleet.rfb.hands import Hands
from cu_fleet.rfb.screen import Screen
from cu_fleet.settings import read_settings
from cu_fleet.testing.screen_leased import Leased
from cu_fleet.testing.screen_stage import Inside
from tests.guest.support import LocalProcess
from tests.rfb.evdev import Translator
from tests.rfb.qemu import Qemu, qemu
from tests.support import until

ANA = Caller(operator="ana", role=Role.ADMIN)


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


@contextlib.asynccontextmanager
async def leased(backend: str = "local", **profile: Any) -> AsyncIterator[Leased]:
    """On a desktop of the real controller."""
    with tempfile.TemporaryDirectory(prefix="cu-fleet-") as folder:
        settings = read_settings(Path(folder), {})
        async with controller_of(settings) as controller:
            controller.core.profiles["acting"] = (Profile(name="acting", backend=backend, **profile), "test")
            await controller.start()
            try:
                ask = Acquire(agent="actor", profile="acting", wait=None)
                lease = await controller.acquire(ANA, ask, hold=60)
                stage = Leased(controller, ANA, lease)
                yield stage
                await stage.end()
            finally:
                await controller.shut_down()


class Machine(Bare):
    """Hands on a machine of QEMU, whose kernel tells what it got."""

    def __init__(self, vm: Qemu, screen: Screen) -> None:
        super().__init__("", screen)
        self.vm = vm
        self._translator = Translator(screen.width, screen.height)

    async def _arrived(self) -> None:
        """The machine's own marks tell."""

    async def ask(self, sink: str, question: object) -> Any:
        assert sink == "x", "there is nobody else inside"
        events = [told for event in self.vm.events() for told in self._translator.told(*event)]
        return events if question == "events" else self._translator.held()


@contextlib.asynccontextmanager
async def machine() -> AsyncIterator[Machine]:
    with qemu() as vm:
        stage = Machine(vm, await vm.screen())
        try:
            yield stage
        finally:
            await stage.screen.close()
