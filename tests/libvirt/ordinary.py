"""What an ordinary user does with machines of their own: `python -m tests.libvirt.ordinary FOLDER`, as that user."""

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import libvirt
import pytest

from cu_fleet.backends.base import Place
from tests.libvirt import hollow

_SECONDS = 20.0


async def _live(folder: Path) -> dict[str, object]:
    """A desktop's life: forked, saved, put back, ended."""
    hollow.make_image(folder / "libvirt")
    backend = hollow.Hollow(Place(folder, "ordinary"))
    snapshots = backend.abilities.snapshots
    assert snapshots
    handle = await hollow.last(backend.start(hollow.spec("dk_1")))
    desk = backend.desk(handle)
    saved = await snapshots.save(handle, "sn_1")
    handle = await hollow.last(snapshots.restore(handle, hollow.spec("dk_1", "sn_1")))
    found = [one.what for one in await backend.found()]
    owner = desk.screen.stat().st_uid
    await snapshots.delete("sn_1")
    await backend.stop(handle)
    return {
        "uri": backend.hypervisor.uri,
        "owner": owner,
        "kind": saved.kind,
        "found": found,
        "left": [one.what for one in await backend.found()],
    }


def _end_daemon() -> None:
    """libvirt starts one for each user when it is needed, and it stays for two minutes. Nobody else is this user."""
    for pid in _daemons():
        os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + _SECONDS
    while _daemons() and time.monotonic() < until:
        time.sleep(0.1)


def _daemons() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if path.stat().st_uid == os.geteuid() and b"--timeout=" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


if __name__ == "__main__":
    hollow.empty(pytest.MonkeyPatch())
    try:
        print(json.dumps(asyncio.run(_live(Path(sys.argv[1])))))
    except libvirt.libvirtError as e:
        sys.exit(f"libvirt: {e}")
    finally:
        _end_daemon()
