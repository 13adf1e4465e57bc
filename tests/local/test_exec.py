"""Commands inside: their input, output and end."""

# In a test, nobody else waits for the loop.
# ruff: noqa: ASYNC240

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cu_fleet.backends.base import Process
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import BrokenError, InvalidError, UnavailableError
from tests.local.support import WHO, Fleet, in_fleet
from tests.support import until

pytestmark = pytest.mark.real


async def begin(fleet: Fleet, handle: Handle, *argv: str, **more: object) -> Process:
    ability = fleet.backend.abilities.exec
    assert ability is not None
    return await ability.exec(handle, list(argv), **more)  # type: ignore[arg-type]


@WHO
def test_input_output_and_exit_codes(who: str) -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        process = await begin(fleet, handle, "sh", "-c", "cat; echo err >&2; exit 7")
        await process.write("grüße\n".encode())
        await process.close_stdin()
        parts = [part async for part in process.output()]
        assert b"".join(data for n, data in parts if n == 1) == "grüße\n".encode()
        assert b"".join(data for n, data in parts if n == 2) == b"err\n"
        assert await process.wait() == 7
        assert await process.wait() == 7
        for script, code in (("true", 0), ("kill -9 $$", 137), ("kill -15 $$", 143), ("exit 255", 255)):
            assert (await fleet.sh(handle, script))[0] == code
        assert await fleet.run(handle, ["no-such-program"]) == (
            127,
            "cu-fleet: no-such-program: No such file or directory\n",
        )
        assert (await fleet.run(handle, ["/etc/passwd"]))[0] == 126

    in_fleet(who, body)


def test_environment_folder_and_odd_words() -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        process = await begin(
            fleet,
            handle,
            "sh",
            "-c",
            'pwd; echo "$A"; printf %s "$1"',
            "sh",
            "a\nb'c\udcff",
            env={"A": "1=2"},
            cwd="/tmp",
        )
        said = b"".join([data async for _, data in process.output()])
        assert said == b"/tmp\n1=2\na\nb'c\xff"
        assert await process.wait() == 0
        process = await begin(fleet, handle, "true", cwd="/no/such/folder")
        assert b"/no/such/folder" in b"".join([data async for _, data in process.output()])
        assert await process.wait() == 127
        for argv in ([], ["a\0b"], ["x" * (3 << 20)]):
            with pytest.raises(InvalidError):
                await begin(fleet, handle, *argv)
        # the shell's usual way: SIGINT and SIGPIPE are not ignored
        assert (await fleet.sh(handle, "kill -INT $$; echo no"))[0] == 130
        assert "no" not in (await fleet.run(handle, ["bash", "-c", "yes | head -1; echo ${PIPESTATUS[0]}"]))[1]

    in_fleet("user", body)


@WHO
def test_much_output_and_input_at_once(who: str) -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        process = await begin(fleet, handle, "sh", "-c", "tee /dev/stderr")
        size = 5 << 20

        async def feed() -> None:
            for _ in range(size >> 16):
                await process.write(os.urandom(1 << 16))
            await process.close_stdin()

        counts = {1: 0, 2: 0}

        async def eat(output: AsyncIterator[tuple[int, bytes]]) -> None:
            async for n, data in output:
                counts[n] += len(data)

        await asyncio.gather(feed(), eat(process.output()))
        assert counts == {1: size, 2: size}
        assert await process.wait() == 0

    in_fleet(who, body)


@WHO
def test_kill_ends_it_and_what_it_started(who: str) -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        process = await begin(
            fleet, handle, "sh", "-c", "sleep 1001 & setsid sh -c 'sleep 1002; true' & echo on; wait; wait"
        )
        output = process.output()
        assert await anext(output) == (1, b"on\n")

        async def both() -> bool:
            return (await fleet.sh(handle, "pgrep -f '^sleep 100[12]' | wc -l"))[1] == "2\n"

        await until(both)
        await process.kill()
        assert await process.wait() == 137
        assert (await fleet.sh(handle, "pgrep -f '^sleep 100[12]' | wc -l"))[1] == "0\n"

    in_fleet(who, body)


def test_kill_wakes_who_reads_and_who_waits() -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        process = await begin(fleet, handle, "sh", "-c", "setsid -f sleep 1003; exec sleep 1004")

        async def read() -> list[tuple[int, bytes]]:
            return [part async for part in process.output()]

        async with asyncio.TaskGroup() as group:
            reading = group.create_task(read())
            waiting = group.create_task(process.wait())

            async def both() -> bool:
                return (await fleet.sh(handle, "pgrep -f '^sleep 100[34]' | wc -l"))[1] == "2\n"

            await until(both)
            await process.kill()
        assert reading.result() == []
        assert waiting.result() == 137
        assert (await fleet.sh(handle, "pgrep -f '^sleep 100[34]'"))[1].count("\n") == 1, "what left on purpose stays"

    in_fleet("user", body)


def test_forgotten_by_its_caller_it_is_killed() -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        process = await begin(fleet, handle, "sleep", "1005")
        assert (await fleet.sh(handle, "pgrep -f '^sleep 1005'"))[0] == 0
        del process

        async def gone() -> bool:
            return (await fleet.sh(handle, "pgrep -f '^sleep 1005'"))[0] == 1

        await until(gone)

    in_fleet("user", body)


def test_no_descriptors_are_left() -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        await fleet.sh(handle, "true")
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(5):
            await fleet.sh(handle, "echo hello; echo err >&2")
            await (await begin(fleet, handle, "sleep", "9")).kill()
            await fleet.run(handle, ["no-such-program"])
        assert len(list(Path("/proc/self/fd").iterdir())) == before

    in_fleet("user", body)


def test_many_at_once() -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        answers = await asyncio.gather(*(fleet.sh(handle, f"echo {n}; exit {n}") for n in range(40)))
        assert answers == [(n, f"{n}\n") for n in range(40)]

    in_fleet("user", body)


def test_a_desktop_that_ends_takes_its_commands_along() -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        process = await begin(fleet, handle, "sleep", "1006")
        await fleet.backend.stop(handle)
        with pytest.raises(UnavailableError, match="lost"):
            await process.wait()
        with pytest.raises(UnavailableError):
            await begin(fleet, handle, "true")
        await process.kill()

    in_fleet("user", body)


@WHO
def test_the_door_is_not_fooled_by_what_lies_there(who: str) -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        outside = fleet.home / "outside.sock"
        endpoint = await fleet.backend.endpoint(handle)
        assert endpoint is not None
        for name, plant in (
            ("link", f"ln -s {outside} $S"),
            ("file", "echo x > $S"),
            ("fifo", "mkfifo $S"),
            ("folder", "mkdir $S"),
        ):
            await fleet.sh(handle, f"S=/run/cu-fleet/rfb.sock; rm -rf $S; {plant}")
            with pytest.raises(BrokenError, match="not a socket of its own"):
                (await endpoint.connect()).close()
            assert name

    in_fleet(who, body)
