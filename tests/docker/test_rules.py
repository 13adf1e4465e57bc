"""What holds without any engine: names and signatures, options, the filter, the clean state, the recipes."""

import gc
import hashlib
import io
import json
import socket
import tarfile
import warnings
from pathlib import Path

import pytest

from cu_fleet.backends.base import Place
from cu_fleet.backends.docker import DockerBackend, begin, images, seccomp, ssh
from cu_fleet.backends.docker.engine import Engine
from cu_fleet.backends.docker.layout import Layout
from cu_fleet.backends.docker.options import options
from cu_fleet.backends.inside import HOME_BEGINS
from cu_fleet.guest import tunnel
from cu_fleet.model.errors import InvalidError, NotFoundError, UnavailableError
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


def test_an_engine_that_is_gone_leaves_no_socket_of_ours_open(tmp_path: Path) -> None:
    engine = Engine(f"unix://{tmp_path}/sock")

    def refused(why: str) -> None:
        with pytest.raises(UnavailableError, match=why) as caught:
            engine.now(lambda api: api.info())
        assert caught.value.code == "no_engine"

    gc.collect()
    with warnings.catch_warnings(record=True) as said, socket.socket(socket.AF_UNIX) as shut:
        warnings.simplefilter("always", ResourceWarning)
        refused("No such file")
        shut.bind(str(tmp_path / "sock"))
        refused("Connection refused")
        gc.collect()  # the SDK's errors refer to themselves, and to where they arose
    assert [str(one.message) for one in said] == []


def test_an_address_can_make_ssh_do_nothing_else(tmp_path: Path) -> None:
    for host in ("ssh://-oProxyCommand=x", "ssh://-lroot@far", "ssh:///run/docker.sock"):
        with pytest.raises(InvalidError, match="names no host"):
            ssh.command(host, tmp_path)
    words = ssh.command("ssh://me@far:2222/run/user/7/docker.sock", tmp_path / "sock")
    assert words[-5:] == ["-p2222", "-l", "me", "--", "far"]
    assert f"{tmp_path}/sock:/run/user/7/docker.sock" in words
    assert not any("HostKey" in word for word in words), "how the host is known is its user's own matter"


def test_the_engine_is_what_the_variables_or_the_context_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    assert Engine().host == "unix:///var/run/docker.sock"
    meta = tmp_path / "contexts/meta" / hashlib.sha256(b"far").hexdigest()
    meta.mkdir(parents=True)
    said = {"Name": "far", "Metadata": {}, "Endpoints": {"docker": {"Host": "ssh://me@far", "SkipTLSVerify": False}}}
    (meta / "meta.json").write_text(json.dumps(said))
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setenv("DOCKER_CONTEXT", "far")
    assert Engine().host == "ssh://me@far"
    monkeypatch.setenv("DOCKER_CONTEXT", "none")
    with pytest.raises(UnavailableError, match="no Docker context 'none'"):
        run(Engine().do(lambda api: api.info()))
    monkeypatch.setenv("DOCKER_HOST", "tcp://far:2375")
    assert Engine().host == "tcp://far:2375", "the variable wins"
    assert Engine("unix:///mine").host == "unix:///mine"


def test_a_tunnel_keeps_to_its_bounds_and_takes_no_nonsense() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        mux = tunnel.Mux()
        mux.join(1, tunnel.Stream(sink=theirs.detach()))

        def data(size: int, kind: int = tunnel.DATA) -> bytes:
            return kind.to_bytes(1, "big") + (1).to_bytes(4, "big") + size.to_bytes(4, "big") + bytes(size)

        for wrong in (data(0, 9), data(tunnel.CHUNK + 1), data(0, tunnel.OPEN)):
            with pytest.raises(tunnel.NonsenseError):
                tunnel.Mux.feed(mux, wrong)
            mux._in.clear()  # noqa: SLF001
        with pytest.raises(tunnel.NonsenseError, match="more came"):
            mux.feed(b"".join([data(tunnel.CHUNK)] * 100))  # and nobody reads
        assert len(mux.streams[1].waiting) <= tunnel.WINDOW
        mux.shut()


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


def test_an_unknown_image_is_refused_with_those_there_are() -> None:
    with pytest.raises(NotFoundError, match="desktop"):
        run(images.build(None, "nothing", print))  # type: ignore[arg-type]
