"""How much desktops have written to the engine's disk: counted where it lies, since it may be no disk of ours.

One container of our own sees what all desktops write, read-only, and counts it with `du`, which no nesting, no link and
no closed folder leads astray; each name counts a little, too, so that millions of empty files are no way around a
limit. Files that have no name any more are found by the descriptors of the desktop's processes, where those are on this
machine; on another they are not seen. What is counted for one desktop is known of all, and good for a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cu_fleet.backends.docker.engine import patient, short_log
from cu_fleet.backends.docker.house import House
from cu_fleet.backends.docker.layout import DESKTOP, Desk
from cu_fleet.backends.docker.walls import powers_to_read
from cu_fleet.model.errors import FleetError, UnavailableError

if TYPE_CHECKING:
    from docker import APIClient

_EACH_NAME = 512
_FRESH = 5.0  # seconds
_SECONDS = 60
# Of each mount: its name, bytes, names, device.
_COUNT = """for at in /d/*/*; do
    set -- $(du -sx --block-size=1 "$at") && bytes=$1
    set -- $(du -sx --inodes "$at") && echo "${at#/d/} $bytes $1 $(stat -c %d "$at")"
done 2>/dev/null"""


class Counting:
    def __init__(self, house: House) -> None:
        self.house = house
        self._turn = asyncio.Lock()
        self._used: dict[str, int] = {}
        self._at = -_FRESH

    async def used(self, desk: Desk) -> int:
        async with self._turn:
            if time.monotonic() - self._at > _FRESH or desk.id not in self._used:
                self._used = await self._count(desk)
                self._at = time.monotonic()
        if desk.id not in self._used:
            raise UnavailableError(f"what desktop {desk.id} has written could not be counted", code="not_counted")
        return self._used[desk.id]

    async def _count(self, desk: Desk) -> dict[str, int]:
        """Once more, if it fails: any desktop may end at this moment."""
        do = self.house.engine.do
        with contextlib.suppress(FleetError):
            return await do(lambda api: self._all(api, desk), slow=True)
        return await do(lambda api: self._all(api, desk), slow=True)

    def _all(self, api: APIClient, desk: Desk) -> dict[str, int]:
        asked = self.house.must_run(api, desk)
        there = self.house.up(api)
        desks = [self.house.layout.desk(desktop) for desktop in there]
        counted = self._named(api, desk, asked["Image"], desks)
        used = {one.id: counted[number][0] + _layer(there[one.id], one) for number, one in enumerate(desks)}
        if self.house.engine.near:
            devices = {there[one.id]["Id"]: counted[number][1] for number, one in enumerate(desks)}
            nameless = _nameless(devices)
            used = {one.id: used[one.id] + nameless[there[one.id]["Id"]] for one in desks}
        return used

    def _named(self, api: APIClient, desk: Desk, image: str, desks: list[Desk]) -> list[tuple[int, set[int]]]:
        """Of each desktop what its names hold, and the devices on which it writes."""
        self.house.remove_containers(api, self.house.named(api, desk, desk.counting))
        made = api.create_container(
            image,
            ["/bin/sh", "-c", _COUNT],
            entrypoint=[],
            user="0:0",
            working_dir="/",
            name=desk.counting,
            labels=self.house.layout.labels(desk.id),
            healthcheck={"test": ["NONE"]},
            network_disabled=True,
            host_config=api.create_host_config(
                mounts=self._mounts(api, desks),
                cpu_shares=128,
                network_mode="none",
                log_config=short_log("1m"),
                **powers_to_read(),
            ),
        )
        try:
            api.start(made["Id"])
            with patient(api, _SECONDS):
                api.wait(made["Id"], timeout=_SECONDS)
            return _sums(api.logs(made["Id"]).decode("ascii", "replace"), len(desks))
        finally:
            self.house.remove_containers(api, [made])

    def _mounts(self, api: APIClient, desks: list[Desk]) -> list[Any]:
        """Bound by their places: a volume that was removed meanwhile would be made anew by its name."""
        from docker.types import Mount

        volumes: dict[str, list[str]] = {}
        for one in self.house.all(api)["volume"]:
            volumes.setdefault(one["Labels"][DESKTOP], []).append(one["Mountpoint"])
        return [
            Mount(f"/d/{number}/{part}", path, type="bind", read_only=True)
            for number, desk in enumerate(desks)
            for part, path in enumerate([*volumes.get(desk.id, []), *([] if desk.far else [str(desk.dir)])])
        ]


def _sums(said: str, desks: int) -> list[tuple[int, set[int]]]:
    sums: list[tuple[int, set[int]]] = [(0, set()) for _ in range(desks)]
    try:
        for at, size, names, device in (line.split() for line in said.splitlines()):
            number = int(at.partition("/")[0])
            sums[number] = (sums[number][0] + int(size) + _EACH_NAME * int(names), sums[number][1] | {int(device)})
    except (ValueError, IndexError):
        raise UnavailableError(f"what desktops have written could not be counted: {said[:200]}") from None
    if not all(devices for _, devices in sums):
        raise UnavailableError("what desktops have written could not be counted", code="not_counted")
    return sums


def _layer(container: Mapping[str, Any], desk: Desk) -> int:
    """What was written over the image, which only a far one can be."""
    return int(container.get("SizeRw") or 0) if desk.far else 0


def _nameless(devices: Mapping[str, set[int]]) -> dict[str, int]:
    """What the processes of each container hold of files without a name, on the devices where it writes."""
    sizes: dict[str, dict[tuple[int, int], int]] = {container: {} for container in devices}
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended, or is none of ours
                groups = (process / "cgroup").read_text()
                container = next((one for one in devices if one in groups), None)
                if container:
                    sizes[container] |= _held(process / "fd", devices[container])
    return {container: sum(some.values()) for container, some in sizes.items()}


def _held(fds: Path, devices: set[int]) -> dict[tuple[int, int], int]:
    held = {}
    with os.scandir(fds) as links:
        for link in links:
            with contextlib.suppress(OSError):
                found = link.stat()
                if stat.S_ISREG(found.st_mode) and found.st_nlink == 0 and found.st_dev in devices:
                    held[found.st_dev, found.st_ino] = found.st_blocks * 512
    return held
