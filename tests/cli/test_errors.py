"""Every refusal: a sentence and a remedy on standard error, a document for programs, a telling exit code."""

import subprocess
import sys

import pytest

from cu_fleet.cli import service
from cu_fleet.cli.errors import asks_json
from cu_fleet.model import errors
from cu_fleet.model.errors import FleetError
from tests.cli.fake import Fake, problem
from tests.cli.support import STARTED, TOP, cli, finished, start

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FleetError)]
EXIT = {422: 2, 401: 3, 403: 3, 404: 5, 409: 3, 410: 6, 423: 6, 408: 4, 501: 1, 503: 1, 500: 1}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_refusal_of_the_controller_ends_with_its_code(fake: Fake, kind: type[FleetError]) -> None:
    refusal = problem(kind.status, "some_code", "it may not be", "ask ana", holder="a")
    fake.on("GET", "/v1/leases", (kind.status, refusal))
    ended = cli("lease", "list", "--json")
    assert ended.code == EXIT[kind.status]
    assert ended.err == "it may not be\n  ask ana\n"
    assert ended.json == {"error": "some_code", "message": "it may not be", "remedy": "ask ana", "holder": "a"}


def test_without_json_nothing_is_on_standard_output(fake: Fake) -> None:
    ended = cli("lease", "show", "ls_0000000000")
    assert (ended.code, ended.out) == (5, "")


@pytest.mark.parametrize(
    "words",
    [
        ("lease", "frobnicate"),
        ("frobnicate",),
        ("lease", "acquire"),
        ("lease", "list", "--frobnicate"),
        ("up", "--port", "70000"),
        ("act", "ls_0123456789", "{not json"),
        ("screenshot", "ls_0123456789", "-o", "x.png", "--region", "1,2,3"),
        ("lease", "reassign", "ls_0123456789", "--to", "b"),
        ("lease", "reassign", "ls_0123456789", "--to", "b", "--clean", "--as-is"),
        ("lease", "revoke", "ls_0123456789", "--bar", "long"),
        ("desktop", "exec", "dk_0123456789", "--env", "NOVALUE", "--", "ls"),
    ],
)
def test_wrong_usage(fake: Fake, words: tuple[str, ...]) -> None:
    at = words.index("--") if "--" in words else len(words)
    ended = cli(*words[:at], "--json", *words[at:])
    assert ended.code == 2
    assert ended.json["error"] == "usage"
    assert ended.json["message"] in ended.err
    assert ended.json["message"]
    assert fake.asked == []


@pytest.mark.parametrize(
    ("words", "asked"),
    [(["lease", "list", "--json"], True), (["desktop", "exec", "x", "--", "tool", "--json"], False), ([], False)],
)
def test_json_is_asked_for_before_a_double_dash(words: list[str], asked: bool) -> None:
    assert asks_json(words) is asked


def test_no_controller(home: object) -> None:
    status = cli("status")
    assert status.code == 1
    assert "cu-fleet up" in status.err
    status = cli("status", "--json")
    assert (status.code, status.json) == (1, {"running": False, "home": str(home)})


def test_nothing_to_stop(home: object) -> None:
    assert cli("down").out == "nothing is running\n"
    assert cli("down", "--json").json["stopped"] is False


def test_a_url_where_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CU_FLEET_URL", "http://127.0.0.1:9")
    ended = cli("lease", "list", "--json")
    assert ended.code == 1
    assert ended.json["error"] == "not_running"


def test_something_unforeseen_is_a_document_too(fake: Fake) -> None:
    fake.on("GET", "/v1/leases", {"surprise": 1})
    ended = cli("lease", "list")
    assert ended.code == 1
    assert "KeyError" in ended.err
    fake.on("GET", "/v1/audit/verify", b"<html>")
    assert cli("audit", "verify", "--json").json["error"] == "internal"


def test_a_reader_that_leaves_is_no_failure(fake: Fake) -> None:
    fake.on("GET", "/v1/audit", b'{"seq": 1}\n' * 20_000)
    writer = start("audit", "export", env=fake.env)
    reader = subprocess.Popen(["head", "-n1"], stdin=writer.stdout, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.close()
    writer.stdout = None
    assert reader.communicate(timeout=30)[0] == b'{"seq":1}\n'
    assert (writer.communicate(timeout=30)[1], writer.returncode) == (b"", 0)
    STARTED.remove(writer)


def test_python_dash_m_is_the_same() -> None:
    out = subprocess.run([sys.executable, "-m", "cu_fleet", "--version"], cwd=TOP, capture_output=True, check=True)
    assert out.stdout.startswith(b"cu-fleet ")
    assert finished(start("lease")).code == 2


def test_a_bar_never_lies() -> None:
    assert service.bar(0, 10, 10) == "[..........]"
    assert service.bar(5, 10, 10) == "[#####.....]"
    assert service.bar(99, 10, 10) == "[##########]"
    assert service.bar(0, 0, 10) == "[..........]"
