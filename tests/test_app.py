"""The home and the settings: what a start refuses, in words, changing nothing."""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from cu_fleet import app
from cu_fleet.home import locked, prepare_home, secret_of
from cu_fleet.model.errors import ConflictError, FleetError, InvalidError
from cu_fleet.settings import Settings, default_home, read_settings


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "fleet"
    prepare_home(path)
    return path


def test_a_home_is_private_from_the_first_moment(home: Path) -> None:
    assert home.stat().st_mode & 0o777 == 0o700


def test_a_home_that_others_can_read_is_refused_with_the_remedy(home: Path) -> None:
    home.chmod(0o755)
    with pytest.raises(InvalidError, match=f"others can read .*; chmod 700 {home}"):
        prepare_home(home)


def test_one_controller_at_a_time(home: Path) -> None:
    with locked(home), pytest.raises(ConflictError, match=r"runs in .* already"), locked(home):
        pass
    with locked(home):
        pass


def test_the_secret_is_made_once_and_guarded(home: Path) -> None:
    secret = secret_of(home)
    assert secret_of(home) == secret
    assert len(secret) == 32
    (home / "secret.key").chmod(0o644)
    with pytest.raises(InvalidError, match="only you can read"):
        secret_of(home)


def test_settings_come_from_env_over_file_over_defaults(home: Path) -> None:
    (home / "config.yaml").write_text("port: 1234\nmemory: 2G\nmax_desktops: 5\n")
    settings = read_settings(home, {"CU_FLEET_PORT": "4321"})
    assert (settings.port, settings.memory, settings.max_desktops, settings.host) == (4321, 2 << 30, 5, "127.0.0.1")


@pytest.mark.parametrize(
    ("text", "env", "words"),
    [
        ("prot: 1\n", {}, r"config.yaml: prot: no such setting; there are .*port"),
        ("port: high\n", {}, r"config.yaml: port: .*integer.*'high'"),
        ("", {"CU_FLEET_PROT": "1"}, r"CU_FLEET_PROT: no such setting"),
        ("", {"CU_FLEET_PORT": "99999"}, r"CU_FLEET_PORT: .*65535.*'99999'"),
        ("- a list\n", {}, r"config.yaml: expected `key: value` lines"),
        ("port: [\n", {}, r"config.yaml cannot be read"),
        ("home: /x\n", {}, r"the home is set by CU_FLEET_HOME"),
    ],
)
def test_a_wrong_setting_stops_the_start_and_is_named(home: Path, text: str, env: dict[str, str], words: str) -> None:
    (home / "config.yaml").write_text(text)
    with pytest.raises(InvalidError, match=words):
        read_settings(home, env)


def test_where_the_home_is(tmp_path: Path) -> None:
    assert default_home({"CU_FLEET_HOME": str(tmp_path)}) == tmp_path
    assert default_home({"XDG_DATA_HOME": str(tmp_path)}) == tmp_path / "cu-fleet"
    assert default_home({}) == Path.home() / ".local" / "share" / "cu-fleet"


def opened(settings: Settings) -> None:
    async def body() -> None:
        async with app.controller_of(settings) as controller:
            await controller.core.store.close()

    asyncio.run(body())


def test_a_broken_profile_stops_the_start(home: Path) -> None:
    (home / "profiles").mkdir()
    (home / "profiles" / "mine.yaml").write_text("backend: local\nscreen:\n  widht: 800\n")
    with pytest.raises(InvalidError, match=r"mine.yaml:3: screen.widht: no such key"):
        opened(read_settings(home, {}))


def test_a_profile_of_the_home_wins_over_a_shipped_one(home: Path) -> None:
    (home / "profiles").mkdir()
    (home / "profiles" / "local.yaml").write_text("backend: local\ndescription: my own\n")
    profile, source = app.usable_profiles(read_settings(home, {}))["local"]
    assert profile.description == "my own"
    assert source == str(home / "profiles" / "local.yaml")


def test_a_database_of_a_newer_version_is_refused(home: Path) -> None:
    settings = read_settings(home, {})
    opened(settings)
    with sqlite3.connect(home / "fleet.db") as database:
        database.execute("INSERT INTO schema_version (version, name) VALUES (9999, 'later')")
    database.close()
    with pytest.raises(FleetError, match="newer"):
        opened(settings)


def test_an_unknown_database_is_refused_without_its_password(home: Path) -> None:
    settings = read_settings(home, {"CU_FLEET_DATABASE": "mysql://me:hunter2@db/x"})
    with pytest.raises(InvalidError, match="expected postgresql://") as refused:
        opened(settings)
    assert "hunter2" not in str(refused.value)


def test_the_owner_gets_a_token_that_only_they_can_read(home: Path) -> None:
    opened(read_settings(home, {}))
    token = home / "operator.token"
    assert token.read_text().startswith("cfo_")
    assert token.stat().st_mode & 0o777 == 0o600
