"""Asking for a lease and waiting: what is shown, how it ends, and that nothing is left in line."""

import itertools
import signal
from typing import Any

import pytest

from tests.cli.fake import Asked, Fake, lease, problem
from tests.cli.support import cli, finished, start
from tests.support import run, until

ASK = ("lease", "acquire", "--agent", "b", "--profile", "local")
HOLDER = {"agent": "a", "lease": "ls_aaaaaaaaaa", "until": "2026-01-01T12:00:00Z"}
ONE = r"/v1/leases/ls_0123456789"


def waiting(**more: object) -> dict[str, object]:
    return lease("waiting", **{"place": 2, "holder": HOLDER, **more})


def queue(fake: Fake, *views: dict[str, object]) -> None:
    """A request that goes through these states, staying in the last."""
    coming = itertools.chain(views, itertools.repeat(views[-1]))
    fake.on("POST", "/v1/leases", lambda _: (202, next(coming)))
    fake.on("GET", ONE, lambda _: next(coming))
    fake.on("POST", ONE + "/release", lambda _: lease("cancelled"))


def test_granted_at_once_is_printed_as_the_interface_says(fake: Fake) -> None:
    queue(fake, lease())
    ended = cli(*ASK, "--ttl", "20m", "--resource", "browser:x", "--desktop", "finance", "--json")
    assert (ended.code, ended.err) == (0, "")
    promised = {"lease", "agent", "state", "desktop", "profile", "backend", "generation", "resources"}
    promised |= {"width", "height", "expires_at", "token", "url", "mcp_url"}
    assert promised <= set(ended.json)
    (asked,) = fake.of("POST", "/v1/leases")
    body = asked.json
    assert body.pop("request_id")
    wanted = {"agent": "b", "profile": "local", "desktop": "finance", "resources": ["browser:x"]}
    assert body == {**wanted, "ttl": 1200.0, "wait": 60.0}


def test_a_person_is_told_how_to_go_on_and_not_shown_the_token(fake: Fake) -> None:
    queue(fake, lease())
    ended = cli(*ASK)
    assert ended.code == 0
    assert "ls_0123456789" in ended.out
    assert "dk_0123456789" in ended.out
    assert "cu-fleet screenshot ls_0123456789" in ended.out
    assert "cfl_secret" not in ended.out + ended.err


def test_the_token_is_shown_when_asked_for(fake: Fake) -> None:
    queue(fake, lease())
    assert "export CU_FLEET_TOKEN=cfl_secret" in cli(*ASK, "--show-token").out


def test_waits_in_the_open(fake: Fake) -> None:
    queue(fake, waiting(), waiting(place=1), lease())
    ended = cli(*ASK, "--json")
    assert ended.code == 0
    assert ended.json["state"] == "active"
    assert ended.err.splitlines() == [
        "number 2 in line; agent a holds it until 2026-01-01T12:00:00Z",
        "number 1 in line; agent a holds it until 2026-01-01T12:00:00Z",
    ]
    assert {asked.query["while"] for asked in fake.of("GET", ONE)} == {"waiting"}


def test_no_wait_in_conflict_says_who_holds_it(fake: Fake) -> None:
    words = (
        'lease denied: agent b asked for desktop "finance", but agent a holds it (lease ls_1) '
        "until it is released, revoked or runs out at 12:00:00Z"
    )
    refusal = problem(409, "taken", words, agent="b", desktop="finance", holder=HOLDER)
    fake.on("POST", "/v1/leases", (409, refusal))
    ended = cli(*ASK, "--desktop", "finance", "--no-wait", "--json")
    assert ended.code == 3
    assert ended.err.strip() == words
    assert ended.json["error"] == "taken"
    assert ended.json["message"] == words
    assert ended.json["holder"] == HOLDER
    assert ended.json["desktop"] == "finance"
    assert fake.asked[0].json["wait"] == 0


def test_waited_too_long(fake: Fake) -> None:
    over = lease("cancelled", by="controller", reason="it waited 0 s, as long as it was asked to")
    queue(fake, waiting(), over)
    ended = cli(*ASK, "--wait", "0.1s", "--json")
    assert ended.code == 4
    assert ended.json["error"] == "waited_too_long"
    assert "agent b waited too long" in ended.json["message"]


