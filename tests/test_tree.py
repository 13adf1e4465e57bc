"""What the tree itself promises: two commands, profiles that explain themselves, one text per truth."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest

from cu_fleet.model import desktop
from cu_fleet.model.profile import Launchable, Limits, Profile, Screen, read_profile
from cu_fleet.model.record import Value

TOP = Path(__file__).resolve().parent.parent
PROFILES = sorted((TOP / "profiles").glob("*.yaml"))
TRACKED = [
    TOP / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    if (TOP / name).is_file()
]
SCRIPTS = [path for path in TRACKED if re.match(rb"#!.*\b(ba)?sh\b", path.read_bytes())]
README = TOP / "README.md"


def keys_of(model: type[Value], prefix: str = "") -> set[str]:
    """Every key a profile may have, with those of its parts, such as `screen.width`."""
    parts: dict[str, type[Value]] = {"screen": Screen, "limits": Limits, "launch": Launchable}
    keys = set()
    for name in model.model_fields:
        keys.add(prefix + name)
        if model is Profile and name in parts:
            keys |= keys_of(parts[name], f"{name}.")
    return keys


def explained(text: str) -> set[str]:
    """The keys a profile explains: by a comment on their line, just above it, or over the key they belong to."""
    found, top, above = set(), "", False
    for line in text.splitlines():
        match = re.match(r"(\s*)(?:# )?([a-z_]+):(?:\s|$)", line)
        if match:
            indent, key = match.groups()
            top = top if indent else key
            if above or "#" in line[match.end() :] or (indent and top in found):
                found.add(f"{top}.{key}" if indent else key)
        above = line.startswith("#") and not match
    return found


def test_root_stays_bare() -> None:
    allowed = {"pyproject.toml", "README.md", "Vagrantfile", "LICENSE"}
    allowed |= {"images", "profiles", "examples", "tests", "cu_fleet"}
    found = {path.relative_to(TOP).parts[0] for path in TRACKED}
    assert {name for name in found if not name.startswith(".")} <= allowed


@pytest.mark.parametrize("command", ["examples/demo.sh", "tests/run.sh"])
def test_readme_names_the_two_commands(command: str) -> None:
    assert command in README.read_text("utf-8")
    assert (TOP / command).is_file()


def test_readme_shows_the_life_of_a_desktop_as_it_is() -> None:
    assert desktop.diagram() in README.read_text("utf-8")


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.name)
def test_profile_is_valid_and_named_by_its_file(path: Path) -> None:
    profile = read_profile(path)
    assert profile.name == path.stem
    assert profile.description, "`cu-fleet profile list` shows it"


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.name)
def test_profile_says_openly_how_it_is_gated(path: Path) -> None:
    profile = read_profile(path)
    assert {"network", "gates"} <= profile.model_fields_set
    assert profile.gates == ("none" if profile.network == "none" else "strict")


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.name)
def test_profile_finds_the_home_it_begins_with(path: Path) -> None:
    profile = read_profile(path)
    assert profile.home is None or (path.parent / profile.home).is_dir()


def test_every_profile_key_is_explained_in_a_shipped_profile() -> None:
    said = set().union(*(explained(path.read_text("utf-8")) for path in PROFILES))
    assert keys_of(Profile) <= said


def test_what_local_says_are_defaults_are_the_defaults() -> None:
    """The commented-out keys of local.yaml claim a default or an example; the ones set there equal the model's."""
    shipped, bare = read_profile(TOP / "profiles/local.yaml"), Profile(name="local", backend="local", gates="none")
    same = {"screen", "locale", "timezone", "keyboard", "limits", "network", "frames", "ttl", "reserve", "shared"}
    assert shipped.model_dump(include=same) == bare.model_dump(include=same)


def test_profiles_are_found_in_the_package() -> None:
    shipped = {entry.name for entry in (files("cu_fleet") / "profiles").iterdir()}
    assert {path.name for path in PROFILES} <= shipped


@pytest.mark.slow
def test_wheel_holds_every_profile(tmp_path: Path) -> None:
    copy = tmp_path / "tree"
    subprocess.run(["git", "clone", "-q", str(TOP), str(copy)], check=True)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-cache-dir", "-w", str(tmp_path), str(copy)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    shipped = {f"cu_fleet/{path.relative_to(copy)}" for path in (copy / "profiles").rglob("*") if path.is_file()}
    assert shipped
    assert shipped <= held
    assert {f"cu_fleet/stores/sql/{path.name}" for path in (copy / "cu_fleet/stores/sql").glob("*.sql")} <= held


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(TOP)))
def test_script_parses_and_can_be_run(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert path.stat().st_mode & 0o111 == 0o111


def test_scripts_are_all_found() -> None:
    found = {str(path.relative_to(TOP)) for path in SCRIPTS}
    assert {"examples/demo.sh", "examples/install.sh", "tests/run.sh", ".ci/run"} <= found


def test_continuous_integration_runs_the_same_tests() -> None:
    assert "tests/run.sh" in (TOP / ".ci/run").read_text()


def test_no_tracked_file_names_a_machine() -> None:
    """Paths and registry hosts of the machines that build this would be lies everywhere else."""
    lies = re.compile("|".join(["/wo" + "rk/", "/fa" + "rm/", r"pkg\.dev", "artifact" + "registry", r"/opt/py" + "pi"]))
    told = {
        f"{path.relative_to(TOP)}:{number}"
        for path in TRACKED
        if path.suffix not in {".png", ".jpg", ".bin"}
        for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1)
        if lies.search(line)
    }
    assert not told


def test_command_of_the_package_is_cu_fleet() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    assert set(project["scripts"]) == {"cu-fleet"}
