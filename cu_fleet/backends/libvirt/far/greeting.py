"""The first words between the two sides: who asks and for what, and where the other listens, or why it does not.

They cross before anything else, so whoever is of another version, or none of ours at all, is known by them. A shell may
say things before the far side does: one line of its output counts, by its mark.
"""

import json
import re
from collections.abc import Mapping

from cu_fleet import __version__
from cu_fleet.backends.libvirt.far.address import Address
from cu_fleet.backends.libvirt.far.words import VERSION, Words, refusal_of
from cu_fleet.model.errors import InvalidError, UnavailableError

BEAT = 5.0  # seconds between two signs of life, which follow
_MARK = "cu-fleet-machines "
_FLEET = re.compile(r"[a-z0-9-]{1,40}")
_HYPERVISOR = re.compile(r"qemu(\+unix)?:///(system|session)(\?socket=[\w./%-]+)?")
_OURS = {"version": __version__, "speaks": VERSION}


# whoever asks


def hello(address: Address, fleet: str) -> bytes:
    return json.dumps({**_OURS, "fleet": fleet, "hypervisor": address.hypervisor}).encode() + b"\n"


def marked(said: bytes) -> bytes:
    """The line that counts, once it is whole."""
    _, mark, rest = said.partition(_MARK.encode())
    line, end, _ = rest.partition(b"\n")
    return line if mark and end else b""


def listens(line: bytes, address: Address, abilities: Mapping[str, list[str]]) -> str:
    """The socket over there, if it is one of ours that can do what is wanted of it."""
    try:
        said = json.loads(line)
        _believe(said, address, abilities)
        return str(said["socket"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise failed(address, f"it says {line[:200]!r}") from None


def _believe(said: Words, address: Address, abilities: Mapping[str, list[str]]) -> None:
    theirs = said.get("version")
    if {"version": theirs, "speaks": said.get("speaks")} != _OURS:
        raise _other_version(address, f"is cu-fleet {str(theirs)[:40]}")
    if "error" in said:
        raise refusal_of(said["error"], address.name)
    if said["abilities"] != abilities:
        raise _other_version(address, "can do other things, though it says to be the same")


def ended(address: Address, code: int | None, errors: bytes) -> UnavailableError:
    """Why it did so instead of greeting."""
    if code == 127:
        return UnavailableError(
            f"there is no cu-fleet on {address.name}, neither in the PATH of its sshd nor in ~/.local/bin",
            remedy=f'install it over there: pip install "cu-fleet-controller[libvirt]=={__version__}"',
            code="no_fleet_there",
        )
    if b"No such command" in errors:
        return _other_version(address, "knows nothing of serving machines")
    return failed(address, f"it ended with {code}: {last_words(errors)}")


def failed(address: Address, why: str) -> UnavailableError:
    return UnavailableError(
        f"cu-fleet on {address.name} did not begin: {why}",
        remedy=f"see what this says: {address.by_hand} cu-fleet doctor",
        code="host_failed",
    )


def _other_version(address: Address, what: str) -> UnavailableError:
    return UnavailableError(
        f"what runs on {address.name} {what}, and here is cu-fleet {__version__}",
        remedy=f'install the same over there: pip install "cu-fleet-controller[libvirt]=={__version__}"',
        code="other_version",
    )


def last_words(errors: bytes) -> str:
    return printable(errors[-500:]) or "without a word"


def printable(said: bytes) -> str:
    return "".join(c if c.isprintable() else " " for c in said.decode("utf-8", "replace")).strip()


# whoever is asked


def asked(line: bytes) -> tuple[str, str]:
    """Which fleet asks, and for whose machines."""
    try:
        said = json.loads(line)
        theirs = {name: said.get(name) for name in _OURS}
        fleet, uri = str(said.get("fleet")), str(said.get("hypervisor"))
    except (ValueError, AttributeError, RecursionError):
        raise not_for_hands() from None
    if theirs != _OURS:
        raise InvalidError(f"this is cu-fleet {__version__}, not {theirs['version']}", code="other_version")
    if not _FLEET.fullmatch(fleet) or not _HYPERVISOR.fullmatch(uri):
        raise InvalidError(f"no fleet {fleet[:100]!r}, or no hypervisor {uri[:200]!r}", code="usage")
    return fleet, uri


def not_for_hands() -> InvalidError:
    return InvalidError(
        "this is begun by a controller elsewhere, whose machines are on this host",
        remedy="give that one this host: LIBVIRT_DEFAULT_URI=qemu+ssh://user@host/system",
        code="usage",
    )


def answer(said: Words) -> None:
    print(_MARK + json.dumps({**_OURS, **said}), flush=True)
