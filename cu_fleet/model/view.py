"""What the doors show: records as people and programs see them, with times in words and nothing secret by accident."""

from datetime import UTC, datetime
from typing import Any

from cu_fleet.model.access import Agent, Grants, Operator
from cu_fleet.model.approval import Approval, Check
from cu_fleet.model.desktop import EMULATED, PROGRESS, Desktop
from cu_fleet.model.frame import KeptFrame
from cu_fleet.model.geometry import Geometry
from cu_fleet.model.lease import Lease
from cu_fleet.model.record import Value


def iso(at: float | None) -> str | None:
    """`2026-01-01T12:00:00Z`"""
    return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class WatcherView(Value):
    viewer: str
    who: str
    control: bool  # whether it may act, or only look
    way: str  # "unix", "tcp" or "web"
    since: str


class TicketView(Value):
    """For one viewer, once."""

    lease: str
    ticket: str  # the VNC password, in all three ways
    control: bool
    expires_at: str
    host: str
    port: int  # on loopback
    socket: str | None  # in the home; None where its path is too long
    ws_url: str | None
    web_url: str | None = None  # a page that connects by itself, if noVNC is installed


class LeaseView(Value):
    lease: str
    agent: str
    state: str
    control: str
    profile: str
    backend: str
    desktop: str | None
    desktop_name: str | None
    generation: int | None
    resources: tuple[str, ...]
    width: int | None  # of the view: what coordinates are pixels of
    height: int | None
    screen_width: int | None = None
    screen_height: int | None = None
    scale: float | None = None  # pixels of the view for each of the screen
    asked_at: str
    granted_at: str | None
    expires_at: str | None
    ended_at: str | None
    ttl: float
    remaining: float | None  # seconds left; stands still while paused
    reason: str
    by: str
    place: int | None = None  # place in the queue, from 1
    message: str | None = None  # waiting: for what and behind whom, in words
    holder: dict[str, Any] | None = None  # waiting: {"agent", "lease", "until"} of who has what it waits for
    approvals: tuple[str, ...] = ()  # what it waits for a person to answer
    waiters: int = 0  # how many wait for what this lease holds
    watchers: tuple[WatcherView, ...] = ()  # whose viewers are connected
    token: str | None = None  # only for the caller it belongs to, and the operator who acquired it
    url: str | None = None
    mcp_url: str | None = None


def lease_view(lease: Lease, desktop: Desktop | None, now: float, **more: Any) -> LeaseView:
    remaining = lease.remaining if lease.expires_at is None else max(0.0, lease.expires_at - now)
    seen = Geometry.whole(desktop.width, desktop.height, lease.view) if desktop else None
    return LeaseView(
        lease=lease.id,
        agent=lease.agent,
        state=lease.state.value,
        control=lease.control.value,
        profile=lease.profile,
        backend=lease.backend,
        desktop=lease.desktop,
        desktop_name=lease.desktop_name,
        generation=lease.generation,
        resources=lease.resources,
        width=seen.width if seen else None,
        height=seen.height if seen else None,
        screen_width=desktop.width if desktop else None,
        screen_height=desktop.height if desktop else None,
        scale=seen.scale if seen else None,
        asked_at=iso(lease.asked_at) or "",
        granted_at=iso(lease.granted_at),
        expires_at=iso(lease.expires_at),
        ended_at=iso(lease.ended_at),
        ttl=lease.ttl,
        remaining=None if remaining is None else round(remaining, 1),
        reason=lease.reason,
        by=lease.by,
        approvals=lease.approvals,
        **more,
    )


class ApprovalView(Value):
    approval: str
    kind: str
    state: str
    lease: str
    agent: str
    desktop: str | None
    generation: int | None
    subject: str
    reason: str
    checks: tuple[Check, ...]
    actions: tuple[dict[str, object], ...]  # in pixels of the screen
    facts: dict[str, object]
    frame: str | None  # of the screen when it was asked: a kept frame
    scope: str
    asked_at: str
    asked_by: str
    deadline: str | None
    remaining: float | None  # seconds left for the answer, or for its use
    by: str
    answer: str
    answered_at: str | None
    settled_at: str | None
    result: dict[str, object] | None


def approval_view(approval: Approval, now: float) -> ApprovalView:
    own = approval.model_dump(exclude={"id", "kind", "state", "checks", "scope"})
    times = {name: iso(own[name]) for name in ("asked_at", "deadline", "answered_at", "settled_at")}
    remaining = None if approval.settled_at else round(max(0.0, approval.deadline - now), 1)
    return ApprovalView(
        **{**own, **times},
        approval=approval.id,
        kind=approval.kind.value,
        state=approval.state.value,
        scope=approval.scope.value,
        checks=approval.checks,
        remaining=remaining,
    )


class DesktopView(Value):
    desktop: str
    name: str | None
    profile: str
    backend: str
    stage: str
    generation: int
    frozen: bool
    width: int
    height: int
    lease: str | None  # the live lease that holds it
    agent: str | None
    control: str
    owner: str | None
    note: str
    created_at: str
    ready_at: str | None
    emulated: bool = False  # its processor, which makes it several times slower
    disk_bytes: int | None = None  # what it has written, if it was measured for this view
    disk_limit: int | None = None


def desktop_view(desktop: Desktop, lease: Lease | None) -> DesktopView:
    return DesktopView(
        desktop=desktop.id,
        name=desktop.name,
        profile=desktop.profile,
        backend=desktop.backend,
        stage=desktop.stage.value,
        generation=desktop.generation,
        frozen=desktop.frozen,
        width=desktop.width,
        height=desktop.height,
        lease=lease.id if lease else None,
        agent=lease.agent if lease else None,
        control=lease.control.value if lease else "none",
        owner=desktop.owner,
        note=desktop.note or str(desktop.handle.get(PROGRESS) or ""),
        created_at=iso(desktop.created_at) or "",
        ready_at=iso(desktop.ready_at),
        emulated=bool(desktop.handle.get(EMULATED)),
    )


class FrameView(Value):
    sha256: str
    lease: str
    agent: str
    desktop: str
    generation: int
    why: str
    at: float
    at_iso: str
    width: int
    height: int
    format: str
    size: int  # bytes


def frame_view(frame: KeptFrame) -> FrameView:
    return FrameView(**frame.model_dump(exclude={"id"}), at_iso=iso(frame.at) or "")


class AgentView(Value):
    agent: str
    grants: Grants
    parent: str | None
    barred_until: str | None
    bar_reason: str
    leases: int = 0
    created_at: str
    token: str | None = None  # only in the answer to add and rotate


def agent_view(agent: Agent, leases: int = 0, token: str | None = None) -> AgentView:
    return AgentView(
        agent=agent.name,
        grants=agent.grants,
        parent=agent.parent,
        barred_until=iso(agent.barred_until),
        bar_reason=agent.bar_reason,
        leases=leases,
        created_at=iso(agent.created_at) or "",
        token=token,
    )


class OperatorView(Value):
    operator: str
    role: str
    created_at: str
    token: str | None = None


def operator_view(operator: Operator, token: str | None = None) -> OperatorView:
    return OperatorView(
        operator=operator.name, role=operator.role.value, created_at=iso(operator.created_at) or "", token=token
    )
