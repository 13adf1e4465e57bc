"""Where the hypervisor is, and so where its backends run: in this process, or beside it on another host."""

import asyncio
import os
from collections.abc import Callable, Sequence

from cu_fleet.backends.base import Backend, Place
from cu_fleet.backends.libvirt import building
from cu_fleet.backends.libvirt.backend import LibvirtBackend
from cu_fleet.backends.libvirt.far.address import address, is_far
from cu_fleet.backends.libvirt.far.beside import abilities_of, backends_of
from cu_fleet.backends.libvirt.far.host import Host, Unusable
from cu_fleet.backends.libvirt.far.near import FarBackend, FarImages
from cu_fleet.backends.libvirt.far.ssh import SshHost
from cu_fleet.backends.libvirt.images import Golden
from cu_fleet.model.errors import InvalidError
from cu_fleet.model.profile import Profile


def backends(place: Place) -> list[Backend]:
    near = backends_of(place, place.hypervisor)
    if (host := _host(place)) is None:
        return list(near.values())
    return [FarBackend(one, host, place) for one in near.values()]


async def listing(place: Place) -> list[Golden]:
    if host := _host(place):
        return await FarImages(host, place).listing()
    return await asyncio.to_thread(building.listing, place)


async def build(
    place: Place, name: str, say: Callable[[str], None], profiles: Sequence[Profile], *, fresh: bool
) -> Golden:
    """See `building.build`."""
    if (host := _host(place)) is None:
        return await building.build(place, name, say, profiles, fresh=fresh, uri=place.hypervisor)
    say(f"on {host.name}, where the hypervisor is")
    ours = [one for one in profiles if one.backend == LibvirtBackend.name]
    return await FarImages(host, place).build(name, say, ours, fresh=fresh)


def _host(place: Place) -> Host | None:
    uri = place.hypervisor or os.environ.get("LIBVIRT_DEFAULT_URI")
    if not uri or not is_far(uri):
        return None
    try:
        return SshHost(address(uri), place.fleet, abilities_of(backends_of(place, uri)))
    except InvalidError as e:
        return Unusable(e)
