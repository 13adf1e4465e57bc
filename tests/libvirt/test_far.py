"""Machines on another host: what crosses, what may not, and who is refused, without any machine.

With a real sshd and real machines it goes on in `test_there`.
"""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import pytest

from cu_fleet import __version__
from cu_fleet.app import profiles
from cu_fleet.backends.base import Backend, Place, Spec
from cu_fleet.backends.libvirt import LibvirtBackend, where
from cu_fleet.backends.libvirt.far import homes, words
from cu_fleet.backends.libvirt.far.address import address, is_far
from cu_fleet.backends.libvirt.far.host import Host
from cu_fleet.backends.libvirt.far.near import FarBackend
from cu_fleet.backends.libvirt.far.serving import Serving
from cu_fleet.backends.libvirt.far.talk import MOST, WINDOW, Reader, Writer
from cu_fleet.backends.libvirt.far.words import VERSION
from cu_fleet.backends.memory import MemoryBackend, MemoryWorld
from cu_fleet.model import errors
from cu_fleet.model.desktop import AT, Handle
from cu_fleet.model.errors import BrokenError, ConflictError, FleetError, InvalidError, UnavailableError
from cu_fleet.model.profile import Profile
from cu_fleet.settings import read_settings
from cu_fleet.testing.backend_base import chunks, take
from cu_fleet.testing.backend_contract import PlainBackendContract
from tests.acceptance.home import TOP
from tests.support import run, until

T = TypeVar("T")
PROFILE = Profile(name="contract", backend="memory")


class Beside(Host):
    """A far side in this process, on a socket."""

    def __init__(self, backend: Backend, folder: Path) -> None:
        super().__init__("user@there")
        self.path = folder / "sock"
        self.serving = Serving({backend.name: backend}, folder / "homes")
        self.server: asyncio.Server

    async def open(self) -> Self:
        self.server = await asyncio.start_unix_server(self.serving.accept, self.path)
        return self

    async def stream(self) -> tuple[Reader, Writer]:
        return await asyncio.open_unix_connection(self.path)

    async def close(self) -> None:
        self.server.close()
        await self.serving.close()


class TestFar(PlainBackendContract):
    """All that the fake can do, asked for from elsewhere."""

    gaps: ClassVar = {"lending": "no folder of this machine can lie in a desktop elsewhere"}

    def new_place(self, folder: Path) -> Place:
        self.world, self.hosts = MemoryWorld(), list[Beside]()
        self.there = Place(folder / "there", "there")
        (folder / "home").mkdir()
        return super().new_place(folder)

    async def make(self) -> Backend:
        backend = MemoryBackend(self.there, self.world)
        self.hosts.append(await Beside(backend, Path(tempfile.mkdtemp(dir=self.place.home))).open())
        return FarBackend(backend, self.hosts[-1], self.place)

    def run(self, body: Callable[[Backend], Coroutine[Any, Any, T]]) -> T:
        async def then_closed(backend: Backend) -> T:
            try:
                return await body(backend)
            finally:
                while self.hosts:
                    await self.hosts.pop().close()

        return super().run(then_closed)

    def profile(self) -> Profile:
        return PROFILE


# who is where


def test_a_uri_names_a_host_and_a_hypervisor_there() -> None:
    plain = address("qemu+ssh://root@there:2222/system")
    assert (plain.host, plain.user, plain.port, plain.hypervisor) == ("there", "root", 2222, "qemu:///system")
    assert (plain.name, plain.by_hand) == ("root@there:2222", "ssh -p 2222 root@there")
    own = address("qemu+ssh://there/session?keyfile=/k&known_hosts=/h&no_tty=1")
    assert (own.hypervisor, own.keyfile, own.known_hosts, own.user) == ("qemu:///session", "/k", "/h", None)
    assert own.name != plain.name
    assert address("qemu+ssh://[::1]/system?socket=/run/a b").hypervisor == "qemu+unix:///system?socket=/run/a%20b"
    assert is_far("qemu+ssh://there/system")
    assert not is_far("qemu:///system")
    assert not is_far(None)


@pytest.mark.parametrize(
    "uri",
    [
        "qemu+ssh:///system",
        "qemu+ssh://there",
        "qemu+ssh://there/other",
        "qemu+ssh://me:secret@there/system",
        "qemu+ssh://there:ssh/system",
        "qemu+ssh://there/system?no_verify=1",
        "qemu+ssh://there/system?command=/bin/rsh",
    ],
)
def test_what_names_none_is_refused(uri: str) -> None:
    with pytest.raises(InvalidError) as caught:
        address(uri)
    assert caught.value.code == "bad_hypervisor"


