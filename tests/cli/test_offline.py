"""What works without a controller: doctor, profiles, and the shell's completion."""

import json
from pathlib import Path
from typing import Any

import pytest

from cu_fleet.backends.base import Check
from cu_fleet.cli import complete, doctor
from tests.cli.fake import Fake, lease
from tests.cli.support import cli, finished, start

BROKEN = Check("tool", False, "tool is not installed", fix=(("make-it", "--now"), ("make-it", "--now")))
MENDED = Check("tool", True, "tool 1.0")
LACKING = Check("cgroups", False, "limits are not enforced", needed=False)


def machine(monkeypatch: pytest.MonkeyPatch, *looks: list[Check]) -> None:
    coming = iter(looks)
    monkeypatch.setattr("cu_fleet.cli.root.checks", lambda _: next(coming))


def test_doctor_says_what_is_missing_and_what_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, [MENDED, BROKEN, LACKING])
    ended = cli("doctor")
    assert ended.code == 1
    assert "make-it --now" in ended.out
    states = {line.split()[0]: line.split()[1] for line in ended.out.splitlines()[1:4]}
    assert states == {"tool": "missing", "cgroups": "optional"}


def test_doctor_is_content_with_what_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, [MENDED, LACKING])
    ended = cli("doctor", "--json")
    assert ended.code == 0
    assert ended.json["ok"] is True
    assert [check["state"] for check in ended.json["checks"]] == ["ok", "optional"]


def test_doctor_mends_in_the_open_and_looks_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = tmp_path / "made"
    fix = (("sh", "-c", f"echo installing; echo x >> {made}"),)
    broken = Check("tool", False, "missing", fix=fix)
    machine(monkeypatch, [broken, broken], [MENDED])
    monkeypatch.setattr(doctor, "as_root", list)
    ended = cli("doctor", "--fix", "--json")
    assert ended.code == 0
    assert ended.json["ok"] is True
    assert "+ sh -c" in ended.err
    assert made.read_text() == "x\n", "the same command is run once"


