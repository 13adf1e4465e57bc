"""The stage that every backend has: a desktop of a controller, acted upon through its lease."""

from collections.abc import Mapping, Sequence
from typing import Any

from cu_fleet.backends.base import Process
from cu_fleet.controller import Controller
from cu_fleet.model.access import Caller
from cu_fleet.model.action import parse_actions
from cu_fleet.model.errors import FleetError, TooLongError, UnsupportedError
from cu_fleet.model.view import LeaseView
from cu_fleet.testing.screen_stage import Inside

_KINDS = {"no_change": TooLongError, "cannot_type": UnsupportedError, "no_such_button": UnsupportedError}


class Leased(Inside):
    """`who` is an operator; the desktop's backend must have Exec, for the sinks."""

    def __init__(self, controller: Controller, who: Caller, lease: LeaseView) -> None:
        self.controller = controller
        self.who = who
        self.lease = lease
        self.width, self.height = lease.width or 0, lease.height or 0

    async def do(self, actions: Sequence[Mapping[str, Any]]) -> None:
        answer = await self.controller.act(self.who, self.lease.lease, parse_actions(actions))
        for done in answer.done:
            if not done.ok:
                code = done.code or ""
                raise _KINDS.get(code, FleetError)(str(done.detail), code=code)

    async def release(self) -> None:
        await self.controller.pause(self.who, self.lease.lease)
        await self.controller.resume(self.who, self.lease.lease)

    async def copy(self, text: str) -> None:
        await self.controller.clipboard_set(self.who, self.lease.lease, text)

    async def copied(self) -> str | None:
        return await self.controller.clipboard_get(self.who, self.lease.lease)

    async def start(self, argv: Sequence[str]) -> Process:
        return await self.controller.exec(self.who, self.lease.desktop or "", argv, cwd=None, env=None)
