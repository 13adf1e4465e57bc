"""What crosses as JSON: specs and handles one way, answers and refusals the other.

Both sides are of one version, so what is written here is read there as it was. Still, whoever reads believes nothing:
what is not of the type that was promised is an error that says so.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cu_fleet.backends.base import Check, FileInfo, Found, Room, Saved, Spec, Usage
from cu_fleet.backends.libvirt.images import Golden
from cu_fleet.model import errors
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import BrokenError, FleetError
from cu_fleet.model.profile import Profile

Words = dict[str, Any]
ABILITIES = ("snapshots", "exec", "freeze", "files", "network", "logs", "meter", "disk", "tidy")  # that cross
VERSION = 2  # of how the two sides speak; the same in all that can talk to each other
SPOKEN = "a1089df39e76d850"  # a digest of that: where it changes, so must VERSION
_LONGEST_HANDLE = 10_000  # characters
_MOST_SAID = 4000  # characters of an error's sentence
_CLASSES = {name: one for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, FleetError)}
_FACT = re.compile(r"[a-z][a-z0-9_]{0,40}")


@dataclass(frozen=True)
class Seen:
    """An endpoint but for its `connect`, which is a call of its own."""

    where: str
    password: str | None
    helped: bool
    within: float | None


_ANSWERS: dict[str, Any] = {
    "build": Golden,
    "check": list[Check],
    "endpoint": Seen | None,
    "exec": None,
    "found": list[Found],
    "get": None,
    "has_home": bool,
    "images": list[Golden],
    "listing": list[FileInfo],
    "logs": str,
    "put": int,
    "room": Room | None,
    "save": Saved,
    "saved": list[str],
    "tidy": list[str],
    "usage": Usage,
    "used": int,
}
_TYPES = {name: TypeAdapter[Any](kind) for name, kind in _ANSWERS.items()}
_NOTHING = TypeAdapter[Any](None)
_SPEC, _HANDLE = TypeAdapter(Spec), TypeAdapter(Handle)
_PROFILES = TypeAdapter(list[Profile])


def answer(do: str, value: object) -> Words:
    return {"done": _TYPES.get(do, _NOTHING).dump_python(value, mode="json")}


def answer_of(do: str, value: object, host: str) -> Any:
    return _believed(_TYPES.get(do, _NOTHING), value, host)


def spec(one: Spec) -> Words:
    said: Words = _SPEC.dump_python(one, mode="json")
    return said


def spec_of(said: object) -> Spec:
    return _SPEC.validate_python(said)


def profiles(several: list[Profile]) -> list[Words]:
    said: list[Words] = _PROFILES.dump_python(several, mode="json")
    return said


def profiles_of(said: object) -> list[Profile]:
    return _PROFILES.validate_python(said)


def handle_of(said: object, host: str = "") -> Handle:
    if len(str(said)) > _LONGEST_HANDLE:
        raise nonsense(host, "a handle without end")
    found: Handle = _believed(_HANDLE, said, host)
    return found


def _believed(kind: TypeAdapter[Any], value: object, host: str) -> Any:
    try:
        return kind.validate_python(value)
    except ValidationError as e:
        raise nonsense(host, f"{len(e.errors())} wrong in {str(value)[:200]!r}") from None


def nonsense(host: str, what: str) -> BrokenError:
    return BrokenError(f"cu-fleet on {host} answers nonsense: {what}", code="host_nonsense")


def refusal(error: FleetError) -> Words:
    facts = {key: value for key, value in error.facts.items() if isinstance(value, str | int | float | bool | None)}
    said = {"class": type(error).__name__, "what": error.what, "remedy": error.remedy, "code": error.code}
    return {"error": {**said, "facts": facts}}


def refusal_of(said: object, host: str) -> FleetError:
    """The error that was raised over there, or that there was one."""
    if not isinstance(said, Mapping) or (kind := _CLASSES.get(str(said.get("class")))) is None:
        return nonsense(host, f"an error that is none: {str(said)[:200]!r}")
    what, remedy, code = (str(said.get(key, ""))[:_MOST_SAID] for key in ("what", "remedy", "code"))
    given = said.get("facts")
    facts = given if isinstance(given, Mapping) else {}
    known = {key: value for key, value in facts.items() if _FACT.fullmatch(str(key))}
    own = {key: value for key, value in known.items() if key not in ("what", "remedy", "code", "self")}
    return kind(what, remedy=remedy, code=code, **own)
