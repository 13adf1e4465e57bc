"""Codex in a worktree of its own: it and the programs of its desktop work on the same files, and a person merges them.

Also with nobody's rights, and for a repository of another user than the controller's.
"""

import os
import sys
from pathlib import Path

import pytest

from tests.acceptance.home import SOMEBODY, Home, home
from tests.controller.worktree import Repository
from tests.mcp.codex import codexes, own, shell
from tests.mcp.test_codex import SMALL
from tests.support import run, until

pytestmark = [pytest.mark.real, pytest.mark.slow]

# In Codex's place: it leaves the desktop's part to the test, which it waits for.
SCRIPT = f"""#!{sys.executable}
import os, time
from pathlib import Path
Path("made-here").write_text("here\\n")
Path("folder").mkdir()
Path("ready").write_text(os.environ["CU_FLEET_TOKEN"])
until = time.monotonic() + 60
while not Path("folder/made-there").exists() and time.monotonic() < until:
    time.sleep(0.05)
Path("folder/made-there").open("a").write("and here\\n")
"""


def test_codex_and_its_desktop_work_on_the_same_files_and_a_person_merges_them() -> None:
    with home(max_desktops=2, review="grep -r by-the-desktop .") as house:
        house.write_profile("small", SMALL)
        repository = Repository(house.path / "project")
        typed = "cd ~/Shared/project && echo by-the-desktop >> README && echo there >> made && mkdir new && cat made\n"
        with codexes(house) as codex:
            codex.model.scripts["a"] = [
                shell("cat .cu-fleet/worktree.json; git status --short; echo here > made; git add made"),
                shell(
                    "git -c user.name=Codex -c user.email=codex@example.org commit -qm 'own commit' && echo committed"
                ),
                own("wait", until="stable", seconds=20),
                own("act", actions=[{"type": "click", "x": 200, "y": 150}, {"type": "type", "text": typed}]),
                own("wait", until="stable", seconds=20),
                shell("for i in $(seq 100); do [ -d new ] && break; sleep 0.1; done; cat README made; ls -d new"),
                own("file_get", path="project/made"),
            ]
            process = codex.run("a", "--agent", "codex-a", "--worktree", "next", "--repo", str(repository.top))
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, (out[-2000:], err[-2000:])
            assert codex.model.errors == []
            answers = codex.model.threads["a"].answers
        assert '"agent": "codex-a"' in answers[0]
        assert "committed" in answers[1]
        assert "hello\nby-the-desktop\nhere\nthere\nnew" in answers[5].replace("\r", ""), answers[5]
        assert answers[6].split()[-2:] == ["here", "there"]
        assert b"its sandbox: none: it can do all that you can" in err
        (view,) = house.cli("worktree", "list")["worktrees"]
        assert (view["state"], view["verdict"], view["commits"], view["files"]) == ("kept", "passed", 1, 2)
        summary = house.run("worktree", "show", view["worktree"]).stdout.decode()
        for words in ("## Asked for\n\n```\nwork on a", "Codex: own commit", "README:by-the-desktop", "+there"):
            assert words in summary
        done = house.cli("approval", "approve", view["approval"])
        assert done["result"]["commit"] == repository.git("rev-parse", "next")
        assert repository.git("log", "--format=%an", "-2").split() == ["codex-a", "Codex"]
        assert (repository.top / "made").read_text() == "here\nthere\n"
        assert repository.git("status", "--short") == ""
        assert house.cli("worktree", "list") == {"worktrees": [], "size_bytes": 0}


@pytest.mark.parametrize("whose", ["an ordinary user's fleet", "root's fleet, another user's repository"])
def test_git_and_the_checks_have_the_owners_rights(whose: str) -> None:
    as_user = whose.startswith("an")
    assert os.geteuid() == 0, "this needs root, who can be somebody else"
    with home(somebody=as_user, max_desktops=2, review="sh -c 'id -u; cat folder/made-there; ls -A'") as house:
        house.write_profile("small", SMALL)
        house.path.chmod(0o711)  # the repository's owner is to get at it
        repository = Repository(house.path / "project")
        (house.path / "codex").write_text(SCRIPT)
        (house.path / "codex").chmod(0o755)
        for path in [house.fleet_home, *house.fleet_home.rglob("*")] if as_user else []:
            os.chown(path, SOMEBODY, SOMEBODY)
        _give(repository.top)
        env = {"PATH": f"{house.path}:{os.environ['PATH']}"}
        words = ["--agent", "a", "--profile", "small", "--worktree", "next", "--repo", str(repository.top)]
        process = house.start("codex", *words, **env)
        desktop = _in_desktop(house)
        script = "cd ~/Shared/project && echo there > folder/made-there && chmod 666 folder/made-there && rm README"
        house.cli("desktop", "exec", desktop, "--", "sh", "-c", script)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, (out, err)
        (view,) = house.cli("worktree", "list")["worktrees"]
        assert (view["state"], view["verdict"], view["problem"]) == ("kept", "passed", ""), view
        summary = house.run("worktree", "show", view["worktree"]).stdout.decode()
        said = summary.partition("$ sh -c")[2].partition("```")[0].split()
        assert str(SOMEBODY) in said, summary
        assert said[said.index(str(SOMEBODY)) + 1 :][:3] == ["there", "and", "here"]
        house.cli("worktree", "merge", view["worktree"])
        assert (repository.top / "folder" / "made-there").read_text() == "there\nand here\n"
        assert not (repository.top / "README").exists()
        owners = {path.lstat().st_uid for path in [repository.top, *repository.top.rglob("*")]}
        assert owners == {SOMEBODY}, "nothing in the repository is anybody else's"


def _give(top: Path) -> None:
    for path in [top, *top.rglob("*")]:
        os.chown(path, SOMEBODY, SOMEBODY, follow_symlinks=False)


def _in_desktop(house: Home) -> str:
    """The desktop of the run, once its script has begun."""

    def there() -> str | None:
        found = list(house.fleet_home.glob("desktops/*/slot/project/ready"))
        return found[0].parts[-4] if found else None

    return str(run(until(there, timeout=60)))
