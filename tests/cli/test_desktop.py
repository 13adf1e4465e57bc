"""Commands inside a desktop: streams, input and exit code go through."""

import base64
import json
import os
import threading
from collections.abc import Iterator

import pytest

from tests.cli.fake import Asked, Fake, lease, problem
from tests.cli.support import Ended, cli, finished, start

EXEC = "/v1/desktops/dk_0123456789/exec"


def said(*lines: object) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def chunk(stream: int, data: bytes) -> dict[str, object]:
    return {"stream": stream, "data": base64.b64encode(data).decode()}


def execute(*words: str, stdin: bytes = b"") -> Ended:
    return cli("desktop", "exec", "dk_0123456789", *words, stdin=stdin)


def test_output_and_exit_code_go_through(fake: Fake) -> None:
    fake.on("POST", EXEC, said(chunk(1, b"out\xff"), chunk(2, b"err"), chunk(1, b"more"), {"exit": 7}))
    ended = execute("--cwd", "Shared", "--env", "A=b=c", "--timeout", "5m", "--", "tool", "--json", "-x")
    assert (ended.code, ended.raw, ended.err) == (7, b"out\xffmore", "err")
    wanted = {"argv": ["tool", "--json", "-x"], "cwd": "Shared", "env": {"A": "b=c"}, "timeout": 300.0}
    assert fake.asked[0].json == wanted


def test_as_one_document(fake: Fake) -> None:
    fake.on("POST", EXEC, said(chunk(1, b"out\xff"), chunk(2, b"err"), {"exit": 7}))
    ended = execute("--json", "--", "tool")
    assert ended.code == 7
    assert ended.json == {"exit": 7, "stdout": "out\N{REPLACEMENT CHARACTER}", "stderr": "err", "cut": False}


def test_standard_input_goes_in_unless_told_not_to(fake: Fake) -> None:
    fake.on("POST", EXEC, said({"exit": 0}))
    for options, wanted in (((), b"hello"), (("--no-stdin",), None)):
        assert execute(*options, "--", "cat", stdin=b"hello").code == 0
        sent = fake.asked[-1].json.get("stdin")
        assert (base64.b64decode(sent) if sent else None) == wanted


def test_output_comes_as_it_is_made(fake: Fake) -> None:
    """The first words are there while the command still runs."""
    go_on = threading.Event()

    def answer(_: Asked) -> Iterator[bytes]:
        yield said(chunk(1, b"begun"))
        go_on.wait(30)
        yield said({"exit": 0})

    fake.on("POST", EXEC, answer)
    process = start("desktop", "exec", "dk_0123456789", "--no-stdin", "--", "tool", env=fake.env)
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 100) == b"begun"
    go_on.set()
    assert finished(process).code == 0


def test_too_much_standard_input_is_refused(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cu_fleet.cli.desktop.STDIN_LIMIT", 10)
    ended = cli("desktop", "exec", "dk_0123456789", "--", "cat", stdin=b"x" * 11)
    assert ended.code == 2
    assert "cu-fleet cp" in ended.err
    assert fake.asked == []


def test_an_error_in_the_middle_is_told_after_what_came(fake: Fake) -> None:
    late = problem(408, "exec_timeout", "the command did not end within 5 s")
    fake.on("POST", EXEC, said(chunk(1, b"begun"), {"error": late}))
    ended = execute("--", "tool")
    assert (ended.code, ended.raw) == (4, b"begun")
    assert "did not end" in ended.err


def test_output_that_breaks_off_is_no_success(fake: Fake) -> None:
    fake.on("POST", EXEC, said(chunk(1, b"begun")))
    assert execute("--", "tool").code == 1


def test_a_lease_stands_for_its_desktop(fake: Fake) -> None:
    fake.on("GET", "/v1/leases/ls_0123456789", lease())
    fake.on("GET", "/v1/desktops/dk_0123456789/logs", b"Xvnc: ready\n")
    assert cli("desktop", "logs", "ls_0123456789").out == "Xvnc: ready\n"
    fake.on("GET", "/v1/leases/ls_waiting000", lease("waiting"))
    assert cli("desktop", "logs", "ls_waiting000").code == 3


def test_a_name_is_one_step_of_a_path(fake: Fake) -> None:
    assert cli("desktop", "show", "../leases?x").code == 5
    assert fake.asked[0].path == "/v1/desktops/../leases?x"
    assert fake.asked[0].query == {}
