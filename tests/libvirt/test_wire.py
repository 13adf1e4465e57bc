"""The wire from end to end: the host's side against the program that runs inside, with a plain door behind it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from cu_fleet.backends.base import Place
from cu_fleet.backends.libvirt import LibvirtBackend
from cu_fleet.backends.libvirt import command as commands
from cu_fleet.backends.libvirt import wire as wires
from cu_fleet.backends.libvirt.command import Command
from cu_fleet.backends.libvirt.files import Files
from cu_fleet.backends.libvirt.wire import wire
from cu_fleet.guest import port
from cu_fleet.guest.frames import frame
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import FleetError, InvalidError, NotFoundError, UnavailableError, UnsupportedError
from cu_fleet.testing.backend_base import chunks
from tests.support import run, until

# What QEMU and the machine's init do: one connection at a time is the port, and each at the door is a command.
GUEST = """
import os, socket, subprocess, sys, threading
from cu_fleet.guest import channel, init, port
listener, channel.RUN = int(sys.argv[1]), sys.argv[2]

def serve(link):
    data, fds, _, _ = socket.recv_fds(link, 4, 3)
    size, body = int.from_bytes(data, "big"), b""
    while len(body) < size:
        body += link.recv(size - len(body))
    (_, cwd), env, argv = init.unpack(body)
    child = subprocess.Popen(argv, stdin=fds[0], stdout=fds[1], stderr=fds[2], cwd=cwd or None,
        env={**os.environ, **dict(word.split("=", 1) for word in env)})
    for fd in fds: os.close(fd)
    link.sendall(b"pid %d\\n" % child.pid)
    threading.Thread(target=lambda: (link.recv(1), child.kill()), daemon=True).start()
    code = child.wait()
    link.sendall(b"exit %d\\n" % (code if code >= 0 else 128 - code))
    link.shutdown(socket.SHUT_RDWR)

