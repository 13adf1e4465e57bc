"""A profile: the recipe of a desktop. Closed by default: what is not said is not allowed."""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from cu_fleet.model.errors import InvalidError, NotFoundError
from cu_fleet.model.names import Name
from cu_fleet.model.record import Value

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_TIMES = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(value: object) -> object:
    """`2G` or `512M` as bytes; a number is bytes already."""
    if isinstance(value, str) and (m := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", value.strip())):
        return int(float(m[1]) * _UNITS[m[2]])
    return value


def parse_seconds(value: object) -> object:
    """`15m` or `90s` as seconds; a number is seconds already."""
    if isinstance(value, str) and (m := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)", value.strip())):
        return float(m[1]) * _TIMES[m[2]]
    return value


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]
Seconds = Annotated[float, BeforeValidator(parse_seconds), Field(ge=0)]


_NOT_OF_THE_DESKTOP: Any = {"warm": True, "description": True, "ttl": True, "frames": True, "screen": {"view"}}


class Screen(Value):
    width: int = Field(1280, ge=64, le=7680)
    height: int = Field(800, ge=64, le=4320)
    dpi: int = Field(96, ge=36, le=600)
    view: int | None = Field(None, ge=16, le=16384)  # longest edge of what agents are shown; None: all its pixels


class Limits(Value):
    memory: Size = 2 << 30
    processes: int = Field(512, ge=16)
    cpus: float = Field(2.0, gt=0)
    disk: Size = 4 << 30  # all that a desktop has written: past it, it stands still and its lease is paused


class Launchable(Value):
    """A program the profile lets an agent start by name."""

    command: tuple[str, ...] = Field(min_length=1)
    title: str = ""


class Profile(Value):
    """Every key a profile may have; `profiles/*.yaml` explain them by example."""

    name: Name
    description: str = ""
    backend: Name
    image: str | None = None
    screen: Screen = Screen()
    locale: str = Field("C.UTF-8", pattern=r"^[A-Za-z0-9_.@-]+$")
    timezone: str = Field("UTC", pattern=r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$")
    keyboard: str = Field("us", pattern=r"^[a-z]{2,8}(\([a-z0-9_-]+\))?$")
    limits: Limits = Limits()
    network: Literal["none", "full"] = "none"
    gates: Literal["none", "strict"] = "strict"
    frames: Literal["none", "actions", "all"] = "none"  # which pictures are kept
    env: dict[str, str] = {}
    home: str | None = None  # a directory beside the profile's file whose contents every fresh home begins with
    autostart: tuple[tuple[str, ...], ...] = ()
    launch: dict[Name, Launchable] = {}
    warm: int = Field(0, ge=0, le=64)  # desktops kept ready
    ttl: Seconds = 15 * 60.0
    reserve: Size = 256 << 20  # memory set aside for each desktop when capacity is reckoned
    per_agent: int | None = Field(None, ge=1)  # leases one agent may have of it at once
    shared: bool = False  # a named desktop keeps its state even when it goes to another agent
    options: dict[str, Any] = {}  # the backend's own

    @property
    def digest(self) -> str:
        """Changes whenever the recipe does; how many are kept warm, or how they are looked at, is not part of it."""
        text = self.model_dump_json(exclude=_NOT_OF_THE_DESKTOP)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_profile(path: Path) -> Profile:
    """The profile in a YAML file, or an error with file, line, key and what was expected."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"there is no profile file {path}", code="no_profile_file") from None
    except (OSError, UnicodeDecodeError) as e:
        raise InvalidError(f"{path} cannot be read: {e}", code="bad_profile") from None
    return parse_profile(text, str(path), default_name=path.stem)


def parse_profile(text: str, where: str, default_name: str | None = None) -> Profile:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise InvalidError(f"{where}{line}: not YAML: {getattr(e, 'problem', e)}", code="bad_profile") from None
    if not isinstance(data, dict):
        raise InvalidError(f"{where}:1: expected `key: value` lines, found {_kind(data)}", code="bad_profile")
    _refuse_double_keys(node, where)
    if default_name is not None:
        data.setdefault("name", default_name)
    try:
        return Profile.model_validate(data)
    except ValidationError as e:
        raise InvalidError(
            "\n".join(_problem(where, node, error) for error in e.errors()),
            remedy=f"mend it and try: cu-fleet profile check {where}",
            code="bad_profile",
        ) from None


def _refuse_double_keys(node: yaml.Node | None, where: str) -> None:
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _refuse_double_keys(child, where)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise InvalidError(f"{where}:{key.start_mark.line + 1}: {key.value}: given twice", code="bad_profile")
            seen.add(key.value)
            _refuse_double_keys(value, where)


def _problem(where: str, node: yaml.Node | None, error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    line = _line(node, tuple(error["loc"]))
    if error["type"] == "extra_forbidden":
        what = "no such key"
    elif error["type"] == "missing":
        what = "this key is needed"
    else:
        what = f"{error['msg'].removeprefix('Value error, ')}, found {_shown(error['input'])}"
    return f"{where}:{line}: {key}: {what}"


def _line(node: yaml.Node | None, loc: tuple[object, ...]) -> int:
    line = 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(data: object) -> str:
    return "nothing" if data is None else type(data).__name__
