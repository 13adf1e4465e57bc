"""Looking and doing: what goes out, what is written, and how it ends."""

import base64
import json
from pathlib import Path

import pytest

from tests.cli.fake import Fake, lease, problem
from tests.cli.support import cli

LEASE = "ls_0123456789"
SHOT, ACTIONS = rf"/v1/leases/{LEASE}/screenshot", rf"/v1/leases/{LEASE}/actions"
CLICK, TYPE = {"type": "click", "x": 1, "y": 2}, {"type": "type", "text": "hello"}
DONE = {"done": [{"ok": True}, {"ok": True}], "generation": 1, "screenshot": None}


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        ("a.png", [], "png"),
        ("a.JPG", [], "jpeg"),
        ("a.webp", [], "webp"),
        ("a", [], "png"),
        ("a.png", ["--format", "jpeg"], "jpeg"),
    ],
)
def test_the_format_is_the_suffix_unless_given(
    fake: Fake, tmp_path: Path, name: str, options: list[str], kind: str
) -> None:
    fake.on("GET", SHOT, b"picture")
    ended = cli("screenshot", LEASE, "-o", str(tmp_path / name), *options, "--json")
    assert ended.code == 0
    assert (tmp_path / name).read_bytes() == b"picture"
    assert fake.asked[0].query == {"format": kind}
    assert ended.json["file"] == str(tmp_path / name)
    assert ended.json["frame"] == "fr_0123456789"


def test_all_that_can_be_asked_of_a_screenshot(fake: Fake, tmp_path: Path) -> None:
    fake.on("GET", SHOT, b"picture")
    options = "--region 1,2,30,40 --max-edge 800 --format jpeg --quality 50 --max-bytes 20000 --pointer --intent why"
    options += " --frame fr_1 --if-changed-since fr_2 --settle-ms 50 --settle-timeout-ms 900 --allow-blank"
    assert cli("screenshot", LEASE, "-o", str(tmp_path / "x"), *options.split()).code == 0
    wanted = {"region": "1,2,30,40", "max_edge": "800", "format": "jpeg", "quality": "50", "max_bytes": "20000"}
    wanted |= {"frame": "fr_1", "if_changed_since": "fr_2", "settle_ms": "50", "settle_timeout_ms": "900"}
    assert fake.asked[0].query == {**wanted, "pointer": "true", "allow_blank": "true", "intent": "why"}


def test_an_unchanged_screenshot_writes_nothing(fake: Fake, tmp_path: Path) -> None:
    fake.on("GET", SHOT, (304, b""))
    file = tmp_path / "a.png"
    ended = cli("screenshot", LEASE, "-o", str(file), "--if-changed-since", "fr_0123456789", "--json")
    assert ended.code == 0
    assert (ended.json["unchanged"], ended.json["file"], ended.json["frame"]) == (True, None, "fr_0123456789")
    told = cli("screenshot", LEASE, "-o", "-", "--if-changed-since", "fr_0123456789")
    assert (told.code, told.out) == (0, "")
    assert "unchanged since frame fr_0123456789" in told.err
    assert not file.exists()


def test_a_screenshot_on_standard_output(fake: Fake) -> None:
    fake.on("GET", SHOT, bytes(range(256)))
    assert cli("screenshot", LEASE, "-o", "-").raw == bytes(range(256))
    assert cli("screenshot", LEASE, "-o", "-", "--json").code == 2


def test_a_screenshot_that_cannot_be_written(fake: Fake, tmp_path: Path) -> None:
    fake.on("GET", SHOT, b"picture")
    ended = cli("screenshot", LEASE, "-o", str(tmp_path / "no" / "where.png"))
    assert ended.code == 1
    assert "where.png" in ended.err


def test_a_desktop_stands_for_the_lease_that_holds_it(fake: Fake, tmp_path: Path) -> None:
    fake.on("GET", "/v1/desktops/dk_0123456789", {"desktop": "dk_0123456789", "lease": LEASE})
    fake.on("GET", SHOT, b"picture")
    assert cli("screenshot", "dk_0123456789", "-o", str(tmp_path / "a.png")).code == 0
    fake.on("GET", "/v1/desktops/dk_free000000", {"desktop": "dk_free000000", "lease": None})
    assert cli("screenshot", "dk_free000000", "-o", str(tmp_path / "a.png")).code == 3


def test_actions_in_every_way_they_can_be_given(fake: Fake) -> None:
    fake.on("POST", ACTIONS, DONE)
    ended = cli(
        "act", LEASE, json.dumps(CLICK), json.dumps([TYPE, CLICK]), "-", "--intent", "why", stdin=b'[{"type": "wait"}]'
    )
    assert ended.code == 0
    body = fake.asked[0].json
    assert body == {"actions": [CLICK, TYPE, CLICK, {"type": "wait"}], "intent": "why"}
    assert ended.out.splitlines()[0] == "click: done"


