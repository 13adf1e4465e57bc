"""Where a `qemu+ssh://` URI leads: which host, as whom, and which hypervisor over there.

    qemu+ssh://user@host:22/system      what root's libvirt has over there
    qemu+ssh://host/session             that user's own

Of the parameters that libvirt knows, `socket`, `keyfile` and `known_hosts` mean the same here.
"""

from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlsplit

from cu_fleet.model.errors import InvalidError

_SCHEME = "qemu+ssh"
_MEANS_NOTHING = {"mode", "netcat", "no_sanity", "no_tty", "proxy"}  # how libvirt would get through, which is not used


@dataclass(frozen=True)
class Address:
    host: str
    user: str | None
    port: int | None
    hypervisor: str  # the URI that it has over there
    keyfile: str | None = None
    known_hosts: str | None = None

    @property
    def name(self) -> str:
        """For people, and for handles: whose desktops these are."""
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        own = "" if "/system" in self.hypervisor else "/session"
        return f"{user}{host}" + (f":{self.port}" if self.port else "") + own

    @property
    def by_hand(self) -> str:
        """The command that a person would use to get there."""
        port = f"-p {self.port} " if self.port else ""
        return f"ssh {port}{f'{self.user}@' if self.user else ''}{self.host}"


def is_far(uri: str | None) -> bool:
    return urlsplit(uri or "").scheme == _SCHEME


def address(uri: str) -> Address:
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError as e:
        raise _bad(uri, str(e)) from None
    if not host or parts.password or parts.path not in ("/system", "/session"):
        raise _bad(uri, "it must be qemu+ssh://user@host/system, or /session, without a password")
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    own = {name: given.pop(name) for name in ("keyfile", "known_hosts") if given.get(name)}
    sock = given.pop("socket", None)
    if wrong := given.keys() - _MEANS_NOTHING:
        raise _bad(uri, f"{min(wrong)}: is not supported here, only keyfile, known_hosts and socket")
    there = f"qemu+unix://{parts.path}?socket={quote(sock)}" if sock else f"qemu://{parts.path}"
    return Address(host, parts.username, port, there, **own)


def _bad(uri: str, why: str) -> InvalidError:
    return InvalidError(
        f"{uri} names no host with machines: {why}",
        remedy="set the hypervisor (LIBVIRT_DEFAULT_URI), as qemu+ssh://root@host/system",
        code="bad_hypervisor",
    )
