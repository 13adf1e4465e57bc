"""What is kept of a desktop before it is rolled back: its last frame, what lies in `~/Shared/out`, and, if the
revoke asked for one, a snapshot. Keeping is best effort: a desktop is never kept from being cleaned by it, and what
could not be kept is on record.
"""

import asyncio
import logging
from pathlib import Path

from cu_fleet.backends.base import Files
from cu_fleet.controller.actor import Actor
from cu_fleet.controller.core import Core, folder
from cu_fleet.controller.frames import Frames, Kept
from cu_fleet.model.desktop import Desktop
from cu_fleet.model.errors import FleetError
from cu_fleet.model.lease import Lease, LeaseState
from cu_fleet.model.snapshot import Snapshot
from cu_fleet.stores.base import Tx

log = logging.getLogger(__name__)
_MOST_BYTES = 1 << 30  # of one lease's artifacts
_MOST_FILES = 10_000


class Evidence:
    def __init__(self, core: Core, frames: Frames) -> None:
        self.core = core
        self.frames = frames
        self.save_snapshot = _nobody  # set by the controller: the keeper's `save`

    def artifacts(self, lease: str) -> Path:
        return self.core.settings.home / "artifacts" / lease

    async def keep(self, desktop: Desktop, actor: Actor) -> None:
        """Keep what the lease that just ended leaves behind."""
        lease = await self.core.read(lambda tx: last_lease(tx, desktop.id))
        if lease is None:
            return
        facts: dict[str, object] = {}
        frames: list[Kept] = []
        missing: list[str] = []

        async def last_frame() -> None:
            if lease.state is LeaseState.REVOKED and self.core.settings.evidence:
                frames.append(await self._last_frame(desktop, lease, actor))

        async def artifacts() -> None:
            facts.update(await self._artifacts(desktop, lease))

        async def snapshots() -> None:
            facts.update(await self._snapshots(desktop))

        try:
            async with asyncio.timeout(2 * self.core.settings.backend_timeout):
                for keep in (last_frame, artifacts, snapshots):
                    try:
                        await keep()
                    except (FleetError, OSError) as e:  # which stops nothing else from being kept
                        missing.append(f"{type(e).__name__}: {e}")
        except TimeoutError:
            missing.append("it took too long")
        if missing:
            facts["not_kept"] = "; ".join(missing)
            log.warning("desktop %s: not all evidence could be kept: %s", desktop.id, facts["not_kept"])
        if frames or facts:
            await self.core.note(
                lambda tx: self.core.record(
                    tx,
                    "lease.evidence",
                    "controller",
                    lease=lease,
                    frames=self.frames.note(tx, frames),
                    facts=facts,
                )
            )

    async def _last_frame(self, desktop: Desktop, lease: Lease, actor: Actor) -> Kept:
        screen = await actor.connect(desktop, await self.core.endpoint(desktop), timeout=5.0)
        async with asyncio.timeout(5.0):
            frame = await screen.frame(pointer=True)
        return await self.frames.keep(lease, frame, "evidence")

    async def _artifacts(self, desktop: Desktop, lease: Lease) -> dict[str, object]:
        files = self.core.abilities(desktop).files
        if files is None or not desktop.handle:
            return {}
        kept, size = 0, 0
        top = await files.listing(desktop.handle)
        folders = [info.path for info in top if info.path == "out" and info.kind == "dir"]
        while folders:
            for info in await files.listing(desktop.handle, folders.pop()):
                if info.kind == "dir":
                    folders.append(info.path)
                elif info.kind == "file":
                    kept, size = kept + 1, size + info.size
                    if kept > _MOST_FILES or size > _MOST_BYTES:
                        return {"artifacts": kept - 1, "artifacts_cut": True}
                    await self._take(files, desktop, lease, info.path)
        return {"artifacts": kept, "artifact_bytes": size} if kept else {}

    async def _take(self, files: Files, desktop: Desktop, lease: Lease, path: str) -> None:
        target = self.artifacts(lease.id) / path
        await asyncio.to_thread(folder, target.parent)
        size = 0
        with target.open("wb") as out:
            async for chunk in files.get(desktop.handle, path):
                size += len(chunk)
                if size > _MOST_BYTES:
                    return
                out.write(chunk)

    async def _snapshots(self, desktop: Desktop) -> dict[str, object]:
        """Snapshots that a revoke asked for and that are not made yet."""
        rows = await self.core.read(lambda tx: tx.find(Snapshot, desktop=desktop.id, state="saving"))
        asked = [row for row in rows if row.purpose == "evidence"]
        for row in asked:
            await self.save_snapshot(desktop, note=row.note, purpose="evidence", by=row.by, snapshot=row.id)
        return {"snapshot": asked[0].id} if asked else {}


def last_lease(tx: Tx, desktop: str) -> Lease | None:
    """The lease that held this desktop last."""
    over = [lease for lease in tx.find(Lease, desktop=desktop) if lease.ended_at is not None]
    return max(over, key=lambda lease: lease.generation or 0, default=None)


async def _nobody(desktop: Desktop, *, note: str, purpose: str, by: str, snapshot: str) -> Snapshot:
    raise AssertionError("set by the controller")
