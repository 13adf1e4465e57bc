"""Which scene measures which rows, in the order in which they are played."""

from collections.abc import Sequence

from cu_fleet.bench.codexes import codexes
from cu_fleet.bench.containers import beginning, many, standing_ready
from cu_fleet.bench.scenes import granting, standing, starting
from cu_fleet.bench.screens import acting, looking, resting
from cu_fleet.bench.soak import soaking
from cu_fleet.bench.speaking import speaking
from cu_fleet.bench.stage import Scene
from cu_fleet.bench.virtual import booting, several, waking

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
    beginning: ("docker-cold-start", "docker-rollback", "docker-snapshot"),
    standing_ready: ("docker-warm-grant",),
    many: ("docker-many-start", "docker-memory"),
    waking: ("libvirt-fork", "libvirt-rollback", "libvirt-restore", "libvirt-save"),
    booting: ("libvirt-boot",),
    several: ("libvirt-many-start", "libvirt-memory", "libvirt-disk"),
    speaking: ("screenshot-mcp", "click-mcp"),
    codexes: ("codex-at-once",),
    soaking: tuple(f"soak-{what}" for what in ("memory", "descriptors", "threads", "tasks", "clients", "rate")),
}
# Too long for a run of everything; or in need of an engine or a hypervisor and its image, or of Codex, which not every
# machine has.
_SPECIAL = (soaking, beginning, standing_ready, many, waking, booting, several, codexes)
ON_DEMAND = tuple(row for scene in _SPECIAL for row in SCENES[scene])
ROWS = tuple(row for rows in SCENES.values() for row in rows)


def rows_of(names: Sequence[str]) -> list[str]:
    """The rows by these names: whole, or all that begin with one, `png` or `many`. None at all: every usual one."""
    if not names:
        return [row for row in ROWS if row not in ON_DEMAND]
    return [row for row in ROWS if any(row == name or row.startswith(f"{name}-") for name in names)]