def test_a_desktop_that_cannot_be_made_is_no_matter_of_waiting(fake: Fake) -> None:
    queue(fake, waiting(), lease("cancelled", by="controller", reason="its desktop could not be started: no Xvnc"))
    ended = cli(*ASK, "--json")
    assert (ended.code, ended.json["error"]) == (1, "not_granted")
    assert "no Xvnc" in ended.err


def test_somebody_else_took_it_out_of_the_line(fake: Fake) -> None:
    queue(fake, waiting(), lease("cancelled", by="operator ana"))
    ended = cli(*ASK)
    assert ended.code == 6
    assert "operator ana" in ended.err


def test_a_controller_that_forgets_the_deadline_is_not_waited_for(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cu_fleet.cli.acquire.LATE", 0.0)
    queue(fake, waiting())
    assert cli(*ASK, "--wait", "0.1s").code == 4
    assert fake.of("POST", ONE + "/release")


@pytest.mark.parametrize(("word", "sent"), [("forever", None), ("5m", 300.0), ("90s", 90.0)])
def test_how_long_to_wait(fake: Fake, word: str, sent: float | None) -> None:
    queue(fake, lease())
    assert cli(*ASK, "--wait", word).code == 0
    assert fake.asked[0].json["wait"] == sent


def test_a_wait_that_is_no_time_is_wrong_usage(fake: Fake) -> None:
    ended = cli(*ASK, "--wait", "soon", "--json")
    assert ended.code == 2
    assert "--wait" in ended.json["message"]
    assert fake.asked == []


def test_revoked_while_waiting(fake: Fake) -> None:
    queue(fake, waiting(), lease("revoked", by="operator ana", reason="not today"))
    ended = cli(*ASK)
    assert ended.code == 6
    assert "operator ana" in ended.err
    assert "not today" in ended.err
    assert not fake.of("POST", ONE + "/release")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_given_up_while_waiting_withdraws_the_request(fake: Fake, number: signal.Signals, code: int) -> None:
    queue(fake, waiting())
    process = start(*ASK, "--wait", "forever", env=fake.env)
    run(until(lambda: fake.of("GET", ONE)))
    process.send_signal(number)
    ended = finished(process)
    assert ended.code == code
    assert fake.of("POST", ONE + "/release")


def test_given_up_before_the_first_answer_withdraws_the_request(fake: Fake) -> None:
    """The answer with the lease's id never came: the request id finds it."""
    hold = run_once_then_hang()
    fake.on("POST", "/v1/leases", hold)
    fake.on("POST", ONE + "/release", lambda _: lease("cancelled"))
    process = start(*ASK, "--no-wait", env=fake.env)
    run(until(lambda: fake.of("POST", "/v1/leases")))
    process.send_signal(signal.SIGINT)
    ended = finished(process)
    hold.let_go()
    assert ended.code == 130
    first, second = fake.of("POST", "/v1/leases")
    assert first.json["request_id"] == second.json["request_id"]
    assert fake.of("POST", ONE + "/release")


class run_once_then_hang:  # noqa: N801 -- reads as what it does
    """Answers the first request only when let go, later ones at once."""

    def __init__(self) -> None:
        import threading

        self._first = True
        self._gate = threading.Event()

    def let_go(self) -> None:
        self._gate.set()

    def __call__(self, _: Asked) -> Any:
        if self._first:
            self._first = False
            self._gate.wait(30)
        return 202, waiting()


def test_a_controller_that_went_away_is_asked_again(fake: Fake) -> None:
    """What waits is safe with the controller: its restart must not lose the place in line."""
    down = iter([True, True, False])
    fake.on("POST", "/v1/leases", lambda _: (202, waiting()))
    gone = (503, problem(503, "stopping", "the controller is stopping"))
    fake.on("GET", ONE, lambda _: gone if next(down) else lease())
    ended = cli(*ASK)
    assert ended.code == 0
    assert "asking again" in ended.err
