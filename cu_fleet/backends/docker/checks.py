"""What `doctor` says of the engine and of the images profiles need. Who uses no containers lacks nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cu_fleet.backends.base import Check
from cu_fleet.backends.docker.house import House
from cu_fleet.backends.docker.options import image, options
from cu_fleet.model.errors import FleetError
from cu_fleet.model.profile import Profile

if TYPE_CHECKING:
    from docker import APIClient


async def all_checks(house: House, profile: Profile | None) -> list[Check]:
    try:
        found = await house.engine.do(_engine)
    except FleetError as e:
        return [Check("docker", False, f"no desktops in containers: {e}", needed=False)]
    if profile is not None:
        found.append(await _image(house, profile))
    return found


def _engine(api: APIClient) -> list[Check]:
    said = api.info()
    system = f"Docker {said['ServerVersion']}, {said['Driver']}, cgroup v{said.get('CgroupVersion', '1')}"
    lacking = [
        what
        for key, what in {"MemoryLimit": "memory", "PidsLimit": "processes", "CpuCfsQuota": "CPU time"}.items()
        if not said.get(key)
    ]
    limits = f"not enforced: {', '.join(lacking)}" if lacking else "enforces memory, processes and CPU time"
    return [
        Check("docker", True, f"an engine answers: {system}", needed=False),
        Check("docker limits", not lacking, limits, needed=False),
    ]


async def _image(house: House, profile: Profile) -> Check:
    name = f"image of {profile.name}"
    try:
        options(profile)
        await house.engine.do(lambda api: house.image_of(api, image(profile)))
    except FleetError as e:
        return Check(name, False, str(e), needed=False)
    return Check(name, True, f"the engine has {image(profile)}", needed=False)
