"""What a controller has written down, and what waits for a person: the audit record, kept frames, approvals."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator

from cu_fleet.client.asked import Asked
from cu_fleet.client.http import given, lines, read, read_line, v1
from cu_fleet.client.opened import Time
from cu_fleet.model.audit import Entry
from cu_fleet.model.errors import UnavailableError
from cu_fleet.model.view import ApprovalView, FrameView

_log = logging.getLogger("cu_fleet.client")


class Record(Asked):
    async def approvals(self, *, everything: bool = False, lease: str | None = None) -> list[ApprovalView]:
        """What waits for a person's answer; with `everything` also what was answered or is over."""
        answer = await self.ask("GET", "/v1/approvals", **given(all=everything or None, lease=lease))
        return [read(ApprovalView, one) for one in answer["approvals"]]

    async def approval(self, approval: str) -> ApprovalView:
        return read(ApprovalView, await self.ask("GET", v1("approvals", approval)))

    async def approve(self, approval: str, reason: str = "") -> ApprovalView:
        """A person's yes, for once. A merge is made before this returns, and `result` says what came of it."""
        where = v1("approvals", approval, "approve")
        return read(ApprovalView, await self.ask("POST", where, {"reason": reason}, patience=600))

    async def deny(self, approval: str, reason: str = "") -> ApprovalView:
        """A person's no; the agent reads the reason."""
        where = v1("approvals", approval, "deny")
        return read(ApprovalView, await self.ask("POST", where, {"reason": reason}))

    # kept frames

    async def frames(self, lease: str | None = None, *, limit: int = 100) -> list[FrameView]:
        """The newest that were kept, of one lease or of all, newest first."""
        answer = await self.ask("GET", "/v1/frames", lease=lease, limit=limit)
        return [read(FrameView, one) for one in answer["frames"]]

    async def frame(self, sha256: str) -> bytes:
        """The bytes of a kept frame, by its hash or at least 8 digits of it."""
        return (await self._wire.call("GET", v1("frames", sha256))).content

    async def prune_frames(self, *, older: Time | None = None, lease: str | None = None) -> dict[str, int]:
        """Remove those that are older, those of a lease, or what the settings let go; says how many went, and stay."""
        return dict(await self.ask("POST", "/v1/frames/prune", given(older=older, lease=lease), patience=600))

    # the audit record

    async def audit(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        lease: str | None = None,
        agent: str | None = None,
        desktop: str | None = None,
        what: str | None = None,
    ) -> list[Entry]:
        """A page of the record, by number."""
        only = {"after": after, "limit": limit, "lease": lease, "agent": agent, "desktop": desktop, "what": what}
        answer = (await self._wire.call("GET", "/v1/audit", query=only)).json()
        return [read(Entry, one) for one in answer["entries"]]

    async def verify_audit(self) -> int:
        """How many entries it has, all of them whole; BrokenError if not."""
        return int((await self.ask("GET", "/v1/audit/verify", patience=600))["entries"])

    async def export_audit(self) -> AsyncIterator[Entry]:
        """All of the record, as it comes."""
        wanted = {"Accept": "application/x-ndjson"}
        async with self._wire.stream("GET", "/v1/audit", headers=wanted) as answer:
            async for line in lines(self._wire, answer):
                yield read(Entry, read_line(line))

    async def events(self, *, after: int | None = None) -> AsyncIterator[Entry]:
        """Each entry as it is written, from after a number (or from now), across breaks of the connection."""
        while True:
            try:
                async with self._wire.stream(
                    "GET", "/v1/events", query={"after": after}, patience=None, start=False
                ) as answer:
                    async for line in lines(self._wire, answer):
                        if line.startswith("data:"):
                            entry = read(Entry, json.loads(line[5:]))
                            after = entry.seq
                            yield entry
            except UnavailableError as error:
                _log.debug("events broke off: %s", error)
            await asyncio.sleep(1.0)
