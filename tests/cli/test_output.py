"""What is printed: one document, full-width columns, and nothing that drives a terminal."""

import io
import json

import pytest

from cu_fleet.cli import output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_columns_are_whole_when_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["lease", "reason"], [["ls_0123456789", "x" * 300], ["ls_1", None]], empty="none")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["LEASE", "REASON"]
    assert lines[1].split() == ["ls_0123456789", "x" * 300]
    assert lines[2].split() == ["ls_1", "-"]


def test_an_empty_table_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["lease"], [], empty="No leases. Try: cu-fleet lease acquire")
    assert capsys.readouterr().out == "No leases. Try: cu-fleet lease acquire\n"


@pytest.mark.parametrize("columns", ["20", "40", "200"])
def test_ids_stay_whole_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm-256color")
    output.table(["lease", "desktop", "reason"], [["ls_0123456789", "dk_0123456789", "a long reason " * 9]], empty="")
    assert "ls_0123456789" in screen.getvalue()
    assert "dk_0123456789" in screen.getvalue()


@pytest.mark.parametrize("no_color", [None, "1"])
def test_colour_only_where_wanted(monkeypatch: pytest.MonkeyPatch, no_color: str | None) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    output.table(["lease", "state"], [["ls_0123456789", "active"]], empty="")
    assert ("\x1b[32m" in screen.getvalue()) is (no_color is None)


@pytest.mark.parametrize("hostile", ["\x1b]0;owned\x07", "\x1b[2J", "a\rb", "a\x9bb", "a\u202eb", "a\nb"])
def test_nothing_that_an_agent_says_drives_the_terminal(capsys: pytest.CaptureFixture[str], hostile: str) -> None:
    output.table(["reason"], [[hostile]], empty="")
    output.facts({"reason": hostile})
    output.complain(hostile.replace("\n", " "), hostile)
    shown = capsys.readouterr()
    text = (shown.out + shown.err).replace("\n", "")
    assert text.isprintable()


def test_a_document_is_one_and_keeps_every_letter(capsys: pytest.CaptureFixture[str]) -> None:
    output.document({"reason": "größer \x1b[2J"})
    text = capsys.readouterr().out
    assert json.loads(text) == {"reason": "größer \x1b[2J"}
    assert "größer" in text
    assert "\x1b" not in text


def test_a_live_line_is_rewritten_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, rewritten in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr("sys.stderr", stream)
        line = output.Live()
        for text in ("number 2", "number 2", "number 1"):
            line.show(text)
        line.clear()
        assert ("\r" in stream.getvalue()) is rewritten
        assert stream.getvalue().count("number 2") == 1


@pytest.mark.parametrize(("number", "text"), [(0, "0 B"), (999, "999 B"), (3400, "3.4 kB"), (2.5e9, "2.5 GB")])
def test_sizes(number: float, text: str) -> None:
    assert output.size(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(None, ""), (0.4, "0s"), (845, "14m 05s"), (7500, "2h 05m")])
def test_spans(seconds: float | None, text: str) -> None:
    assert output.span(seconds) == text
