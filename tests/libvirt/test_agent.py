"""A guest agent that does as it is told, here and now, and those that lie."""

import base64
import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from cu_fleet.backends.libvirt import agent
from cu_fleet.backends.libvirt.agent import NEEDED, Agent
from cu_fleet.backends.libvirt.agent_exec import Command
from cu_fleet.backends.libvirt.agent_files import AgentFiles, argv
from cu_fleet.backends.libvirt.hypervisor import Hypervisor
from cu_fleet.backends.libvirt.layout import Desk
from cu_fleet.model.errors import BrokenError, ConflictError, FleetError, InvalidError, NotFoundError, UnavailableError
from tests.support import run

DESK = Desk("dk_1", Path("/nowhere"), "name", "uuid")


class Here(Hypervisor):
    """Nobody is asked anything."""

    def now(self, work: Callable[[Any], Any]) -> Any:
        return work(None)


class Guest:
    """What the agent does, done by this machine's own programs, in a home that is a test's."""

    def __init__(self, home: Path) -> None:
        self.home, self.files, self.running = home, dict[int, BinaryIO](), dict[int, subprocess.Popen[bytes]]()

    def answer(self, words: str) -> str:
        asked = json.loads(words)
        work = getattr(self, asked["execute"].removeprefix("guest-").replace("-", "_"))
        try:
            return json.dumps({"return": work(**asked["arguments"])})
        except OSError as e:
            raise UnavailableError(str(e), code="agent_refused") from None

    def file_open(self, path: str, mode: str) -> int:
        file = Path(path).open(mode, buffering=0)  # noqa: SIM115  # closed when that is asked
        self.files[file.fileno()] = file
        return file.fileno()

    def file_close(self, handle: int) -> dict[str, int]:
        self.files.pop(handle).close()
        return {}

    def file_read(self, handle: int, count: int) -> dict[str, object]:
        data = self.files[handle].read(count)
        return {"count": len(data), "buf-b64": base64.b64encode(data).decode(), "eof": len(data) < count}

    def file_write(self, handle: int, **words: str) -> dict[str, int]:
        return {"count": self.files[handle].write(base64.b64decode(words["buf-b64"]))}

    def exec(self, path: str, arg: list[str]) -> dict[str, int]:
        here = [one.replace("~root", str(self.home)) for one in arg]
        process = subprocess.Popen([path, *here], stdin=subprocess.DEVNULL)
        self.running[process.pid] = process
        return {"pid": process.pid}

    def exec_status(self, pid: int) -> dict[str, object]:
        if (code := self.running[pid].poll()) is None:
            return {"exited": False}
        del self.running[pid]
        return {"exited": True, "exitcode": code} if code >= 0 else {"exited": True, "signal": -code}


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guest:
    one = Guest(tmp_path)
    monkeypatch.setattr(agent, "_answer", lambda _api, _desk, words: one.answer(words))
    return one


def command(*words: str, **more: Any) -> Command:
    return Command(Agent(Here(), DESK), words, **more)


