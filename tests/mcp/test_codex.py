"""Codex sessions, the real ones, pointed at their desktops: they simply work, and none sees another's."""

import asyncio
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from cu_fleet.client import Fleet
from tests.acceptance.eyes import events, inside, sink
from tests.acceptance.home import Home, home
from tests.mcp.codex import AGENTS, Codex, codexes, desktop, own
from tests.support import run, until

pytestmark = [pytest.mark.real, pytest.mark.slow]

MARK = "mkdir -p ~/Shared/out; >>~/Shared/out/marks echo"
SMALL = """
backend: local
screen: {width: 640, height: 480}
gates: none
autostart: [[xterm, -fa, "DejaVu Sans Mono", -fs, "10", -geometry, "70x20+10+10"]]
"""


@pytest.fixture
def house() -> Iterator[Home]:
    with home(max_desktops=3) as one:
        one.write_profile("small", SMALL)
        one.cli("lease", "list")
        yield one


def _ended(codex: Codex, **processes: Any) -> None:
    for name, process in processes.items():
        assert process.wait(120) == 0, codex.log(name)
    assert codex.model.errors == []


def _held(house: Home) -> dict[str, str]:
    return {x["agent"]: x["state"] for x in house.cli("lease", "list", "--all")["leases"]}


class Work:
    """What three do at the same moment, in step with the test, which looks at their desktops between their calls."""

    NAMES = ("a", "b", "c")

    def __init__(self, house: Home) -> None:
        self.house = house
        self.step = threading.Barrier(len(self.NAMES) + 1, timeout=90)
        self.typed = {name: f"{name * 3}{number}" for number, name in enumerate(self.NAMES)}

    def script(self, name: str) -> Any:
        def met(tool: str, **given: Any) -> Any:
            def call(_: list[str]) -> Any:
                self.step.wait()  # each has done what it did before
                self.step.wait()  # and the test has seen to it
                return desktop(tool, **given)([])

            return call

        shown = [
            {"type": "click", "x": 200, "y": 150},
            {"type": "type", "text": f"echo {self.typed[name]}; {MARK} {name}\n"},
        ]
        secret = [{"type": "click", "x": 300, "y": 200}, {"type": "type", "text": self.typed[name]}]
        return [
            desktop("screenshot"),
            met("act", actions=shown),
            met("act", actions=secret, picture=False),
            met("wait", until="stable", seconds=20),
            met("file_get", path="out/marks"),
        ]

    async def seen(self, codex: Codex) -> None:
        async with self.house.client() as fleet:
            leases = {x.agent.removeprefix("codex-"): x.lease for x in await fleet.leases() if x.state == "active"}
            assert set(leases) == set(self.NAMES)
            for lease in leases.values():
                await until(lambda lease=lease: self._terminal(fleet, lease))
            await self._in_step()
            await self._in_step()
            for lease in leases.values():
                await sink(fleet, lease)  # over the whole screen, with the keyboard
            await self._in_step()
            await self._in_step()
            for name, lease in leases.items():
                keys = [chr(int(x.split()[1])) for x in await events(fleet, lease, 7) if x.startswith("key ")]
                assert "".join(keys) == self.typed[name], "it typed where it should not, or another typed here"
                assert [x for x in await events(fleet, lease, 8) if x.startswith("button ")] == ["button 1"]
                await inside(fleet, lease, "pkill -f -- /home/agent/[e]vents; true")
            await self._in_step()
            await self._in_step()
            theirs = {name: _pixels(codex.model.threads[name].pictures[-1]) for name in self.NAMES}
            for name, lease in leases.items():
                picture = await (await fleet.open(lease)).screenshot()
                assert _pixels(picture.frame.data) == theirs[name], "what it was shown is what its desktop shows"
            assert len(set(theirs.values())) == len(self.NAMES), "each shows what its own agent has typed"
            await self._in_step()

    async def _terminal(self, fleet: Fleet, lease: str) -> bool:
        at = await fleet.open(lease)
        return any(window["class"] == "XTerm" for window in await at.windows()) and await at.wait_stable() is None

    async def _in_step(self) -> None:
        await asyncio.to_thread(self.step.wait)


def _pixels(picture: bytes) -> tuple[tuple[int, int], bytes]:
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    return image.size, image.tobytes()


def test_three_at_once_each_in_its_own_desktop_and_a_fourth_told_who_holds_what(house: Home) -> None:
    work = Work(house)
    with codexes(house) as codex:
        codex.model.scripts = {name: work.script(name) for name in work.NAMES}
        codex.model.scripts["d"] = [desktop("screenshot"), desktop("lease_status")]
        running = {name: codex.start(name, agent=f"codex-{name}") for name in work.NAMES}
        work.step.wait()
        _ended(codex, d=codex.start("d", agent="codex-d"))
        waiting = codex.model.threads["d"].answers
        run(work.seen(codex), timeout=90)
        _ended(codex, **running)
        for name in work.NAMES:
            answers = codex.model.threads[name].answers
            assert "[image]" in answers[1], "the picture did not reach the model"
            assert answers[2].endswith("2 actions done.")
            assert answers[4].rpartition("Output:")[2].split() == [name], "it sees its own files and no others"
    assert "number 1 in line" in waiting[0]
    assert any(f"agent codex-{name}" in waiting[0] for name in work.NAMES)
    assert "keep your place" in waiting[0]
    assert "number 1 in line" in waiting[1]
    held = _held(house)
    assert {held[f"codex-{name}"] for name in work.NAMES} == {"released"}
    assert held["codex-d"] == "cancelled"


