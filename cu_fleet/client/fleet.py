"""A controller, as the client sees it."""

import asyncio
import base64
import json
import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast

from cu_fleet.client.desktop import Desktop, Time
from cu_fleet.client.http import Wire, given, lines, read, read_line, v1
from cu_fleet.client.lease import Errands, Leasing
from cu_fleet.model.audit import Entry
from cu_fleet.model.errors import FleetError, TooLongError, UnavailableError
from cu_fleet.model.profile import Profile
from cu_fleet.model.snapshot import Snapshot
from cu_fleet.model.view import AgentView, ApprovalView, DesktopView, FrameView, LeaseView, OperatorView, TicketView
from cu_fleet.settings import default_home

_HOLD = 25.0
_log = logging.getLogger("cu_fleet.client")


@dataclass(frozen=True)
class Completed:
    """What a command said until its end."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class Fleet:
    """A controller. Everything here may be called from many tasks at once."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._errands = Errands(wire)

    @classmethod
    def connect(
        cls,
        url: str | None = None,
        token: str | None = None,
        home: str | os.PathLike[str] | None = None,
        start: bool = True,
    ) -> Self:
        """The controller at `url` (or CU_FLEET_URL), else the home's own, which is started if it does not run.

        A `home` given here wins over the environment's URL and token.
        """
        if home is None:
            url = url or os.environ.get("CU_FLEET_URL") or None
            token = token or os.environ.get("CU_FLEET_TOKEN") or None
        folder = Path(home).absolute() if home is not None else default_home()
        return cls(Wire(url=url.rstrip("/") if url else None, token=token, home=folder, start=start))

    async def __aenter__(self) -> Self:
        try:
            await self._wire.open()
        except BaseException:
            await self._wire.close()
            raise
        return self

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        await self.close()

    async def close(self) -> None:
        """End what this object still has under way. Leases that are not released live on until their time is over."""
        await self._errands.close()
        await self._wire.close()

    async def ask(self, method: str, where: str, body: object = None, /, *, patience: float = 0.0, **query: Any) -> Any:
        """Any call of the HTTP API: `await fleet.ask("GET", "/v1/leases", agent="codex-a")`."""
        answer = await self._wire.call(method, where, body=body, query=query, patience=patience)
        return answer.json()

    # leases

    def lease(
        self,
        *,
        profile: str,
        agent: str | None = None,
        desktop: str | None = None,
        resources: Sequence[str] = (),
        ttl: Time | None = None,
        wait: Time | None = 60.0,
        view: int | None = None,
        request_id: str | None = None,
    ) -> Leasing:
        """A desktop for as long as the `async with` block runs: waited for, renewed meanwhile, given back at its end.

        `wait`: how long to stand in the queue (0: not at all, None: for ever); then TooLongError. `view`: the longest
        edge of the pictures shown, which coordinates are pixels of; None: as the profile says.
        """
        asked = given(profile=profile, agent=agent, desktop=desktop, ttl=ttl, view=view, request_id=request_id)
        return Leasing(self._errands, {**asked, "resources": list(resources), "wait": wait})

    async def acquire(
        self,
        *,
        profile: str,
        agent: str | None = None,
        desktop: str | None = None,
        resources: Sequence[str] = (),
        ttl: Time | None = None,
        wait: Time | None = 60.0,
        view: int | None = None,
        request_id: str | None = None,
    ) -> Desktop:
        """A desktop that lasts until it is released, or its time is over: nobody renews or releases it for you."""
        asked = given(profile=profile, agent=agent, desktop=desktop, ttl=ttl, view=view, request_id=request_id)
        return Desktop(self._wire, await self._errands.acquired({**asked, "resources": list(resources), "wait": wait}))

    async def leases(self, *, everything: bool = False, agent: str | None = None) -> list[LeaseView]:
        answer = await self.ask("GET", "/v1/leases", **given(all=everything or None, agent=agent))
        return [read(LeaseView, one) for one in answer["leases"]]

    async def show(self, lease: str) -> LeaseView:
        return read(LeaseView, await self.ask("GET", v1("leases", lease)))

    async def open(self, lease: str, *, as_operator: bool = False) -> Desktop:
        """What a granted lease opens. An operator who has taken over acts under their own name."""
        view = await self.show(lease)
        return Desktop(self._wire, view.but(token=None) if as_operator else view)

    async def renew(self, lease: str, ttl: Time | None = None) -> LeaseView:
        return await self._supervise(lease, "renew", ttl=ttl)

    async def release(self, lease: str) -> LeaseView:
        return await self._supervise(lease, "release")

    async def pause(self, lease: str, reason: str = "", *, looking: bool = True) -> LeaseView:
        """Stop its input at once; the agent is told why, and may still look unless `looking` is False."""
        return await self._supervise(lease, "pause", reason=reason, looking=looking)

    async def resume(self, lease: str) -> LeaseView:
        return await self._supervise(lease, "resume")

    async def take(self, lease: str, reason: str = "") -> LeaseView:
        """Pointer and keys are the operator's, until `resume`."""
        return await self._supervise(lease, "take", reason=reason)

    async def watch(self, lease: str, *, control: bool = False, ttl: Time = "60s") -> TicketView:
        """Let one VNC viewer in, once: its password, and where it is let in."""
        return read(TicketView, await self.ask("POST", v1("leases", lease, "watch"), {"control": control, "ttl": ttl}))

    async def revoke(
        self, lease: str, reason: str = "", *, bar: Time | None = "10m", snapshot: bool = False
    ) -> LeaseView:
        """Take the desktop away; bar the agent from leasing again for `bar` (None: not, "forever")."""
        bar = "none" if bar is None else bar
        return await self._supervise(lease, "revoke", reason=reason, bar=bar, snapshot=snapshot)

    async def reassign(
        self, lease: str, to: str, *, mode: Literal["clean", "as-is"], reason: str = "", ttl: Time | None = None
    ) -> LeaseView:
        """Hand the desktop to another agent; returns the new lease."""
        return await self._supervise(lease, "reassign", to=to, mode=mode, reason=reason, ttl=ttl)

    async def _supervise(self, lease: str, verb: str, **body: Any) -> LeaseView:
        answer = await self.ask("POST", v1("leases", lease, verb), given(**body), patience=_HOLD)
        return read(LeaseView, answer)

    # desktops

    async def desktops(self) -> list[DesktopView]:
        return [read(DesktopView, one) for one in (await self.ask("GET", "/v1/desktops"))["desktops"]]

    async def desktop(self, desktop: str) -> DesktopView:
        return read(DesktopView, await self.ask("GET", v1("desktops", desktop)))

    async def remove_desktop(self, desktop: str) -> None:
        await self.ask("DELETE", v1("desktops", desktop), patience=_HOLD)

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
    ) -> "Command":
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
        await self.ask("DELETE", v1("snapshots", snapshot), patience=_HOLD)

    # approvals

    async def approvals(self, *, everything: bool = False, lease: str | None = None) -> list[ApprovalView]:
        """What waits for a person's answer; with `everything` also what was answered or is over."""
        answer = await self.ask("GET", "/v1/approvals", **given(all=everything or None, lease=lease))
        return [read(ApprovalView, one) for one in answer["approvals"]]

    async def approval(self, approval: str) -> ApprovalView:
        return read(ApprovalView, await self.ask("GET", v1("approvals", approval)))

    async def approve(self, approval: str, reason: str = "") -> ApprovalView:
        """A person's yes, for once. A merge is made before this returns, and `result` says what came of it."""
        where = v1("approvals", approval, "approve")
        return read(ApprovalView, await self.ask("POST", where, {"reason": reason}, patience=600))

    async def deny(self, approval: str, reason: str = "") -> ApprovalView:
        """A person's no; the agent reads the reason."""
        where = v1("approvals", approval, "deny")
        return read(ApprovalView, await self.ask("POST", where, {"reason": reason}))

    # kept frames

    async def frames(self, lease: str | None = None, *, limit: int = 100) -> list[FrameView]:
        """The newest that were kept, of one lease or of all, newest first."""
        answer = await self.ask("GET", "/v1/frames", lease=lease, limit=limit)
        return [read(FrameView, one) for one in answer["frames"]]

    async def frame(self, sha256: str) -> bytes:
        """The bytes of a kept frame, by its hash or at least 8 digits of it."""
        return (await self._wire.call("GET", v1("frames", sha256))).content

    async def prune_frames(self, *, older: Time | None = None, lease: str | None = None) -> dict[str, int]:
        """Remove those that are older, those of a lease, or what the settings let go; says how many went, and stay."""
        return dict(await self.ask("POST", "/v1/frames/prune", given(older=older, lease=lease), patience=600))

    # people

    async def agents(self) -> list[AgentView]:
        return [read(AgentView, one) for one in (await self.ask("GET", "/v1/agents"))["agents"]]

    async def add_agent(
        self,
        agent: str,
        *,
        profiles: Sequence[str] = ("*",),
        desktops: Sequence[str] = (),
        resources: Sequence[str] = (),
        leases: int = 1,
        children: int = 0,
    ) -> AgentView:
        """Add an agent or change what it may; its token is in the answer."""
        patterns = {"profiles": list(profiles), "desktops": list(desktops), "resources": list(resources)}
        body = {"agent": agent, **patterns, "leases": leases, "children": children}
        return read(AgentView, await self.ask("POST", "/v1/agents", body))

    async def rotate_agent(self, agent: str) -> AgentView:
        return read(AgentView, await self.ask("POST", v1("agents", agent, "rotate")))

    async def unbar_agent(self, agent: str) -> AgentView:
        return read(AgentView, await self.ask("POST", v1("agents", agent, "unbar")))

    async def remove_agent(self, agent: str) -> None:
        await self.ask("DELETE", v1("agents", agent))

    async def operators(self) -> list[OperatorView]:
        return [read(OperatorView, one) for one in (await self.ask("GET", "/v1/operators"))["operators"]]

    async def add_operator(
        self, operator: str, role: Literal["observer", "operator", "admin"] = "operator"
    ) -> OperatorView:
        return read(OperatorView, await self.ask("POST", "/v1/operators", {"operator": operator, "role": role}))

    async def rotate_operator(self, operator: str) -> OperatorView:
        return read(OperatorView, await self.ask("POST", v1("operators", operator, "rotate")))

    async def remove_operator(self, operator: str) -> None:
        await self.ask("DELETE", v1("operators", operator))

    # the rest

    async def profiles(self) -> list[Profile]:
        return [read(Profile, one) for one in (await self.ask("GET", "/v1/profiles"))["profiles"]]

    async def profile(self, name: str) -> Profile:
        return read(Profile, await self.ask("GET", v1("profiles", name)))

    async def audit(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        lease: str | None = None,
        agent: str | None = None,
        desktop: str | None = None,
        what: str | None = None,
    ) -> list[Entry]:
        """A page of the record, by number."""
        only = {"after": after, "limit": limit, "lease": lease, "agent": agent, "desktop": desktop, "what": what}
        answer = (await self._wire.call("GET", "/v1/audit", query=only)).json()
        return [read(Entry, one) for one in answer["entries"]]

    async def verify_audit(self) -> int:
        """How many entries it has, all of them whole; BrokenError if not."""
        return int((await self.ask("GET", "/v1/audit/verify", patience=600))["entries"])

    async def export_audit(self) -> AsyncIterator[Entry]:
        """All of the record, as it comes."""
        wanted = {"Accept": "application/x-ndjson"}
        async with self._wire.stream("GET", "/v1/audit", headers=wanted) as answer:
            async for line in lines(self._wire, answer):
                yield read(Entry, read_line(line))

    async def events(self, *, after: int | None = None) -> AsyncIterator[Entry]:
        """Each entry as it is written, from after a number (or from now), across breaks of the connection."""
        while True:
            try:
                async with self._wire.stream(
                    "GET", "/v1/events", query={"after": after}, patience=None, start=False
                ) as answer:
                    async for line in lines(self._wire, answer):
                        if line.startswith("data:"):
                            entry = read(Entry, json.loads(line[5:]))
                            after = entry.seq
                            yield entry
            except UnavailableError as error:
                _log.debug("events broke off: %s", error)
            await asyncio.sleep(1.0)

    async def status(self) -> dict[str, Any]:
        return dict(await self.ask("GET", "/v1/status"))

    async def metrics(self) -> str:
        return (await self._wire.call("GET", "/metrics")).text

    async def shutdown(self, *, within: float = 180.0) -> None:
        """Stop the controller and end everything it made. Returns when it has, if it runs on this machine."""
        pid = int((await self._wire.call("POST", "/v1/shutdown", start=False)).json()["pid"])
        if self._wire.url is None:
            await _ended(pid, within)