def test_the_settled_screen_is_written(fake: Fake, tmp_path: Path) -> None:
    picture = {"frame": "fr_1", "data": base64.b64encode(b"picture").decode(), "format": "jpeg"}
    fake.on("POST", ACTIONS, {**DONE, "screenshot": picture})
    file = tmp_path / "after.jpg"
    ended = cli("act", LEASE, json.dumps(CLICK), "--screenshot", str(file), "--json")
    assert file.read_bytes() == b"picture"
    assert fake.asked[0].json["screenshot"] == {"format": "jpeg"}
    assert ended.json["screenshot"] == {"frame": "fr_1", "format": "jpeg", "file": str(file)}


def test_how_the_settled_screen_is_wanted(fake: Fake, tmp_path: Path) -> None:
    picture = {"frame": "fr_1", "format": "png", "unchanged": True}
    fake.on("POST", ACTIONS, {**DONE, "screenshot": picture})
    options = ["--settle-ms", "0", "--if-changed-since", "fr_1", "--frame", "fr_0"]
    ended = cli("act", LEASE, json.dumps(CLICK), "--screenshot", str(tmp_path / "a.png"), *options)
    assert fake.asked[0].json["screenshot"] == {"format": "png", "settle_ms": 0, "if_changed_since": "fr_1"}
    assert fake.asked[0].json["frame"] == "fr_0"
    assert ended.code == 0
    assert "unchanged since frame fr_1" in ended.err
    assert not (tmp_path / "a.png").exists()


def test_what_was_done_but_cannot_be_shown_is_no_success(fake: Fake, tmp_path: Path) -> None:
    why = {"ok": False, "code": "blank_screen", "detail": "every pixel is #000000"}
    fake.on("POST", ACTIONS, {**DONE, "not_shown": why})
    ended = cli("act", LEASE, json.dumps(CLICK), "--screenshot", str(tmp_path / "a.png"))
    assert ended.code == 1
    assert ended.out == "click: done\n"
    assert "every pixel is #000000 (blank_screen)" in ended.err
    told = cli("act", LEASE, json.dumps(CLICK), "--screenshot", str(tmp_path / "a.png"), "--json").json
    assert (told["done"], told["not_shown"]) == (DONE["done"], why)


@pytest.mark.parametrize(("code", "exit_code"), [("lease_paused", 6), ("lease_revoked", 6), ("no_such_key", 1)])
def test_a_batch_that_stopped_is_no_success(fake: Fake, code: str, exit_code: int) -> None:
    done = [{"ok": True}, {"ok": False, "code": code, "detail": "it was stopped"}]
    fake.on("POST", ACTIONS, {**DONE, "done": done})
    ended = cli("act", LEASE, json.dumps([CLICK, TYPE]), "--json")
    assert ended.code == exit_code
    assert ended.json["done"] == done
    told = cli("act", LEASE, json.dumps([CLICK, TYPE, CLICK])).out.splitlines()
    assert told == ["click: done", f"type: not done, it was stopped ({code})", "click: not tried"]


def test_a_paused_lease(fake: Fake) -> None:
    words = "lease ls_0123456789 is paused by operator ana: wait"
    fake.on("POST", ACTIONS, (423, problem(423, "lease_paused", words, "wait until it is resumed")))
    ended = cli("act", LEASE, json.dumps(CLICK), "--json")
    assert ended.code == 6
    assert ended.json["message"] == words


def test_supervising_sends_what_was_said(fake: Fake) -> None:
    fake.on("POST", rf"/v1/leases/{LEASE}/(\w+)", lambda _, verb: lease(reason=verb))
    calls = {
        ("renew", "--ttl", "2h"): {"ttl": 7200.0},
        ("renew",): {},
        ("release",): {},
        ("pause", "--reason", "x", "--no-looking"): {"reason": "x", "looking": False},
        ("pause",): {},
        ("resume",): {},
        ("take", "--reason", "x"): {"reason": "x"},
        ("revoke",): {"bar": "10m"},
        ("revoke", "--bar", "forever", "--snapshot", "--reason", "x"): {
            "bar": "forever",
            "snapshot": True,
            "reason": "x",
        },
        ("revoke", "--bar", "none"): {"bar": "none"},
        ("reassign", "--to", "c", "--as-is", "--ttl", "90s"): {"to": "c", "mode": "as-is", "ttl": 90.0},
        ("reassign", "--to", "c", "--clean"): {"to": "c", "mode": "clean"},
    }
    for (verb, *options), body in calls.items():
        ended = cli("lease", verb, LEASE, *options, "--json")
        assert ended.code == 0, ended.err
        assert ended.json["reason"] == verb
        assert fake.asked[-1].json == body
        assert LEASE in cli("lease", verb, LEASE, *options).out
