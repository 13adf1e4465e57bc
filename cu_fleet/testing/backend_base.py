"""What the backends' contract suite rests on: a place for each test, desktops in it, and a look at their screens."""

import asyncio
import contextlib
import json
import secrets
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest

from cu_fleet.backends.base import Backend, Exec, Files, Freeze, Place, Process, Snapshots, Spec
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import FleetError
from cu_fleet.model.names import new_id
from cu_fleet.model.profile import Profile

T = TypeVar("T")
Test = TypeVar("Test", bound=Callable[..., object])
DEADLINE = 60.0


def borrows(test: Test) -> Test:
    """A case that takes its desktops from `borrow`, and leaves nothing in them that another could mistake."""
    test.borrows = True  # type: ignore[attr-defined]
    return test


@dataclass
class Common:
    """The desktops that the cases of a class share, and how they are taken away in the end."""

    folder: Path
    place: Place | None = None
    handles: dict[int, Handle] = field(default_factory=dict)
    clear: Callable[[], None] | None = None


_COMMON = pytest.StashKey[Common]()


@dataclass(frozen=True)
class Greeting:
    """What a screen says of itself to whoever connects."""

    width: int
    height: int
    name: str


@dataclass(frozen=True)
class Ended:
    """A command that has run."""

    code: int
    out: bytes
    err: bytes


