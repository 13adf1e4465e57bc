"""A named thing beyond the desktop that only one lease may hold, such as `browser:youtube`."""

from typing import ClassVar

from cu_fleet.model.record import Record


class Holding(Record):
    """One row per held resource: the table's key makes a second holder impossible."""

    TABLE: ClassVar[str] = "holding"
    KEY: ClassVar[str] = "resource"
    COLUMNS: ClassVar[tuple[str, ...]] = ("lease",)

    resource: str
    lease: str
