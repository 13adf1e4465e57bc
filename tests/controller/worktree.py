"""A repository of a user's, a fleet over fakes, and agents that work in worktrees of it."""

import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from cu_fleet.model.worktree import Worktree, WorktreeAsk, WorktreeView
from tests.controller.fleet import ANA, Fleet
from tests.support import until

FILES = {"README": "hello\n", "src/app.py": "print(1)\n", "src/deep/er/x": "x\n", ".gitignore": "*.o\nbuild/\n"}


class Repository:
    """On its branch `next`, which nothing protects."""

    def __init__(self, top: Path) -> None:
        self.top = top
        top.mkdir(parents=True)
        self.git("init", "-q", "-b", "main")
        self.git("config", "user.name", "Ana")
        self.git("config", "user.email", "ana@example.org")
        self.write(**FILES)
        self.git("add", "-A")
        self.git("commit", "-qm", "one")
        self.git("checkout", "-qb", "next")

    def git(self, *words: str, fine: bool = True) -> str:
        env = {"PATH": os.environ["PATH"], "HOME": str(self.top), "LC_ALL": "C"}
        done = subprocess.run(["git", *words], cwd=self.top, env=env, capture_output=True, check=False)
        assert done.returncode == 0 or not fine, done.stderr
        return done.stdout.decode("utf-8", "replace").strip()

    def write(self, **files: str) -> None:
        for name, text in files.items():
            path = self.top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def commit(self, words: str, **files: str) -> str:
        self.write(**files)
        self.git("add", "-A")
        self.git("commit", "-qm", words)
        return self.git("rev-parse", "HEAD")

    def left(self) -> str:
        """What there is of ours in the repository."""
        entries = self.top / ".git" / "worktrees"
        names = [path.name for path in entries.iterdir()] if entries.exists() else []
        return "\n".join(
            [self.git("for-each-ref", "--format=%(refname)", "refs/cu-fleet", "refs/heads/cu-fleet"), *names]
        )


@dataclass
class Run:
    """An agent with a worktree, as `cu-fleet codex` makes one."""

    fleet: Fleet
    lease: str
    worktree: str
    place: Path

    async def release(self) -> WorktreeView:
        await self.fleet.controller.release(ANA, self.lease)
        return await self.ended()

    async def ended(self) -> WorktreeView:
        return await ended(self.fleet, self.worktree)


async def ended(fleet: Fleet, worktree: str) -> WorktreeView:
    """Once it waits for a person, or is gone."""

    async def there() -> WorktreeView | None:
        view = await fleet.controller.worktree(ANA, worktree)
        return view if view.state in ("kept", "gone") else None

    return await until(there)  # type: ignore[no-any-return]


async def begun(fleet: Fleet, repository: Repository, base: str = "next", *, agent: str = "a", **more: str) -> Run:
    lease = await fleet.granted(agent)
    ask = WorktreeAsk(repository=str(repository.top), base=base, **more)  # type: ignore[arg-type]
    view = await fleet.controller.make_worktree(ANA, lease.lease, ask)
    assert view.path
    return Run(fleet, lease.lease, view.worktree, Path(view.path))


async def row(fleet: Fleet, worktree: str) -> Worktree:
    found = await fleet.controller.core.read(lambda tx: tx.get(Worktree, worktree))
    assert found
    return found


@asynccontextmanager
async def fleet_and_repository(folder: Path, **settings: object) -> AsyncIterator[tuple[Fleet, Repository]]:
    (folder / "home").mkdir(mode=0o700)
    fleet = Fleet(folder / "home", **settings)
    await fleet.start()
    try:
        yield fleet, Repository(folder / "project")
    finally:
        if fleet.controller:
            await fleet.controller.close()
        for desktop in list(fleet.world.desktops):
            await fleet.backend.stop({"desktop": desktop})
