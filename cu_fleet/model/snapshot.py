"""A desktop's saved state. One that is not `saved` was never reported as such and is removed by the sweep."""

from typing import ClassVar, Literal

from cu_fleet.model.record import Record


class Snapshot(Record):
    TABLE: ClassVar[str] = "snapshot"
    COLUMNS: ClassVar[tuple[str, ...]] = ("desktop", "state", "created_at")

    id: str
    desktop: str
    profile: str
    backend: str
    note: str = ""
    kind: Literal["disk", "memory"] = "disk"
    purpose: Literal["user", "evidence", "parked"] = "user"
    agent: str | None = None  # whose state it is
    by: str = ""
    state: Literal["saving", "saved", "deleting"] = "saving"
    size_bytes: int = 0
    created_at: float