def test_a_host_that_is_misnamed_concerns_only_who_needs_it(tmp_path: Path) -> None:
    async def body() -> None:
        one, other = where.backends(Place(tmp_path, "f", hypervisor="qemu+ssh://there/nothing"))
        assert (one.name, other.name) == ("libvirt", "libvirt-vnc")
        assert await one.found() == []
        [check] = await one.check()
        assert "names no host with machines" in check.detail
        with pytest.raises(InvalidError):
            await take(one.start(Spec("dk_1", PROFILE, "bt_1", "a")))

    run(body())


def test_desktops_of_one_host_are_not_looked_for_at_another(tmp_path: Path) -> None:
    async def body(backend: FarBackend, host: Beside) -> None:
        handle = (await take(backend.start(Spec("dk_1", PROFILE, "bt_1", "a"))))[-1]
        assert handle[AT] == "user@there"
        with pytest.raises(UnavailableError, match=r"dk_1 is on me@elsewhere") as caught:
            await backend.stop(handle | {AT: "me@elsewhere"})
        assert caught.value.code == "other_host"
        with pytest.raises(UnavailableError, match=r"dk_1 is on this machine"):
            await backend.stop({"desktop": "dk_1"})
        with pytest.raises(UnavailableError, match=r"dk_1 is on user@there"):
            await LibvirtBackend(Place(tmp_path, "f")).stop(handle)

    with_far(tmp_path, body)


def test_whoever_never_had_a_desktop_there_asks_nobody(tmp_path: Path) -> None:
    class Nobody(Host):
        async def stream(self) -> tuple[Reader, Writer]:
            raise AssertionError("asked")

    async def body() -> None:
        backend = FarBackend(MemoryBackend(Place(tmp_path, "f")), Nobody("there"), Place(tmp_path, "f"))
        assert await backend.found() == []
        assert backend.abilities.snapshots
        assert await backend.abilities.snapshots.saved() == []
        await backend.stop({"desktop": "dk_1", AT: "there"})
        assert await backend.endpoint({"desktop": "dk_1", AT: "there"}) is None

    run(body())


# what crosses


def test_all_profiles_that_are_shipped_cross_as_they_are(tmp_path: Path) -> None:
    known = [profile for profile, _, _ in profiles(read_settings(tmp_path, {})) if profile]
    assert known
    assert words.profiles_of(json.loads(json.dumps(words.profiles(known)))) == known


def test_every_error_crosses_with_all_that_it_says() -> None:
    kinds = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, FleetError)]
    assert len(kinds) > 10
    for kind in kinds:
        error = kind("it broke", remedy="mend it", code="broken_here", desktop="dk_1", count=3)
        back = words.refusal_of(json.loads(json.dumps(words.refusal(error)))["error"], "there")
        assert type(back) is kind
        assert (back.what, back.remedy, back.code, back.facts) == (error.what, error.remedy, error.code, error.facts)


def test_an_error_of_the_backend_and_a_fault_of_it_are_heard(tmp_path: Path) -> None:
    class Faulty(MemoryBackend):
        async def stop(self, handle: Handle) -> None:
            if handle["desktop"] == "dk_2":
                raise ZeroDivisionError
            raise ConflictError("no", code="own_code", desktop="dk_1")

    async def body(backend: FarBackend, host: Beside) -> None:
        with pytest.raises(ConflictError, match="no") as caught:
            await backend.stop({"desktop": "dk_1", AT: "user@there"})
        assert (caught.value.code, caught.value.facts) == ("own_code", {"desktop": "dk_1"})
        with pytest.raises(BrokenError, match="ZeroDivisionError"):
            await backend.stop({"desktop": "dk_2", AT: "user@there"})

    with_far(tmp_path, body, Faulty(Place(tmp_path, "there")))


def test_what_homes_begin_with_crosses_as_content(tmp_path: Path) -> None:
    folder = tmp_path / "profiles" / "mine"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/file").write_bytes(os.urandom(3 * WINDOW))
    (folder / "run").write_text("#!/bin/sh\n")
    (folder / "run").chmod(0o755)
    (folder / "link").symlink_to("deep/file")
    seen: list[Spec] = []

    class Homely(MemoryBackend):
        async def start(self, spec: Spec) -> AsyncIterator[Handle]:
            seen.append(spec)
            async for handle in super().start(spec):
                yield handle

    async def body(backend: FarBackend, host: Beside) -> None:
        spec = Spec("dk_1", PROFILE.but(home="mine"), "bt_1", "a")
        await take(backend.start(spec))
        await take(backend.start(spec))
        assert seen[0] == seen[1]
        laid = host.serving.homes / str(seen[0].profile.home)
        assert (laid / "deep/file").read_bytes() == (folder / "deep/file").read_bytes()
        assert (laid / "run").stat().st_mode & 0o777 == 0o755
        assert (laid / "link").readlink() == Path("deep/file")
        assert [path.name for path in host.serving.homes.iterdir()] == [laid.name], "once, and nothing is left beside"
        (folder / "run").write_text("#!/bin/bash\n")
        await take(backend.start(spec))
        assert seen[2].profile.home != seen[0].profile.home
        os.utime(laid, (1, 1))
        homes.tidy(host.serving.homes)
        assert [path.name for path in host.serving.homes.iterdir()] == [seen[2].profile.home]

    with_far(tmp_path, body, Homely(Place(tmp_path, "there")))


