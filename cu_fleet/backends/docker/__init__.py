"""Desktops in containers of a Docker engine."""

from cu_fleet.backends.docker.backend import DockerBackend

__all__ = ["DockerBackend"]
