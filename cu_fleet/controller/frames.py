"""Pictures that are kept: around each action, or all that were handed out, as the profile says; and evidence.

The audit record names a frame by the hash of its bytes, so its file is on the shelf before the entry is written; the
row that says which lease it is of is written together with the entry. Pictures are made in threads, the one before an
action while the action is under way. What cannot be kept stops no action: the entry says why it has none.
"""

import asyncio
import math
from collections.abc import Iterable
from typing import NamedTuple

from cu_fleet.controller.core import Core
from cu_fleet.controller.permit import may_not
from cu_fleet.controller.shelf import Shelf
from cu_fleet.controller.tidying import Tidying
from cu_fleet.model.access import Caller, Role
from cu_fleet.model.errors import FleetError, InvalidError, NotFoundError
from cu_fleet.model.frame import Keep, KeptFrame, Why
from cu_fleet.model.lease import Lease
from cu_fleet.model.view import FrameView, frame_view
from cu_fleet.rfb.canvas import Frame
from cu_fleet.rfb.picture import Encoded, encode
from cu_fleet.rfb.screen import Screen
from cu_fleet.stores.base import Tx
from cu_fleet.threads import in_thread

_EVIDENCE = 600.0  # seconds after its end by which the last frame of a lease is kept
_SHORTEST = 8  # characters of a hash that may stand for it


class Kept(NamedTuple):
    """A picture on the shelf that is not written down yet, with its bytes: until then tidying may take it away."""

    row: KeptFrame
    data: bytes


class Frames:
    def __init__(self, core: Core) -> None:
        self.core = core
        self.shelf = Shelf(core.settings.home / "frames")
        self.tidying = Tidying(core, self.shelf)
        self.prune, self.tidy_if_due, self.close = self.tidying.prune, self.tidying.tidy_if_due, self.tidying.close

    async def open(self) -> None:
        await in_thread(self.shelf.open)

    def wanted(self, lease: Lease) -> Keep:
        found = self.core.profiles.get(lease.profile)
        return found[0].frames if found else "none"

    # keeping

    async def keep(self, lease: Lease, frame: Frame, why: Why) -> Kept:
        """The whole screen with its pointer; to be written down with `note`."""
        return await in_thread(lambda: self.put(lease, encode(frame, pointer=True), why))

    def put(self, lease: Lease, picture: Encoded, why: Why) -> Kept:
        """Blocks: for threads."""
        sha256 = self.shelf.put(picture.data, picture.format)
        row = KeptFrame(
            id=f"{lease.id}:{sha256}",
            lease=lease.id,
            agent=lease.agent,
            desktop=lease.desktop or "",
            generation=lease.generation or 0,
            sha256=sha256,
            why=why,
            at=self.core.now(),
            width=picture.width,
            height=picture.height,
            format=picture.format,
            size=len(picture.data),
        )
        return Kept(row, picture.data)

    def note(self, tx: Tx, kept: Iterable[Kept]) -> tuple[str, ...]:
        """Write down whose they are; returns their hashes, for the audit entry in the same transaction."""
        hashes = []
        for row, data in kept:
            self.shelf.put_back(row.sha256, data, row.format)  # is there, but for what was tidied away since
            tx.put(row)
            hashes.append(row.sha256)
        return tuple(dict.fromkeys(hashes))

    # reading

    async def listing(self, who: Caller, lease_id: str | None = None, limit: int = 100) -> list[FrameView]:
        """The newest frames kept, of one lease or of all, newest first."""
        lease_id = lease_id or who.lease

        def work(tx: Tx) -> list[FrameView]:
            if lease_id is None:
                who.needs(Role.OBSERVER)
                leases = tx.find(Lease)
            else:
                leases = [self._readable(tx, who, lease_id)]
            return [frame_view(frame) for frame in _newest(tx, leases, limit)]

        return await self.core.read(work)

    async def get(self, who: Caller, name: str) -> tuple[FrameView, bytes]:
        """A kept frame by its hash, or by how that begins."""
        if not all(char in "0123456789abcdef" for char in name) or not _SHORTEST <= len(name) <= 64:
            raise InvalidError(
                f"{name!r} is no frame's hash",
                remedy=f"give its sha256, or at least {_SHORTEST} digits of it",
                key="sha256",
            )
        hashes = await in_thread(self.shelf.named, name)

        def work(tx: Tx) -> list[KeptFrame]:
            if who.lease is not None:
                self._readable(tx, who, who.lease)
            else:
                who.needs(Role.OBSERVER)
            rows = [row for sha256 in hashes for row in tx.find(KeptFrame, sha256=sha256)]
            return [row for row in rows if who.lease in (None, row.lease)]

        rows = await self.core.read(work)
        if not rows:
            raise NotFoundError(
                f"frame {name} is not kept",
                remedy="see what is: cu-fleet frames list (a profile says in `frames` what is kept)",
                code="no_kept_frame",
                sha256=name,
            )
        if len({row.sha256 for row in rows}) > 1:
            raise InvalidError(f"several frames begin with {name}", remedy="give more of the hash", key="sha256")
        frame = max(rows, key=lambda row: row.at)
        data = await in_thread(self.shelf.read, frame.sha256, frame.format)
        await self.core.note(lambda tx: self.core.record(tx, "frame.get", who.who, frames=(frame.sha256,)))
        return frame_view(frame), data

    def _readable(self, tx: Tx, who: Caller, lease_id: str) -> Lease:
        """The lease, if this caller may see what was kept of it: operators always, its agent while it holds it."""
        lease = self.core.get_lease(tx, lease_id)
        if who.role is not None:
            who.needs(Role.OBSERVER)
        elif refusal := may_not(who, lease, look=True):
            raise refusal
        return lease


