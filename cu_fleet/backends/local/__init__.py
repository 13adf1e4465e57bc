"""Desktops on this very machine: bubblewrap, Xvnc, a light window manager and a D-Bus session, no daemon needed."""

from cu_fleet.backends.local.backend import LocalBackend

__all__ = ["LocalBackend"]
