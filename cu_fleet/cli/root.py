"""The one place where the command line reaches up to the composition root: to run a controller, and for what works
without one. Imported late, since it pulls in all of the fleet."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from cu_fleet.backends.base import Check
from cu_fleet.model.errors import FleetError
from cu_fleet.model.profile import Profile
from cu_fleet.settings import Settings


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


def mcp(*, agent: str, profile: str) -> None:
    from cu_fleet.app import run_mcp

    run_mcp(agent=agent, profile=profile)
