"""The merge itself: an agent's work committed in its name, and a branch taken from one commit to the next.

The user's own work tree goes along if it is clean, and nothing is changed if it is not. No hook and no filter runs.
"""

from pathlib import Path
from typing import Any, NamedTuple

from cu_fleet.controller import reviewing
from cu_fleet.controller.git import LONG
from cu_fleet.controller.repository import OURS, Repository
from cu_fleet.model.access import Caller
from cu_fleet.model.errors import ConflictError, FleetError, UnavailableError
from cu_fleet.model.worktree import Commits, Worktree


class Place(NamedTuple):
    """A work tree of the user's own, in which a branch is checked out."""

    top: Path
    git_dir: Path

    @property
    def where(self) -> dict[str, Any]:
        return {"git_dir": self.git_dir, "work_tree": self.top}


def committed(row: Worktree, who: Caller, repository: Repository) -> str:
    """The agent's commit of what was staged, or its own last one where nothing was."""
    assert row.tip
    assert row.tree
    if repository.commit_tree_of(row.tip) == row.tree:
        return row.tip
    message = f"{_title(row)}\n\nAgent: {row.agent}\nLease: {row.lease}\nWorktree: {row.id}\nApproved-by: {who.who}\n"
    author = (row.agent, f"{row.agent}@agents.cu-fleet.invalid")
    return commit_tree(repository, row.tree, [row.tip], message, author=author)


def prepared(row: Worktree, tip: str, who: Caller, repository: Repository) -> tuple[Commits, list[Place]]:
    """The commit that the target goes to. Nothing is changed by this."""
    into = row.into or ""
    before = repository.tip(f"refs/heads/{into}")
    if before is None:
        raise ConflictError(f"there is no branch {into} any more", code="no_target", into=into)
    after = tip if repository.contains(before, tip) else before
    if after == before and not repository.contains(tip, before):
        tree = merged_tree(repository, before, tip)
        message = f"Merge {row.branch}: {_title(row)}\n\nApproved-by: {who.who}\n"
        after = commit_tree(repository, tree, [before, tip], message)
    places = places_of(repository, into)
    for place in places:
        check_clean(repository, place, into)
    return Commits(before=before, after=after, tip=tip), places


def put_on_branch(row: Worktree, tip: str, repository: Repository) -> None:
    ref = f"refs/heads/{row.branch}"
    move(repository, row.branch, repository.tip(ref) or "", tip, f"cu-fleet: {row.id}")


def moved_on(row: Worktree, commits: Commits, places: list[Place], repository: Repository) -> None:
    """The branch first: git refuses if it is not where it was. Work trees that do not follow take it back."""
    into = row.into or ""
    if commits.before == commits.after:
        return
    move(repository, into, commits.before, commits.after, f"cu-fleet: merge {row.id} of {row.agent}")
    done: list[Place] = []
    try:
        for place in places:
            bring_up(repository, place, commits.before, commits.after)
            done.append(place)
    except FleetError:
        for place in done:
            bring_up(repository, place, commits.after, commits.before)
        move(repository, into, commits.after, commits.before, f"cu-fleet: undo merge of {row.id}")
        raise


def finished(row: Worktree, repository: Repository) -> tuple[bool, str]:
    """Whether the target has it, and what went wrong with work trees that have to follow."""
    commits, into = row.merge, row.into or ""
    assert commits
    now = repository.tip(f"refs/heads/{into}")
    problem = ""
    if now == commits.after and commits.after != commits.before:
        try:
            for place in places_of(repository, into):
                bring_up(repository, place, commits.before, commits.after)
        except FleetError as e:  # somebody has gone on there meanwhile
            problem = e.what
    return now is not None and repository.contains(commits.tip, now), problem


def _title(row: Worktree) -> str:
    words = " ".join(reviewing.shown(row.intent).split())
    return (words[:69] + "…" if len(words) > 70 else words) or f"Work of agent {row.agent}"


# git's part of it


def committer(repository: Repository) -> tuple[str, str]:
    """The user's own name and address, as git knows them."""
    try:
        said = repository.git.ask("var", "GIT_COMMITTER_IDENT", homely=True)
    except UnavailableError as e:
        raise ConflictError(
            f"git does not know who commits for {repository.git.owner.name} ({e.what})",
            remedy=f"as {repository.git.owner.name}: git config --global user.name NAME, and user.email ADDRESS",
            code="no_committer",
        ) from None
    name, _, rest = said.partition(" <")
    return name, rest.partition(">")[0]


