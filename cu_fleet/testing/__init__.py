"""For those who extend the fleet or test with it: contract suites for backends and stores, fakes, servers to test
against, the pytest plugin, and a desktop in a container without a controller.

PYTEST_DONT_REWRITE: the plugin is imported, and this with it, before anyone can ask for the suites to be rewritten.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cu_fleet.testing.container import DesktopContainer as DesktopContainer


def __getattr__(name: str) -> Any:
    """Loaded when it is first named: it needs the package testcontainers."""
    if name == "DesktopContainer":
        from cu_fleet.testing.container import DesktopContainer

        return DesktopContainer
    raise AttributeError(f"module 'cu_fleet.testing' has no attribute {name!r}")
