"""cu-fleet: every AI agent gets its own isolated desktop."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cu_fleet.client import Desktop as Desktop
    from cu_fleet.client import Fleet as Fleet
    from cu_fleet.client import Frame as Frame
    from cu_fleet.model.errors import BrokenError as BrokenError
    from cu_fleet.model.errors import ConflictError as ConflictError
    from cu_fleet.model.errors import DeniedError as DeniedError
    from cu_fleet.model.errors import FleetError as FleetError
    from cu_fleet.model.errors import InvalidError as InvalidError
    from cu_fleet.model.errors import LeaseOverError as LeaseOverError
    from cu_fleet.model.errors import LeasePausedError as LeasePausedError
    from cu_fleet.model.errors import NotFoundError as NotFoundError
    from cu_fleet.model.errors import TooLongError as TooLongError
    from cu_fleet.model.errors import UnauthorizedError as UnauthorizedError
    from cu_fleet.model.errors import UnavailableError as UnavailableError
    from cu_fleet.model.errors import UnsupportedError as UnsupportedError

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The client and the errors, loaded when they are first named: importing cu_fleet itself costs nothing."""
    from importlib import import_module

    if name in ("Desktop", "Fleet", "Frame"):
        return getattr(import_module("cu_fleet.client"), name)
    if name.endswith("Error") and hasattr(errors := import_module("cu_fleet.model.errors"), name):
        return getattr(errors, name)
    raise AttributeError(f"module 'cu_fleet' has no attribute {name!r}")