door = socket.socket(socket.AF_UNIX)
door.bind(sys.argv[2] + "/exec.sock"); door.listen(64)
def accept():
    while True: threading.Thread(target=serve, args=(door.accept()[0],), daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
outside = socket.socket(fileno=listener)
one = port.Port({"uid": os.geteuid(), "boot": "bt_1", "home": sys.argv[2]}, -1)
port.MARKS = sys.argv[2]
script = "echo $$ >$0/standing; echo ready; exec cat"
one.stand_by("this", init.pack([["run", ""], [], ["sh", "-c", script, sys.argv[2]]]).decode())
def left_alone():
    one.reset(); link.close(); raise EOFError
one.left_alone = left_alone
while True:
    link = outside.accept()[0]; link.setblocking(False); one.fd, one.minded = link.fileno(), 0
    try: one.serve()
    except (EOFError, OSError): one.reset()
"""


@asynccontextmanager
async def guest(folder: Path) -> AsyncIterator[Path]:
    path = folder / "port"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        argv = [sys.executable, "-c", GUEST, str(listener.fileno()), str(folder)]
        process = subprocess.Popen(argv, pass_fds=[listener.fileno()])  # noqa: ASYNC220  # at once
    try:
        yield path
    finally:
        process.kill()
        process.wait()


def files_of(path: Path) -> Files:
    async def glance(_: Handle) -> object:
        async with wire(path, "dk") as one:
            return (await one.ask("s"))["slot"]

    return Files(lambda _, argv: commands.on_files(path, "dk", argv), glance)


def inside(folder: Path, body: Callable[[Path], Awaitable[None]]) -> None:
    async def with_guest() -> None:
        async with guest(folder) as path:
            await body(path)
            await until(lambda: not wires.Wires.here().open, 5)  # whoever has done speaking lets go

    run(with_guest())


async def ended(command: Command, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    async def feed() -> None:
        await command.write(stdin)
        await command.close_stdin()

    feeding = asyncio.create_task(feed(), name="feed")
    said = {1: b"", 2: b""}
    async for number, data in command.output():
        said[number] += data
    await feeding
    return await command.wait(), said[1], said[2]


def test_commands_have_streams_environment_and_exit_codes(tmp_path: Path) -> None:
    async def body(path: Path) -> None:
        script = 'echo "$A|$PWD"; echo wrong >&2; exit 3'
        assert await ended(await commands.run(path, "dk", ["sh", "-c", script], {"A": "ü b"}, "/usr")) == (
            3, "ü b|/usr\n".encode(), b"wrong\n",
        )  # fmt: skip
        with pytest.raises(InvalidError, match="NUL"):
            await commands.run(path, "dk", ["a\0b"], None, None)

    inside(tmp_path, body)


def test_what_is_larger_than_any_window_goes_in_and_comes_out_whole(tmp_path: Path) -> None:
    async def body(path: Path) -> None:
        data = os.urandom(3 << 20)
        assert await ended(await commands.run(path, "dk", ["cat"], None, None), data) == (0, data, b"")

    inside(tmp_path, body)


def test_one_that_nobody_reads_does_not_keep_the_others(tmp_path: Path) -> None:
    async def body(path: Path) -> None:
        endless = await commands.run(path, "dk", ["yes"], None, None)
        others = [await commands.run(path, "dk", ["echo", str(n)], None, None) for n in range(5)]
        results = await asyncio.gather(*(ended(other) for other in others))
        assert [out for _, out, _ in results] == [b"%d\n" % n for n in range(5)]
        await endless.kill()
        assert await endless.wait() == 137

    inside(tmp_path, body)


def test_files_go_in_and_out_whole_and_over_no_link(tmp_path: Path) -> None:
    async def body(path: Path) -> None:
        slot, handle = tmp_path / "Shared", {"desktop": "dk"}
        slot.mkdir()
        files = files_of(path)
        data = os.urandom(700_000)
        assert await files.put(handle, "a/b", chunks([data[:9], data[9:]]), mode=0o640) == len(data)
        assert b"".join([chunk async for chunk in files.get(handle, "a/b")]) == data
        assert [(i.path, i.kind, i.size, i.mode) for i in await files.listing(handle, "a")] == [
            ("a/b", "file", len(data), 0o640)
        ]
        (slot / "up").symlink_to("..")
        for call in (files.put(handle, "up/x", chunks([b"x"])), files.listing(handle, "up/a")):
            with pytest.raises(FleetError):
                await call
        with pytest.raises(ConnectionResetError):
            await files.put(handle, "half", broken())
        with pytest.raises(NotFoundError):
            await files.listing(handle, "half")
        await files.remove(handle, "")
        assert list(slot.iterdir()) == []

    inside(tmp_path, body)


def test_the_top_of_a_slot_is_told_whatever_is_in_it(tmp_path: Path) -> None:
    async def body(path: Path) -> None:
        slot, handle = tmp_path / "Shared", {"desktop": "dk"}
        slot.mkdir()
        files = files_of(path)
        assert await files.listing(handle) == []
        (slot / "odd\udcff\n").write_bytes(b"12345")
        (slot / "link").symlink_to("/etc/passwd")
        assert [(i.path, i.kind, i.size) for i in await files.listing(handle)] == [
            ("link", "link", 11),
            ("odd\\xff\n", "file", 5),
        ]
        for n in range(60):
            (slot / str(n)).touch()
        assert len(await files.listing(handle)) == 62, "more than what is told without a program"
        slot.rename(tmp_path / "elsewhere")
        slot.symlink_to("elsewhere")
        with pytest.raises(FleetError):
            await files.listing(handle)

    inside(tmp_path, body)


def test_a_mark_is_there_once_it_was_left(tmp_path: Path) -> None:
    async def body(path: Path) -> None:
        async with wire(path, "dk") as one:
            assert (await one.ask("t", b"cy_1"))["there"] is False
            await one.ask("m", b"cy_1")
            with pytest.raises(UnavailableError, match="exists"):
                await one.ask("m", b"cy_1")
            (tmp_path / ".cu-fleet-cy_1").unlink()
            (tmp_path / ".cu-fleet-cy_2").touch()
            for name in (b"cy_1", b"cy_2"):
                assert (await one.ask("t", name))["there"] is True, "in its memory, or on its disk"
            assert (await one.ask("t", b"cy_3"))["there"] is False

    inside(tmp_path, body)


def test_one_of_an_older_kind_is_not_asked_what_it_does_not_know(tmp_path: Path) -> None:
    async def body(path: Path) -> None:
        async with wire(path, "dk") as one:
            one.knows = "pb"
            with pytest.raises(UnsupportedError):
                await one.ask("m", b"cy_1")
            assert (await one.ask("p"))["boot"] == "bt_1"

    inside(tmp_path, body)


def test_one_of_an_older_kind_is_marked_by_commands_which_see_what_a_newer_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cu_fleet.backends.libvirt.backend.MARKS", str(tmp_path))
    backend = LibvirtBackend(Place(tmp_path, "f"), "qemu:///system", tmp_path)
    marks = backend.abilities.marks
    assert marks

    async def refused(*_: object) -> object:
        raise UnsupportedError("of an older kind", code="old_port")

    async def body(path: Path) -> None:
        desk = SimpleNamespace(id="dk", port=path)
        monkeypatch.setattr(backend, "desk", lambda _: desk)
        monkeypatch.setattr(backend, "ask", refused)
        handle: Handle = {"desktop": "dk"}
        assert not await marks.there(handle, "cy_1")
        await marks.leave(handle, "cy_1")
        assert await marks.there(handle, "cy_1")
        (tmp_path / ".cu-fleet-cy_1").unlink()
        assert not await marks.there(handle, "cy_1")
        with pytest.raises(UnsupportedError):
            await marks.leave(handle, "none/cy_2")

    inside(tmp_path, body)


def test_what_stands_ready_is_handed_over_once(tmp_path: Path) -> None:
    async def body(path: Path) -> None:
        await until(lambda: told_to_stand(path, "this"))
        assert await commands.standing(path, "dk", "another") is None
        async with wire(path, "dk") as one:  # as a wire that others keep open meanwhile
            ready = await commands.standing(path, "dk", "this")
            assert ready
            assert await commands.standing(path, "dk", "this") is None
            one.state["stands"] = "this"  # as it was when another was told
            assert await commands.standing(path, "dk", "this") is None
            code, out, _ = await ended(ready, b"and more")
            assert (code, out.split(b"\n")[0], out.split(b"\n")[-1]) == (0, b"ready", b"and more")

    inside(tmp_path, body)


def test_what_stands_ready_and_has_ended_is_handed_to_nobody(tmp_path: Path) -> None:
    async def body(path: Path) -> None:
        await until(lambda: told_to_stand(path, "this"))
        os.kill(int((tmp_path / "standing").read_text()), signal.SIGKILL)
        await until(lambda: told_to_stand(path, ""))
        assert await commands.standing(path, "dk", "this") is None

    inside(tmp_path, body)


async def told_to_stand(path: Path, program: str) -> bool:
    async with wire(path, "dk") as one:
        return bool(one.state["stands"] == program)


async def broken() -> AsyncIterator[bytes]:
    yield b"half"
    raise ConnectionResetError


def test_a_command_that_is_dropped_is_ended(tmp_path: Path) -> None:
    async def body(path: Path) -> None:
        script = "echo $$; exec sleep 1000"
        command = await commands.run(path, "dk", ["sh", "-c", script], None, None)
        pid = int((await anext(command.output()))[1])
        del command
        await until(lambda: not Path(f"/proc/{pid}").exists() or b"Z" in Path(f"/proc/{pid}/stat").read_bytes())

    inside(tmp_path, body)


def test_whoever_was_cut_off_in_mid_sentence_is_nobody_to_the_next(tmp_path: Path) -> None:
    async def body(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as dying:
            dying.connect(str(path))
            dying.sendall(frame(0, "h", b"x") + frame(5, "r", b"half a request")[:-4])
        async with wire(path, "dk") as one:
            assert one.state["boot"] == "bt_1"
            assert (await one.ask("p"))["boot"] == "bt_1"

    inside(tmp_path, body)


def test_each_who_asks_gets_the_answer_to_that(tmp_path: Path) -> None:
    async def body(path: Path) -> None:
        async with wire(path, "dk") as one:
            for answer in await asyncio.gather(*(one.ask("p") for _ in range(20))):
                assert answer["boot"] == "bt_1"
            with pytest.raises(UnavailableError, match="could not do it"):
                await one.ask("b", b"nonsense")
            assert (await one.ask("p"))["boot"] == "bt_1"

    inside(tmp_path, body)


def test_a_wire_that_another_holds_is_waited_for(tmp_path: Path) -> None:
    async def body(path: Path) -> None:
        other = socket.socket(socket.AF_UNIX)
        other.connect(str(path))
        waiting = asyncio.create_task(_boot(path), name="waiting")
        await until(lambda: path in wires.Wires.here().open)
        other.close()
        assert await waiting == "bt_1"

    inside(tmp_path, body)


async def _boot(path: Path) -> str:
    async with wire(path, "dk") as one:
        return str(one.state["boot"])


def test_a_machine_that_ends_is_heard_of_by_all_who_wait(tmp_path: Path) -> None:
    async def body() -> None:
        async with guest(tmp_path) as path:
            command = await commands.run(path, "dk", ["sleep", "1000"], None, None)
        with pytest.raises(UnavailableError, match="does not answer"):
            await command.wait()
        assert [chunk async for chunk in command.output()] == []
        with pytest.raises(UnavailableError, match="dk does not answer: its port"):
            await commands.run(path, "dk", ["true"], None, None)

    run(body())


def test_word_that_the_one_before_has_left_does_no_harm_to_the_next() -> None:
    """The kernel hears of it on another way, and may be late."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with ours, theirs:
        one = port.Port({"uid": os.geteuid(), "boot": "bt_1", "home": "/"}, theirs.fileno())
        for said in (frame(0, "h", b"me"), frame(0, "p", b"token ")):
            ours.sendall(said)
            one.listen()
            one.left_alone()
            ours.settimeout(5)
            assert b"bt_1" in ours.recv(4096)
        assert not one.is_alone()
        ours.close()
        assert one.is_alone()