def test_doctor_goes_on_with_what_is_seen_only_after_mending(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(name: str) -> Check:
        return Check(name, False, "missing", fix=(("sh", "-c", f"echo {name} >> {tmp_path / 'made'}"),))

    machine(monkeypatch, [broken("first")], [MENDED, broken("second")], [MENDED])
    monkeypatch.setattr(doctor, "as_root", list)
    assert cli("doctor", "--fix", "--json").json["ok"] is True
    assert (tmp_path / "made").read_text() == "first\nsecond\n"


def test_doctor_tells_when_mending_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Check("tool", False, "missing", fix=(("false",), ("no-such-command-here",)))
    machine(monkeypatch, [broken], [broken])
    monkeypatch.setattr(doctor, "as_root", list)
    ended = cli("doctor", "--fix")
    assert ended.code == 1
    assert "false ended with 1" in ended.err
    assert "no-such-command-here" in ended.err


def test_doctor_asks_sudo_when_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert doctor.as_root(["apt-get", "update"]) == ["sudo", "apt-get", "update"]
    monkeypatch.setattr("shutil.which", lambda _: None)
    machine(monkeypatch, [BROKEN], [BROKEN])
    ended = cli("doctor", "--fix", "--json")
    assert (ended.code, ended.json["error"]) == (1, "no_root")


def test_profiles_of_the_home_and_shipped_ones(home: Path) -> None:
    (home / "profiles").mkdir()
    (home / "profiles" / "mine.yaml").write_text("backend: local\nscreen: {width: 800, height: 600}\n")
    (home / "profiles" / "bad.yaml").write_text("backend: local\nwidht: 3\n")
    known = {profile["name"]: profile for profile in cli("profile", "list", "--json").json["profiles"]}
    assert {"local", "mine", "bad"} <= set(known)
    assert known["mine"]["source"] == str(home / "profiles" / "mine.yaml")
    assert "widht: no such key" in known["bad"]["problem"]
    table = cli("profile", "list").out
    assert "broken" in next(line for line in table.splitlines() if line.startswith("bad"))
    assert cli("profile", "show", "mine", "--json").json["screen"]["width"] == 800
    assert "width: 800" in cli("profile", "show", "mine").out
    assert cli("profile", "show", "bad").code == 2
    missing = cli("profile", "show", "none", "--json")
    assert missing.code == 5
    assert "local" in missing.json["remedy"]


def test_profile_check(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("backend: local\n")
    bad.write_text("backend: local\nscreen:\n  width: wide\n")
    assert "good profile" in cli("profile", "check", str(good)).out
    assert cli("profile", "check", str(good), "--json").json["ok"] is True
    ended = cli("profile", "check", str(bad), "--json")
    assert ended.code == 2
    assert f"{bad}:3: screen.width" in ended.json["message"]
    assert cli("profile", "check", str(tmp_path / "none.yaml")).code == 5


def test_images_are_listed_though_not_everybody_can_be_asked(home: Path) -> None:
    away: dict[str, str | None] = {"DOCKER_HOST": "unix:///nowhere"}
    ended = cli("image", "list", "--json", env=away)
    assert (ended.code, [one["name"] for one in ended.json["images"]]) == (0, ["vm-desktop"])
    [line] = ended.err.splitlines()
    assert line.startswith("not all images are listed: ")
    assert "/nowhere" in line
    away["CU_FLEET_HYPERVISOR"] = "qemu+ssh://127.0.0.1:1/system"
    ended = cli("image", "list", env=away)
    assert (ended.code, ended.out) == (1, ""), "where nobody can be asked there is no list"
    assert "/nowhere" in ended.err


# completion

NOUNS: dict[str, list[dict[str, Any]]] = {
    "leases": [lease(), lease(lease="ls_9876543210")],
    "desktops": [{"desktop": "dk_0123456789", "name": "finance", "profile": "local", "stage": "held"}],
    "agents": [{"agent": "codex-a", "leases": 1}],
    "operators": [{"operator": "ana", "role": "admin"}],
    "profiles": [{"name": "local", "description": "A desktop."}],
    "snapshots": [{"id": "sn_0123456789", "desktop": "dk_0123456789", "note": ""}],
}


@pytest.mark.parametrize(
    ("offer", "incomplete", "words"),
    [
        (complete.leases, "ls_0", ["ls_0123456789"]),
        (complete.desktops, "", ["dk_0123456789", "finance"]),
        (complete.desktop_names, "", ["finance"]),
        (complete.agents, "c", ["codex-a"]),
        (complete.operators, "", ["ana"]),
        (complete.profiles, "x", []),
        (complete.profiles, "", ["local"]),
        (complete.snapshots, "sn", ["sn_0123456789"]),
    ],
)
def test_what_the_shell_offers(fake: Fake, offer: Any, incomplete: str, words: list[str]) -> None:
    fake.on("GET", r"/v1/(\w+)", lambda _, noun: {noun: NOUNS[noun]})
    assert [word for word, _ in offer(incomplete)] == words


def test_nothing_to_offer_is_no_error_and_starts_nothing(home: Path) -> None:
    assert complete.leases("") == []
    assert list(home.iterdir()) == []


def test_an_answer_that_is_no_answer(fake: Fake) -> None:
    fake.on("GET", "/v1/leases", b"<html>")
    assert complete.leases("") == []


def test_completion_in_the_shell(fake: Fake) -> None:
    fake.on("GET", r"/v1/(\w+)", lambda _, noun: {noun: NOUNS[noun]})
    typed = {"COMP_WORDS": "cu-fleet lease show ls_9", "COMP_CWORD": "3", "_CU_FLEET_COMPLETE": "complete_bash"}
    ended = finished(start(env={**fake.env, **typed}))
    assert ended.out.split() == ["ls_9876543210"]
    typed = {"COMP_WORDS": "cu-fleet lease re", "COMP_CWORD": "2", "_CU_FLEET_COMPLETE": "complete_bash"}
    assert set(finished(start(env=typed)).out.split()) == {"renew", "release", "resume", "revoke", "reassign"}


# what tables show


def test_people_and_record(fake: Fake) -> None:
    grants = {"profiles": ["*"], "desktops": [], "resources": [], "leases": 1, "children": 0}
    agent = {"agent": "codex-a", "grants": grants, "parent": None, "leases": 0, "barred_until": None, "bar_reason": ""}
    fake.on("POST", "/v1/agents", (201, {**agent, "token": "cfa_x"}))
    fake.on("POST", "/v1/operators", (201, {"operator": "ana", "role": "observer", "token": "cfo_x"}))
    fake.on("DELETE", "/v1/agents/codex-a", {"ok": True})
    added = cli("agent", "add", "codex-a", "--profile", "local", "--leases", "2")
    assert (added.out, added.code) == ("cfa_x\n", 0), "alone, so that it can be taken as $(…)"
    assert fake.asked[0].json == {"agent": "codex-a", "profiles": ["local"], "leases": 2}
    assert cli("operator", "add", "ana", "--role", "observer", "--json").json.get("token") == "cfo_x"
    assert cli("agent", "remove", "codex-a", "--json").json == {"agent": "codex-a", "removed": True}


def test_the_newest_entries(fake: Fake, tmp_path: Path) -> None:
    entry = {"seconds": 0.012, "result": "ok", "lease": "ls_1", "desktop": "dk_1", "who": "agent a", "what": "act.done"}
    entry |= {"action": None, "intent": "why not", "facts": {}, "at_iso": "2026-01-01T12:00:00Z"}
    lines = b"".join(json.dumps({**entry, "seq": seq}).encode() + b"\n" for seq in range(1, 101))
    fake.on("GET", "/v1/status", {"audit": {"entries": 100}})
    fake.on("GET", "/v1/audit", lines)
    shown = cli("audit", "show", "-n", "3", "--json").json["entries"]
    assert [entry["seq"] for entry in shown] == [98, 99, 100]
    assert fake.of("GET", "/v1/audit")[0].query == {"after": "97"}
    table = cli("audit", "show", "--agent", "a", "-n", "1").out
    assert "why: why not" in table
    assert "ok 12 ms" in table
    assert fake.asked[-1].query == {"agent": "a"}
    file = tmp_path / "audit.jsonl"
    assert cli("audit", "export", "-o", str(file), "--json").json == {"file": str(file), "entries": 100}
    assert cli("audit", "export").out.encode() == file.read_bytes()
    assert [json.loads(line)["seq"] for line in file.read_text().splitlines()] == list(range(1, 101))
