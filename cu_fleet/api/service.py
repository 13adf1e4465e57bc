"""The controller itself over HTTP: is it there, how is it, stop it."""

import os
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse

from cu_fleet import __version__
from cu_fleet.api.auth import At
from cu_fleet.api.words import example
from cu_fleet.model.access import Role
from cu_fleet.model.record import Value

router = APIRouter(tags=["service"])


class Health(Value):
    ok: bool = True
    version: str
    fleet: str


class Stopping(Value):
    model_config = example(stopping=True, pid=4711)
    stopping: bool = True
    pid: int


@router.get("/healthz", summary="Is it there?")
async def healthz(request: Request) -> Health:
    """Needs no token."""
    return Health(version=__version__, fleet=request.app.state.controller.fleet)


@router.get("/v1/status", summary="How is it?")
async def status(at: At) -> dict[str, Any]:
    """Version, address, capacity, leases and desktops in numbers."""
    return await at.fleet.status(at.who)


@router.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
async def metrics(at: At) -> PlainTextResponse:
    """In Prometheus's text format."""
    return PlainTextResponse(await at.fleet.metrics(at.who), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.post("/v1/shutdown", summary="Stop the controller and everything it made", status_code=202)
async def shutdown(request: Request, at: At) -> Stopping:
    """Ends every desktop. The answer comes first; the process ends when all is gone."""
    at.who.needs(Role.ADMIN)
    request.app.state.shutdown()
    return Stopping(pid=os.getpid())
