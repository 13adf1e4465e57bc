"""All that an agent can write into its worktree, and what a repository's own configuration says: git is steered by none
of it, nothing of the host is read, and what is merged is what a person was shown.
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cu_fleet.controller.git import Git
from cu_fleet.model.access import Caller, Role
from cu_fleet.model.worktree import WorktreeView
from tests.controller.fleet import ANA, Fleet
from tests.controller.worktree import Repository, Run, begun, fleet_and_repository
from tests.support import run

pytestmark = pytest.mark.slow
BOB = Caller(operator="bob", role=Role.OPERATOR)
HOOKS = (
    "applypatch-msg commit-msg fsmonitor-watchman post-applypatch post-checkout post-commit post-index-change "
    "post-merge post-rewrite post-update pre-applypatch pre-auto-gc pre-commit pre-merge-commit pre-push pre-rebase "
    "prepare-commit-msg push-to-checkout reference-transaction sendemail-validate update"
)
Attack = Callable[["Stage"], None]
Proof = Callable[["Stage", WorktreeView, str], None]


class Stage:
    """Where an attack takes place; whatever it has run leaves a mark."""

    def __init__(self, folder: Path, repository: Repository) -> None:
        self.repository = repository
        self.pwned = folder / "pwned"
        self.secret = folder / "secret"
        self.secret.mkdir()
        (self.secret / "key").write_text("of the host\n")
        self.command = folder / "evil.sh"
        self.command.write_text(f'#!/bin/sh\necho "$0 $*" >> {self.pwned}\ncat\n')
        self.command.chmod(0o755)
        self.place = folder

    def config(self, folder: Path) -> None:
        """Everything in git's configuration that runs something."""
        lines = {
            "core": ["fsmonitor", "sshCommand", "pager", "editor", "gitProxy", "askPass", "alternateRefsCommand"],
            'filter "evil"': ["clean", "smudge", "process"],
            'diff "evil"': ["textconv", "command"],
            'merge "evil"': ["driver"],
            "diff": ["external"],
            "gpg": ["program"],
            "credential": ["helper"],
            "uploadpack": ["packObjectsHook"],
        }
        text = "".join(
            f"[{part}]\n" + "".join(f"\t{key} = {self.command}\n" for key in keys) for part, keys in lines.items()
        )
        text += "[commit]\n\tgpgSign = true\n[log]\n\tshowSignature = true\n[protocol]\n\tallow = always\n"
        with (folder / "config").open("a") as config:
            config.write(text)
        (folder / "hooks").mkdir(exist_ok=True)
        for name in HOOKS.split():
            (folder / "hooks" / name).unlink(missing_ok=True)
            (folder / "hooks" / name).symlink_to(self.command)

    def repository_in(self, folder: Path) -> None:
        """A repository with all of that, in here."""
        folder.mkdir(exist_ok=True)
        Repository.__new__(Repository)
        inner = Repository.__new__(Repository)
        inner.top = folder
        inner.git("init", "-q")
        inner.git("config", "user.name", "x")
        inner.git("config", "user.email", "x@x")
        (folder / "inner").write_text("of a repository inside\n")
        inner.git("add", "-A")
        inner.git("commit", "-qm", "inner")
        self.config(folder / ".git")


def _git_file(stage: Stage) -> None:
    """`.git` names another repository."""
    other = stage.place.parent / "other"
    stage.repository_in(other)
    (stage.place / ".git").write_text(f"gitdir: {other}/.git\n")
    (stage.place / "new").write_text("new\n")


def _git_folder(stage: Stage) -> None:
    """`.git` is a repository."""
    (stage.place / ".git").unlink()
    stage.repository_in(stage.place)
    (stage.place / "new").write_text("new\n")


def _git_link(stage: Stage) -> None:
    (stage.place / ".git").unlink()
    (stage.place / ".git").symlink_to(stage.secret)
    (stage.place / "new").write_text("new\n")


def _configured(stage: Stage) -> None:
    """The user's own repository is full of commands, and attributes in the worktree choose them for every file."""
    stage.config(stage.repository.top / ".git")
    for place in (stage.place, stage.place / "src"):
        (place / ".gitattributes").write_text("* filter=evil diff=evil merge=evil text\n")
    (stage.place / "README").write_text("changed\n")
    (stage.place / "new").write_text("new\n")


