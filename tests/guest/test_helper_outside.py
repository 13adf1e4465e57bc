"""The controller's side of the helper, against a process that says whatever a hostile desktop may say."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from cu_fleet.controller.helper import Helper
from cu_fleet.model.errors import (
    BrokenError,
    ConflictError,
    InvalidError,
    NotFoundError,
    TooLongError,
    UnavailableError,
    UnsupportedError,
)
from tests.support import run, until

Answer = Callable[["Scripted", dict[str, Any]], Awaitable[None]]


class Scripted:
    """A process whose answers the test writes."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._said: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()
        self.heard: list[dict[str, Any]] = []
        self.killed = self.closed = False

    async def write(self, data: bytes) -> None:
        if self.killed:
            raise BrokenPipeError
        for line in data.splitlines():
            self.heard.append(json.loads(line))
            await self._answer(self, self.heard[-1])

    def say(self, data: bytes, stream: int = 1) -> None:
        self._said.put_nowait((stream, data))

    def end(self) -> None:
        self._said.put_nowait(None)

    async def close_stdin(self) -> None:
        self.closed = True
        self.end()

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        while chunk := await self._said.get():
            yield chunk

    async def wait(self) -> int:
        return 0

    async def kill(self) -> None:
        self.killed = True
        self.end()


def reply(request: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"id": request["id"], **fields}).encode() + b"\n"


async def ok(process: Scripted, request: dict[str, Any]) -> None:
    process.say(reply(request, ok={"echo": request.get("value")}))


async def mute(process: Scripted, request: dict[str, Any]) -> None:
    pass


def with_helper(answer: Answer, body: Callable[[Helper, Scripted], Awaitable[None]]) -> None:
    async def work() -> None:
        process = Scripted(answer)
        helper = Helper(process, "dk_1")
        try:
            await body(helper, process)
        finally:
            await helper.close()
        assert not helper.alive
        assert [t for t in asyncio.all_tasks() if t is not asyncio.current_task()] == []

    run(work())


def test_each_call_gets_its_own_answer_in_whatever_order_and_pieces() -> None:
    waiting: list[dict[str, Any]] = []

    async def backwards(process: Scripted, request: dict[str, Any]) -> None:
        waiting.append(request)
        if len(waiting) == 20:
            data = b"".join(reply(r, ok={"echo": r["value"]}) for r in reversed(waiting))
            for at in range(0, len(data), 7):
                process.say(data[at : at + 7])

    async def body(helper: Helper, process: Scripted) -> None:
        answers = await asyncio.gather(*(helper.call("x", value=n) for n in range(20)))
        assert [a["echo"] for a in answers] == list(range(20))
        assert helper.alive

    with_helper(backwards, body)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("not_found", NotFoundError),
        ("invalid", InvalidError),
        ("not_focused", ConflictError),
        ("unknown", UnsupportedError),
        ("anything", UnavailableError),
    ],
)
def test_refusals_arrive_in_words(code: str, kind: type[Exception]) -> None:
    async def refuse(process: Scripted, request: dict[str, Any]) -> None:
        process.say(reply(request, error={"code": code, "text": "because"}))

    async def body(helper: Helper, process: Scripted) -> None:
        with pytest.raises(kind, match="because"):
            await helper.call("x")
        assert helper.alive

    with_helper(refuse, body)


HOSTILE = {
    "no JSON": b"hello\n",
    "bytes": b"\xff\xfe\n",
    "no object": b"[1]\n",
    "nested too deep": b"[" * 200_000 + b"]" * 200_000 + b"\n",
    "a number of a million digits": b'{"id": 1' + b"0" * 1_000_000 + b"}\n",
    "not a number": b'{"id": 1, "ok": {"x": NaN}}\n',
    "endless": b'{"id": 1, "ok": {"x": -1e999}}\n',
    "half a character": b'{"id": 1, "ok": {"text": "\\ud800"}}\n',
    "neither": b'{"id": 1}\n',
    "wrong kinds": b'{"id": 1, "ok": 5, "error": "x"}\n',
    "a complaint": b'{"id": null, "error": {"code": "invalid"}}\n',
    "an endless line": b"x" * 1_000_000,
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_whatever_strange_it_says_ends_it(data: bytes) -> None:
    async def strange(process: Scripted, request: dict[str, Any]) -> None:
        for _ in range(1 if data.endswith(b"\n") else 10):
            process.say(data)

    async def body(helper: Helper, process: Scripted) -> None:
        with pytest.raises(BrokenError, match="helper of desktop dk_1 says"):
            await helper.call("x")
        assert not helper.alive
        assert process.killed
        with pytest.raises(BrokenError):
            await helper.call("x")

    with_helper(strange, body)


def test_answers_to_nothing_are_passed_over() -> None:
    async def chatty(process: Scripted, request: dict[str, Any]) -> None:
        for number in (99, -1, "1", True, 1.5, None):
            process.say(json.dumps({"id": number, "ok": {"echo": "wrong"}}).encode() + b"\n")
        await ok(process, request)
        await ok(process, request)

    async def body(helper: Helper, process: Scripted) -> None:
        await helper.call("first")
        assert await helper.call("x", value="right") == {"echo": "right"}

    with_helper(chatty, body)


def test_silence_has_a_limit_and_late_answers_do_no_harm() -> None:
    async def body(helper: Helper, process: Scripted) -> None:
        with pytest.raises(TooLongError, match="did not answer 'x' within"):
            await helper.call("x", timeout=0.01)
        process.say(reply(process.heard[0], ok={"echo": "late"}))
        asked = asyncio.create_task(helper.call("y"))
        await until(lambda: len(process.heard) == 2, every=0)
        process.say(reply(process.heard[1], ok={"echo": "in time"}))
        assert await asked == {"echo": "in time"}

    with_helper(mute, body)


def test_its_death_is_told_to_all_with_its_last_words() -> None:
    async def body(helper: Helper, process: Scripted) -> None:
        calls = [asyncio.create_task(helper.call("x")) for _ in range(5)]
        await until(lambda: len(process.heard) == 5, every=0)
        process.say(b"Traceback: it was murdered\n", stream=2)
        process.end()
        for asked in calls:
            with pytest.raises(UnavailableError, match="murdered"):
                await asked
        assert not helper.alive
        with pytest.raises(UnavailableError):
            await helper.call("x")

    with_helper(mute, body)


def test_what_it_says_on_the_side_takes_no_memory() -> None:
    async def body(helper: Helper, process: Scripted) -> None:
        for _ in range(500):
            process.say(b"x" * 65536, stream=2)
        process.end()
        with pytest.raises(UnavailableError) as caught:
            await helper.call("x")
        assert len(str(caught.value)) < 1000

    with_helper(mute, body)


def test_at_most_so_many_calls_are_under_way() -> None:
    async def body(helper: Helper, process: Scripted) -> None:
        calls = [asyncio.create_task(helper.call("x", timeout=30)) for _ in range(100)]
        for _ in range(300):
            await asyncio.sleep(0)
        assert len(process.heard) == 32
        for asked in calls:
            asked.cancel()
        await asyncio.wait(calls)
        assert helper.alive

    with_helper(mute, body)


def test_closing_it_lets_it_end_by_itself() -> None:
    async def body(helper: Helper, process: Scripted) -> None:
        assert await helper.call("x", value=1) == {"echo": 1}
        await helper.close()
        assert process.closed
        with pytest.raises(UnavailableError, match="closed"):
            await helper.call("x")

    with_helper(ok, body)
