"""Watching over HTTP: tickets for viewers, a WebSocket that carries RFB, and noVNC's page if it is installed.

A ticket never stands in a URL that is sent: a viewer in a browser gets it behind the `#`, which stays there, and
answers the challenge with it as any VNC viewer does. So no log, proxy or `Referer` holds one. What a page may load and
reach is the controller alone.
"""

import asyncio
import re
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from cu_fleet.api.auth import At
from cu_fleet.api.problems import raises
from cu_fleet.api.words import LeaseId, example
from cu_fleet.model.errors import FleetError, NotFoundError
from cu_fleet.model.profile import Seconds
from cu_fleet.model.record import Value
from cu_fleet.model.view import TicketView

router = APIRouter(prefix="/v1/leases", tags=["watching"])
PAGES = "/watch"
_NOVNC = Path("/usr/share/novnc")  # as Debian and Ubuntu have it
_NO_NOVNC = "apt-get install --no-install-recommends novnc"
_PAGE = "vnc.html"
_SUBPROTOCOL = "binary"  # noVNC asks for it; the frames are binary all the same
_NORMAL, _REFUSED, _UNSUPPORTED = 1000, 1008, 1003  # codes of RFC 6455
_LAST_WORDS = 0.5  # seconds
_MOST_REASON = 123  # bytes
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "media-src 'self'",
        "font-src 'self'",
        "connect-src 'self' {sockets}",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'self'",
    )
)
_HEADERS = {"Referrer-Policy": "no-referrer", "X-Frame-Options": "SAMEORIGIN"}
_HOST = re.compile(rb"[\w.:\[\]-]{1,255}", re.ASCII)


class Watch(Value):
    model_config = example(control=True, ttl="1m")
    control: bool = Field(False, description="Whether the viewer may act, as the operator who asks; or only look.")
    ttl: Seconds = Field(60.0, gt=0, le=600, description="How long the ticket waits for its viewer.")


@router.post("/{lease}/watch", summary="Let a viewer in", status_code=201, responses=raises(404, 409, 410, 423))
async def watch(lease: LeaseId, at: At, request: Request, body: Watch | None = None) -> TicketView:
    """A ticket for one VNC viewer, once: its password at the lease's port, socket or WebSocket.

    Operators may watch and control, observers watch. A lease's own token and its agent's parent get tickets to look:
    an agent acts by its actions.
    """
    body = body or Watch()
    ticket = await at.fleet.watch(at.who, lease, control=body.control, ttl=body.ttl)
    return ticket.but(web_url=_page_of(ticket, at.fleet.url)) if novnc() else ticket


def novnc() -> Path | None:
    """Where noVNC is, if it is installed."""
    return _NOVNC if (_NOVNC / _PAGE).is_file() else None


def _page_of(ticket: TicketView, url: str | None) -> str | None:
    words = {
        "autoconnect": "true",
        "resize": "scale",
        "show_dot": "true",
        "view_only": "false" if ticket.control else "true",
        "path": f"v1/leases/{ticket.lease}/watch",
        "password": ticket.ticket,
    }
    return f"{url}{PAGES}/{_PAGE}#{urlencode(words)}" if url else None


@router.websocket("/{lease}/watch")
async def viewer(lease: str, socket: WebSocket) -> None:
    """RFB in binary frames; the ticket is asked for as a VNC password."""
    wanted = socket.scope.get("subprotocols", ())
    await socket.accept(subprotocol=_SUBPROTOCOL if _SUBPROTOCOL in wanted else None)
    await socket.app.state.controller.serve_viewer(lease, _WebWire(socket), "web")


class _WebWire:
    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._left = False

    async def receive(self) -> bytes:
        message = await self._socket.receive()
        data = message.get("bytes")
        if isinstance(data, bytes) and data:
            return data
        self._left = message["type"] == "websocket.disconnect"
        if not self._left:
            await self._end(_UNSUPPORTED, "RFB comes in binary frames that are not empty")
        return b""

    async def send(self, data: bytes) -> None:
        try:
            await self._socket.send_bytes(data)
        except (WebSocketDisconnect, RuntimeError) as e:
            raise OSError("the viewer left") from e

    async def close(self, why: FleetError | None, *, at_once: bool) -> None:
        """The door cuts what has not been taken a moment later."""
        if not self._left:
            await self._end(_REFUSED if why else _NORMAL, why.what if why else "")

    async def _end(self, code: int, reason: str) -> None:
        self._left = True
        short = reason.encode()[:_MOST_REASON].decode(errors="ignore")
        try:
            async with asyncio.timeout(_LAST_WORDS):
                await self._socket.close(code, short)
        except (OSError, TimeoutError, RuntimeError):
            return  # it has gone meanwhile, or takes nothing


class Pages:
    """noVNC as it is installed, and nothing else of the machine's."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._answer(scope)
        answer.headers.update({"Content-Security-Policy": _POLICY.format(sockets=_sockets(scope)), **_HEADERS})
        await answer(scope, receive, send)

    async def _answer(self, scope: Scope) -> Response:
        folder, path = novnc(), scope["path"].removeprefix(PAGES).strip("/")
        if folder is None:
            raise NotFoundError("noVNC is not installed on the controller's machine", remedy=_NO_NOVNC, code="no_novnc")
        if not path:
            return RedirectResponse(f"{PAGES}/{_PAGE}")
        try:
            return await StaticFiles(directory=folder).get_response(path, scope)
        except HTTPException as e:
            if e.status_code != HTTPStatus.NOT_FOUND:
                raise
            raise NotFoundError(f"there is nothing at {scope['path']}", code="no_such_path") from e


def _sockets(scope: Scope) -> str:
    """Not every browser takes a WebSocket to where a page came from for `'self'`."""
    host = dict(scope["headers"]).get(b"host", b"")
    name = host.decode() if _HOST.fullmatch(host) else ""
    return f"ws://{name} wss://{name}" if name else ""


ROUTES: Sequence[tuple[str, Pages]] = ((PAGES, Pages()), (f"{PAGES}/{{path:path}}", Pages()))