async def heard(one: Command, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    said = {1: b"", 2: b""}
    if stdin:
        await one.write(stdin)
        await one.close_stdin()
    async for number, data in one.output():
        said[number] += data
    return await one.wait(), said[1], said[2]


def test_commands_say_what_they_said_and_leave_nothing(guest: Guest) -> None:
    async def body() -> None:
        script = 'echo "$PWD $A"; cat; echo no >&2; exit 3'
        one = command("sh", "-c", script, env={"A": "b  c"})
        data = os.urandom(100_000)
        assert await heard(one, data) == (3, f"{guest.home} b  c\n".encode() + data, b"no\n")
        assert (await heard(command("ls", one._folder)))[0] == 2  # noqa: SLF001  # nobody else can know it
        assert (await heard(command("pwd", cwd="/usr")))[1] == b"/usr\n"
        assert (await heard(command("no-such-program")))[0] == 127
        assert (await heard(command("sh", "-c", "kill -9 $$")))[0] == 137
        assert (await heard(command("true", cwd="/none")))[0] == 126

    run(body())
    assert guest.files == {}


def test_a_command_is_killed_with_what_it_began(guest: Guest) -> None:
    async def body() -> None:
        one = command("sh", "-c", "sleep 100000 & echo $!; wait")
        child = int((await anext(one.output()))[1])
        await one.kill()
        assert await one.wait() == 137
        assert (await heard(command("grep", "^State:.[^ZX]", f"/proc/{child}/status")))[0] != 0
        never = command("touch", str(guest.home / "touched"))
        await never.kill()
        assert await never.wait() == 137
        assert [data async for data in never.output()] == []
        assert not (guest.home / "touched").exists()

    run(body())


async def _chunks(*data: bytes) -> AsyncIterator[bytes]:
    for one in data:
        yield one


async def _broken() -> AsyncIterator[bytes]:
    yield b"half"
    raise ConnectionResetError


def test_files_are_whole_and_paths_lead_nowhere_else(guest: Guest) -> None:
    async def begin(handle: object, wanted: list[str]) -> Command:
        return command(*argv(wanted), fed=wanted[0] == "put")

    files, shared = AgentFiles(begin), guest.home / "Shared"

    async def got(path: str) -> bytes:
        return b"".join([chunk async for chunk in files.get({}, path)])

    async def body() -> None:
        data = os.urandom(200_000)
        assert await files.put({}, "a/b ü/*", _chunks(data[:7], data[7:]), mode=0o640) == len(data)
        assert await got("a/b ü/*") == data
        assert (shared / "a/b ü/*").stat().st_mode & 0o777 == 0o640
        with pytest.raises(ConnectionResetError):
            await files.put({}, "a/b ü/*", _broken())
        assert [(i.path, i.kind, i.size) for i in await files.listing({}, "a/b ü")] == [("a/b ü/*", "file", len(data))]
        assert [i.path for i in await files.listing({}, "a/b ü/*")] == ["a/b ü/*"]
        (shared / "root").symlink_to("/")
        (shared / "link").symlink_to("/etc/passwd")
        (shared / "-x\ny").touch()
        (shared / ".hidden").touch()
        os.mkfifo(shared / "pipe")
        found = {i.path: i.kind for i in await files.listing({})}
        assert found == {
            "a": "dir",
            "root": "link",
            "link": "link",
            "-x\ny": "file",
            ".hidden": "file",
            "pipe": "other",
        }
        for path, kind in {"root/etc/passwd": InvalidError, "link": ConflictError, "pipe": ConflictError}.items():
            with pytest.raises(kind):
                await got(path)
            with pytest.raises(kind):
                await files.put({}, path, _chunks(b"x"))
        for work in (got("none"), files.listing({}, "none"), got("none/x")):
            with pytest.raises(NotFoundError):
                await work
        with pytest.raises(InvalidError):
            await files.remove({}, "root/etc")
        for path in ("none", "none/x", "-x\ny", ""):
            await files.remove({}, path)
        assert await files.listing({}) == []

    run(body())
    assert Path("/etc/passwd").exists()


LIES: list[object] = [
    None,
    [],
    "x",
    {"return": 7},
    {"exited": "yes"},
    {"pid": "x"},
    {"count": None, "buf-b64": "#", "eof": 1},
    -1,
]


@pytest.mark.parametrize("lie", LIES)
def test_nonsense_is_said_to_be(lie: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "_answer", lambda *_: json.dumps({"return": lie}))
    one = Agent(Here(), DESK)
    for work in (one.come("image"), one.run(["true"]), one.read(1), one.write(1, b"data")):
        with pytest.raises(FleetError) as said:
            run(work)
        assert said.value.code == "agent_nonsense"


def test_an_agent_that_is_not_there_or_may_not_do_what_is_needed_is_said_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def away(*_: object) -> str:
        raise UnavailableError("not connected", code="no_answer")

    monkeypatch.setattr(agent, "_answer", away)
    monkeypatch.setattr(agent, "_SECONDS_TO_COME", 0.0)
    with pytest.raises(UnavailableError, match="no guest agent answers in a machine of image") as said:
        run(Agent(Here(), DESK).come("image"))
    assert "install qemu-guest-agent" in (said.value.remedy or "")
    may = [{"name": f"guest-{name}", "enabled": name != "exec"} for name in NEEDED]
    monkeypatch.setattr(agent, "_answer", lambda *_: json.dumps({"return": {"supported_commands": may}}))
    with pytest.raises(FleetError, match="does not do guest-exec;"):
        run(Agent(Here(), DESK).come("image"))


def test_what_does_not_know_its_secret_is_not_taken(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    place = str(guest.home / "secret")
    monkeypatch.setattr(agent, "_PLACES", (str(guest.home / "no/where"), place))
    one, clocks = Agent(Here(), DESK), list[int]()
    monkeypatch.setattr(guest, "set_time", lambda time: clocks.append(time) or {}, raising=False)
    run(one.leave("first"))
    run(one.become("first", "second"))
    assert Path(place).read_text() == "second"
    assert len(clocks) == 1
    for work in (partial(one.become, "first", "third"), partial(one.become, "", "third")):
        with pytest.raises(BrokenError) as said:
            run(work())
        assert said.value.code == "wrong_state"
    assert len(clocks) == 1
    Path(place).unlink()
    with pytest.raises(BrokenError):
        run(one.become("second", "third"))
