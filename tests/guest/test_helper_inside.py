"""The guest helper against a real X server, with the distribution's own Python and real programs around it."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from cu_fleet.controller.helper import SOURCE, Helper
from cu_fleet.model.errors import ConflictError, FleetError, InvalidError, NotFoundError, UnavailableError
from tests.guest.support import LocalProcess, XServer, x_server
from tests.rfb.xvnc import Client
from tests.support import run, until

pytestmark = pytest.mark.real
SINK = str(files("cu_fleet.testing.sinks").joinpath("x.py"))


@pytest.fixture(scope="module")
def x() -> Iterator[XServer]:
    yield from x_server()


@contextlib.asynccontextmanager
async def helper_of(x: XServer) -> AsyncIterator[Helper]:
    helper = Helper(await LocalProcess.start(["/usr/bin/python3", "-I", "-c", SOURCE], x.env), "dk_test")
    try:
        yield helper
    finally:
        await helper.close()


async def window_of(helper: Helper, title: str) -> dict[str, Any]:
    async def find() -> Any:
        windows: Any = (await helper.call("windows"))["windows"]
        return next((w for w in windows if w["title"] == title), None)

    found: dict[str, Any] = await until(find)
    return found


def paste(x: XServer, *options: str) -> bytes:
    return subprocess.run(["xclip", "-o", *options], env=x.env, capture_output=True, timeout=20, check=True).stdout


def copy(x: XServer, text: bytes, *options: str) -> None:
    x.run("xclip", "-i", "-loops", "0", "-quiet", *options, stdin=text)


def test_it_can_be_given_as_one_argument() -> None:
    assert len(SOURCE.encode()) < 100_000


def test_it_says_what_works(x: XServer) -> None:
    async def body() -> None:
        async with helper_of(x) as helper:
            hello = await until(lambda: ready(helper))
            assert hello["version"] == 1
            assert hello["manager"] == "Openbox"
            for name in ("windows", "focus", "launch", "clipboard_get", "clipboard_set", "sync"):
                assert name in hello["works"]
            assert await helper.call("sync") == {}

    async def ready(helper: Helper) -> Any:
        hello = await helper.call("hello")
        return hello if hello["manager"] else None

    run(body())


def test_windows_are_told_with_place_and_focus_is_given(x: XServer) -> None:
    async def body() -> None:
        async with helper_of(x) as helper:
            one = await helper.call("launch", argv=["xterm", "-T", "erste – 窓", "-geometry", "40x10+50+60"])
            first = await window_of(helper, "erste – 窓")
            await helper.call("launch", argv=["xterm", "-T", "second", "-geometry", "40x10+300+200"])
            second = await window_of(helper, "second")
            assert first["class"] == "XTerm"
            assert first["pid"] == one["pid"]
            assert (first["width"], first["height"]) > (200, 100)
            assert (first["x"], first["y"]) >= (50, 60)
            assert second["x"] > first["x"]
            for wanted in (first, second, first):
                assert await helper.call("focus", window=wanted["id"]) == {"window": wanted["id"]}
                windows: Any = (await helper.call("windows"))["windows"]
                assert [w["title"] for w in windows if w["focused"]] == [wanted["title"]]
            with pytest.raises(NotFoundError, match="no window 12345"):
                await helper.call("focus", window=12345)
            os.kill(int(str(one["pid"])), signal.SIGTERM)
            os.kill(second["pid"], signal.SIGTERM)

    run(body())


def test_a_minimized_window_comes_back_by_focus(x: XServer) -> None:
    async def body() -> None:
        async with helper_of(x) as helper:
            x.run("xterm", "-iconic", "-T", "small")
            minimized = True

            async def as_expected() -> bool:  # the manager says it a moment after it says what is there, or active
                return bool((await window_of(helper, "small"))["minimized"]) is minimized

            await until(as_expected)
            minimized = False
            await helper.call("focus", window=(await window_of(helper, "small"))["id"])
            await until(as_expected)

    run(body())


def test_what_it_launches_outlives_it_and_failures_are_said(x: XServer, tmp_path: Path) -> None:
    async def body() -> int:
        async with helper_of(x) as helper:
            launched = await helper.call("launch", argv=["sleep", "1000"], cwd=str(tmp_path), env={"A": "ü"})
            pid = int(str(launched["pid"]))
            with pytest.raises(NotFoundError, match="no such program"):
                await helper.call("launch", argv=["no-such-program"])
            with pytest.raises(UnavailableError, match="exit code 3"):
                await helper.call("launch", argv=["sh", "-c", "exit 3"])
            with pytest.raises(UnavailableError, match="could not be started"):
                await helper.call("launch", argv=["/etc/passwd"])
            with pytest.raises(InvalidError):
                await helper.call("launch", argv="xterm")
            assert await helper.call("launch", argv=["true"])
            return pid

    pid = run(body())
    try:
        assert Path(f"/proc/{pid}/cwd").readlink() == tmp_path
        assert "A=ü".encode() in Path(f"/proc/{pid}/environ").read_bytes()
        assert os.getsid(pid) == pid
        assert [path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir()] == [Path("/dev/null")] * 3
    finally:
        os.kill(pid, signal.SIGKILL)


TEXTS = ["plain", "Grüße, 世界 🎉", "two\nlines\ttab", "x" * 300_000 + "ü", "🎉" * 262_144]


@pytest.mark.parametrize("text", TEXTS, ids=["plain", "unicode", "lines", "large", "1 MiB"])
def test_text_set_is_what_other_programs_get(x: XServer, text: str) -> None:
    async def body() -> None:
        async with helper_of(x) as helper:
            await helper.call("clipboard_set", text=text, selections=["clipboard", "primary"])
            for where in ("clipboard", "primary"):
                for target in ("UTF8_STRING", "text/plain;charset=utf-8"):
                    got = await asyncio.to_thread(paste, x, "-selection", where, "-target", target)
                    assert got == text.encode()
            assert await helper.call("clipboard_get") == {"text": text}

    run(body(), timeout=60)


@pytest.mark.parametrize("text", ["世", "x" * 300_000 + "ü"], ids=["small", "large"])
def test_it_says_when_a_program_has_taken_the_text(x: XServer, text: str) -> None:
    async def body() -> None:
        async with helper_of(x) as helper:
            await helper.call("clipboard_set", text=text)
            assert await helper.call("clipboard_taken", within=0.05) == {"taken": False}
            await asyncio.to_thread(paste, x, "-selection", "clipboard", "-target", "TARGETS")
            waiting = asyncio.create_task(helper.call("clipboard_taken", within=10, timeout=15), name="taken")
            assert await helper.call("clipboard_taken", within=0) == {"taken": False}
            assert not waiting.done()
            assert await asyncio.to_thread(paste, x, "-selection", "clipboard") == text.encode()
            assert await waiting == {"taken": True}
            await helper.call("clipboard_set", text="next")
            assert await helper.call("clipboard_taken", within=0) == {"taken": False}

    run(body(), timeout=60)


def test_targets_and_latin_1_are_offered(x: XServer) -> None:
    async def body() -> None:
        async with helper_of(x) as helper:
            await helper.call("clipboard_set", text="é世")
            targets = await asyncio.to_thread(paste, x, "-selection", "clipboard", "-target", "TARGETS")
            assert {b"UTF8_STRING", b"STRING", b"TARGETS"} <= set(targets.split())
            latin = await asyncio.to_thread(paste, x, "-selection", "clipboard", "-target", "STRING")
            assert latin == b"\xe9?"

    run(body())


@pytest.mark.parametrize("text", TEXTS, ids=["plain", "unicode", "lines", "large", "1 MiB"])
def test_text_of_other_programs_is_got(x: XServer, text: str) -> None:
    async def body() -> None:
        async with helper_of(x) as helper:
            for where in ("clipboard", "primary"):
                copy(x, text.encode(), "-selection", where)

                async def there(where: str = where) -> bool:
                    return await helper.call("clipboard_get", selection=where) == {"text": text}

                await until(there)

    run(body(), timeout=60)


def test_nobody_owns_it_then_it_is_empty(x: XServer) -> None:
    async def body() -> None:
        async with helper_of(x) as helper:
            await helper.call("clipboard_set", text="mine")
        async with helper_of(x) as helper:
            assert await helper.call("clipboard_get") == {"text": ""}

    run(body())


def test_too_much_is_refused_both_ways(x: XServer) -> None:
    async def body() -> None:
        async with helper_of(x) as helper:
            with pytest.raises(InvalidError, match="at most 1048576 bytes"):
                await helper.call("clipboard_set", text="x" * (1 << 20) + "x")
            for size in (200_000, 3 << 20):  # in one part, and in many
                copy(x, b"y" * size, "-selection", "clipboard")

                async def refused() -> bool:
                    try:
                        await helper.call("clipboard_get", limit=100_000)
                    except InvalidError as e:
                        return "more than 100000" in str(e)
                    return False

                await until(refused)
            assert await helper.call("sync") == {}

    run(body(), timeout=60)


def test_an_owner_that_does_not_answer_holds_up_nobody(x: XServer) -> None:
    async def body() -> None:
        async with helper_of(x) as helper:
            copy(x, b"stuck", "-selection", "clipboard")

            async def there() -> bool:
                return await helper.call("clipboard_get") == {"text": "stuck"}

            await until(there)
            os.kill(x.started[-1].pid, signal.SIGSTOP)
            asked = asyncio.create_task(helper.call("clipboard_get", timeout=10))
            for _ in range(20):
                assert await helper.call("sync", timeout=2) == {}
            assert not asked.done()
            with pytest.raises(UnavailableError, match="did not answer"):
                await asked
            os.kill(x.started[-1].pid, signal.SIGCONT)
            await until(there)

    run(body())


def test_many_calls_at_once_get_their_own_answers(x: XServer) -> None:
    async def body() -> None:
        async with helper_of(x) as helper:
            calls = [helper.call("launch", argv=["sh", "-c", f"exit {n}"]) for n in range(1, 30)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert [f"exit code {n}" in str(a) for n, a in enumerate(answers, 1)] == [True] * 29

    run(body())


GRAB = """
import sys, time
from Xlib.display import Display
d = Display(); d.grab_server(); d.sync(); print("held", flush=True); sys.stdin.read()
"""


def test_a_client_that_grabs_the_server_does_not_hang_it_for_ever(x: XServer) -> None:
    async def body() -> None:
        async with helper_of(x) as helper:
            await helper.call("sync")
            grabber = await LocalProcess.start(["/usr/bin/python3", "-I", "-c", GRAB], x.env)
            async for _ in grabber.output():
                break
            with pytest.raises(UnavailableError, match="has not answered"):
                await helper.call("windows", timeout=20)
            await grabber.kill()
            assert (await helper.call("hello", timeout=10))["manager"] == "Openbox"

    run(body())


def test_wrong_requests_are_refused_and_it_goes_on(x: XServer) -> None:
    async def body() -> None:
        async with helper_of(x) as helper:
            for do, args in (
                ("focus", {"window": "1"}),
                ("focus", {}),
                ("clipboard_get", {"selection": "secondary"}),
                ("clipboard_get", {"limit": 10**9}),
                ("clipboard_set", {"text": 5}),
                ("launch", {"argv": []}),
                ("launch", {"argv": ["a\0b"]}),
                ("nonsense", {}),
                ("", {}),
            ):
                with pytest.raises(FleetError):
                    await helper.call(do, **args)
            assert await helper.call("sync") == {}

    run(body())


def test_it_ends_at_the_end_of_its_input_and_with_its_screen(x: XServer) -> None:
    async def body() -> None:
        process = await LocalProcess.start(["/usr/bin/python3", "-I", "-c", SOURCE], x.env)
        await process.write(b'{"id": 1, "do": "sync"}\n')
        await process.close_stdin()
        said = b"".join([data async for _, data in process.output()])
        assert json.loads(said) == {"id": 1, "ok": {}}
        assert await process.wait() == 0

    run(body())


def test_without_a_window_manager_and_without_a_screen() -> None:
    async def body(bare: XServer) -> None:
        async with helper_of(bare) as helper:
            assert (await helper.call("hello"))["manager"] is None
            bare.run("xterm", "-T", "alone")
            window = await window_of(helper, "alone")
            await helper.call("focus", window=window["id"])
            assert (await window_of(helper, "alone"))["focused"]
            bare.server.kill()
            bare.server.wait()
            with pytest.raises((UnavailableError, ConflictError)):
                await helper.call("windows")
            hello = await helper.call("hello")
            assert "windows" not in str(hello["works"])
            assert "no X server" in str(hello["why"])

    for bare in x_server(manager=False):
        run(body(bare))


def test_the_window_manager_is_asked_once_for_each_press(x: XServer) -> None:
    async def body() -> None:
        async with helper_of(x) as helper:
            assert await helper.call("heard", presses=3) == {"heard": True}
            for wrong in (0, 17, "1", None):
                with pytest.raises(InvalidError, match="presses"):
                    await helper.call("heard", presses=wrong)

    async def alone(bare: XServer) -> None:
        async with helper_of(bare) as helper:
            assert await helper.call("heard", presses=1) == {"heard": True}, "nobody holds a press back"

    run(body())
    for bare in x_server(manager=False):
        run(alone(bare))


def test_buttons_that_vnc_lacks_are_pressed_and_lifted_when_the_helper_ends(x: XServer) -> None:
    async def body() -> None:
        with Client(x.display, SINK) as sink:
            async with helper_of(x) as helper:
                await helper.call("button", name="back", down=True, x=30, y=40)
                await helper.call("button", name="forward", down=True, x=50, y=60)
                await helper.call("button", name="back", down=False, x=50, y=60)
                assert buttons(sink) == [["button", 8, 30, 40], ["button", 9, 50, 60], ["buttonup", 8, 50, 60]]
                for wrong in ({"name": "left"}, {"name": 8}, {"name": "back", "x": "1"}):
                    with pytest.raises(InvalidError):
                        await helper.call("button", **{"down": True, "x": 1, "y": 1, **wrong})
            assert buttons(sink) == [["buttonup", 9, 50, 60]], "it ended with this one down"
            async with helper_of(x) as helper:
                await helper.call("button", name="back", down=True, x=1, y=1)
                process: Any = helper._process  # noqa: SLF001
                await process.kill()
            async with helper_of(x) as helper:
                await helper.call("lift")
            assert buttons(sink) == [["button", 8, 1, 1], ["buttonup", 8, 1, 1]], "it was killed"

    run(body())


def buttons(sink: Client) -> list[list[Any]]:
    return [[event[0], event[1], *event[3:5]] for event in sink.ask("events") if event[0].startswith("button")]
