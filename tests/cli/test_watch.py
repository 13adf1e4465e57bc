"""`lease watch`: what a person needs to let a viewer in."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.cli.fake import Fake, lease
from tests.cli.support import cli

LEASE = "ls_0123456789"
TICKET: dict[str, Any] = {
    "lease": LEASE,
    "ticket": "aB3-_xYz",
    "control": False,
    "expires_at": "2026-01-01T12:00:00Z",
    "host": "127.0.0.1",
    "port": 40001,
    "socket": "/home/a/watch/ls.sock",
    "ws_url": f"ws://127.0.0.1:8700/v1/leases/{LEASE}/watch",
    "web_url": None,
}
PATH = f"/v1/leases/{LEASE}/watch"


def viewer(folder: Path, script: str) -> None:
    program = folder / "xtigervncviewer"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_address_and_password_are_printed(fake: Fake) -> None:
    fake.on("POST", PATH, (201, TICKET))
    ended = cli("lease", "watch", LEASE, "--for", "5m")
    assert ended.code == 0
    for word in ("127.0.0.1::40001", "aB3-_xYz", "/home/a/watch/ls.sock", "if it comes before"):
        assert word in ended.out
    assert fake.asked[0].json == {"ttl": 300.0}
    assert cli("lease", "watch", LEASE, "--control", "--json").json == TICKET
    assert fake.asked[1].json["control"] is True


def test_the_link_is_printed_alone(fake: Fake) -> None:
    link = "http://127.0.0.1:8700/watch/vnc.html#password=aB3-_xYz"
    fake.on("POST", PATH, (201, {**TICKET, "web_url": link}))
    assert cli("lease", "watch", LEASE, "--web").out == f"{link}\n"


def test_without_novnc_it_is_said_how_to_get_it(fake: Fake) -> None:
    fake.on("POST", PATH, (201, TICKET))
    ended = cli("lease", "watch", LEASE, "--web")
    assert ended.code == 1
    assert "apt-get install --no-install-recommends novnc" in ended.err


@pytest.mark.parametrize("control", [False, True])
def test_a_viewer_gets_the_password_where_nobody_reads_it(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, control: bool
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    viewer(tmp_path, f'echo "$VNC_PASSWORD $@" > {tmp_path}/told; exit 3')
    fake.on("POST", PATH, (201, {**TICKET, "control": control}))
    over = lease(lease=LEASE, state="revoked", by="operator ana", reason="wrong page")
    fake.on("GET", f"/v1/leases/{LEASE}", over)
    ended = cli("lease", "watch", LEASE, "--open", *(["--control"] if control else []))
    told = "aB3-_xYz 127.0.0.1::40001\n" if control else "aB3-_xYz -ViewOnly 127.0.0.1::40001\n"
    assert (tmp_path / "told").read_text() == told
    assert ended.code == 3
    assert "was revoked by operator ana: wrong page" in ended.err


def test_without_a_viewer_no_ticket_is_made(fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ended = cli("lease", "watch", LEASE, "--open")
    assert (ended.code, fake.asked) == (1, [])
    assert "tigervnc-viewer" in ended.err


def test_who_watches_is_shown(fake: Fake) -> None:
    watcher = {"viewer": "vw_1", "who": "operator ana", "control": True, "way": "web", "since": "2026-01-01T12:00:00Z"}
    fake.on("GET", f"/v1/leases/{LEASE}", lease(lease=LEASE, watchers=[watcher]))
    assert "operator ana since 2026-01-01T12:00:00Z, in control (web)" in cli("lease", "show", LEASE).out
