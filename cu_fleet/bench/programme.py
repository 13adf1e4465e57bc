"""Which scene measures which rows, in the order in which they are played."""

from collections.abc import Sequence

from cu_fleet.bench.scenes import granting, standing, starting
from cu_fleet.bench.screens import acting, looking, resting
from cu_fleet.bench.soak import soaking
from cu_fleet.bench.stage import Scene

SIZES = ((1280, 800), (1920, 1080))
_PICTURES = ("png-{}-http", "png-{}-client", "jpeg-{}-http", "jpeg-{}-client")
_UNCHANGED = ("unchanged-{}-http", "unchanged-{}-client")


def _sized(rows: Sequence[str], width: int, height: int) -> tuple[str, ...]:
    return tuple(row.format(f"{width}x{height}") for row in rows)


SCENES: dict[Scene, tuple[str, ...]] = {
    starting: ("cold-start", "rollback"),
    granting: ("warm-grant",),
    standing: (
        *("many-start", "memory", "many-memory", "many-idle"),
        *("many-busy", "many-busy-memory", "many-screenshot", "many-action"),
    ),
    **{looking(*size): _sized(_PICTURES, *size) for size in SIZES},
    **{resting(*size): _sized(_UNCHANGED, *size) for size in SIZES},
    acting: (
        *("click-http", "click-client", "actions", "actions-batch"),
        *("key-to-frame-http", "key-to-frame-client", "type-1000"),
    ),
    soaking: tuple(f"soak-{what}" for what in ("memory", "descriptors", "threads", "tasks", "clients", "rate")),
}
ON_DEMAND = SCENES[soaking]  # too long for a run of everything
ROWS = tuple(row for rows in SCENES.values() for row in rows)


def rows_of(names: Sequence[str]) -> list[str]:
    """The rows by these names: whole, or all that begin with one, `png` or `many`. None at all: every usual one."""
    if not names:
        return [row for row in ROWS if row not in ON_DEMAND]
    return [row for row in ROWS if any(row == name or row.startswith(f"{name}-") for name in names)]
