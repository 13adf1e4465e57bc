"""Files in and out, also from a desktop that lies about them."""

import subprocess
from pathlib import Path

import pytest

from cu_fleet.cli.slot import parts_below, safe
from cu_fleet.model.errors import BrokenError, InvalidError
from tests.cli.fake import Asked, Fake, problem
from tests.cli.support import cli, finished, start

LEASE = "ls_0123456789"
FILES = rf"/v1/leases/{LEASE}/files"


def info(path: str, kind: str = "file", mode: int = 0o644) -> dict[str, object]:
    return {"path": path, "kind": kind, "size": 1, "mtime": 0.0, "mode": mode}


def slot(fake: Fake, tree: dict[str, list[dict[str, object]]], content: bytes = b"x") -> None:
    """A slot in which each folder of `tree` lists what is said there; every file holds `content`."""

    def listing(asked: Asked) -> object:
        path = asked.query.get("path", "")
        return {"files": tree[path]} if path in tree else (404, problem(404, "no_file", "no such folder"))

    fake.on("GET", FILES, listing)
    fake.on("GET", FILES + "/(.+)", lambda *_: content)
    fake.on("PUT", FILES + "/(.+)", (201, {"path": "", "size": 0}))


def put(fake: Fake) -> dict[str, tuple[bytes, str]]:
    found = fake.of("PUT", FILES + "/(.+)")
    return {asked.path.removeprefix(FILES + "/"): (asked.body, asked.query["mode"]) for asked in found}


def test_a_file_goes_in_under_its_own_name(fake: Fake, tmp_path: Path) -> None:
    slot(fake, {"": []})
    here = tmp_path / "report.pdf"
    here.write_bytes(b"%PDF" * 1000)
    here.chmod(0o755)
    ended = cli("cp", str(here), f"{LEASE}:", "--json")
    assert ended.code == 0
    assert ended.json == {"from": str(here), "to": f"{LEASE}:", "files": 1, "bytes": 4000, "skipped": []}
    assert put(fake) == {"report.pdf": (b"%PDF" * 1000, "0755")}


@pytest.mark.parametrize(
    ("target", "there"), [("in/", "in/a.txt"), ("in", "in/a.txt"), ("new", "new"), ("in/b.txt", "in/b.txt")]
)
def test_where_a_file_goes(fake: Fake, tmp_path: Path, target: str, there: str) -> None:
    slot(fake, {"": [info("in", "dir")], "in": []})
    (tmp_path / "a.txt").write_text("a")
    assert cli("cp", str(tmp_path / "a.txt"), f"{LEASE}:{target}").code == 0
    assert set(put(fake)) == {there}


def test_a_folder_goes_in_with_all_in_it_but_links(fake: Fake, tmp_path: Path) -> None:
    slot(fake, {"": []})
    here = tmp_path / "data"
    (here / "deep" / "er").mkdir(parents=True)
    (here / "empty").mkdir()
    (here / "one").write_text("1")
    (here / "deep" / "er" / "two ü?").write_text("2")
    (here / "secret").symlink_to("/etc/passwd")
    (here / "etc").symlink_to("/etc")
    ended = cli("cp", str(here), f"{LEASE}:", "--json")
    assert ended.code == 0
    assert set(put(fake)) == {"data/one", "data/deep/er/two ü?"}
    assert {Path(name).name for name in ended.json["skipped"]} == {"secret", "etc", "empty"}


def test_standard_input_goes_in(fake: Fake, tmp_path: Path) -> None:
    slot(fake, {"": []})
    here = tmp_path / "in"
    here.write_bytes(b"from a file")
    with here.open("rb") as stdin:
        from_file = start("cp", "-", f"{LEASE}:a", env=fake.env, stdin=stdin)
    from_pipe = start("cp", "-", f"{LEASE}:b", env=fake.env, stdin=subprocess.PIPE)
    assert from_pipe.stdin is not None
    from_pipe.stdin.write(b"from a pipe")
    from_pipe.stdin.close()
    from_pipe.stdin = None
    assert (finished(from_file).code, finished(from_pipe).code) == (0, 0)
    assert {name: body for name, (body, _) in put(fake).items()} == {"a": b"from a file", "b": b"from a pipe"}