def _nested(stage: Stage) -> None:
    stage.repository_in(stage.place / "vendor")
    (stage.place / "vendor" / "new").write_text("not committed there\n")
    (stage.place / "new").write_text("new\n")


def _submodule(stage: Stage) -> None:
    other = stage.place.parent / "other"
    stage.repository_in(other)
    (stage.place / ".gitmodules").write_text(
        f'[submodule "sub"]\n\tpath = sub\n\turl = {other}\n\tupdate = !{stage.command}\n\tignore = none\n'
    )
    (stage.place / "sub").mkdir()
    (stage.place / "sub" / ".git").write_text(f"gitdir: {other}/.git\n")
    (stage.place / "new").write_text("new\n")


def _links(stage: Stage) -> None:
    """What is led to elsewhere is carried as a link."""
    (stage.place / "src" / "app.py").unlink()
    (stage.place / "src" / "deep" / "er" / "x").unlink()
    (stage.place / "src" / "deep" / "er").rmdir()
    (stage.place / "src" / "deep" / "er").symlink_to(stage.secret)
    (stage.place / "src" / "app.py").symlink_to(stage.secret / "key")
    (stage.place / ".gitignore").unlink()
    (stage.place / ".gitignore").symlink_to(stage.secret / "key")
    (stage.place / "new").write_text("new\n")


def _specials(stage: Stage) -> None:
    os.mkfifo(stage.place / "pipe")
    (stage.place / "README").unlink()
    os.mkfifo(stage.place / "README")
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(stage.place)
        try:
            one.bind("socket")
        finally:
            os.chdir(here)
    with (stage.place / "huge").open("wb") as huge:
        huge.truncate(1 << 40)
    (stage.place / "new").write_text("new\n")


def _names(stage: Stage) -> None:
    for name in (
        "-rf",
        "--help",
        'a"b\\c',
        "two\nlines",
        ":(glob)*",
        ":!x",
        "$(touch pwned)",
        "git~1",
        ".GIT",
        "\x1b[2J",
    ):
        (stage.place / name).write_text("named\n")
    Path(os.fsdecode(os.fsencode(stage.place) + b"/not-\xff-utf8")).write_text("named\n")
    (stage.place / "src" / ".git\u200c").write_text("for another file system\n")
    (stage.place / "new").write_text("new\n")


def _plain(stage: Stage, view: WorktreeView, summary: str) -> None:
    """What was put there is merged, and nothing else has happened."""
    assert (stage.repository.top / "new").read_text() == "new\n"


def _raw(stage: Stage, view: WorktreeView, summary: str) -> None:
    assert (stage.repository.top / "README").read_text() == "changed\n"
    assert stage.repository.git("cat-file", "-p", "next:README") == "changed"
    assert ".gitattributes is obeyed" in summary
    assert not stage.pwned.exists()
    stage.repository.git("status", fine=False)
    assert stage.pwned.exists(), "the traps are open, and no git of ours has stepped into one"


def _as_files(stage: Stage, view: WorktreeView, summary: str) -> None:
    vendor = stage.repository.top / "vendor"
    assert sorted(path.name for path in vendor.iterdir()) == ["inner", "new"]
    assert "left out: vendor/.git" in summary


def _as_links(stage: Stage, view: WorktreeView, summary: str) -> None:
    assert (stage.repository.top / "src" / "app.py").readlink() == stage.secret / "key"
    assert stage.repository.git("cat-file", "-p", "next:src/deep/er") == str(stage.secret)
    assert "of the host" not in summary
    assert "src/app.py is a link to /" in summary
    assert (stage.repository.top / "new").read_text() == "new\n"


def _told(stage: Stage, view: WorktreeView, summary: str) -> None:
    for what in ("pipe", "socket", "README"):
        assert f"left out: {what}: neither a file nor a folder" in summary
    assert "left out: huge" in summary
    assert stage.repository.git("ls-tree", "--name-only", "next", "new", "pipe", "huge", "README") == "new"


