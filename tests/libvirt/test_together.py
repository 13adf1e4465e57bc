"""Machines beside a desktop of another kind, under one controller, for agents that all have the same configuration."""

import asyncio
import json
import os
import threading
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cu_fleet.backends.base import Place
from cu_fleet.backends.libvirt import LibvirtBackend
from cu_fleet.client import Desktop, Fleet
from cu_fleet.model.profile import read_profile
from cu_fleet.testing.libvirtd import PrivateLibvirt
from tests.acceptance.home import Home, home
from tests.mcp.codex import codexes, desktop
from tests.support import run, until

pytestmark = [pytest.mark.real, pytest.mark.slow]

# The machine of the contract's cases, which is warm when they have run.
MACHINE = """
backend: libvirt
limits: {memory: 768M}
reserve: 768M
gates: none
launch: {terminal: {command: [xterm, -fa, "DejaVu Sans Mono", -fs, "11", -geometry, 100x30]}}
"""
PLAIN = MACHINE.replace("libvirt", "local")
ON = {"a": "machine", "b": "machine", "c": "plain"}


@pytest.fixture
def house(libvirtd: PrivateLibvirt, store: Path) -> Iterator[Home]:
    settings: dict[str, object] = {"machines": store, "memory": "4G", "start_timeout": 120}
    with home(**settings) as one:
        one.env["LIBVIRT_DEFAULT_URI"] = libvirtd.uri
        one.write_profile("machine", MACHINE)
        one.write_profile("plain", PLAIN)
        backend = LibvirtBackend(Place(one.path / "warming", "together"), libvirtd.uri, store)
        run(backend.warm.state(read_profile(one.fleet_home / "profiles" / "machine.yaml")), timeout=900)
        yield one


class Work:
    """Each opens a terminal, all at the same moment, and types there what nobody else does, once it is up."""

    def __init__(self) -> None:
        self.at_once = threading.Barrier(len(ON), timeout=300)
        self.up = threading.Barrier(len(ON) + 1, timeout=300)

    def script(self, name: str) -> Any:
        line = f'printf "%s {{I am: {name.upper()}}}\\n" "$(uname -r)" > ~/"me & only me"\n'

        def met(barrier: threading.Barrier, tool: str, **given: Any) -> Any:
            def call(_: list[str]) -> Any:
                barrier.wait()
                return desktop(tool, **given)([])

            return call

        typed = met(self.up, "act", actions=[{"type": "type", "text": line}])
        return [desktop("screenshot"), met(self.at_once, "launch", name="terminal"), typed, desktop("lease_status")]

    async def seen(self, house: Home, leases: dict[str, Any]) -> None:
        async with house.client() as fleet:
            for one in leases.values():
                at = await fleet.open(one["lease"])
                await until(lambda at=at: _has_keyboard(at), timeout=120)
                await at.wait_stable()
        await asyncio.to_thread(self.up.wait)


async def _has_keyboard(at: Desktop) -> bool:
    return any(window["focused"] and window["class"] == "XTerm" for window in await at.windows())


async def _left(house: Home, leases: dict[str, Any]) -> dict[str, str]:
    """What each desktop has been left with, as it says itself, once its shell has done what was typed."""

    async def one(fleet: Fleet, name: str) -> str:
        return (await fleet.run(name, ["sh", "-c", "cat ~/me*"])).stdout.decode()

    async with house.client() as fleet:
        for lease in leases.values():
            await until(lambda name=lease["desktop"]: _whole(one(fleet, name)), timeout=60)
        return {name: (await one(fleet, lease["desktop"])).strip() for name, lease in leases.items()}


async def _whole(said: Awaitable[str]) -> bool:
    return (await said).endswith("\n")


def test_two_machines_and_a_desktop_of_this_one_at_once_through_the_same_configuration(
    house: Home, libvirtd: PrivateLibvirt, store: Path
) -> None:
    leases = {
        name: house.cli("lease", "acquire", "--agent", f"codex-{name}", "--profile", profile)
        for name, profile in ON.items()
    }
    assert len({one["desktop"] for one in leases.values()}) == len(ON)
    work = Work()
    with codexes(house) as codex:
        codex.model.scripts = {name: work.script(name) for name in ON}
        running = {name: codex.start(name, token=one["token"]) for name, one in leases.items()}
        run(work.seen(house, leases), timeout=300)
        for name, process in running.items():
            assert process.wait(300) == 0, codex.log(name)
        assert codex.model.errors == []
        answers = {name: codex.model.threads[name].answers for name in ON}
        pictures = {name: codex.model.threads[name].pictures for name in ON}
    left = run(_left(house, leases), timeout=120)
    for name, profile in ON.items():
        told = json.loads(answers[name][-1].split("\n")[-1])
        assert (told["lease"], told["desktop"]) == (leases[name]["lease"], leases[name]["desktop"])
        assert len(pictures[name]) == 2, answers[name]
        kernel, _, said = left[name].partition(" ")
        assert said == f"{{I am: {name.upper()}}}", "every character arrives, and on its own desktop"
        assert (kernel == os.uname().release) == (profile == "plain"), "a machine has a kernel of its own"
    house.cli("down")
    fleet = run(house.fleet())
    there = LibvirtBackend(Place(house.path, "x"), libvirtd.uri, store).hypervisor.now(lambda api: api.listAllDomains())
    assert [one.name() for one in there if fleet in one.name()] == []
    assert [*(store / fleet / "desktops").iterdir()] == []
