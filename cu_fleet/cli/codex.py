"""`cu-fleet codex`: Codex with a desktop of its own, for as long as it runs.

Codex is our child, in our process group and with our terminal, so that ^C and ^Z do what they do without us. It is
told of its desktop by `-c` overrides alone: whatever its configuration file says stays as it is. The lease's token is
in its environment, and nothing else that opens anything: what was ours of CU_FLEET_* is not passed on, so a `cu-fleet`
that Codex runs has the lease's right and no other. What all that comes to is looked up and said before it runs. Before
Codex runs a signal ends us; while it runs the signal is Codex's; afterwards there is nothing left to end but a release
that takes seconds. Should we be killed ourselves, the lease runs out.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from cu_fleet.cli import complete, connect, output, promises
from cu_fleet.cli.acquire import acquire
from cu_fleet.cli.clients import TOKEN
from cu_fleet.cli.codex_worktree import RunsWorktree
from cu_fleet.cli.common import Profile, Wait, command, seconds
from cu_fleet.cli.holding import END_WITHIN, FROM_KEYBOARD, give_back, heeding, in_foreground, renew
from cu_fleet.cli.mcp import PANEL
from cu_fleet.model.errors import DeniedError, InvalidError, UnavailableError

TTL = 300.0  # seconds; renewed while this process lives, and soon over should it be killed


def register(root: typer.Typer) -> None:
    command(
        root,
        "codex",
        "cu-fleet codex",
        "cu-fleet codex --agent codex-a --profile local -- exec 'open the editor and write a haiku'",
        "cu-fleet codex --worktree next -- exec 'mend the date picker, and try it in the browser'",
        rich_help_panel=PANEL,
    )(codex)


def codex(
    words: Annotated[list[str] | None, typer.Argument(metavar="ARGS", help="What Codex is called with.")] = None,
    agent: Annotated[
        str,
        typer.Option(
            "--agent", "-a", help="Who it is. Runs at the same time are A, A-2, A-3, …", autocompletion=complete.agents
        ),
    ] = "codex",
    profile: Profile = "local",
    wait: Wait = "60s",
    worktree: Annotated[
        str | None,
        typer.Option(
            "--worktree", metavar="BASE", help="In a git worktree of its own, from this branch, tag or commit."
        ),
    ] = None,
    repo: Annotated[
        str | None, typer.Option("--repo", metavar="PATH", help="Of this repository; none: the one you stand in.")
    ] = None,
    into: Annotated[
        str | None,
        typer.Option(
            "--into", metavar="BRANCH", help="Merged into this when a person approves; none: BASE, if a branch."
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON document at the end; what Codex prints goes to standard error."),
    ] = False,
) -> None:
    """Run Codex with a desktop of its own, which is given back when it ends.

    It leases the desktop, waiting in line for it if need be, and starts codex with the desktop's tools beside
    those it has. Signals go to Codex and its exit code becomes ours. Whatever the end is, the desktop is given back
    and rolled back to clean. Its right is the agent's: CU_FLEET_TOKEN may hold an agent's token or an operator's.

    With --worktree it runs in a folder and on a branch of its own, which its desktop sees as ~/Shared/REPOSITORY (files
    only: git works on this machine's side). At the end what is unchanged is removed; what was changed is kept, checked
    by your review command, and merged only when you approve: cu-fleet worktree list.
    """
    patience = seconds("--wait", wait, forever=None)
    tree = _worktree(worktree, repo, into, words or [])
    program = _program()
    body = {"profile": profile, "wait": patience, "ttl": TTL}
    name, token = _right(agent)
    run = _Run([program, *(words or [])], as_json, tree)
    told = connect.run(lambda wire: run.whole(wire, name, body), token=token)
    if as_json:
        output.document(told)
    raise typer.Exit(told["exit"])


def _worktree(base: str | None, repo: str | None, into: str | None, words: list[str]) -> RunsWorktree | None:
    """What was asked for, refused where it contradicts itself."""
    from cu_fleet.client.naming import kind_of

    if base is None:
        if repo or into:
            raise InvalidError("--repo and --into go with --worktree BASE", code="usage")
        return None
    if promises.moves(words):
        raise InvalidError(
            "Codex is told to work in another folder (-C), and in a worktree of its own",
            remedy="leave one out",
            code="usage",
        )
    if kind_of(os.environ.get("CU_FLEET_TOKEN")) == "cfa":
        raise DeniedError(
            "a worktree is made by whoever owns the fleet, and CU_FLEET_TOKEN is an agent's",
            remedy="unset it: Codex is given the agent's right and no more all the same",
            code="needs_operator",
        )
    return RunsWorktree(str(Path(repo or ".").absolute()), base, into, promises.prompt(words))


def _program() -> str:
    if program := shutil.which("codex"):
        return str(Path(program).absolute())
    raise UnavailableError("codex is not on PATH", remedy="install it: npm install -g @openai/codex", code="no_codex")


def _right(agent: str) -> tuple[str, str]:
    """Who asks, and with which token: an operator's serves only to get the agent's."""
    from cu_fleet.client.naming import agents_token, kind_of, named_in

    given = os.environ.get("CU_FLEET_TOKEN") or ""
    if kind_of(given) == "cfl":
        raise DeniedError(
            "CU_FLEET_TOKEN is a lease's: it opens that one desktop and asks for no other",
            remedy="give it to a Codex of your own start: cu-fleet mcp-config --client codex --http",
            code="needs_agent",
        )
    if kind_of(given) == "cfa":
        return named_in(given), given
    return agent, str(connect.run(lambda wire: agents_token(wire, agent)))


class _Run:
    """One Codex and its lease, and what becomes of a signal meanwhile."""

    def __init__(self, words: list[str], as_json: bool, tree: RunsWorktree | None) -> None:
        self._words, self._as_json, self._tree = words, as_json, tree
        self._process: subprocess.Popen[bytes] | None = None
        self._signal: int | None = None  # that ended us before Codex ran
        self._killing: asyncio.TimerHandle | None = None

    async def whole(self, wire: connect.Wire, agent: str, body: dict[str, Any]) -> dict[str, Any]:
        task = asyncio.current_task()
        assert task
        with heeding(lambda number: self._heard(number, task)):
            try:
                return await self._leased(wire, agent, body)
            except asyncio.CancelledError:
                if self._signal is None:
                    raise
                raise typer.Exit(128 + self._signal) from None

    def _heard(self, number: signal.Signals, task: "asyncio.Task[Any]") -> None:
        if self._process is None:
            if self._signal is None:
                self._signal = number
                task.cancel()
        elif self._process.poll() is None and not (number in FROM_KEYBOARD and in_foreground()):
            self._process.send_signal(number)
            if number not in FROM_KEYBOARD and self._killing is None:
                self._killing = asyncio.get_running_loop().call_later(END_WITHIN, self._process.kill)
        elif self._tree and self._process.poll() is not None:
            self._tree.enough.set()

    async def _leased(self, wire: connect.Wire, agent: str, body: dict[str, Any]) -> dict[str, Any]:
        profile = await connect.ask(wire, "GET", connect.path("profiles", body["profile"]))
        async with AsyncExitStack() as held:
            if self._tree:
                self._tree.open(wire)
                held.push_async_callback(self._tree.close)
                await self._tree.look()
            own, view = await _acquired(held, wire, agent, body)
            told = {name: value for name, value in view.items() if name != "token"}
            told |= {"network": profile["network"], "gates": profile["gates"]}
            try:
                cwd = await self._tree.make(view["lease"]) if self._tree else None
                url = _url(own.url or view["url"])
                await self._introduce(told, url, view["token"])
                code = await self._with_desktop(own, view, url, cwd)
            finally:
                told["state"] = await give_back(own, view["lease"], TTL, "Codex ended")
            if self._tree:
                told["worktree"] = await self._tree.ended()
            return {**told, "exit": code}

    async def _introduce(self, told: dict[str, Any], url: str, token: str) -> None:
        """What its settings promise, checked where it can be."""
        where, screen = told["desktop"], f"{told['width']}x{told['height']}"
        output.note(f"lease {told['lease']}: agent {told['agent']} has desktop {where} ({screen}) while Codex runs")
        output.note(f"profile {told['profile']}: network {told['network']}, gates {told['gates']}")
        offered = await promises.tools(url, token)
        for line in promises.told(self._words[1:], os.environ, offered, told["network"]):
            output.note(line)
        if self._tree:
            self._tree.introduce()

    async def _with_desktop(self, wire: connect.Wire, view: dict[str, Any], url: str, cwd: Path | None) -> int:
        """Codex from its start to its end. From here on a signal is Codex's: nothing is awaited before it is known."""
        process = self._process = self._start(url, view["token"], cwd)
        renewing = asyncio.create_task(renew(wire, view["lease"], TTL), name=f"renew {view['lease']}")
        try:
            code = await asyncio.to_thread(process.wait)
        finally:
            renewing.cancel()
            if self._killing:
                self._killing.cancel()
        return 128 - code if code < 0 else code

    def _start(self, url: str, token: str, cwd: Path | None) -> "subprocess.Popen[bytes]":
        program, *words = self._words
        out = 2 if self._as_json else None
        env = {**_environment(url, token), **({"PWD": str(cwd)} if cwd else {})}
        try:
            return subprocess.Popen([program, *_overrides(url), *words], env=env, stdout=out, cwd=cwd)
        except OSError as error:
            raise UnavailableError(f"{program} cannot be started: {error.strerror}", code="no_codex") from None


def _url(url: str | None) -> str:
    if not url:
        raise UnavailableError("the controller listens at no address", remedy="cu-fleet down, then cu-fleet up")
    return url


def _overrides(url: str) -> list[str]:
    """Before the user's own words, so that those win. Every call of ours answers within a minute."""
    settings = {
        "url": f"{url}/mcp",
        "bearer_token_env_var": TOKEN,
        "required": True,
        "startup_timeout_sec": 30,
        "tool_timeout_sec": 90,
    }
    return [
        word for key, value in settings.items() for word in ("-c", f"mcp_servers.cu_fleet.{key}={json.dumps(value)}")
    ]


def _environment(url: str, token: str) -> dict[str, str]:
    """Ours, with the lease's right instead of ours; and no proxy between Codex and a controller on this machine."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("CU_FLEET_")}
    direct = ",".join(filter(None, [env.get("NO_PROXY") or env.get("no_proxy"), "127.0.0.1,localhost,::1"]))
    return {**env, TOKEN: token, "CU_FLEET_URL": url, "CU_FLEET_TOKEN": token, "NO_PROXY": direct, "no_proxy": direct}


# the lease


async def _acquired(
    held: AsyncExitStack, wire: connect.Wire, agent: str, body: dict[str, Any]
) -> tuple[connect.Wire, dict[str, Any]]:
    """A lease under the first of the agent's names that may have one, and the way to it."""
    from cu_fleet.client.http import Wire
    from cu_fleet.client.naming import first_free

    async def ask(token: str | None) -> tuple[connect.Wire, dict[str, Any]]:
        own = Wire(url=wire.url, token=token, home=wire.home, start=False) if token else wire
        held.push_async_callback(own.close)
        return own, await acquire(own, body, body["wait"])

    return await first_free(wire, agent, body["profile"], ask)