def _as_they_are(stage: Stage, view: WorktreeView, summary: str) -> None:
    found = {path.name for path in stage.repository.top.iterdir()}
    assert {"-rf", 'a"b\\c', "two\nlines", ":(glob)*", "$(touch pwned)", os.fsdecode(b"not-\xff-utf8")} <= found
    assert {".GIT", "git~1"} & found == set()
    assert "left out: git~1" in summary
    assert "\x1b" not in summary


ATTACKS: list[tuple[Attack, Proof]] = [
    (_git_file, _plain),
    (_git_folder, _plain),
    (_git_link, _plain),
    (_configured, _raw),
    (_nested, _as_files),
    (_submodule, _plain),
    (_links, _as_links),
    (_specials, _told),
    (_names, _as_they_are),
]


@pytest.mark.parametrize(("attack", "proof"), ATTACKS, ids=[attack.__name__ for attack, _ in ATTACKS])
def test_nothing_in_a_worktree_steers_git(tmp_path: Path, attack: Attack, proof: Proof) -> None:
    async def body() -> None:
        async with fleet_and_repository(tmp_path) as (fleet, repository):
            stage = Stage(tmp_path, repository)
            one = await begun(fleet, repository)
            stage.place = one.place
            attack(stage)
            stage.pwned.unlink(missing_ok=True)  # by the git that prepared it
            view, summary = await _merged(fleet, one, repository)
            assert not stage.pwned.exists(), stage.pwned.read_text()
            assert (view.state, view.problem) == ("kept", ""), view.problem
            proof(stage, view, summary)

    run(body(), 60)


async def _merged(fleet: Fleet, one: Run, repository: Repository) -> tuple[WorktreeView, str]:
    """Judged, merged over a conflict-free change of the user's, and thrown away."""
    head = repository.git("rev-parse", "next")
    tree = repository.git("rev-parse", "next^{tree}")
    moved = repository.git("-c", "commit.gpgSign=false", "commit-tree", tree, "-p", head, "-m", "meanwhile")
    repository.git("-c", "core.hooksPath=/dev/null", "update-ref", "refs/heads/next", moved)
    view = await one.release()
    summary = await fleet.controller.worktree_summary(ANA, one.worktree) if view.tree else view.problem
    await fleet.controller.merge_worktree(BOB, one.worktree)
    assert (await one.ended()).outcome == "merged"
    return view, summary


def test_a_worktree_whose_top_is_led_elsewhere_takes_nothing_with_it(tmp_path: Path) -> None:
    async def body() -> None:
        async with fleet_and_repository(tmp_path) as (fleet, repository):
            stage = Stage(tmp_path, repository)
            one = await begun(fleet, repository)
            one.place.rename(one.place.parent.parent / "aside")
            one.place.symlink_to(stage.secret)
            view = await one.release()
            assert (view.outcome, (stage.secret / "key").read_text()) == ("unchanged", "of the host\n")

    run(body())


def test_a_git_that_takes_too_long_is_ended_and_what_was_there_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where an ignore file asks more of git than it can answer in time."""
    talking = Git.talking

    def slow(self: Git, *words: str, **more: Any) -> Any:
        if words[0] != "check-ignore":
            return talking(self, *words, **more)
        return talking(self, "cat-file", "--batch", **{**more, "within": 0.5})  # it waits for a line that never ends

    monkeypatch.setattr(Git, "talking", slow)

    async def body() -> None:
        async with fleet_and_repository(tmp_path) as (fleet, repository):
            one = await begun(fleet, repository)
            (one.place / "new").write_text("x")
            view = await one.release()
            assert (view.state, view.tree) == ("kept", None)
            assert "took longer than 0.5 s" in view.problem
            assert (Path(view.path or "") / "new").exists()

    run(body())


def test_what_is_too_much_is_kept_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cu_fleet.controller.carrying.MAX_NAMES", 50)

    async def body() -> None:
        async with fleet_and_repository(tmp_path) as (fleet, repository):
            one = await begun(fleet, repository)
            for number in range(60):
                (one.place / str(number)).write_text("x")
            view = await one.release()
            assert (view.state, view.tree, view.approval) == ("kept", None, None)
            assert "more than 50 files" in view.problem
            assert (Path(view.path or "") / "59").exists()

    run(body())