class Around:
    """The pictures around the actions of one batch, made beside them: the one after an action is before the next."""

    def __init__(self, frames: Frames, lease: Lease, screen: Screen) -> None:
        self._frames, self._lease, self._screen = frames, lease, screen
        self._on = frames.wanted(lease) != "none"
        self._seen: Frame | None = None
        self._last: asyncio.Task[Kept] | None = None
        self._of_action: list[asyncio.Task[Kept]] = []
        self._problem = ""

    async def before(self) -> None:
        self._of_action, self._problem = [], ""
        if self._on and self._last is None:
            await self._take("before")
        elif self._last:
            self._of_action.append(self._last)

    async def after(self) -> None:
        if self._on:
            await self._take("after")

    async def _take(self, why: Why) -> None:
        try:
            frame = await self._screen.frame(pointer=True)
        except FleetError as e:
            self._problem = not_kept(e)
            return
        if self._last is None or not _same(self._seen, frame):
            keeping = self._frames.keep(self._lease, frame, why)
            self._last = asyncio.create_task(keeping, name=f"act on {self._lease.id}: keep a frame")
        self._seen = frame
        self._of_action.append(self._last)

    async def ready(self) -> tuple[list[Kept], dict[str, object]]:
        """What there is to write down of the last action, and as facts what is missing."""
        kept = []
        for task in self._of_action:
            await asyncio.wait({task})  # does not cancel it when we are
            try:
                kept.append(task.result())
            except OSError as e:
                self._problem = not_kept(e)
        return kept, {"not_kept": self._problem} if self._problem else {}


def _newest(tx: Tx, leases: list[Lease], limit: int) -> list[KeptFrame]:
    """The newest frames of these leases; those that ended before the oldest of them are not looked through."""
    found: list[KeptFrame] = []
    for lease in sorted(leases, key=_until, reverse=True):
        if len(found) == limit and found[-1].at > _until(lease):
            break
        found += tx.find(KeptFrame, lease=lease.id)
        found = sorted(found, key=lambda frame: frame.at, reverse=True)[:limit]
    return found


def _until(lease: Lease) -> float:
    """When the last frame of a lease may have been kept."""
    return math.inf if lease.live else (lease.ended_at or 0.0) + _EVIDENCE


def _same(before: Frame | None, now: Frame) -> bool:
    """Whether they are one picture, pointer and all."""
    return before is not None and (before.serial, before.pointer, before.cursor) == (
        now.serial,
        now.pointer,
        now.cursor,
    )


def not_kept(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
