"""Who a machine becomes when it wakes from a state that others woke from, too."""

import json
import secrets
import time

from cu_fleet.backends import inside

_SEED = 64  # bytes, so that no two forks draw the same numbers


def identity(boot: str, label: str, place: dict[str, str] | None = None) -> bytes:
    """What `guest.port` is told to become; `place` is its own in its network."""
    own = {"boot": boot, "hostname": inside.hostname(label), "machine_id": inside.machine_id().strip()}
    return json.dumps({**own, **(place or {}), **_fresh()}).encode()


def awake() -> bytes:
    """What it is told when it goes on as itself."""
    return json.dumps(_fresh()).encode()


def _fresh() -> dict[str, str]:
    return {"seed": secrets.token_hex(_SEED), "time": str(time.time())}
