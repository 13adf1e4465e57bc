"""Which kept frames go, and when.

Those older than `frames_for`, and the oldest first when there are more bytes than `frames_quota`, those that a lease
still under way or evidence refers to last. Files go in transactions: these run one after another, and whoever writes
down a row puts its file back there if it has gone meanwhile. So no row is left without its file.
"""

import asyncio
import logging
from dataclasses import dataclass, field

from cu_fleet.controller.core import Core
from cu_fleet.controller.shelf import File, Shelf
from cu_fleet.model.access import Caller, Role
from cu_fleet.model.errors import FleetError
from cu_fleet.model.frame import KeptFrame
from cu_fleet.model.lease import Lease
from cu_fleet.stores.base import Tx
from cu_fleet.threads import in_thread

log = logging.getLogger(__name__)
_EVERY = 3600.0  # seconds between two looks for what is too old
_DOWN_TO = 0.9  # of the quota, so that it is not exceeded again at once
_AT_ONCE = 100  # frames that are removed in one transaction


@dataclass(frozen=True)
class Pruned:
    removed: int
    bytes: int
    left: int
    left_bytes: int


@dataclass
class _Of:
    """What is known of one file when it is decided what goes."""

    file: File
    rows: list[KeptFrame] = field(default_factory=list)
    live: bool = False  # a lease that is under way has it
    evidence: bool = False

    @property
    def at(self) -> float:
        return max((row.at for row in self.rows), default=0.0)

    @property
    def needed(self) -> bool:
        return self.live or self.evidence


_Gone = tuple[str, list[KeptFrame]]  # a file's hash, and the rows that go


class Tidying:
    def __init__(self, core: Core, shelf: Shelf) -> None:
        self.core = core
        self.shelf = shelf
        self._next = 0.0
        self._one_at_a_time = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def mind_the_quota(self) -> None:
        """After something was kept: begin to make room, if there is too much."""
        if self._over and not self.core.closing and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._within_quota(), name="keep frames within their quota")

    async def _within_quota(self) -> None:
        try:
            while self._over and (await self.tidy()).removed:
                pass  # more came meanwhile
        except (FleetError, OSError) as e:
            log.warning("frames could not be kept within their quota: %s", e)

    @property
    def _over(self) -> bool:
        return self.shelf.size > self.core.settings.frames_quota

    async def prune(self, who: Caller, *, older: float | None = None, lease: str | None = None) -> Pruned:
        """Remove what an operator says, or what the settings say."""
        who.needs(Role.OPERATOR)
        if lease is not None:
            await self.core.read(lambda tx: self.core.get_lease(tx, lease))
        return await self.tidy(by=who.who, older=older, lease=lease)

    async def tidy_if_due(self) -> None:
        if self.core.now() >= self._next or self._over:
            await self.tidy()
            self._next = self.core.now() + _EVERY

    async def tidy(self, *, by: str = "controller", older: float | None = None, lease: str | None = None) -> Pruned:
        async with self._one_at_a_time:
            known = await self._known()
            gone = self._unwanted(known, older, lease) if older is not None or lease is not None else self._due(known)
            removed: list[str] = []
            for begin in range(0, len(gone), _AT_ONCE):
                some = gone[begin : begin + _AT_ONCE]
                removed += await self.core.read(lambda tx, some=some: self._remove(tx, known, some))  # type: ignore[misc]
            size = sum(known[sha256].file.size for sha256 in removed)
            pruned = Pruned(len(removed), size, len(known) - len(removed), self.shelf.size)
            if removed or by != "controller":
                facts = {"removed": pruned.removed, "bytes": pruned.bytes, "older": older, "lease": lease}
                await self.core.note(lambda tx: self.core.record(tx, "frames.pruned", by, facts=facts))
            return pruned

    async def _known(self) -> dict[str, _Of]:
        """Every file, and what refers to it; files first, so that one without a row had its chance to get one."""
        files = await in_thread(self.shelf.files)
        known = {sha256: _Of(file) for sha256, file in files.items()}
        if not known:
            return {}
        for lease in await self.core.read(lambda tx: tx.find(Lease)):
            for row in await self.core.read(lambda tx, lease=lease: tx.find(KeptFrame, lease=lease.id)):  # type: ignore[misc]
                of = known.setdefault(row.sha256, _Of(File(row.format, 0)))
                of.rows.append(row)
                of.live |= lease.live
                of.evidence |= row.why == "evidence"
        return known

    def _due(self, known: dict[str, _Of]) -> list[_Gone]:
        """What the settings let go: what belongs to nobody, what is too old, and what there is no room for."""
        before = self.core.now() - self.core.settings.frames_for
        gone = [(sha256, of.rows) for sha256, of in known.items() if of.at < before and not of.live]
        names = {sha256 for sha256, _ in gone}
        size = sum(of.file.size for sha256, of in known.items() if sha256 not in names)
        if size <= self.core.settings.frames_quota:
            return gone
        for sha256, of in sorted(known.items(), key=lambda one: (one[1].needed, one[1].at)):
            if size <= _DOWN_TO * self.core.settings.frames_quota:
                break
            if sha256 not in names:
                gone.append((sha256, of.rows))
                size -= of.file.size
        return gone

    def _unwanted(self, known: dict[str, _Of], older: float | None, lease: str | None) -> list[_Gone]:
        """What an operator named: all of one lease, or what is older, save what is still needed."""
        before = None if older is None else self.core.now() - older
        gone = []
        for sha256, of in known.items():
            rows = [row for row in of.rows if lease in (None, row.lease) and (before is None or row.at < before)]
            if rows and (lease is not None or not of.needed):
                gone.append((sha256, rows))
        return gone

    def _remove(self, tx: Tx, known: dict[str, _Of], gone: list[_Gone]) -> list[str]:
        """Rows, and the files that no row needs any more; returns the hashes of these."""
        removed = []
        for sha256, rows in gone:
            for row in rows:
                now = tx.get(KeptFrame, row.id)
                if now and now.at == row.at:  # not seen again since
                    tx.delete(now)
            if not tx.find(KeptFrame, sha256=sha256) and self.shelf.drop(sha256, known[sha256].file.format):
                removed.append(sha256)
        return removed