def commit_tree(
    repository: Repository, tree: str, parents: list[str], message: str, *, author: tuple[str, str] | None = None
) -> str:
    name, address = committer(repository)
    given = {"user.name": name, "user.email": address, "user.useConfigOnly": "true"}
    if author:
        given |= {"author.name": author[0], "author.email": author[1]}
    words = ["commit-tree", tree, *(word for parent in parents for word in ("-p", parent))]
    return repository.git.run(*words, stdin=message.encode(), config=given)[1].decode().strip()


def merged_tree(repository: Repository, into: str, tip: str) -> str:
    """The tree of both; a conflict is refused."""
    code, said = repository.git.run(
        "merge-tree", "--write-tree", "--name-only", "--no-messages", "-z", into, tip, fine=(0, 1)
    )
    tree, *files = [part.decode("utf-8", "backslashreplace") for part in said.split(b"\0") if part]
    if code:
        some = ", ".join(dict.fromkeys(files[:10]))
        raise ConflictError(
            f"it conflicts with what has come into the branch meanwhile, in {some}",
            remedy="nothing was changed; merge its branch by hand, or let an agent begin from there",
            code="merge_conflict",
            files=files[:100],
        )
    return tree


def places_of(repository: Repository, branch: str) -> list[Place]:
    """Where this branch is checked out. What an agent's folder says of itself is not asked."""
    found = []
    for git_dir in [repository.git.folder, *sorted(repository.git.folder.glob("worktrees/*"))]:
        code, said = repository.git.run("symbolic-ref", "--quiet", "HEAD", git_dir=git_dir, fine=(0, 1, 128))
        top = _top_of(repository, git_dir) if not code and said.decode().strip() == f"refs/heads/{branch}" else None
        if top is None or not (top / ".git").exists():
            continue
        if git_dir.name.startswith(OURS):
            raise ConflictError(
                f"{branch} is checked out in an agent's worktree, {top}",
                remedy="wait until that is gone, or discard it; nothing was changed",
                code="target_dirty",
            )
        found.append(Place(top, git_dir))
    return found


def _top_of(repository: Repository, git_dir: Path) -> Path | None:
    """The work tree of this entry, or of the repository itself."""
    if git_dir != repository.git.folder:
        return Path((git_dir / "gitdir").read_text().strip()).parent
    code, said = repository.git.run("config", "--get", "core.worktree", fine=(0, 1))
    if not code:
        return (git_dir / said.decode().strip()).resolve()
    return git_dir.parent if git_dir.name == ".git" else None


def check_clean(repository: Repository, place: Place, branch: str) -> None:
    if what := repository.under_way(place.git_dir):
        raise ConflictError(
            f"{what} is under way in {place.top}, where {branch} is checked out",
            remedy="finish it, then approve again; nothing was changed",
            code="under_way",
        )
    words = ["status", "--porcelain=v1", "--untracked-files=no", "--ignore-submodules=all", "-z"]
    if changed := repository.git.run(*words, homely=True, within=LONG, **place.where)[1]:
        names = [part[3:].decode("utf-8", "replace") for part in changed.split(b"\0") if part][:5]
        raise ConflictError(
            f"{branch} is checked out in {place.top}, with changes in {', '.join(names)}",
            remedy="commit or stash them, then approve again; nothing was changed",
            code="target_dirty",
        )


def move(repository: Repository, branch: str, before: str, after: str, why: str) -> None:
    """Take the branch on, if it still is where it was."""
    try:
        repository.git.run("update-ref", "-m", why, f"refs/heads/{branch}", after, before)
    except UnavailableError as e:
        raise ConflictError(
            f"{branch} was moved meanwhile ({e.what})", remedy="approve again", code="target_moved"
        ) from None


def bring_up(repository: Repository, place: Place, before: str, after: str) -> None:
    """Take a clean work tree from one commit to the other; what is done already stays. No filter runs."""
    names = repository.git.run("config", "-z", "--name-only", "--get-regexp", r"^filter\.", fine=(0, 1))[1]
    drivers = {name.decode("utf-8", "replace").rpartition(".")[0] for name in names.split(b"\0") if name}
    off = {f"{driver}.{what}": "" for driver in drivers for what in ("clean", "smudge", "process")}
    off |= {f"{driver}.required": "false" for driver in drivers}
    words = ["read-tree", "-m", "-u", "--no-recurse-submodules", before, after]
    try:  # what git knows of its files' times may be old, as after a copy
        repository.git.run("update-index", "-q", "--refresh", fine=(0, 1), homely=True, within=LONG, **place.where)
        repository.git.run(*words, config=off, within=LONG, **place.where)
    except UnavailableError as e:
        raise ConflictError(
            f"the files in {place.top} could not be brought up to date: {e.what}",
            remedy="see to them, then approve again; nothing was changed",
            code="target_dirty",
        ) from None
