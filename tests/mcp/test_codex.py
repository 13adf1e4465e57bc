"""Codex sessions, the real ones, pointed at their desktops: they simply work, and none sees another's."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.home import Home, home
from tests.mcp.codex import AGENTS, Codex, codexes, desktop, own

pytestmark = [pytest.mark.real, pytest.mark.slow]

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


def test_three_at_once_each_in_its_own_desktop_and_a_fourth_told_who_holds_what(house: Home) -> None:
    together = threading.Barrier(4, timeout=90)

    def script(name: str) -> Any:
        def met(tool: str, **given: Any) -> Any:
            def call(_: list[str]) -> Any:
                together.wait()
                return desktop(tool, **given)([])

            return call

        typed = [
            {"type": "click", "x": 200, "y": 150},
            {"type": "type", "text": f"mkdir -p ~/Shared/out; echo {name} >> ~/Shared/out/marks\n"},
        ]
        return [
            desktop("wait", until="stable", seconds=20),
            desktop("click", x=200, y=150),
            met("act", actions=typed),
            met("wait", seconds=1),  # the fourth asks between these
            met("file_get", path="out/marks"),
        ]

    def fourth(number: int) -> Any:
        def call(_: list[str]) -> Any:
            together.wait()
            return desktop("screenshot" if number == 1 else "lease_status")([])

        return call

    with codexes(house) as codex:
        codex.model.scripts = {name: script(name) for name in ("a", "b", "c")}
        codex.model.scripts["d"] = [fourth(0), fourth(1), fourth(2)]
        running = {name: codex.start(name, agent=f"codex-{name}") for name in ("a", "b", "c", "d")}
        _ended(codex, **running)
        for name in ("a", "b", "c"):
            answers = codex.model.threads[name].answers
            assert "[image]" in answers[0], "the picture did not reach the model"
            assert "Done." in answers[1]
            assert "[image]" in answers[2]
            assert answers[4].strip().endswith(name), answers[4]
            assert not set(answers[4].split()) & ({"a", "b", "c"} - {name}), "it saw another's desktop"
        waiting = codex.model.threads["d"].answers[1]
        assert "number 1 in line" in waiting
        assert any(f"agent codex-{name}" in waiting for name in ("a", "b", "c"))
        assert "keep your place" in waiting
    held = _held(house)
    assert {held[f"codex-{name}"] for name in ("a", "b", "c")} == {"released"}
    assert held["codex-d"] in ("cancelled", "released")


def test_one_revoked_in_mid_work_hears_why_and_is_not_given_another(house: Home) -> None:
    def revoke(_: list[str]) -> Any:
        (lease,) = house.cli("lease", "list")["leases"]
        house.cli("lease", "revoke", lease["lease"], "--reason", "wrong account")
        return desktop("click", x=5, y=5)([])

    with codexes(house) as codex:
        codex.model.scripts["a"] = [desktop("screenshot"), revoke, desktop("screenshot")]
        _ended(codex, a=codex.start("a", agent="codex-a"))
        answers = codex.model.threads["a"].answers
    assert "[image]" in answers[0]
    for told in answers[1:]:
        assert "revoked by" in told
        assert "wrong account" in told
        assert "[image]" not in told
    assert _held(house) == {"codex-a": "revoked"}
    assert {x["stage"] for x in house.cli("desktop", "list")["desktops"]} <= {"ready", "cleaning", "stopping"}


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
