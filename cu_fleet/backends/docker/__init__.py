"""Desktops in containers of a Docker engine."""

from cu_fleet.backends.docker.backend import DockerBackend
from cu_fleet.backends.docker.engine import Engine
from cu_fleet.backends.docker.foreign import DockerVncBackend

__all__ = ["DockerBackend", "DockerVncBackend", "Engine"]
