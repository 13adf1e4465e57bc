"""The asynchronous Python client.

    async with Fleet.connect() as fleet:                       # starts a controller if none runs
        async with fleet.lease(agent="codex-a", profile="local") as desktop:
            await desktop.click(640, 400)
            image = await desktop.screenshot()                 # PIL.Image; .frame has id, age and sha256

`Fleet` is the controller, `Desktop` what one lease opens; what they answer are the model's own records. Refusals are
`cu_fleet.model.errors`, the same that the controller raised. `cu_fleet.sync` offers the same names, blocking.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cu_fleet.client.command import Command as Command
    from cu_fleet.client.command import Completed as Completed
    from cu_fleet.client.desktop import Desktop as Desktop
    from cu_fleet.client.fleet import Fleet as Fleet
    from cu_fleet.client.hands import Result as Result
    from cu_fleet.client.lease import Leasing as Leasing
    from cu_fleet.client.picture import Frame as Frame

_FROM = {
    "command": ("Command", "Completed"),
    "desktop": ("Desktop",),
    "fleet": ("Fleet",),
    "hands": ("Result",),
    "lease": ("Leasing",),
    "picture": ("Frame",),
}


def __getattr__(name: str) -> Any:
    """Loaded when first named: the command line speaks HTTP alone, and should not wait for the rest."""
    for module, names in _FROM.items():
        if name in names:
            return getattr(import_module(f"cu_fleet.client.{module}"), name)
    raise AttributeError(f"module 'cu_fleet.client' has no attribute {name!r}")
