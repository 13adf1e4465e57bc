"""Watch tickets: each lets one viewer in, once, soon.

They live in this process alone; a controller that starts anew has given out none. What a viewer sends is not the
ticket but an answer to a challenge that only its holder can give: all of the lease's that are outstanding are tried,
each time. Eight characters are 48 bits, which nobody guesses online who may try but a few times a second for a minute.
"""

import hmac
import secrets
from dataclasses import dataclass

from cu_fleet.controller.core import Core
from cu_fleet.model.access import Caller
from cu_fleet.rfb.handshake import response

_MOST = 16  # outstanding ones of a lease; the oldest makes way


@dataclass(frozen=True)
class Ticket:
    number: str
    lease: str
    desktop: str
    generation: int
    who: Caller
    standing: str  # of whoever asked for it
    control: bool
    until: float


class Tickets:
    def __init__(self, core: Core) -> None:
        self.core = core
        self._outstanding: dict[str, Ticket] = {}

    def number(self) -> str:
        return secrets.token_hex(8)

    def issue(self, ticket: Ticket) -> str:
        """The ticket as its holder gets it."""
        same = [other for other in self._valid() if other.lease == ticket.lease]
        for other in same[: len(same) - _MOST + 1]:
            self._outstanding.pop(other.number)
        self._outstanding[ticket.number] = ticket
        return self.core.mint.watch(ticket.number)

    def redeem(self, lease: str, challenge: bytes, answer: bytes) -> Ticket | None:
        """The ticket that was shown; it is used up."""
        found = None
        for ticket in self._valid():
            if ticket.lease == lease and self._answers(ticket, challenge, answer):
                found = ticket
        return self._outstanding.pop(found.number) if found else None

    def _answers(self, ticket: Ticket, challenge: bytes, answer: bytes) -> bool:
        return hmac.compare_digest(response(self.core.mint.watch(ticket.number), challenge), answer)

    def _valid(self) -> list[Ticket]:
        now = self.core.now()
        self._outstanding = {key: ticket for key, ticket in self._outstanding.items() if ticket.until > now}
        return list(self._outstanding.values())
