"""What holds without any engine: names and signatures, options, the filter, the clean state, the recipes."""

import io
import json
import re
import tarfile
from pathlib import Path

import pytest

from cu_fleet.backends.base import Place
from cu_fleet.backends.docker import DockerBackend, begin, images, seccomp
from cu_fleet.backends.docker.layout import Layout
from cu_fleet.backends.docker.options import options
from cu_fleet.backends.inside import HOME_BEGINS
from cu_fleet.model.errors import InvalidError, NotFoundError
from cu_fleet.model.profile import Profile, read_profile
from tests.support import run

TOP = Path(__file__).resolve().parents[2]


def test_only_what_bears_our_signature_is_ours(tmp_path: Path) -> None:
    layout = Layout(Place(tmp_path / "a", "f1"))
    assert not layout.is_ours({"cu-fleet.fleet": "f1"}), "nothing is, before there is a key"
    labels = layout.labels("dk_1")
    assert layout.is_ours(labels)
    assert Layout(Place(tmp_path / "a", "f1")).is_ours(labels), "also after a restart"
    assert not Layout(Place(tmp_path / "b", "f1")).is_ours(labels), "another home has another key"
    for change in (
        {"cu-fleet.desktop": "dk_2"},
        {"cu-fleet.fleet": "f2"},
        {"cu-fleet.sign": ""},
        {"cu-fleet.snapshot": "x"},
    ):
        assert not layout.is_ours(labels | change), change
    assert not layout.is_ours(None)
    assert (tmp_path / "a/docker/key").stat().st_mode & 0o077 == 0


def test_a_desktops_name_cannot_leave_its_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidError):
        Layout(Place(tmp_path, "f1")).desk("../x")


def test_who_never_used_an_engine_needs_none(tmp_path: Path) -> None:
    async def body() -> None:
        backend = DockerBackend(Place(tmp_path, "f1"), f"unix://{tmp_path}/none")
        assert await backend.found() == []
        assert backend.abilities.snapshots
        assert await backend.abilities.snapshots.saved() == []
        await backend.stop({"desktop": "dk_1"})
        assert await backend.endpoint({"desktop": "dk_1"}) is None
        checks = await backend.check(Profile(name="p", backend="docker"))
        assert [(check.ok, check.needed, check.fix) for check in checks] == [(False, False, ())]
        assert "No such file" in checks[0].detail

    run(body())
    assert not list(tmp_path.iterdir())


def test_an_engine_on_another_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        [check] = await DockerBackend(Place(tmp_path, "f1")).check()
        assert not check.ok
        assert "ssh://far is on another machine" in check.detail

    monkeypatch.setenv("DOCKER_HOST", "ssh://far")
    run(body())


def test_an_unknown_option_is_refused_by_name() -> None:
    with pytest.raises(InvalidError, match=r"options\.privileged"):
        options(Profile(name="p", backend="docker", options={"privileged": True}))
    with pytest.raises(InvalidError, match=r"options\.shm"):
        options(Profile(name="p", backend="docker", options={"shm": "lots"}))


def test_the_shipped_profile_says_the_defaults() -> None:
    shipped = read_profile(TOP / "profiles/docker.yaml")
    assert options(shipped) == options(Profile(name="p", backend="docker"))
    assert set(shipped.options) == set(type(options(shipped)).model_fields), "every option is explained there"
    assert (shipped.image or "").removeprefix("cu-fleet/") in images.names()


def test_user_namespaces_are_open_only_on_demand() -> None:
    def allowed(name: str, *, user_namespaces: bool) -> bool:
        program = json.loads(seccomp.program(user_namespaces=user_namespaces))
        assert program["defaultAction"] == "SCMP_ACT_ERRNO"
        return any(
            name in rule["names"] and rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("includes")
            and not rule.get("args") for rule in program["syscalls"]
        )  # fmt: skip

    for name in ("clone", "unshare", "chroot"):
        assert not allowed(name, user_namespaces=False)
        assert allowed(name, user_namespaces=True)
    for name in ("io_uring_setup", "keyctl", "bpf", "mount", "setns", "userfaultfd", "socket"):
        assert not allowed(name, user_namespaces=True), name


def test_a_clean_state_is_the_same_each_time_and_the_profiles_files_win(tmp_path: Path) -> None:
    assert begin.clean_state(None) == begin.clean_state(None)
    (tmp_path / ".config").mkdir()
    (tmp_path / ".bashrc").write_text("mine")
    (tmp_path / ".config/more").write_text("more")
    last = {}
    with tarfile.open(fileobj=io.BytesIO(begin.clean_state(tmp_path))) as tar:
        for member in tar:
            content = tar.extractfile(member)
            last[member.name] = content.read() if content else None
    assert last["home/agent/.bashrc"] == b"mine"
    assert last["home/agent/.config/more"] == b"more"
    assert {f"home/agent/{path}" for path in HOME_BEGINS} <= set(last)


@pytest.mark.parametrize("name", images.names())
def test_a_recipe_has_one_list_of_packages_for_both_ways(name: str) -> None:
    packages = images.packages(name)
    assert len(packages) == len(set(packages))
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", package) for package in packages)
    assert {"tigervnc-standalone-server", "openbox", "dbus", "xclip", "python3-xlib"} <= set(packages)
    recipe = (images.IMAGES / name / "Dockerfile").read_text("utf-8")
    assert f"COPY setup {name}/packages" in recipe
    assert not any(package in recipe for package in packages), "the list has them"
    assert "FROM ${BASE}\n" in recipe


def test_an_unknown_image_is_refused_with_those_there_are() -> None:
    with pytest.raises(NotFoundError, match="desktop"):
        run(images.build(None, "nothing", print))  # type: ignore[arg-type]