# what ends in the middle


def test_a_call_that_is_cancelled_is_cancelled_there_before_anybody_goes_on(tmp_path: Path) -> None:
    said: list[str] = []

    class Slow(MemoryBackend):
        async def stop(self, handle: Handle) -> None:
            said.append("began")
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.1)  # it takes its time to clean up
                said.append("ended")

    async def body(backend: FarBackend, host: Beside) -> None:
        stopping = asyncio.create_task(backend.stop({"desktop": "dk_1", AT: "user@there"}), name="stop")
        await until(lambda: said)
        stopping.cancel()
        await asyncio.wait([stopping])
        assert stopping.cancelled()
        assert said == ["began", "ended"]

    with_far(tmp_path, body, Slow(Place(tmp_path, "there")))


def test_a_command_that_nobody_wants_any_more_is_ended(tmp_path: Path) -> None:
    memory = MemoryBackend(Place(tmp_path, "there"))

    async def body(backend: FarBackend, host: Beside) -> None:
        handle = (await take(backend.start(Spec("dk_1", PROFILE, "bt_1", "a"))))[-1]
        assert backend.abilities.exec
        process = await backend.abilities.exec.exec(handle, ["sleep", "1000"])
        assert memory.desktop("dk_1").processes
        del process
        await until(lambda: not memory.desktop("dk_1").processes)

    with_far(tmp_path, body, memory)


def test_when_the_connection_breaks_all_that_is_asked_ends_and_desktops_live_on(tmp_path: Path) -> None:
    memory = MemoryBackend(Place(tmp_path, "there"))

    async def body(backend: FarBackend, host: Beside) -> None:
        handle = (await take(backend.start(Spec("dk_1", PROFILE, "bt_1", "a"))))[-1]
        assert backend.abilities.exec
        assert backend.abilities.files
        process = await backend.abilities.exec.exec(handle, ["cat"])
        endpoint = await backend.endpoint(handle)
        assert endpoint
        sock = await endpoint.connect()

        async def cut_off() -> AsyncIterator[bytes]:
            yield b"half"
            await backend.endpoint(handle)  # by now the other call has arrived, too
            await host.close()
            yield b"x" * 2 * WINDOW

        with sock:
            with pytest.raises(UnavailableError, match=r"user@there broke"):
                await backend.abilities.files.put(handle, "file", cut_off())
            with pytest.raises(UnavailableError, match=r"user@there broke"):
                await process.wait()
            loop = asyncio.get_running_loop()
            while await loop.sock_recv(sock, 65536):
                pass
        with pytest.raises(UnavailableError):
            await process.write(b"more")
        host.path.unlink()
        await host.open()
        assert await backend.abilities.files.listing(handle) == []
        assert await backend.endpoint(handle)

    with_far(tmp_path, body, memory)


def test_what_nobody_reads_keeps_up_nothing_else(tmp_path: Path) -> None:
    async def body(backend: FarBackend, host: Beside) -> None:
        handle = (await take(backend.start(Spec("dk_1", PROFILE, "bt_1", "a"))))[-1]
        files, exec_ = backend.abilities.files, backend.abilities.exec
        assert files
        assert exec_
        big = os.urandom(WINDOW * 3 + 7)
        await files.put(handle, "big", chunks([big]))
        reading = files.get(handle, "big")
        first = await anext(reading)
        assert await files.listing(handle)
        assert first + b"".join([chunk async for chunk in reading]) == big
        left = files.get(handle, "big")
        await anext(left)
        await left.aclose()  # type: ignore[attr-defined]
        process = await exec_.exec(handle, ["cat"])
        await process.write(b"x" * WINDOW)
        writing = asyncio.create_task(process.write(b"y" * WINDOW * 8), name="write")
        await process.kill()  # though nobody reads what it says
        assert await process.wait() == 137
        with pytest.raises(FleetError):
            await writing

    with_far(tmp_path, body)


# a host that lies

_J = b"j"