def test_a_file_comes_out(fake: Fake, tmp_path: Path) -> None:
    slot(fake, {"": [info("a.txt", mode=0o755)]}, b"content")
    assert cli("cp", f"{LEASE}:a.txt", str(tmp_path / "b.txt")).code == 0
    assert (tmp_path / "b.txt").read_bytes() == b"content"
    assert (tmp_path / "b.txt").stat().st_mode & 0o111
    assert cli("cp", f"{LEASE}:a.txt", str(tmp_path)).code == 0
    assert (tmp_path / "a.txt").read_bytes() == b"content"
    assert cli("cp", f"{LEASE}:a.txt", "-").raw == b"content"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt", "home"]


def test_a_folder_comes_out(fake: Fake, tmp_path: Path) -> None:
    tree = {
        "": [info("out", "dir")],
        "out": [info("out/run.sh", mode=0o4755), info("out/deep", "dir"), info("out/link", "link")],
        "out/deep": [info("out/deep/x"), info("out/deep/empty", "dir")],
        "out/deep/empty": [],
    }
    slot(fake, tree)
    ended = cli("cp", f"{LEASE}:out", str(tmp_path / "results"), "--json")
    assert ended.code == 0
    results = tmp_path / "results"
    assert {str(path.relative_to(results)) for path in results.rglob("*")} == {"run.sh", "deep", "deep/x", "deep/empty"}
    assert (results / "run.sh").stat().st_mode & 0o7111 == 0o111
    assert (results / "deep/x").stat().st_mode & 0o111 == 0
    assert ended.json["files"] == 2
    assert ended.json["skipped"] == ["out/link"]


HOSTILE = ["out/../../evil", "../evil", "/evil", "out//evil", "out/./evil", "evil", "out/a\x00b", "out", "outer/evil"]


@pytest.mark.parametrize("path", ["out/../../evil", "/evil", "out", "out/" + "/".join("d" * 100)])
def test_a_lying_list_cannot_lead_out_of_the_target(fake: Fake, tmp_path: Path, path: str) -> None:
    slot(fake, {"": [info("out", "dir")], "out": [info(path)]})
    results = tmp_path / "below" / "results"
    ended = cli("cp", f"{LEASE}:out", str(results), "--json")
    assert ended.code == 1 or path == "out"  # a folder that lists itself says nothing new
    assert {p.name for p in tmp_path.rglob("*")} <= {"home", "below", "results"}


@pytest.mark.parametrize("path", HOSTILE)
def test_parts_of_hostile_paths_are_refused(path: str) -> None:
    with pytest.raises(BrokenError):
        parts_below(path, "out")


def test_a_link_that_lies_in_the_target_is_not_written_through(fake: Fake, tmp_path: Path) -> None:
    slot(fake, {"": [info("d", "dir"), info("f")], "d": [info("d/x")]}, b"new")
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target.mkdir()
    (outside / "f").write_text("old")
    (target / "d").symlink_to(outside)
    (target / "f").symlink_to(outside / "f")
    ended = cli("cp", f"{LEASE}:", str(target))
    assert ended.code == 1
    assert "is a link" in ended.err
    assert [path.name for path in outside.iterdir()] == ["f"]
    assert (outside / "f").read_text() == "old"


def test_a_folder_does_not_go_to_standard_output(fake: Fake) -> None:
    slot(fake, {"": [info("out", "dir")]})
    assert cli("cp", f"{LEASE}:out", "-").code == 2


@pytest.mark.parametrize("pair", [("a", "b"), (f"{LEASE}:a", f"{LEASE}:b"), ("./ls_0123456789:a", "b")])
def test_one_side_must_be_a_lease(fake: Fake, pair: tuple[str, str]) -> None:
    ended = cli("cp", *pair, "--json")
    assert ended.code == 2
    assert "LEASE:path" in ended.json["message"]
    assert fake.asked == []


def test_what_is_not_there_is_said_so(fake: Fake, tmp_path: Path) -> None:
    slot(fake, {"": []})
    assert cli("cp", str(tmp_path / "none"), f"{LEASE}:").code == 5
    ended = cli("cp", f"{LEASE}:none", str(tmp_path))
    assert ended.code == 5
    assert "none" in ended.err


def test_a_broken_off_file_is_not_left_behind(fake: Fake, tmp_path: Path) -> None:
    slot(fake, {"": [info("a")]})
    fake.routes.insert(0, ("GET", FILES + "/a", lambda *_: (410, problem(410, "lease_revoked", "lease was revoked"))))
    (tmp_path / "a").write_text("as before")
    assert cli("cp", f"{LEASE}:a", str(tmp_path / "a")).code == 6
    assert (tmp_path / "a").read_text() == "as before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "home"]


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "~/x"])
def test_a_path_above_the_slot_is_wrong_usage(path: str) -> None:
    with pytest.raises(InvalidError):
        safe(path, "DST")
