"""Settings: read once, then frozen. `CU_FLEET_<FIELD>` wins over the home's `config.yaml`, and that over defaults."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from cu_fleet.model.errors import InvalidError
from cu_fleet.model.profile import Seconds, Size
from cu_fleet.model.record import Value

_NOT_SETTINGS = {f"CU_FLEET_{name}" for name in ("HOME", "URL", "TOKEN", "LEASE_TOKEN", "LEASES", "WORKER", "WORKERS")}


def _several(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _separated(value: object) -> object:
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


def _whole(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("expected a path that begins with /")
    return path


Folder = Annotated[Path, AfterValidator(_whole)]
Commands = Annotated[tuple[str, ...], BeforeValidator(_several)]  # one, or a list of them
Words = Annotated[tuple[str, ...], BeforeValidator(_separated)]  # a list, or words with commas between them


class Settings(Value):
    """Every field can be set in `$CU_FLEET_HOME/config.yaml` or as `CU_FLEET_<FIELD>`."""

    home: Path
    database: str | None = Field(None, description="Database URL, postgresql://…; none: SQLite in the home.")
    host: str = Field("127.0.0.1", description="Address the HTTP door listens on.")
    port: int = Field(8700, ge=0, le=65535, description="Port of the HTTP door; 0: any free one.")
    max_desktops: int | None = Field(None, ge=1, description="Most desktops at once; none: 32 for each core.")
    memory: Size | None = Field(None, description="Memory all desktops may reserve; none: three quarters of RAM.")
    anchor_every: Seconds = Field(5.0, description="How often the audit's head is anchored outside the database.")
    keep_leases: Seconds = Field(7 * 86400.0, description="How long a lease that is over is remembered.")
    machines: Folder | None = Field(
        None, description="Where files of virtual machines lie; none: /var/lib/cu-fleet for root, else in the home."
    )
    hypervisor: str | None = Field(
        None, description="libvirt's URI of who runs virtual machines; none: LIBVIRT_DEFAULT_URI, or this machine's."
    )
    start_timeout: Seconds = Field(30.0, description="How long a desktop may take to start before it is given up.")
    backend_timeout: Seconds = Field(30.0, description="How long a backend may take to stop, list or free something.")
    snapshot_timeout: Seconds = Field(600.0, description="How long saving a desktop's state may take.")
    snapshots_quota: Size = Field(64 << 30, description="Bytes of all snapshots, past which no more are asked for.")
    evidence: bool = Field(True, description="Keep the last frame of a revoked desktop.")
    approval_timeout: Seconds = Field(
        600.0, gt=0, description="How long a person may take to answer what an agent asks; and the agent then to act."
    )
    frames_quota: Size = Field(2 << 30, description="Bytes of kept frames; past it the oldest go first.")
    frames_for: Seconds = Field(7 * 86400.0, description="How long a frame is kept, or until its lease is forgotten.")
    review: Commands = Field((), description="Commands that check what an agent changed in a worktree; no shell.")
    review_timeout: Seconds = Field(600.0, description="How long they may take.")
    protected_branches: Words = Field(
        ("main", "master", "release/*"), description="Branches that no worktree is ever merged into; patterns."
    )
    worktrees_for: Seconds = Field(14 * 86400.0, description="How long a changed worktree waits for a person.")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$")


def default_home(env: Mapping[str, str] = os.environ) -> Path:
    if home := env.get("CU_FLEET_HOME"):
        return Path(home).absolute()
    base = env.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "cu-fleet"


def read_settings(home: Path | None = None, env: Mapping[str, str] = os.environ, **overrides: Any) -> Settings:
    """The settings of this home; an unknown key or a wrong type is an error that names it."""
    home = home or default_home(env)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key, value in _from_file(home / "config.yaml").items():
        values[key], sources[key] = value, f"{home / 'config.yaml'}: {key}"
    for name, value in env.items():
        if name.startswith("CU_FLEET_") and name not in _NOT_SETTINGS:
            key = name.removeprefix("CU_FLEET_").lower()
            values[key], sources[key] = value, name
    values |= {key: value for key, value in overrides.items() if value is not None}
    if "home" in sources:
        raise InvalidError(f"{sources['home']}: the home is set by CU_FLEET_HOME", code="bad_setting")
    try:
        return Settings.model_validate({**values, "home": home})
    except ValidationError as e:
        raise InvalidError("\n".join(_problem(error, sources) for error in e.errors()), code="bad_setting") from None


def _from_file(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise InvalidError(f"{path} cannot be read: {e}", code="bad_setting") from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise InvalidError(f"{path}: expected `key: value` lines", code="bad_setting")
    return data


def _problem(error: Any, sources: dict[str, str]) -> str:
    key = str(error["loc"][0]) if error["loc"] else "?"
    where = sources.get(key, key)
    if error["type"] == "extra_forbidden":
        known = ", ".join(name for name in Settings.model_fields if name != "home")
        return f"{where}: no such setting; there are {known}"
    return f"{where}: {error['msg']}, found {error['input']!r}"
