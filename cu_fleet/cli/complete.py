"""What the shell offers after TAB: ids and names from the controller, if one runs.

Never starts a controller, never raises, and waits 300 ms at most: a shell that hangs is worse than no offers. It speaks
plain HTTP by the standard library, since the client's imports alone would take that long.
"""

import contextlib
import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from http.client import HTTPConnection

PATIENCE = 0.3

Offer = tuple[str, str]


def leases(incomplete: str) -> list[Offer]:
    return _offers("leases", incomplete, lambda x: [(x["lease"], f"{x['agent']}, {x['state']}")])


def desktops(incomplete: str) -> list[Offer]:
    return _offers("desktops", incomplete, _desktop_words)


def desktop_names(incomplete: str) -> list[Offer]:
    return _offers("desktops", incomplete, lambda x: _desktop_words(x)[1:])


def agents(incomplete: str) -> list[Offer]:
    return _offers("agents", incomplete, lambda x: [(x["agent"], f"{x['leases']} leases")])


def operators(incomplete: str) -> list[Offer]:
    return _offers("operators", incomplete, lambda x: [(x["operator"], x["role"])])


def profiles(incomplete: str) -> list[Offer]:
    return _offers("profiles", incomplete, lambda x: [(x["name"], x["description"])])


def snapshots(incomplete: str) -> list[Offer]:
    return _offers("snapshots", incomplete, lambda x: [(x["id"], f"{x['desktop']} {x['note']}")])


def worktrees(incomplete: str) -> list[Offer]:
    return _offers("worktrees", incomplete, lambda x: [(x["worktree"], f"{x['agent']}: {x['state']}")])


def approvals(incomplete: str) -> list[Offer]:
    return _offers("approvals", incomplete, lambda x: [(x["approval"], f"{x['agent']}: {x['reason']}")])


def _desktop_words(view: dict[str, Any]) -> list[Offer]:
    words = [(view["desktop"], f"{view['profile']}, {view['stage']}")]
    return [*words, (view["name"], view["desktop"])] if view["name"] else words


def _offers(noun: str, incomplete: str, words: Callable[[dict[str, Any]], list[Offer]]) -> list[Offer]:
    found: list[Offer] = []
    with contextlib.suppress(Exception):  # no controller, no right to look, too slow: nothing to offer
        found = [offer for view in _get(noun)[noun] for offer in words(view)]
    return [offer for offer in found if offer[0].startswith(incomplete)]


def _get(noun: str) -> Any:
    with contextlib.closing(_connection()) as connection:
        token = os.environ.get("CU_FLEET_TOKEN")
        connection.request("GET", f"/v1/{noun}", headers={"Authorization": f"Bearer {token}"} if token else {})
        return json.loads(connection.getresponse().read())


def _connection() -> "HTTPConnection":
    from http.client import HTTPConnection, HTTPSConnection
    from urllib.parse import urlsplit

    if url := os.environ.get("CU_FLEET_URL"):
        parts = urlsplit(url)
        return (HTTPSConnection if parts.scheme == "https" else HTTPConnection)(parts.netloc, timeout=PATIENCE)
    connection = HTTPConnection("localhost", timeout=PATIENCE)
    connection.sock = _at_home()
    return connection


def _at_home() -> Any:
    import socket

    from cu_fleet.settings import default_home

    to = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    to.settimeout(PATIENCE)
    try:
        to.connect(str(default_home() / "controller.sock"))
    except BaseException:
        to.close()
        raise
    return to
