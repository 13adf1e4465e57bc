"""The desktops of a controller, what runs in them, their snapshots, and the profiles they are made by."""

from collections.abc import AsyncIterator, Mapping, Sequence

from cu_fleet.client.asked import HOLD, Asked
from cu_fleet.client.command import Command, Completed
from cu_fleet.client.http import given, read, v1
from cu_fleet.client.opened import Time
from cu_fleet.model.profile import Profile
from cu_fleet.model.snapshot import Snapshot
from cu_fleet.model.view import DesktopView


class Estate(Asked):
    async def desktops(self) -> list[DesktopView]:
        return [read(DesktopView, one) for one in (await self.ask("GET", "/v1/desktops"))["desktops"]]

    async def desktop(self, desktop: str) -> DesktopView:
        return read(DesktopView, await self.ask("GET", v1("desktops", desktop)))

    async def remove_desktop(self, desktop: str) -> None:
        await self.ask("DELETE", v1("desktops", desktop), patience=HOLD)

    async def freeze(self, desktop: str) -> DesktopView:
        return read(DesktopView, await self.ask("POST", v1("desktops", desktop, "freeze")))

    async def thaw(self, desktop: str) -> DesktopView:
        return read(DesktopView, await self.ask("POST", v1("desktops", desktop, "thaw")))

    async def logs(self, desktop: str) -> str:
        return (await self._wire.call("GET", v1("desktops", desktop, "logs"))).text

    def exec(
        self,
        desktop: str,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | AsyncIterator[bytes] = b"",
        timeout: Time | None = None,
        linger: Time | None = None,
    ) -> Command:
        """Run a command inside; it is ended when the block is left before it ends by itself.

        `stdin` may also come while it runs. `linger`: how long programs it left running may hold on to its output.

        async with fleet.exec("dk_…", ["ls"]) as command:
            async for stream, data in command: …        # (1, from stdout), (2, from stderr)
            command.exit_code
        """
        asked = given(argv=list(argv), cwd=cwd, env=dict(env) if env else None, timeout=timeout, linger=linger)
        return Command(self._wire, v1("desktops", desktop, "exec"), asked, stdin)

    async def run(
        self,
        desktop: str,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout: Time | None = None,
    ) -> Completed:
        """Run a command inside to its end, and return all it said."""
        said = {1: bytearray(), 2: bytearray()}
        async with self.exec(desktop, argv, cwd=cwd, env=env, stdin=stdin, timeout=timeout) as command:
            async for stream, data in command:
                said[stream] += data
        assert command.exit_code is not None
        return Completed(command.exit_code, bytes(said[1]), bytes(said[2]))

    # snapshots

    async def save(self, desktop: str, note: str = "") -> Snapshot:
        answer = await self.ask("POST", v1("desktops", desktop, "snapshots"), {"note": note}, patience=600)
        return read(Snapshot, answer)

    async def snapshots(self, desktop: str | None = None) -> list[Snapshot]:
        answer = await self.ask("GET", "/v1/snapshots", desktop=desktop)
        return [read(Snapshot, one) for one in answer["snapshots"]]

    async def restore(self, snapshot: str, desktop: str | None = None) -> DesktopView:
        body = given(desktop=desktop)
        answer = await self.ask("POST", v1("snapshots", snapshot, "restore"), body, patience=600)
        return read(DesktopView, answer["desktop"])

    async def delete_snapshot(self, snapshot: str) -> None:
        await self.ask("DELETE", v1("snapshots", snapshot), patience=HOLD)

    # profiles

    async def profiles(self) -> list[Profile]:
        return [read(Profile, one) for one in (await self.ask("GET", "/v1/profiles"))["profiles"]]

    async def profile(self, name: str) -> Profile:
        return read(Profile, await self.ask("GET", v1("profiles", name)))
