"""A fleet of real desktops in a home of its own, as root and as an ordinary user, and proof that nothing is left."""

import concurrent.futures.thread  # noqa: F401  # a child that is no longer root may not be able to import these
import encodings.ascii  # noqa: F401
import os
import secrets
import shutil
import tempfile
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from cu_fleet.backends.base import Place, Spec
from cu_fleet.backends.door import read_log
from cu_fleet.backends.local import LocalBackend
from cu_fleet.model.desktop import Handle
from cu_fleet.model.profile import Profile
from tests.support import command_lines, run

SOMEBODY = 47_111  # an ordinary user, for tests that run as root
WHO = pytest.mark.parametrize("who", ["root", "user"])


class Fleet:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.id = "test" + secrets.token_hex(4)
        self.backend = LocalBackend(Place(home, self.id))
        self.count = 0

    def spec(self, desktop: str = "", *, snapshot: str | None = None, **profile: object) -> Spec:
        self.count += 1
        made = Profile.model_validate({"name": "p", "backend": "local", **profile})
        boot = secrets.token_hex(8)
        return Spec(desktop or f"dk_{self.count}", made, boot, f"label_{self.count}", snapshot)

    async def start(self, desktop: str = "", **profile: object) -> Handle:
        return await last(self.backend.start(self.spec(desktop, **profile)))

    async def sh(self, handle: Handle, script: str, *args: str, data: bytes = b"") -> tuple[int, str]:
        """Run a shell script inside; its exit code, and stdout with stderr."""
        return await self.run(handle, ["sh", "-c", script, "sh", *args], data=data)

    async def python(self, handle: Handle, script: str, *args: str) -> tuple[int, str]:
        return await self.run(handle, ["/usr/bin/python3", "-I", "-c", script, *args])

    async def run(self, handle: Handle, argv: list[str], data: bytes = b"") -> tuple[int, str]:
        ability = self.backend.abilities.exec
        assert ability is not None
        process = await ability.exec(handle, argv)
        if data:
            await process.write(data)
        await process.close_stdin()
        said = b"".join([chunk async for _, chunk in process.output()])
        return await process.wait(), said.decode(errors="replace")

    def log(self, handle: Handle) -> str:
        return read_log(self.backend.desk(handle))

    async def end(self) -> None:
        for found in await self.backend.found():
            await self.backend.stop(found.handle)
        if left := left_of(self.id, self.home) + [str(found) for found in await self.backend.found()]:
            raise AssertionError("left behind: " + "; ".join(left))


async def last(handles: AsyncIterator[Handle]) -> Handle:
    return [handle async for handle in handles][-1]


def left_of(fleet: str, home: Path) -> list[str]:
    """Processes, mounts, cgroups and desktops' files that still are."""
    left = [f"process {pid}: {words}" for pid, words in command_lines().items() if f"cu-fleet/{fleet}" in words]
    left += [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(home) in line]
    left += [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/cu-fleet-{fleet}*")]
    left += [str(path) for path in (home / "desktops").glob("*") if not path.name.startswith(".")]
    return left + [str(path) for path in (home / "desktops/.uids").glob("*")]


def in_fleet(who: str, body: Callable[[Fleet], Awaitable[None]], timeout: float = 60.0) -> None:
    """Run a test's body with a fleet that belongs to root, or to an ordinary user."""
    if who == "root" and os.geteuid() != 0:
        pytest.skip("needs root: desktops with host users of their own")
    home = Path(tempfile.mkdtemp(prefix="cu-fleet-local-"))
    try:
        if who == "user" and os.geteuid() == 0:
            os.chown(home, SOMEBODY, SOMEBODY)
            _as_somebody(lambda: _run(home, body, timeout))
        else:
            _run(home, body, timeout)
    finally:
        shutil.rmtree(home)


def _run(home: Path, body: Callable[[Fleet], Awaitable[None]], timeout: float) -> None:
    async def with_fleet() -> None:
        fleet = Fleet(home)
        try:
            await body(fleet)
        finally:
            await fleet.end()

    run(with_fleet(), timeout)


def _as_somebody(work: Callable[[], None]) -> None:
    """In a child that has given up being root; what fails there is told here."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = "the child ended without a word"
        try:
            os.setgroups([])
            os.setresgid(SOMEBODY, SOMEBODY, SOMEBODY)
            os.setresuid(SOMEBODY, SOMEBODY, SOMEBODY)
            work()
            said = ""
        except BaseException:  # noqa: BLE001  # told to the parent
            said = traceback.format_exc()
        finally:
            os.write(writing, said.encode()[-60_000:])
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    if said:
        pytest.fail(said, pytrace=False)
