"""Reading the audit record: pages, the live stream, the proof that it is whole, and its anchors."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path

from cu_fleet.controller.core import Core
from cu_fleet.controller.tokens import derived
from cu_fleet.model.access import Caller, Role
from cu_fleet.model.audit import Entry
from cu_fleet.model.errors import BrokenError, InvalidError
from cu_fleet.stores.anchors import anchor, verify_store

log = logging.getLogger(__name__)
_PAGE = 500
_FIELDS = {"what", "who", "lease", "agent", "desktop"}


class Chronicle:
    def __init__(self, core: Core) -> None:
        self.core = core

    @property
    def anchors(self) -> Path:
        return self.core.settings.home / "audit.anchors"

    async def anchor(self) -> None:
        """Anchor the newest entry. That the record was cut or rewritten is an alarm, and stays one."""
        try:
            await anchor(self.core.store, self.anchors, self.core.now())
        except BrokenError as e:
            if not self.core.alarm:
                log.critical("%s", e)
            self.core.alarm = str(e)

    async def entries(self, who: Caller, *, after: int = 0, limit: int = _PAGE, **equal: object) -> list[Entry]:
        who.needs(Role.OBSERVER)
        unknown = set(equal) - _FIELDS
        if unknown:
            raise InvalidError(f"entries cannot be chosen by {', '.join(sorted(unknown))}", code="bad_filter")
        wanted = {key: value for key, value in equal.items() if value is not None}
        return await self.core.read(lambda tx: tx.entries(after=after, limit=limit, **wanted))

    async def verify(self, who: Caller) -> int:
        """Prove that nothing was changed, removed, reordered or cut; returns the number of entries."""
        who.needs(Role.OBSERVER)
        return await verify_store(self.core.store, self.anchors, audit_key(self.core.secret))

    async def events(self, who: Caller, *, after: int | None = None) -> AsyncIterator[Entry]:
        """Entries as they are written, from after a number (or from now); ends when the controller closes."""
        who.needs(Role.OBSERVER)
        if after is None:
            head = await self.core.read(lambda tx: tx.head())
            after = head.seq if head else 0
        while not self.core.closing:
            rings = self.core.bell.rings
            page = await self.entries(who, after=after)
            for entry in page:
                yield entry
                after = entry.seq
            if not page:
                await self.core.bell.heard(rings, 60.0)


def audit_key(secret: bytes) -> bytes:
    return derived(secret, "audit")
