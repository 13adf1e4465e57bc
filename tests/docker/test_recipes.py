"""What holds of images without any engine: recipes, profiles, what an image that is not ours may ask for, its door."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cu_fleet.backends.base import Place
from cu_fleet.backends.docker import DockerVncBackend, images
from cu_fleet.backends.docker.options import VncOptions, options, vnc_options
from cu_fleet.backends.docker.recipes import Recipe
from cu_fleet.guest import relay
from cu_fleet.model.errors import InvalidError
from cu_fleet.model.profile import Profile, parse_profile, read_profile
from tests.support import run, until

TOP = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", images.names())
def test_a_recipe_has_one_list_of_packages_for_all_ways(name: str) -> None:
    recipe = Recipe(name)
    assert len(recipe.packages) == len(set(recipe.packages))
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", package) for package in recipe.packages)
    lists = [*recipe.packages, *(recipe.under.packages if recipe.under else [])]
    assert {"tigervnc-standalone-server", "openbox", "dbus", "xclip", "python3-xlib"} <= set(lists)
    lines = recipe.path("Dockerfile").read_text("utf-8").splitlines()
    assert f"COPY setup {name}/packages /tmp/image/" in lines
    installs = [line for line in lines if line.startswith("RUN ")]
    assert installs == ["RUN sh /tmp/image/setup /tmp/image/packages && rm -r /tmp/image"], "the list has them"
    assert "FROM ${BASE}" in lines
    assert {"USER 1000:1000", "WORKDIR /"} <= set(recipe.changes)
    assert recipe.digest("a") != recipe.digest("b")


@pytest.mark.parametrize("name", ["docker-browser", "docker-xvfb"])
def test_a_shipped_profile_names_an_image_there_is_a_recipe_for(name: str) -> None:
    shipped = read_profile(TOP / f"profiles/{name}.yaml")
    assert (shipped.image or "").removeprefix("cu-fleet/") in images.names()
    assert options(shipped).user_namespaces is (name == "docker-browser")
    text = (TOP / f"profiles/{name}.yaml").read_text("utf-8")
    assert f"cu-fleet image build {shipped.image.removeprefix('cu-fleet/')}" in text  # type: ignore[union-attr]
    assert "no-sandbox" not in str(shipped.launch)


def test_a_foreign_images_options_are_refused_by_name() -> None:
    def read(**given: object) -> VncOptions:
        return vnc_options(Profile(name="p", backend="docker-vnc", image="x", options=given))

    assert read().port == 5900
    for wrong in ({"port": 0}, {"password_env": "a b"}, {"capabilities": ["SYS_ADMIN"]}, {"user": "a; b"}, {"x": 1}):
        with pytest.raises(InvalidError, match=rf"options\.{next(iter(wrong))}"):
            read(**wrong)


def test_the_example_of_a_foreign_image_explains_every_option() -> None:
    text = (TOP / "examples/docker-vnc.yaml").read_text("utf-8")
    example = parse_profile(text, "docker-vnc.yaml", "docker-vnc")
    assert vnc_options(example).password_env
    assert [name for name in VncOptions.model_fields if f"  {name}:" not in text and f"# {name}:" not in text] == []


def test_a_password_is_made_anew_for_each_start_and_known_again(tmp_path: Path) -> None:
    def password(desktop: str, boot: str) -> str:
        house = DockerVncBackend(Place(tmp_path, "f1")).house
        return house.password(house.layout.desk(desktop), boot)

    made = {password("dk_1", "bt_1"), password("dk_1", "bt_2"), password("dk_2", "bt_1")}
    assert len(made) == 3
    assert all(re.fullmatch("[A-Z2-7]{8}", one) for one in made), "VNC heeds eight characters"
    assert password("dk_1", "bt_1") in made, "also after a restart"


def test_the_door_passes_both_ways_on_and_hangs_up_where_nobody_is(tmp_path: Path) -> None:
    path = tmp_path / "door"
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = Path(relay.__file__).read_text("utf-8").replace(relay.DOOR, str(path))
        with subprocess.Popen([sys.executable, "-I", "-S", "-c", source, str(server.getsockname()[1])]) as door:
            try:
                near = run(until(lambda: connected(path)))
                with near, server.accept()[0] as far:
                    far.sendall(b"RFB 003.008\n")
                    assert near.recv(12, socket.MSG_WAITALL) == b"RFB 003.008\n"
                    near.sendall(b"x" * 100_000)
                    assert far.recv(100_000, socket.MSG_WAITALL) == b"x" * 100_000
                    far.shutdown(socket.SHUT_RDWR)
                    assert near.recv(1) == b""
                server.close()
                with run(until(lambda: connected(path))) as near:
                    assert near.recv(1) == b""
            finally:
                door.kill()


def connected(path: Path) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    try:
        sock.connect(str(path))
    except OSError:
        sock.close()
        return None
    return sock
