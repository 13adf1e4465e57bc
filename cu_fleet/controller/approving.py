"""Approvals: a person is asked, answers, and whoever asked comes back with the answer.

The controller never acts by itself later. An agent's batch goes, once, when it is sent again with its approval: the
permission step of the actor sees to that (`pending.agreed`), in the transaction that writes down the first intent. What
rests on no lease any more is done while a person approves it, by `on_approved` for its kind: the answer tells what came
of it, and a failure leaves the question open.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from cu_fleet.controller import pending
from cu_fleet.controller.acting import Acting
from cu_fleet.controller.actor import Actors
from cu_fleet.controller.core import Core
from cu_fleet.controller.frames import Kept, not_kept
from cu_fleet.controller.permit import allowed, renew
from cu_fleet.model.access import Agent, Caller, Role
from cu_fleet.model.action import Action, check_on_screen
from cu_fleet.model.approval import (
    MOST_BYTES,
    OPEN,
    SCOPES,
    Approval,
    ApprovalEvent,
    ApprovalState,
    Check,
    Kind,
    Scope,
    as_of,
    digest,
)
from cu_fleet.model.desktop import Desktop
from cu_fleet.model.errors import DeniedError, FleetError, InvalidError
from cu_fleet.model.lease import Lease, why_not
from cu_fleet.model.names import new_id
from cu_fleet.model.view import ApprovalView, approval_view
from cu_fleet.stores.base import Tx

Doing = Callable[[Approval, Caller], Awaitable[dict[str, object]]]  # what a person's yes does; may be called again
_PICTURE_WITHIN = 5.0  # seconds


class Approving:
    def __init__(self, core: Core, actors: Actors, acting: Acting) -> None:
        self.core = core
        self.actors = actors
        self.acting = acting
        self.on_approved: dict[Kind, Doing] = {}

    # asking

    async def ask_actions(
        self,
        who: Caller,
        lease_id: str,
        actions: Sequence[Action],
        *,
        reason: str = "",
        checks: Sequence[Check] = (),
        frame: str | None = None,
        within: float | None = None,
    ) -> ApprovalView:
        """Ask a person about a batch; asked again while it is open, it is the same approval."""
        lease, desktop = await self.acting.seats.of(who, lease_id)
        geometry = self.acting.looking.geometry(lease, desktop, frame)
        for action in actions:
            check_on_screen(action, geometry.width, geometry.height, f"frame {frame}" if frame else "the view")
        meant = [geometry.meant(action) for action in actions]
        asked = self._new(Kind.ACTION, digest(meant, self.core.redaction_key), lease, who.who, within)
        shown = tuple({"type": x.type, **x.model_dump(mode="json", exclude_defaults=True)} for x in meant)
        asked = asked.but(reason=reason, checks=tuple(checks), actions=shown, desktop=desktop.id)
        _check_readable(asked)
        picture = await self._picture(lease, desktop)

        def work(tx: Tx) -> Approval:
            now, _ = allowed(self.core, tx, who, lease_id, generation=desktop.generation)
            if refusal := why_not(now):  # a person who has taken over needs nobody's answer
                raise refusal
            renew(tx, now, who, self.core.now())
            facts: dict[str, object] = {"no_picture": picture} if isinstance(picture, str) else {}
            (sha256,) = self.acting.frames.note(tx, [picture]) if isinstance(picture, Kept) else (None,)
            return self.ask(tx, asked.but(facts=facts, frame=sha256))

        return approval_view(await self.core.change(work), self.core.now())

    def ask_about(
        self, tx: Tx, kind: Kind, subject: str, lease: Lease, *, reason: str, facts: dict[str, object], within: float
    ) -> Approval:
        """Ask, within a transaction of the controller's own, about something that rests on no lease."""
        return self.ask(tx, self._new(kind, subject, lease, "controller", within).but(reason=reason, facts=facts))

    def ask(self, tx: Tx, asked: Approval) -> Approval:
        pending.expire(self.core, tx)
        same = pending.find(tx, asked)
        if same is None:
            pending.ask(self.core, tx, asked)
        return same or asked

    def _new(self, kind: Kind, subject: str, lease: Lease, by: str, within: float | None) -> Approval:
        now = self.core.now()
        return Approval(
            id=new_id("ap"),
            kind=kind,
            subject=subject,
            lease=lease.id,
            agent=lease.agent,
            desktop=lease.desktop,
            generation=lease.generation,
            asked_at=now,
            asked_by=by,
            deadline=now + (within or self.core.settings.approval_timeout),
        )

    async def _picture(self, lease: Lease, desktop: Desktop) -> Kept | str:
        """The screen as it is while a person is asked, or why there is no picture of it."""
        actor = self.actors.of(desktop.id)
        try:
            async with asyncio.timeout(_PICTURE_WITHIN), actor.turn:
                endpoint = None if actor.screen else await self.core.endpoint(desktop)
                screen = actor.screen or await actor.connect(desktop, endpoint, _PICTURE_WITHIN)
                return await self.acting.frames.keep(lease, await screen.frame(pointer=True), "approval")
        except TimeoutError:
            return "the desktop was busy"
        except (FleetError, OSError) as e:
            return not_kept(e)

    # seeing

    async def listing(
        self, who: Caller, *, everything: bool = False, lease_id: str | None = None, limit: int = 1000
    ) -> list[ApprovalView]:
        """What waits for a person, and with `everything` what was settled: all for an operator, an agent's own.

        Oldest first, the newest `limit` of them.
        """

        def work(tx: Tx) -> list[ApprovalView]:
            equal: dict[str, object] = {} if everything else {"state": ApprovalState.WAITING}
            if lease_id or who.lease:
                equal["lease"] = lease_id or who.lease
            now = self.core.now()
            found = [as_of(x, now) for x in tx.find(Approval, **equal) if self._may_see(tx, who, x)]
            wanted = [x for x in found if everything or x.state is ApprovalState.WAITING]
            return [approval_view(approval, now) for approval in wanted[-limit:]]

        return await self.core.read(work)

    async def get(self, who: Caller, approval_id: str, *, wait: float = 0.0) -> ApprovalView:
        """One; with `wait`, as soon as it waits for nobody any more, or when the time is up."""
        loop = asyncio.get_running_loop()
        until = loop.time() + wait
        while True:
            rings, left = self.core.turned.rings, until - loop.time()
            approval = await self.core.read(lambda tx: self._seen(tx, who, approval_id))
            if approval.state is not ApprovalState.WAITING or left <= 0 or self.core.closing:
                return approval_view(approval, self.core.now())
            await self.core.turned.heard(rings, left)

    def _seen(self, tx: Tx, who: Caller, approval_id: str) -> Approval:
        approval = pending.get(self.core, tx, approval_id)
        if not self._may_see(tx, who, approval):
            raise DeniedError(f"approval {approval_id} is not {who.who}'s", code="not_yours")
        return approval

    def _may_see(self, tx: Tx, who: Caller, approval: Approval) -> bool:
        """Operators all, a lease its own, an agent its own and its children's."""
        if who.role is not None:
            return who.role.includes(Role.OBSERVER)
        if who.lease is not None:
            return who.lease == approval.lease
        child = tx.get(Agent, approval.agent)
        return who.agent == approval.agent or (child is not None and child.parent == who.agent)

    # answering

    async def answer(
        self, who: Caller, approval_id: str, *, approve: bool, reason: str = "", scope: Scope = Scope.ONCE
    ) -> ApprovalView:
        """A person's yes or no. No agent ever answers, nor a parent for its children."""
        who.needs(Role.OPERATOR)
        now = self.core.now()

        def work(tx: Tx) -> Approval:
            approval = pending.get(self.core, tx, approval_id)
            if scope not in SCOPES[approval.kind]:
                allows = " or ".join(SCOPES[approval.kind])
                what = f"what approval {approval_id} is about is allowed {allows}, not {scope.value}"
                raise InvalidError(what, code="bad_scope")
            words: dict[str, object] = {"by": who.who, "answer": reason, "answered_at": now, "scope": scope}
            if approve:  # from now on it is its use that must not be late
                use_by = now + self.core.settings.approval_timeout
                words["deadline"] = use_by if approval.holds else max(use_by, approval.deadline)
            event = ApprovalEvent.APPROVE if approve else ApprovalEvent.DENY
            return pending.settle(self.core, tx, approval, event, who.who, **words)

        answered = await self.core.change(work)
        if approve and not answered.holds:
            answered = await self._done(who, answered)
        return approval_view(answered, self.core.now())

    async def _done(self, who: Caller, approval: Approval) -> Approval:
        """Do what was approved, and tell what came of it; what fails, or is cut off, waits for an answer again."""
        try:
            result = await self.on_approved[approval.kind](approval, who)
        except BaseException as e:
            await asyncio.shield(self._failed(approval.id, who.who, e))
            raise
        use = partial(pending.settle, self.core)
        return await self.core.change(lambda tx: use(tx, approval, ApprovalEvent.USE, who.who, result=result))

    async def _failed(self, approval_id: str, by: str, error: BaseException) -> None:
        told: dict[str, object] = {"code": "interrupted", "detail": "it was broken off in the middle"}
        if isinstance(error, FleetError):
            told = {"code": error.code, "detail": str(error)}
        await self.core.change(lambda tx: self._reopen(tx, tx.get(Approval, approval_id), by, told))

    def _reopen(self, tx: Tx, approval: Approval | None, by: str, result: dict[str, object]) -> None:
        if approval and approval.state is ApprovalState.APPROVED:
            pending.settle(
                self.core, tx, approval, ApprovalEvent.FAIL, by, by="", answer="", answered_at=None, result=result
            )

    async def recover(self, down: float) -> None:
        """After a start: the time away counts for no deadline, and what was cut off waits for an answer again."""
        told: dict[str, object] = {"code": "interrupted", "detail": "the controller ended in the middle of it"}

        def work(tx: Tx) -> None:
            for approval in tx.find(Approval, state=OPEN):
                tx.put(later := approval.but(deadline=approval.deadline + down))
                if not approval.holds:
                    self._reopen(tx, later, "controller", told)

        await self.core.note(work)


def _check_readable(asked: Approval) -> None:
    """A person is to read it."""
    size = len(asked.model_dump_json())
    if size > MOST_BYTES:
        raise InvalidError(
            f"a person cannot judge {size:,} bytes of actions; at most {MOST_BYTES:,}",
            remedy="ask about fewer actions at once",
            code="too_large",
        )
