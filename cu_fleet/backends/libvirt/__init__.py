"""Desktops in virtual machines, under libvirt."""

from cu_fleet.backends.libvirt.backend import LibvirtBackend

__all__ = ["LibvirtBackend"]
