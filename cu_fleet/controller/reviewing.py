"""What a person is shown of a worktree before they say yes: the checks that they have configured, and a summary.

The checks run what an agent wrote. So they run on a copy of exactly what would be merged, inside bubblewrap: nothing of
this machine can be written, nothing listens and nothing is reached, with the repository owner's rights and no more, for
a bounded time. All that an agent wrote is shown between fences it cannot close, without what a terminal would obey.
"""

import asyncio
import contextlib
import fnmatch
import os
import re
import shlex
import shutil
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cu_fleet.controller.git import Owner
from cu_fleet.model.worktree import Verdict, Worktree

_KEEP = 16 << 10  # bytes of what a check said last
_INSIDE = "/tmp/review"  # noqa: S108 - a tmpfs of its own
_MOST_FILES = 100
_MOST_INTENTS = 20
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_OBEYED = (".gitattributes", ".gitmodules", ".github/*", ".gitlab-ci*", ".circleci/*", ".husky/*", ".vscode/*")
_TOO = (".pre-commit-config.y*", ".devcontainer*", ".envrc", ".mcp.json", ".codex/*", ".claude/*", "AGENTS.md")


@dataclass(frozen=True)
class Review:
    verdict: Verdict
    said: str = ""


class Number(NamedTuple):
    """What changed in one file; `-` where it is not text."""

    added: str
    gone: str
    path: str


@dataclass(frozen=True)
class Findings:
    """What an agent left behind."""

    tip: str
    tree: str
    commits: int = 0
    log: list[str] = field(default_factory=list)
    numbers: list[Number] = field(default_factory=list)
    diff: str = ""
    cut: bool = False
    left_out: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)

    @property
    def insertions(self) -> int:
        return sum(int(x.added) for x in self.numbers if x.added.isdigit())

    @property
    def deletions(self) -> int:
        return sum(int(x.gone) for x in self.numbers if x.gone.isdigit())

    @property
    def look_twice(self) -> list[str]:
        """What tools obey by themselves, and what else a person would not expect."""
        obeyed = [
            one_line(x.path) for x in self.numbers if any(_matches(x.path, pattern) for pattern in _OBEYED + _TOO)
        ]
        told = [f"{path} is obeyed by tools that find it" for path in obeyed[:_MOST_FILES]]
        return [*told, *self.strange, *(f"left out: {what}" for what in self.left_out)]


def _matches(path: str, pattern: str) -> bool:
    """At the top, or in any folder."""
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"*/{pattern}")


# the checks


async def checked(commands: Sequence[str], copy: Path, owner: Owner, hidden: Path, seconds: float) -> Review:
    """Run the checks one after another, until one fails."""
    if not commands:
        return Review("none")
    if shutil.which("bwrap") is None:
        return Review("not run", "bubblewrap, which the checks run in, is not installed: apt install bubblewrap")
    said: list[str] = []
    try:
        async with asyncio.timeout(seconds):
            for line in commands:
                code, output = await _check(shlex.split(line), copy, owner, hidden)
                said.append(f"$ {line}\n{output}")
                if code:
                    said.append(f"(it ended with {code})")
                    return Review("failed", "\n".join(said))
    except TimeoutError:
        return Review("failed", "\n".join([*said, f"(the checks took longer than {seconds:g} s)"]))
    except (OSError, ValueError) as e:
        return Review("not run", "\n".join([*said, f"it could not be started: {e}"]))
    return Review("passed", "\n".join(said))


async def _check(argv: list[str], copy: Path, owner: Owner, hidden: Path) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *_walls(copy, owner, hidden),
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": os.environ.get("PATH", _PATH), "HOME": "/tmp/home", "LANG": "C.UTF-8"},  # noqa: S108
        cwd="/",
        start_new_session=True,
    )
    assert process.stdout
    kept = b""
    try:
        while chunk := await process.stdout.read(1 << 16):
            kept = (kept + chunk)[-_KEEP:]
        return await process.wait(), kept.decode("utf-8", "replace")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _walls(copy: Path, owner: Owner, hidden: Path) -> list[str]:
    """Should the machine run short of memory, this goes first. Another user cannot enter the home anyway."""
    argv = ["nice", "choom", "-n", "1000", "--"]
    if not owner.ours:
        argv += ["setpriv", f"--reuid={owner.uid}", f"--regid={owner.gid}", "--clear-groups", "--no-new-privs", "--"]
    argv += ["bwrap", "--unshare-all", "--die-with-parent", "--new-session"]
    argv += ["--cap-drop", "ALL", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    for place in ("/tmp", "/run", "/var/tmp"):  # noqa: S108 - sockets of others lie here
        argv += ["--tmpfs", place]
    argv += ["--tmpfs", str(hidden)] if owner.ours else []
    return [*argv, "--dir", "/tmp/home", "--bind", str(copy), _INSIDE, "--chdir", _INSIDE, "--"]  # noqa: S108


# the summary


def summary(worktree: Worktree, found: Findings, review: Review, intents: Iterable[str]) -> str:
    """All a person needs to decide, as Markdown."""
    facts = {
        "agent": worktree.agent,
        "lease": worktree.lease,
        "desktop": worktree.desktop,
        "branch": worktree.branch,
        "from": f"{worktree.base} ({worktree.base_commit[:12]})",
        "into": worktree.into or "nothing: it stays on its branch",
        "changes": words_of(found),
        "review": review.verdict,
    }
    lines = [f"# Worktree {worktree.id} of agent {worktree.agent}", ""]
    lines += [f"- {name}: {shown(str(value))}" for name, value in facts.items()]
    for title, text in {
        "Asked for": worktree.intent,
        "What it said it did": "\n".join(list(dict.fromkeys(intents))[:_MOST_INTENTS]),
        "Look twice": "\n".join(found.look_twice),
        "Commits of its own": "\n".join(found.log),
        "Files": _stat(found.numbers),
        "Review": review.said,
    }.items():
        lines += section(title, text)
    cut = "\n(cut here; all of it: cu-fleet worktree diff " + worktree.id + ")" if found.cut else ""
    return "\n".join([*lines, *section("Diff", found.diff + cut, "diff")]) + "\n"


def words_of(found: Findings) -> str:
    commits = f", {found.commits} commits of its own" if found.commits else ""
    return f"{len(found.numbers)} files, +{found.insertions} -{found.deletions}{commits}"


def section(title: str, text: str, kind: str = "") -> list[str]:
    text = shown(text).rstrip("\n")
    if not text.strip():
        return []
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text) or ["``"]))
    return ["", f"## {title}", "", f"{fence}{kind}", text, fence]


def shown(text: str) -> str:
    """With nothing in it that a terminal would obey, or that turns the order of what one reads."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    return text.replace("\n", "\\n").replace("\t", "\\t")


def _stat(numbers: list[Number]) -> str:
    lines = [f"{x.added:>6} {x.gone:>6}  {one_line(x.path)}" for x in numbers[:_MOST_FILES]]
    more = len(numbers) - _MOST_FILES
    return "\n".join([*lines, f"… and {more} more"] if more > 0 else lines)
