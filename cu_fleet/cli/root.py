"""The one place where the command line reaches further than the client: to the composition root, to run a controller
and for what works without one, and to the other door that it starts. Imported late, since it pulls in all of that."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cu_fleet.backends.base import Check
from cu_fleet.model.errors import FleetError
from cu_fleet.model.profile import Profile
from cu_fleet.settings import Settings, default_home


def serve(settings: Settings, *, on_demand: bool, ready: Callable[[str], None]) -> None:
    from cu_fleet.app import run_controller

    run_controller(settings, on_demand=on_demand, ready=ready)


def checks(settings: Settings) -> list[Check]:
    from cu_fleet.app import checks as of_machine

    return asyncio.run(of_machine(settings))


def profiles(settings: Settings) -> list[tuple[Profile | None, Path, FleetError | None]]:
    from cu_fleet.app import profiles as known

    return known(settings)


def clean_up(settings: Settings) -> bool:
    from cu_fleet.app import clean_up as end_leftovers

    return asyncio.run(end_leftovers(settings))


def images(say: Callable[[str], None]) -> list[Any]:
    from cu_fleet.app import images as known
    from cu_fleet.settings import read_settings

    return asyncio.run(known(read_settings(), say))


def build_image(name: str, say: Callable[[str], None], *, fresh: bool) -> Any:
    from cu_fleet.app import build_image as build
    from cu_fleet.settings import read_settings

    return asyncio.run(build(read_settings(), name, say, fresh=fresh))


def serve_machines() -> int:
    from cu_fleet.app import serve_machines as serve_here
    from cu_fleet.settings import read_settings

    return serve_here(read_settings())


def mcp(*, agent: str, profile: str) -> None:
    """Not through the composition root: a client waits for this to start, and it needs no controller of its own."""
    from cu_fleet.mcp.desk import Way
    from cu_fleet.mcp.stdio import serve as speak

    url, token = os.environ.get("CU_FLEET_URL") or None, os.environ.pop("CU_FLEET_TOKEN", None) or None
    asyncio.run(speak(lambda: Way.open(url and url.rstrip("/"), token, default_home(), agent), profile))