def test_one_revoked_in_mid_work_hears_why_and_its_desktop_is_rolled_back(house: Home) -> None:
    planted = [{"type": "click", "x": 200, "y": 150}, {"type": "type", "text": "touch ~/planted\n"}]
    told: dict[str, Any] = {}

    async def revoke() -> None:
        async with house.client() as fleet:

            async def at_work() -> Any:
                held = [x for x in await fleet.leases() if x.state == "active"]
                there = held and (await fleet.run(held[0].lease, ["test", "-e", "planted"])).exit_code == 0
                return held[0] if there else None

            lease = await until(at_work, timeout=90)
            told.update(desktop=lease.desktop, generation=lease.generation)
            await fleet.revoke(lease.lease, reason="wrong account")

    with codexes(house) as codex:
        held_down = {"type": "hold_key", "keys": "shift", "seconds": 30}
        codex.model.scripts["a"] = [
            desktop("wait", until="stable", seconds=20),
            desktop("act", actions=[*planted, held_down]),
            desktop("screenshot"),
            desktop("click", x=5, y=5),
        ]
        running = codex.start("a", agent="codex-a")
        run(revoke(), timeout=100)
        _ended(codex, a=running)
        answers = codex.model.threads["a"].answers
    assert "[image]" in answers[0]
    for said in answers[1:]:
        assert "revoked by" in said, said
        assert "wrong account" in said
        assert "[image]" not in said
    assert _held(house) == {"codex-a": "revoked"}
    run(_rolled_back(house, **told), timeout=60)


async def _rolled_back(house: Home, desktop: str, generation: int) -> None:
    async with house.client() as fleet:

        async def clean() -> bool:
            view = await fleet.desktop(desktop)
            return view.stage == "ready" and view.generation > generation

        await until(clean, timeout=40)
        assert (await fleet.run(desktop, ["test", "-e", "planted"])).exit_code == 1


def test_over_http_a_dead_token_is_told_why_and_is_no_failed_login(house: Home) -> None:
    lease = house.cli("lease", "acquire", "--agent", "a", "--profile", "small")

    def revoke(_: list[str]) -> Any:
        house.cli("lease", "revoke", lease["lease"], "--reason", "wrong account")
        return desktop("screenshot")([])

    with codexes(house) as codex:
        codex.model.scripts = {"a": [desktop("screenshot"), revoke], "again": [desktop("screenshot")]}
        _ended(codex, a=codex.start("a", token=lease["token"]))
        _ended(codex, again=codex.start("again", token=lease["token"]))
        first, second = codex.model.threads["a"].answers
        (third,) = codex.model.threads["again"].answers
    assert "[image]" in first
    for told in (second, third):
        assert "revoked by" in told
        assert "wrong account" in told


def test_a_sub_agent_has_a_desktop_of_its_own(house: Home) -> None:
    def spawn(_: list[str]) -> Any:
        return AGENTS, "spawn_agent", {"message": "look at your desktop"}

    def wait(answers: list[str]) -> Any:
        return AGENTS, "wait_agent", {"targets": [json.loads(answers[-1])["agent_id"]], "timeout_ms": 60_000}

    with codexes(house) as codex:
        codex.model.scripts["a"] = [desktop("screenshot"), spawn, wait, desktop("lease_status")]
        codex.model.scripts["a-sub"] = [desktop("screenshot"), desktop("lease_status")]
        _ended(codex, a=codex.start("a", agent="codex-a"))
        main, sub = (json.loads(codex.model.threads[x].answers[-1].split("\n")[-1]) for x in ("a", "a-sub"))
    assert (main["agent"], sub["agent"]) == ("codex-a", "codex-a-2")
    assert main["desktop"] != sub["desktop"]
    assert _held(house) == {"codex-a": "released", "codex-a-2": "released"}


def test_cu_fleet_codex_gives_each_run_a_desktop_for_as_long_as_it_lasts(house: Home) -> None:
    together = threading.Barrier(2, timeout=90)

    def met(_: list[str]) -> Any:
        together.wait()
        return own("lease_status")([])

    with codexes(house) as codex:
        codex.model.scripts = {x: [own("screenshot"), met, own("click", x=200, y=150)] for x in ("a", "b")}
        running = {name: codex.run(name, "--agent", "codex-x", "--wait", "2m") for name in ("a", "b")}
        for name, process in running.items():
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, (out[-2000:], err[-2000:])
            assert b"all done" in out, "what Codex prints is passed on"
            assert b"profile small: network none, gates none" in err, name
        assert codex.model.errors == []
        answers = [codex.model.threads[name].answers for name in ("a", "b")]
    statuses = [json.loads(each[1].split("\n")[-1]) for each in answers]
    assert all("[image]" in each[0] and "Done." in each[2] for each in answers), answers
    assert {x["agent"] for x in statuses} == {"codex-x", "codex-x-2"}
    assert len({x["desktop"] for x in statuses}) == 2
    assert _held(house) == {"codex-x": "released", "codex-x-2": "released"}
