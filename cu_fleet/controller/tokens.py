"""Tokens: a kind, a subject and a MAC under the home's secret. None is stored, so none can leak from the database.

`cfl_<lease>_<mac>` opens one lease. `cfa_<agent>_<epoch>_<mac>` and `cfo_<operator>_<epoch>_<mac>` name their bearer;
`rotate` raises the epoch, and older tokens open nothing. A watch ticket is a MAC alone, cut to eight characters.
"""

import base64
import hashlib
import hmac
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from cu_fleet.model.errors import UnauthorizedError


def derived(secret: bytes, purpose: str) -> bytes:
    """A key of its own for each purpose, from the home's one secret."""
    return hmac.new(secret, purpose.encode(), hashlib.sha256).digest()


Kind = Literal["cfl", "cfa", "cfo"]


@dataclass(frozen=True)
class Bearer:
    kind: Kind
    subject: str
    epoch: int = 0


class Mint:
    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.read = lru_cache(1000)(self._read)  # the few who are at work show theirs with every call

    @classmethod
    def of(cls, secret: bytes) -> "Mint":
        """The mint of a home, from the home's one secret."""
        return cls(derived(secret, "tokens"))

    def lease(self, lease: str) -> str:
        return self._sealed(f"cfl_{lease}")

    def agent(self, name: str, epoch: int) -> str:
        return self._sealed(f"cfa_{name}_{epoch}")

    def operator(self, name: str, epoch: int) -> str:
        return self._sealed(f"cfo_{name}_{epoch}")

    def watch(self, number: str) -> str:
        """A watch ticket: as long as a VNC password may be, of characters that a URL takes as they are."""
        mac = hmac.digest(self._secret, f"cfw_{number}".encode(), "sha256")
        return base64.urlsafe_b64encode(mac[:6]).decode()

    def _read(self, token: str) -> Bearer:
        """Whose token this is; UnauthorizedError if this fleet never made it."""
        text, _, mac = token.rpartition("_")
        kind, _, rest = text.partition("_")
        if not token.isascii() or not hmac.compare_digest(self._mac(text), mac):
            raise UnauthorizedError(
                "this token was not given out by this fleet", remedy="check CU_FLEET_TOKEN", code="unknown_token"
            )
        if kind == "cfl":
            return Bearer("cfl", rest)
        subject, _, epoch = rest.rpartition("_")
        return Bearer("cfa" if kind == "cfa" else "cfo", subject, int(epoch))

    def _sealed(self, text: str) -> str:
        return f"{text}_{self._mac(text)}"

    def _mac(self, text: str) -> str:
        return hmac.digest(self._secret, text.encode(), "sha256").hex()[:40]
