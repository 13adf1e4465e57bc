"""A user's repository, as worktrees need it: branches, the linked worktree's entry, trees, and the merge.

A linked worktree is a folder whose `.git` names an entry in the repository, and that entry, which names the folder: so
git works in it for its owner and for a Codex that runs on this machine. The entry is written here in the layout that
git documents, since git would have to enter the folder to do so. It is locked: git clears nothing of it away by itself.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cu_fleet.controller.carrying import MARK, Blob, Tree, gits_own
from cu_fleet.controller.git import LONG, Git
from cu_fleet.controller.ignoring import Ignoring, scratch_for
from cu_fleet.model.errors import ConflictError, FleetError, NotFoundError, UnavailableError
from cu_fleet.model.worktree import Worktree

OURS = "cu-fleet-"  # how the names of our entries begin
_NONE = {"sha1": "0" * 40, "sha256": "0" * 64}
_UNDER_WAY = {
    "MERGE_HEAD": "a merge",
    "rebase-merge": "a rebase",
    "rebase-apply": "a rebase",
    "CHERRY_PICK_HEAD": "a cherry-pick",
    "REVERT_HEAD": "a revert",
    "BISECT_LOG": "a bisection",
}


class Repository:
    def __init__(self, git: Git) -> None:
        self.git = git
        self.hash_name = git.ask("rev-parse", "--show-object-format")

    # what there is

    def commit(self, words: str, git_dir: Path | None = None) -> str:
        """The commit that a branch, tag or hash names."""
        code, said = self.git.run(
            "rev-parse",
            "--verify",
            "--quiet",
            "--end-of-options",
            f"{words}^{{commit}}",
            fine=(0, 1, 128),
            git_dir=git_dir,
        )
        if code:
            raise NotFoundError(f"there is no branch, tag or commit {words!r}", code="no_base", base=words)
        return said.decode().strip()

    def branch(self, words: str, git_dir: Path | None = None) -> str | None:
        """The local branch that is meant by this, if it is one."""
        code, said = self.git.run(
            "rev-parse", "--verify", "--quiet", "--symbolic-full-name", "--end-of-options", words,
            fine=(0, 1, 128), git_dir=git_dir,
        )  # fmt: skip
        full = said.decode("utf-8", "replace").strip()
        return full.removeprefix("refs/heads/") if not code and full.startswith("refs/heads/") else None

    def tip(self, ref: str) -> str | None:
        code, said = self.git.run("rev-parse", "--verify", "--quiet", f"{ref}^{{object}}", fine=(0, 1, 128))
        return None if code else said.decode().strip()

    def commit_tree_of(self, commit: str) -> str:
        return self.git.ask("rev-parse", "--verify", f"{commit}^{{tree}}")

    def contains(self, commit: str, in_commit: str) -> bool:
        return self.git.run("merge-base", "--is-ancestor", commit, in_commit, fine=(0, 1))[0] == 0

    def under_way(self, git_dir: Path) -> str | None:
        return next((what for name, what in _UNDER_WAY.items() if (git_dir / name).exists()), None)

    def tree(self, of: str) -> Tree:
        _, said = self.git.run("ls-tree", "-r", "-l", "-z", "--full-tree", of, within=LONG)
        found: Tree = {}
        for line in filter(None, said.split(b"\0")):
            facts, path = line.split(b"\t", 1)
            mode, _, oid, size = facts.split()
            found[path] = Blob(mode, oid, 0 if size == b"-" else int(size))
        return found

    @contextlib.contextmanager
    def blobs(self) -> Iterator["_Blobs"]:
        with self.git.talking("cat-file", "--batch") as process:
            assert process.stdin
            assert process.stdout
            yield _Blobs(process.stdin, process.stdout)

    @contextlib.contextmanager
    def ignoring(self) -> Iterator[Ignoring]:
        """What git would leave out of a folder. It sees the ignore files only, and the names of folders."""
        words = ["check-ignore", "-z", "-v", "-n", "--stdin", "--no-index"]
        own = self.git.run("config", "--path", "--get", "core.excludesFile", fine=(0, 1), homely=True)[1].strip()
        config = {"core.excludesFile": own.decode("utf-8", "replace")} if own else {}
        with (
            scratch_for(self.git.owner) as scratch,
            self.git.talking(*words, work_tree=scratch, config=config) as process,
        ):
            assert process.stdin
            assert process.stdout
            yield Ignoring(process.stdin, process.stdout, scratch)

    # the linked worktree

    def entry(self, worktree: Worktree) -> Path:
        return self.git.folder / "worktrees" / f"{OURS}{worktree.id.removeprefix('wt_')}"

    def link(self, worktree: Worktree, folder: Path) -> None:
        """Make branch and entry; again, if they were made before."""
        ref = f"refs/heads/{worktree.branch}"
        if self.tip(ref) != worktree.base_commit:
            self.git.run("update-ref", ref, worktree.base_commit, _NONE[self.hash_name])
        entry = self.entry(worktree)
        self.git.as_owner("rm", "-rf", "--", str(entry))
        self.git.as_owner("mkdir", "-p", "--", str(entry))
        self._write(entry / "commondir", "../..\n")
        self._write(entry / "HEAD", f"ref: {ref}\n")
        self._write(entry / "locked", f"cu-fleet: agent {worktree.agent}, lease {worktree.lease}\n")
        self.point(worktree, folder)
        self.git.run("read-tree", worktree.base_commit, git_dir=entry)

    def point(self, worktree: Worktree, folder: Path) -> None:
        """Where the folder is now, if the entry is still there."""
        if self.entry(worktree).exists():
            self._write(self.entry(worktree) / "gitdir", f"{folder}/.git\n")

    def _write(self, path: Path, text: str) -> None:
        self.git.as_owner("tee", "--", str(path), stdin=text.encode())

    def marks(self, worktree: Worktree, folder: Path) -> None:
        """What lies in the folder beside the tree: git's link, and whose it is, in a folder that ignores itself."""
        (folder / ".git").write_text(f"gitdir: {self.entry(worktree)}\n")
        mark = folder / MARK.decode()
        mark.mkdir()
        (mark / ".gitignore").write_text("*\n")
        told = {"worktree": worktree.id, "agent": worktree.agent, "lease": worktree.lease, "desktop": worktree.desktop}
        told |= {"branch": worktree.branch, "base": worktree.base, "into": worktree.into or ""}
        told["on_the_desktop"] = f"~/Shared/{worktree.name}"
        (mark / "worktree.json").write_text(json.dumps(told, indent=2) + "\n")

    def unlink(self, worktree: Worktree, *, keep_branch: bool) -> None:
        """Remove the entry and what we keep; the branch too, if nobody has gone on with it."""
        self.git.as_owner("rm", "-rf", "--", str(self.entry(worktree)))
        if self.tip(own := kept_ref(worktree)):
            self.git.run("update-ref", "-d", own)
        known = {worktree.base_commit, worktree.tip, worktree.merge.tip if worktree.merge else None}
        ref = f"refs/heads/{worktree.branch}"
        if not keep_branch and (tip := self.tip(ref)) in known and tip:
            self.git.run("update-ref", "-d", ref, tip)

    # what an agent made

    def agents_tip(self, worktree: Worktree) -> str:
        """The agent's last commit: where its worktree stands, if that goes on from the base; else its branch."""
        for git_dir, words in ((self.entry(worktree), "HEAD"), (None, f"refs/heads/{worktree.branch}")):
            with contextlib.suppress(FleetError):
                tip = self.commit(words, git_dir)
                if self.contains(worktree.base_commit, tip):
                    return tip
        return worktree.base_commit

    def head(self, worktree: Worktree, tip: str, at: float) -> bytes:
        """How the stream begins that `stage` takes; what changed follows."""
        head = f"commit {kept_ref(worktree)}\ncommitter cu-fleet <cu-fleet@localhost> {int(at)} +0000\n"
        return f"{head}data 6\nstaged\nfrom {tip}\n".encode()

    def stage(self, worktree: Worktree, changes: IO[bytes]) -> str:
        """The tree that these changes make of the tip's: kept from being cleared away, and staged for who looks."""
        changes.seek(0)
        self.git.run("fast-import", "--quiet", "--force", stdin=changes, within=LONG)
        tree = self.git.ask("rev-parse", "--verify", f"{kept_ref(worktree)}^{{tree}}")
        with contextlib.suppress(FleetError):  # whoever looks into the folder sees it staged; what counts is the tree
            self.git.as_owner("rm", "-f", "--", str(self.entry(worktree) / "index.lock"))  # of a git that was killed
            self.git.run("read-tree", tree, git_dir=self.entry(worktree))
        return tree

    def diff(self, before: str, after: str, most: int) -> tuple[str, bool]:
        """The difference for a person, and whether it was cut."""
        words = ["diff-tree", "-r", "-p", "-M", "--no-ext-diff", "--no-textconv", "--no-color", "--submodule=short"]
        _, said = self.git.run(*words, f"{before}^{{tree}}", after, most=most + 1, cut=True, within=LONG)
        return said[:most].decode("utf-8", "replace"), len(said) > most

    def numbers(self, before: str, after: str) -> list[tuple[str, str, str]]:
        """Insertions, deletions and path of each file."""
        words = ["diff-tree", "-r", "--numstat", "--no-renames", "--no-ext-diff", "--no-textconv", "-z"]
        _, said = self.git.run(*words, f"{before}^{{tree}}", after, within=LONG)
        rows = [line.decode("utf-8", "backslashreplace").split("\t", 2) for line in said.split(b"\0") if line]
        return [(added, gone, path) for added, gone, path in rows]

    def log(self, after: str, until: str, most: int) -> list[str]:
        words = ["log", "--format=%h %an: %s", f"--max-count={most}", "--no-decorate", "--no-color"]
        return self.git.ask(*words, f"{after}..{until}").splitlines() if after != until else []

    def commits(self, after: str, until: str) -> int:
        return int(self.git.ask("rev-list", "--count", f"{after}..{until}"))


def kept_ref(worktree: Worktree) -> str:
    return f"refs/cu-fleet/{worktree.id}"


class _Blobs:
    def __init__(self, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self._in, self._out = stdin, stdout

    def chunks(self, oid: bytes) -> Iterator[bytes]:
        self._in.write(oid + b"\n")
        self._in.flush()
        head = self._out.readline().split()
        if len(head) != 3 or head[1] != b"blob":
            raise UnavailableError(f"git has no file {oid.decode()}", remedy="git fsck", code="git_failed")
        left = int(head[2])
        while left:
            chunk = self._out.read(min(left, 1 << 20))
            if not chunk:
                raise UnavailableError("git broke off", code="git_failed")
            left -= len(chunk)
            yield chunk
        self._out.read(1)


def check_base(tree: Tree, base: str) -> None:
    """Refuse a commit whose files a worktree could not hold."""
    for path in tree:
        parts = path.split(b"/")
        if parts[0] == MARK or any(gits_own(part) for part in parts):
            raise ConflictError(
                f"{base} has a file {path.decode('utf-8', 'backslashreplace')}, which a worktree of ours cannot hold",
                remedy=f"{MARK.decode()} is where it says whose it is, and .git is git's",
                code="bad_base",
            )
