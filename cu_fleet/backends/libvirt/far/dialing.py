"""Getting in at another host: as its user has set it up for SSH, without ever asking anybody, and what can go wrong.

A host that is not in a file of known ones is refused, whatever the configuration says: whoever answered in its place
would be given all that is sent to its machines. Each refusal says what a person can try by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cu_fleet.backends.libvirt.far.address import Address
from cu_fleet.model.errors import InvalidError, UnavailableError

if TYPE_CHECKING:
    import asyncssh

SECONDS_TO_ANSWER = 15.0
_KEEPALIVE = (5, 3)  # seconds between two signs of life, and how many may stay away
_GLOBAL = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")


async def dial(address: Address) -> asyncssh.SSHClientConnection:
    await asyncio.to_thread(_load)
    with in_words(address):
        return await _dial(address)


def _load() -> None:
    """It takes a third of a second, for which nobody else has to wait."""
    try:
        import_module("asyncssh")
    except ImportError:
        raise UnavailableError(
            "machines on another host need a package that is not installed",
            remedy='pip install "cu-fleet-controller[ssh]"',
            code="missing_package",
        ) from None


async def _dial(address: Address) -> asyncssh.SSHClientConnection:
    import asyncssh

    logging.getLogger("asyncssh").setLevel(logging.WARNING)
    own: dict[str, Any] = {"host": address.host}
    own |= {"port": address.port} if address.port else {}
    own |= {"username": address.user} if address.user else {}
    own |= {"client_keys": [address.keyfile]} if address.keyfile else {}
    options = await asyncssh.SSHClientConnectionOptions.construct(**own)
    known = [address.known_hosts] if address.known_hosts else _known(options.known_hosts)
    async with asyncio.timeout(2 * SECONDS_TO_ANSWER):
        return await asyncssh.connect(
            **own,
            known_hosts=known,
            connect_timeout=SECONDS_TO_ANSWER,
            login_timeout=SECONDS_TO_ANSWER,
            keepalive_interval=_KEEPALIVE[0],
            keepalive_count_max=_KEEPALIVE[1],
            agent_forwarding=False,
            x11_forwarding=False,
            password=None,
        )


def _known(configured: Any) -> list[str] | bytes:
    """The user's own, and this machine's; never none, which would mean that every host is trusted."""
    own = [Path(str(one)).expanduser() for one in configured or ()] or [Path("~/.ssh/known_hosts").expanduser()]
    there = [str(path) for path in dict.fromkeys([*own, *map(Path, _GLOBAL)]) if path.is_file()]
    return there or b"# nobody is known\n"


@contextlib.contextmanager
def in_words(address: Address) -> Iterator[None]:
    """What a person can do about it when something of SSH fails in here."""
    import asyncssh

    by_hand = address.by_hand.replace("ssh ", "ssh -o BatchMode=yes ", 1)
    try:
        yield
    except asyncssh.HostKeyNotVerifiable as e:
        raise UnavailableError(
            f"{address.name} is not known, or not by this key: {e.reason}",
            remedy=f"compare its key and accept it by hand, once: {address.by_hand}; if it was known before, "
            "find out first why its key is another",
            code="unknown_host",
        ) from None
    except asyncssh.PermissionDenied as e:
        raise UnavailableError(
            f"{address.name} does not let us in: {e.reason}",
            remedy=f"a key, or your agent, must do without a password: {by_hand} true",
            code="permission_denied",
        ) from None
    except socket.gaierror as e:
        raise _unreachable(address, f"there is no such name: {e.strerror}", by_hand) from None
    except (asyncssh.Error, OSError, TimeoutError) as e:
        said = getattr(e, "strerror", None) or str(e)
        raise _unreachable(address, said or "no answer in time", by_hand) from None
    except ValueError as e:  # of the configuration, or a key
        raise InvalidError(
            f"your SSH configuration cannot be used for {address.name}: {e}",
            remedy="mend ~/.ssh/config, or the key that it names",
            code="bad_ssh_config",
        ) from None


def _unreachable(address: Address, why: str, by_hand: str) -> UnavailableError:
    return UnavailableError(
        f"{address.name} cannot be reached: {why}",
        remedy=f"see whether it is up, and lets you in: {by_hand} true",
        code="no_host",
    )


def lost(address: Address, why: str) -> UnavailableError:
    return UnavailableError(f"the connection to {address.name} broke: {why}", code="host_lost")
