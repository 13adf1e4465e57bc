"""A fleet of desktops in containers in a home of its own, and proof that nothing of it is left."""

import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from docker import APIClient

from cu_fleet.backends.base import Place, Process, Spec
from cu_fleet.backends.docker import DockerBackend
from cu_fleet.model.desktop import Handle
from cu_fleet.model.profile import Profile
from cu_fleet.testing.dockerd import PrivateDocker
from tests.attempts import TRY
from tests.support import run


class Fleet:
    def __init__(self, home: Path, engine: PrivateDocker, host: str | None = None) -> None:
        self.home = home
        self.engine = engine
        self.id = "test" + secrets.token_hex(4)
        self.backend = DockerBackend(Place(home, self.id), host or engine.host)

    def spec(self, desktop: str = "dk_1", *, snapshot: str | None = None, **profile: object) -> Spec:
        made = Profile.model_validate({"name": "p", "backend": "docker", **profile})
        return Spec(desktop, made, secrets.token_hex(8), f"label_{desktop}", snapshot)

    async def start(self, desktop: str = "dk_1", **profile: object) -> Handle:
        return await last(self.backend.start(self.spec(desktop, **profile)))

    async def sh(self, handle: Handle, script: str, *args: str) -> tuple[int, str]:
        """Run a shell script inside; its exit code, and stdout with stderr."""
        return await self.run(handle, ["sh", "-c", script, "sh", *args])

    async def tries(self, handle: Handle, script: str, *args: str) -> dict[str, object]:
        """Run attempts inside; what each got, an errno's name where it was refused."""
        code, said = await self.run(handle, ["python3", "-I", "-c", TRY + script + "\nprint(json.dumps(got))", *args])
        assert code == 0, said
        got: dict[str, object] = json.loads(said.splitlines()[-1])
        return got

    async def run(self, handle: Handle, argv: list[str]) -> tuple[int, str]:
        ability = self.backend.abilities.exec
        assert ability is not None
        return await said_by(await ability.exec(handle, argv))

    async def ask(self, work: Callable[[APIClient], Any]) -> Any:
        return await self.backend.house.engine.do(work)

    def name(self, desktop: str = "dk_1") -> str:
        return self.backend.house.layout.desk(desktop).name

    async def end(self) -> None:
        snapshots = self.backend.abilities.snapshots
        assert snapshots
        for found in await self.backend.found():
            await self.backend.stop(found.handle)
        for snapshot in await snapshots.saved():
            await snapshots.delete(snapshot)
        left = await self.ask(self.left)
        assert not left, f"left behind: {left}"
        assert {path.name for path in (self.home / "docker").glob("*")} <= {"key", ".uids"}
        assert not list((self.home / "docker/.uids").glob("*"))

    def left(self, api: APIClient) -> list[str]:
        """All that the engine has which bears this fleet's name, signed or not."""
        mine = {"label": f"cu-fleet.fleet={self.id}"}
        left = [one["Names"][0] for one in api.containers(all=True, filters=mine)]
        left += [one["Name"] for one in api.volumes(filters=mine).get("Volumes") or []]
        left += [one["Name"] for one in api.networks(filters=mine)]
        return left + [one["Id"] for one in api.images(filters=mine)]


async def said_by(process: Process) -> tuple[int, str]:
    """Its exit code, and all that it says."""
    await process.close_stdin()
    said = b"".join([chunk async for _, chunk in process.output()])
    return await process.wait(), said.decode(errors="replace")


async def last(handles: AsyncIterator[Handle]) -> Handle:
    return [handle async for handle in handles][-1]


def in_fleet(
    engine: PrivateDocker,
    home: Path,
    body: Callable[[Fleet], Awaitable[None]],
    timeout: float = 120.0,
    host: str | None = None,
) -> None:
    async def with_fleet() -> None:
        fleet = Fleet(home, engine, host)
        try:
            await body(fleet)
        finally:
            await fleet.end()

    run(with_fleet(), timeout)
