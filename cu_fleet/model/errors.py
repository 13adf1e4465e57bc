"""Every refusal, in words: what happened, the facts, and the remedy.

The class says whose fault it is and fixes what the doors show for it: the HTTP status and the CLI's exit code.
`code` is stable, for programs; `facts` are the attributes a program or a person may want, JSON-able, and never hold
a token.
"""

from typing import ClassVar


class FleetError(Exception):
    """Base of all refusals. `str(error)` is the sentence for a person."""

    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    default_code: ClassVar[str] = "failed"

    def __init__(self, what: str, *, remedy: str = "", code: str = "", **facts: object) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy
        self.code = code or self.default_code
        self.facts = facts

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}" if self.remedy else self.what


class InvalidError(FleetError):
    """The caller's words are off: an unknown key, a wrong type, a coordinate off the screen."""

    status, exit_code, default_code = 422, 2, "invalid"


class UnauthorizedError(FleetError):
    """No token, or one that this fleet never gave out."""

    status, exit_code, default_code = 401, 3, "unauthorized"


class DeniedError(FleetError):
    """A known caller may not do this."""

    status, exit_code, default_code = 403, 3, "denied"


class NotFoundError(FleetError):
    status, exit_code, default_code = 404, 5, "not_found"


class ConflictError(FleetError):
    """Somebody else holds it, or the state does not allow it now."""

    status, exit_code, default_code = 409, 3, "conflict"


class LeaseOverError(FleetError):
    """The lease is revoked, released, expired or lost; its token only hears why."""

    status, exit_code, default_code = 410, 6, "lease_over"


class LeasePausedError(FleetError):
    """An operator holds the desktop's input back; the lease itself lives on."""

    status, exit_code, default_code = 423, 6, "lease_paused"


class TooLongError(FleetError):
    """The deadline the caller gave has passed."""

    status, exit_code, default_code = 408, 4, "waited_too_long"


class UnsupportedError(FleetError):
    """The desktop's backend has no such ability."""

    status, exit_code, default_code = 501, 1, "unsupported"


class UnavailableError(FleetError):
    """This machine or a part of it cannot serve now: a missing program, a full disk, a screen that died."""

    status, exit_code, default_code = 503, 1, "unavailable"


class BrokenError(FleetError):
    """A promise of ours or of a part does not hold: a chain that does not verify, a backend that lies."""

    status, exit_code, default_code = 500, 1, "broken"
