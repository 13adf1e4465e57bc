"""Run by a test in a process of its own: write until there is no room, then make room and go on.

`full_disk.py FOLDER limit` has a limit on file sizes, `full_disk.py FOLDER tmpfs` fills a small file system that it
mounts there; prints what it saw as JSON.
"""

import asyncio
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from cu_fleet.model.errors import UnavailableError
from cu_fleet.model.snapshot import Snapshot
from cu_fleet.stores.anchors import anchor, read_anchors, verify_store
from cu_fleet.stores.sqlite import SqliteStore
from cu_fleet.testing.store_base import KEY
from cu_fleet.testing.store_writer import write_one

ROOM = 1 << 20


def limited(folder: Path) -> Callable[[], None]:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def small(folder: Path) -> Callable[[], None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={2 * ROOM}", "none", folder], check=True)
    ballast = folder / "ballast"
    ballast.write_bytes(os.urandom(ROOM))
    return ballast.unlink


async def main(folder: Path, make_room: Callable[[], None]) -> dict[str, object]:
    store = await SqliteStore.open(folder / "fleet.db", KEY)
    acknowledged, error = 0, None
    while error is None:
        try:
            acknowledged = await store.transact(write_one)
        except UnavailableError as e:
            error = e
    try:
        head = await anchor(store, folder / "anchors")
        anchored = head.seq if head else 0
    except UnavailableError:
        anchored = len(read_anchors(folder / "anchors"))
    kept = len(await store.transact(lambda tx: tx.find(Snapshot)))
    make_room()
    after = await store.transact(write_one)
    await anchor(store, folder / "anchors")
    verified = await verify_store(store, folder / "anchors", KEY)
    await store.close()
    seen = {"code": error.code, "error": str(error), "acknowledged": acknowledged, "kept": kept}
    return {**seen, "anchored": anchored, "after": after, "verified": verified}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    print(json.dumps(asyncio.run(main(place, {"limit": limited, "tmpfs": small}[sys.argv[2]](place)))))