def frame(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body


LIES = {
    "no frame": b"SSH-2.0-nonsense\r\n" * 10,
    "a frame without end": b"\xff\xff\xff\xffj",
    "bytes without end": (MOST + 1).to_bytes(4, "big") + b"1",
    "more than there is room for": frame(b"1", bytes(MOST)) * (WINDOW // MOST + 1),
    "words that are none": frame(_J, b"[1]"),
    "words too deep": frame(_J, b"[" * 100_000),
    "too many words": frame(_J, b"{}") * 5000,
    "an answer of no kind": frame(_J, b'{"fine": 1}'),
    "an answer of another kind": frame(_J, b'{"done": {"desktop": 7}}'),
    "an error that is none": frame(_J, b'{"error": {"class": "SystemExit"}}'),
    "a letter nobody knows": frame(b"?", b""),
    "an end of what is not there": frame(b"z", b"7"),
    "room for what is not there": frame(b"a", b"\x09\0\0\0\1"),
    "nothing": b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_host_that_lies_is_not_believed(tmp_path: Path, lie: str) -> None:
    class Liar(Host):
        async def stream(self) -> tuple[Reader, Writer]:
            return await asyncio.open_unix_connection(tmp_path / "sock")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(LIES[lie])
        writer.close()

    async def body() -> None:
        async with await asyncio.start_unix_server(answer, tmp_path / "sock"):
            backend = FarBackend(MemoryBackend(Place(tmp_path, "f")), Liar("there"), Place(tmp_path, "f"))
            backend.ask.use()
            with pytest.raises((BrokenError, UnavailableError), match="there") as caught:
                await backend.found()
            assert caught.value.code == ("host_lost" if lie == "nothing" else "host_nonsense")

    run(body())


def test_a_handle_that_is_none_is_not_stored() -> None:
    for said in ([], {"desktop": ["dk"]}, {"desktop": "x" * 20_000}, None):
        with pytest.raises(BrokenError):
            words.handle_of(said, "there")


# the far side as a process


@pytest.mark.real
def test_whoever_comes_later_serves_alone_and_nobody_outlives_their_connection(tmp_path: Path) -> None:
    """The first may not know yet that its connection broke."""

    async def body() -> None:
        async with (
            far_side(tmp_path, "fleet1") as (one, first),
            far_side(tmp_path, "fleet1") as (two, second),
            far_side(tmp_path, "fleet2") as (three, other),
        ):
            backends = [far_backend(tmp_path, path) for path in (first, second, other)]
            assert await backends[0].found() == []
            assert await backends[2].found() == [], "another fleet is another matter"
            assert await backends[0].found() == []
            assert await backends[1].found() == []
            assert await one.wait() == 0
            assert not first.exists()
            assert two.returncode is None
            assert await backends[2].found() == []
            two.kill()
            await two.wait()
            assert three.stdin
            three.stdin.close()
            assert await three.wait() == 0
            assert not other.parent.exists()
        async with far_side(tmp_path, "fleet1") as (_, path):
            assert await far_backend(tmp_path, path).found() == []
            assert not second.parent.exists(), "what a killed one left is removed by the next"

    run(body(), timeout=90)


@asynccontextmanager
async def far_side(folder: Path, fleet: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, Path]]:
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "CU_FLEET_HOME": str(folder / "far"),
        "PYTHONPATH": str(TOP),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cu_fleet", "serve-machines", env=env, cwd="/", stdin=-1, stdout=-1
    )
    try:
        assert process.stdin
        assert process.stdout
        hello = {"version": __version__, "speaks": VERSION, "fleet": fleet, "hypervisor": "qemu:///session"}
        process.stdin.write(json.dumps(hello).encode() + b"\n")
        said = json.loads((await process.stdout.readline()).partition(b" ")[2])
        path = Path(said["socket"])
        assert [one.stat().st_mode & 0o777 for one in (path, path.parent)] == [0o600, 0o700]
        yield process, path
    finally:
        if process.returncode is None:
            process.terminate()
            assert await process.wait() == 0
            assert not path.parent.exists()


def far_backend(folder: Path, sock: Path) -> FarBackend:
    class At(Host):
        async def stream(self) -> tuple[Reader, Writer]:
            return await asyncio.open_unix_connection(sock)

    like = MemoryBackend(Place(folder, "f"))
    like.name = "libvirt"
    backend = FarBackend(like, At("there"), Place(folder, "f"))
    backend.ask.use()
    return backend


def with_far(
    folder: Path, body: Callable[[FarBackend, Beside], Awaitable[None]], backend: MemoryBackend | None = None
) -> None:
    """Do this with a backend that asks another of this process."""

    async def work() -> None:
        there = backend or MemoryBackend(Place(folder, "there"))
        host = await Beside(there, folder).open()
        near = FarBackend(there, host, Place(folder, "here", profile_dirs=(folder / "profiles",)))
        near.ask.use()
        try:
            await body(near, host)
        finally:
            await host.close()

    run(work())
