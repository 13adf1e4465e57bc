"""Who is calling: a bearer token, or the owner of the unix socket at the other end of it.

The door marks requests that came through the socket in the ASGI scope, where no client can write. A token given there
still wins, so that a door which holds an agent's token never acts as the operator by accident.
"""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials

from cu_fleet.model.access import Caller
from cu_fleet.model.errors import UnauthorizedError

if TYPE_CHECKING:
    from cu_fleet.controller import Controller

SOCKET_OWNER = "cu_fleet.socket_owner"  # scope key: the OS user at the other end of the unix socket

bearer = HTTPBearer(
    auto_error=False,
    scheme_name="token",
    description="An operator's, an agent's or a lease's token. On the home's `controller.sock` none is needed.",
)


@dataclass(frozen=True)
class Call:
    """One request, its caller recognised."""

    fleet: "Controller"
    who: Caller
    closing: asyncio.Event  # set when the door closes: whatever waits must end


async def recognised(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]
) -> Call:
    if credentials is None and "authorization" in request.headers:
        raise UnauthorizedError(
            "the Authorization header is not understood", remedy="send: Authorization: Bearer TOKEN"
        )
    state = request.app.state
    token = credentials.credentials if credentials else None
    who = await state.controller.caller(token, socket_owner=request.scope.get(SOCKET_OWNER))
    return Call(state.controller, who, state.closing)


At = Annotated[Call, Depends(recognised)]
