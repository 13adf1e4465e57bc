"""A leased desktop, as the client drives it: pointer and keys, screen, programs, files, a person's answers."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from cu_fleet.client.eyes import Eyes
from cu_fleet.client.hands import Action, Hands
from cu_fleet.client.http import given, read, v1
from cu_fleet.client.opened import Time
from cu_fleet.client.shared import Shared
from cu_fleet.model.errors import UnavailableError
from cu_fleet.model.view import ApprovalView, LeaseView

_HOLD = 25.0  # seconds that one call waits for an answer
_AWAY = 60.0  # seconds that a controller may be away meanwhile


class Desktop(Hands, Eyes, Shared):
    """One leased desktop: pointer, keys, screen, files.

    Coordinates are pixels of the lease's view: of the pictures it shows, as they come. Of another picture, such as a
    zoom, they are if its id is given as `frame`. `intent` says why, for the record.
    """

    # its programs

    async def windows(self) -> list[dict[str, Any]]:
        """Each with id, title, class, pid, x, y, width, height and focused."""
        return list((await self._call("GET", "windows")).json()["windows"])

    async def focus(self, window: int) -> None:
        await self._call("POST", "focus", body={"window": window})

    async def launch(self, name: str, *args: str) -> dict[str, Any]:
        """Start a program that the profile lists."""
        return dict((await self._call("POST", "launch", body={"name": name, "args": list(args)})).json())

    async def clipboard_get(self) -> str:
        return str((await self._call("GET", "clipboard")).json()["text"])

    async def clipboard_set(self, text: str) -> None:
        await self._call("PUT", "clipboard", body={"text": text})

    # a person's answer

    async def ask_approval(
        self,
        actions: Iterable[Action],
        reason: str = "",
        *,
        checks: Iterable[Mapping[str, Any]] = (),
        frame: str | None = None,
        within: Time | None = None,
    ) -> ApprovalView:
        """Ask the operator about a batch before it is sent; see `approval` for the answer.

            asked = await desktop.ask_approval(actions, "this sends the mail")
            answer = await desktop.approval(asked.approval)
            if answer.state == "approved":
                await desktop.act(actions, approval=answer.approval)      # the very same actions, once

        `checks`: what a vendor's model wants looked at, each with id, code and message. `within`: how long it may wait;
        no answer in time is a no. The lease's clock stands still meanwhile.
        """
        words = given(frame=frame, within=within)
        body = {"actions": [dict(x) for x in actions], "reason": reason, "checks": [dict(x) for x in checks], **words}
        return read(ApprovalView, (await self._call("POST", "approvals", body=body)).json())

    async def approval(self, approval: str) -> ApprovalView:
        """An approval once it is answered, or over. A controller that is started anew meanwhile is waited for."""
        clock = asyncio.get_running_loop().time
        until = clock() + _AWAY
        while True:
            try:
                view = await self._approval(approval)
                until = clock() + _AWAY
                if view.state != "waiting":
                    return view
            except UnavailableError:
                if clock() > until:
                    raise
                await asyncio.sleep(1.0)

    async def _approval(self, approval: str) -> ApprovalView:
        more: dict[str, Any] = {"query": {"wait": _HOLD}, "patience": _HOLD, "token": self.lease.token}
        answer = await self._wire.call("GET", v1("approvals", approval), start=False, **more)
        return read(ApprovalView, answer.json())

    # the lease

    async def renew(self, ttl: Time | None = None) -> LeaseView:
        """A full term from now. Inside `async with fleet.lease(…)` this happens by itself."""
        answer = await self._call("POST", "renew", body=given(ttl=ttl))
        self.lease = read(LeaseView, {**answer.json(), "token": self.lease.token})
        return self.lease

    async def refresh(self) -> LeaseView:
        """The lease as it is now: paused, for instance, and why."""
        answer = await self._wire.call("GET", v1("leases", self.id), token=self.lease.token, start=False)
        self.lease = read(LeaseView, {**answer.json(), "token": self.lease.token})
        return self.lease
