"""Desktops in virtual machines, under libvirt."""

from cu_fleet.backends.libvirt.backend import LibvirtBackend
from cu_fleet.backends.libvirt.foreign import LibvirtVncBackend

__all__ = ["LibvirtBackend", "LibvirtVncBackend"]
