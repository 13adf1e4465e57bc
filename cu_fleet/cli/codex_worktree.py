"""The worktree of one run of Codex, from what is looked up before it until what becomes of it.

The controller makes it and looks after it: should we be killed anywhere, the lease runs out, and the worktree is taken
out of the slot then. It is asked with the right of whoever started the run, which Codex does not get.
"""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from cu_fleet.cli import connect, output
from cu_fleet.cli.worktree import changed
from cu_fleet.model.errors import FleetError, UnavailableError

PATIENCE = 60.0  # seconds that the end may take to be told
_LOOK = 2.0  # seconds of one look
_DONE = ("kept", "gone")


class RunsWorktree:
    def __init__(self, repository: str, base: str, into: str | None, intent: str) -> None:
        self.ask: dict[str, Any] = {"repository": repository, "base": base, "into": into, "intent": intent}
        self.plan: dict[str, Any] = {}
        self.view: dict[str, Any] | None = None
        self.enough = asyncio.Event()  # nobody wants to wait for its end any more

    def open(self, wire: connect.Wire) -> None:
        from cu_fleet.client.http import Wire

        token = os.environ.get("CU_FLEET_TOKEN") or None
        self._wire = Wire(url=wire.url, token=token, home=wire.home, start=False)

    async def look(self) -> None:
        """Before anything is leased: whether it can be."""
        self.plan = dict(await connect.ask(self._wire, "POST", "/v1/worktrees/plan", self.ask))

    async def make(self, lease: str) -> Path:
        """The folder in which Codex is to run."""
        self.view = dict(await connect.ask(self._wire, "POST", "/v1/worktrees", {**self.ask, "lease": lease}))
        path = Path(self.view["path"])
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise UnavailableError(
                f"the worktree {path} is not yours to enter",
                remedy="run it as the controller's user, on the controller's machine",
                code="no_worktree",
            )
        return path

    def introduce(self) -> None:
        view, plan = self.view or {}, self.plan
        output.note(f"worktree {view['worktree']}: {view['path']}, on its desktop {view['inside']}")
        start = f"branch {view['branch']} from {plan['base']} ({plan['base_commit'][:12]}) of {plan['repository']}"
        output.note(f"  {start}; git runs as {plan['owner']}")
        output.note(f"  at its end {_checks(plan)}, and {_target(plan, view)}")

    async def ended(self) -> dict[str, Any] | None:
        """What became of it, said; what takes long is said to."""
        if self.view is None:
            return None
        key, until = self.view["worktree"], time.monotonic() + PATIENCE
        try:
            while self.view["state"] not in _DONE and time.monotonic() < until and not self.enough.is_set():
                where = connect.path("worktrees", key)
                self.view = dict(await connect.ask(self._wire, "GET", where, start=False, hold=_LOOK))
        except FleetError as error:
            output.note(f"worktree {key}: {error.what}; later: cu-fleet worktree show {key}")
        else:
            self._tell(self.view)
        return self.view

    def _tell(self, view: dict[str, Any]) -> None:
        key = view["worktree"]
        if view["state"] == "gone":
            output.note(f"worktree {key} is removed: {view['problem'] or 'nothing was changed'}")
        elif view["state"] != "kept":
            output.note(f"worktree {key} is still being checked; later: cu-fleet worktree show {key}")
        elif view["tree"] is None:
            output.note(f"worktree {key} is kept in {view['path']}: {view['problem']}")
        else:
            output.note(
                f"worktree {key}: {changed(view)}; review: {view['verdict']}; it waits for you until {view['until']}"
            )
            output.note(f"  cu-fleet worktree show {key}, then merge or discard it (approval {view['approval']})")

    async def close(self) -> None:
        await self._wire.close()


def _checks(plan: dict[str, Any]) -> str:
    return (
        f"it is checked by {', then '.join(plan['review'])}"
        if plan["review"]
        else "no review is configured to check it"
    )


def _target(plan: dict[str, Any], view: dict[str, Any]) -> str:
    if plan["protected"]:
        stays = f"it stays on branch {view['branch']}, to open a pull request from"
        return f"{plan['protected']} is protected: {stays} (--into BRANCH for another target)"
    if plan["into"]:
        return f"it is merged into {plan['into']} when a person approves"
    why = f"since {plan['base']} is no local branch"
    return f"it stays on branch {view['branch']}, {why} (--into BRANCH to have it merged)"
