"""A picture of a screen that is kept: its bytes lie under their hash, with one record for each lease it is of."""

from typing import ClassVar, Literal

from cu_fleet.model.record import Record

Why = Literal["before", "after", "shown", "approval", "evidence"]
Keep = Literal["none", "actions", "all"]


class KeptFrame(Record):
    TABLE: ClassVar[str] = "frame"
    COLUMNS: ClassVar[tuple[str, ...]] = ("lease", "sha256", "at")

    id: str  # the lease's and the hash
    lease: str
    agent: str
    desktop: str
    generation: int
    sha256: str  # of the file
    why: Why  # before or after an action, handed out, when a person was asked, or the last one of a revoked lease
    at: float  # when it was last seen
    width: int
    height: int
    format: str
    size: int  # bytes of the file