class Command:
    """A command running inside a desktop: what it says, and then `exit_code`."""

    def __init__(self, wire: Wire, where: str, asked: dict[str, Any], stdin: bytes | AsyncIterator[bytes]) -> None:
        self._wire, self._where, self._asked = wire, where, asked
        self._input = None if isinstance(stdin, bytes) else stdin
        if self._input is not None:
            self._asked["input"] = True
        elif stdin:
            self._asked["stdin"] = base64.b64encode(cast(bytes, stdin)).decode()
        self._feeding: asyncio.Task[None] | None = None
        self.exit_code: int | None = None

    async def __aenter__(self) -> Self:
        self._streaming = self._wire.stream("POST", self._where, body=self._asked, patience=None)
        self._answer = await self._streaming.__aenter__()
        return self

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if self._feeding:
                self._feeding.cancel()
                await asyncio.gather(self._feeding, return_exceptions=True)
        finally:
            await self._streaming.__aexit__(kind, error, trace)

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        async for line in lines(self._wire, self._answer):
            said = read_line(line)
            if "exit" in said:
                self.exit_code = int(said["exit"])
                return
            if "command" in said:
                self._feeding = asyncio.create_task(self._feed(said["command"]), name=f"feed {said['command']}")
            else:
                yield said["stream"], base64.b64decode(said["data"])
        raise UnavailableError("the command's output broke off", code="broken_off")

    async def _feed(self, command: str) -> None:
        """A command need not read what it is given: that it ended first is told by its output."""
        where = f"{self._where}/{command}/input"
        try:
            await self._wire.call("PUT", where, content=self._input, patience=None, start=False)
        except FleetError as error:
            _log.debug("command %s took no more input: %s", command, error)


async def _ended(pid: int, within: float) -> None:
    """Until a process of this machine is gone."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process, gone.set)
    try:
        async with asyncio.timeout(within):
            await gone.wait()
    except TimeoutError:
        raise TooLongError(f"the controller (process {pid}) still runs after {within:g} s", pid=pid) from None
    finally:
        loop.remove_reader(process)
        os.close(process)