class BackendBase:
    """A subclass says how its backend is made; see `backend_contract`."""

    gaps: ClassVar[Mapping[str, str]] = {}  # ability or test that this backend lacks → why
    sharing: ClassVar[bool] = False  # where a desktop takes seconds: cases that do not change theirs share one
    place: Place
    _common: Common | None = None

    async def make(self) -> Backend:
        """A new backend object over `self.place`; all objects over one place must see the same desktops."""
        raise AssertionError(f"{type(self).__name__} must say how its backend is made")

    def profile(self) -> Profile:
        raise AssertionError(f"{type(self).__name__} must name a profile")

    def new_place(self, folder: Path) -> Place:
        return Place(folder / "home", "contract" + secrets.token_hex(4))  # others may run this suite at this moment

    @pytest.fixture
    def contract_folder(self, tmp_path: Path) -> Path:
        """Where a test's place lies; a backend that needs short or reachable paths gives another."""
        return tmp_path

    async def boot_of(self, backend: Backend, handle: Handle) -> str:
        """Where the running desktop shows its boot nonce: the name of its screen, unless a subclass knows better."""
        return (await self.greet(backend, handle)).name

    @pytest.fixture(autouse=True)
    def _place_of_its_own(self, contract_folder: Path, request: pytest.FixtureRequest) -> Any:
        if reason := self.gaps.get(request.node.originalname):
            pytest.xfail(f"known gap: {reason}")
        if self.sharing and hasattr(request.function, "borrows"):
            self._common = common = self._common_of(request)
            self.place = common.place = common.place or self.new_place(common.folder)
            common.clear = lambda: self.run(self._clear)
            yield
        else:
            self.place = self.new_place(contract_folder)
            yield
            self.run(self._clear)

    def _common_of(self, request: pytest.FixtureRequest) -> Common:
        owner = request.node.getparent(pytest.Class)
        if _COMMON not in owner.stash:
            factory: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
            owner.stash[_COMMON] = common = Common(factory.mktemp("shared"))
            owner.addfinalizer(lambda: common.clear and common.clear())
        found: Common = owner.stash[_COMMON]
        return found

    async def _clear(self, backend: Backend) -> None:
        for found in await backend.found():
            await backend.stop(found.handle)
        assert await backend.found() == []
        if snapshots := backend.abilities.snapshots:
            for snapshot in await snapshots.saved():
                await snapshots.delete(snapshot)
            assert await snapshots.saved() == []

    def run(self, body: Callable[[Backend], Coroutine[Any, Any, T]]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(DEADLINE):
                return await body(await self.make())

        try:
            return asyncio.run(bounded())
        except BaseException:
            if self._common:
                self._common.handles.clear()  # the next gets one that nothing went wrong in
            raise

    # abilities

    def _ability(self, backend: Backend, name: str) -> Any:
        ability = getattr(backend.abilities, name)
        if ability is None:
            assert name in self.gaps, f"{backend.name} has no {name}: list it in `gaps`, with the reason"
            pytest.xfail(f"{backend.name} has no {name}: {self.gaps[name]}")
        return ability

    def snapshots(self, backend: Backend) -> Snapshots:
        ability: Snapshots = self._ability(backend, "snapshots")
        return ability

    def exec(self, backend: Backend) -> Exec:
        ability: Exec = self._ability(backend, "exec")
        return ability

    def freezing(self, backend: Backend) -> Freeze:
        ability: Freeze = self._ability(backend, "freeze")
        return ability

    def files(self, backend: Backend) -> Files:
        ability: Files = self._ability(backend, "files")
        return ability

    # desktops

    def spec(self, **changes: Any) -> Spec:
        given = {"desktop": new_id("dk"), "profile": self.profile(), "boot": new_id("bt"), "label": "contract"}
        return Spec(**{**given, **changes})

    async def start(self, backend: Backend, spec: Spec | None = None) -> Handle:
        """A running desktop's last handle."""
        return (await take(backend.start(spec or self.spec())))[-1]

    async def borrow(self, backend: Backend, number: int = 0) -> Handle:
        """A running desktop, if need be one that was lent before, its slot empty. Only for cases that are `borrows`."""
        if self._common is None:
            return await self.start(backend)
        if handle := self._common.handles.get(number):
            if backend.abilities.files:
                await backend.abilities.files.remove(handle, "")
            return handle
        handle = self._common.handles[number] = await self.start(backend)
        return handle

    async def restore(self, backend: Backend, handle: Handle, spec: Spec) -> Handle:
        return (await take(self.snapshots(backend).restore(handle, spec)))[-1]

    async def names(self, backend: Backend) -> list[str]:
        return sorted({found.desktop for found in await backend.found()})

    async def greet(self, backend: Backend, handle: Handle) -> Greeting:
        """Connect to the screen as a viewer does, up to where it says its size and name."""
        endpoint = await backend.endpoint(handle)
        assert endpoint is not None, "a desktop that has started has an endpoint"
        reader, writer = await asyncio.open_connection(sock=await endpoint.connect())
        try:
            assert (await reader.readexactly(12)).startswith(b"RFB 003.00")
            writer.write(b"RFB 003.008\n")
            kinds = await reader.readexactly((await reader.readexactly(1))[0])
            assert b"\x01" in kinds or endpoint.password, f"no way in: security types {kinds!r} without a password"
            if b"\x01" not in kinds:
                pytest.xfail("the screen wants a password, and this suite does not know how to give one")
            writer.write(b"\x01")
            assert await reader.readexactly(4) == bytes(4)
            writer.write(b"\x01")
            width, height, _, length = struct.unpack(">HH16sI", await reader.readexactly(24))
            return Greeting(width, height, (await reader.readexactly(min(length, 1000))).decode())
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def command(
        self,
        backend: Backend,
        handle: Handle,
        *argv: str,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> Ended:
        """Run a command inside to its end."""
        process = await self.exec(backend).exec(handle, argv, env=env, cwd=cwd)

        async def feed() -> None:
            with contextlib.suppress(OSError):  # it may not want to read
                for at in range(0, len(stdin), 65536):
                    await process.write(stdin[at : at + 65536])
                await process.close_stdin()

        feeding = asyncio.create_task(feed(), name="standard input")
        said: dict[int, bytes] = {1: b"", 2: b""}
        async for stream, data in process.output():
            said[stream] += data
        code = await process.wait()
        feeding.cancel()
        await asyncio.wait({feeding})
        return Ended(code, said[1], said[2])

    async def python(self, backend: Backend, handle: Handle, source: str, *args: str) -> Any:
        """Run Python inside; returns what it printed as JSON."""
        ended = await self.command(backend, handle, "python3", "-I", "-c", source, *args)
        assert ended.code == 0, ended.err.decode(errors="replace")
        return json.loads(ended.out or b"null")

    async def write(self, backend: Backend, handle: Handle, path: str, text: str) -> None:
        """Write a file from inside; a relative path is one in the home."""
        assert (await self.command(backend, handle, "tee", path, stdin=text.encode())).code == 0

    async def read(self, backend: Backend, handle: Handle, path: str) -> str | None:
        """A file as seen from inside; None if it is not there."""
        ended = await self.command(backend, handle, "cat", path)
        return ended.out.decode() if ended.code == 0 else None


async def take(handles: AsyncIterator[Handle], most: int | None = None) -> list[Handle]:
    """The first handles an iterator yields; then it is dropped, as by a controller that dies there."""
    taken: list[Handle] = []
    try:
        async for handle in handles:
            taken.append(handle)
            if len(taken) == most:
                break
    finally:
        close: Callable[[], Awaitable[None]] | None = getattr(handles, "aclose", None)
        if close:
            await close()
    return taken


async def ended_badly(process: Process) -> bool:
    """Whether a process whose desktop was taken away is known to be over: by a bad exit code, or as lost."""
    try:
        return await process.wait() != 0
    except FleetError:
        return True


async def silent(stream: AsyncIterator[tuple[int, bytes]], seconds: float = 0.4) -> bool:
    """Whether nothing more comes out of a process, once what it said before is read."""
    while True:
        coming = asyncio.ensure_future(anext(stream, None))
        done, _ = await asyncio.wait({coming}, timeout=seconds)
        if not done:
            coming.cancel()
            await asyncio.wait({coming})
            return True
        if coming.result() is None:
            return False


async def chunks(data: Sequence[bytes]) -> AsyncIterator[bytes]:
    for chunk in data:
        yield chunk
