"""A batch on record: each action before it is sent, and what became of it before anybody hears of it.

It costs one transaction more than it has actions: the result of one action and the intent of the next are written
together. An intent without a result, found at a start, is a batch that was cut off: it is recorded as interrupted, and
never taken up again. What is refused before anything of it is sent is one entry, and takes nothing from the result of
the action before it.

Coordinates are on record in pixels of the screen, as they are sent, and beside them what was asked.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from cu_fleet.controller.core import Core
from cu_fleet.controller.frames import Around, Frames, Kept
from cu_fleet.controller.looking import Visit
from cu_fleet.controller.pending import agreed
from cu_fleet.controller.permit import allowed, renew
from cu_fleet.model.action import Action, for_record
from cu_fleet.model.audit import redacted
from cu_fleet.model.desktop import Desktop, Stage
from cu_fleet.model.geometry import Geometry
from cu_fleet.model.lease import Lease
from cu_fleet.model.request import Acted, Done
from cu_fleet.stores.base import Tx

INTERRUPTED = Done(ok=False, code="interrupted", detail="the call ended in the middle of it")
_NOT_DONE = Done(ok=False, code="not_done", detail="an earlier action of the batch failed")
_PLACES = ("x", "y", "path", "region", "ignore")


class Agreement(NamedTuple):
    """The approval that a batch is sent with, and what stands for its actions."""

    approval: str
    subject: str


class Pending(NamedTuple):
    """A result that is to be written, with what is kept of it."""

    of: int
    code: str
    seconds: float | None
    kept: list[Kept]
    facts: dict[str, object]


@dataclass
class Batch:
    """One caller's batch: what became of it so far, and the intent that has no result in the record yet."""

    core: Core
    frames: Frames
    visit: Visit
    geometry: Geometry
    around: Around
    agreement: Agreement | None = None
    done: list[Done] = field(default_factory=list)
    _seq: int | None = None
    _result: Done | None = None  # what became of that intent, until it is written
    _began: float = 0.0
    _took: float | None = None

    def ended(self, result: Done) -> None:
        """What became of the action that was intended last."""
        self._result, self._took = result, round(self.core.now() - self._began, 6)

    @property
    def failed(self) -> bool:
        """Whether the latest was begun, and failed."""
        return self._result is not None and not self._result.ok

    @property
    def under_way(self) -> bool:
        return self._seq is not None and self._result is None

    def answer(self, actions: int) -> Acted:
        rest = [_NOT_DONE] * (actions - len(self.done))
        return Acted(done=(*self.done, *rest), generation=self.visit.desktop.generation)

    async def intend(self, action: Action) -> None:
        """Write down what is about to be sent, with the result of the one before, if this lease still may send it."""
        visit, now = self.visit, self.core.now()
        pending = await self._pending()
        sent, facts = self._sent(action)
        agreement = None if self.done else self.agreement  # an answer is used up by the first of its actions

        def work(tx: Tx) -> int:
            lease, desktop = allowed(self.core, tx, visit.who, visit.lease.id, generation=visit.desktop.generation)
            if agreement:
                agreed(self.core, tx, lease, visit.who.who, *agreement)
            if pending:
                self._write(tx, lease, pending)
            renew(tx, lease, visit.who, now)
            seq = self.core.record(tx, "act", visit.who.who, lease=lease, action=sent, intent=visit.intent, facts=facts)
            tx.set_meta(f"acting:{desktop.id}", str(seq))
            return seq

        self._seq, self._result = await (self.core.change(work) if agreement else self.core.note(work)), None
        self._began, self._took = now, None

    async def agree(self) -> None:
        """What a batch without actions was allowed is used up too."""
        visit = self.visit

        def work(tx: Tx) -> None:
            lease, _ = allowed(self.core, tx, visit.who, visit.lease.id, generation=visit.desktop.generation)
            if self.agreement:
                agreed(self.core, tx, lease, visit.who.who, *self.agreement)

        await self.core.change(work)

    def _sent(self, action: Action) -> tuple[dict[str, object], dict[str, object]]:
        """The action as it is recorded, in pixels of the screen, and as facts what was asked instead and allowed."""
        meant = self.geometry.meant(action)
        sent = for_record(meant, lambda text: redacted(text, self.core.redaction_key))
        facts: dict[str, object] = {"approval": self.agreement.approval} if self.agreement else {}
        if meant is action:
            return sent, facts
        asked = {key: value for key, value in action.model_dump(mode="json").items() if key in _PLACES and key in sent}
        if asked:
            facts |= {"asked": asked} | ({"frame": self.visit.frame} if self.visit.frame else {})
        return sent, facts

    async def conclude(self, refused: Action | None = None) -> None:
        """Write down what became of the open intent, and that an action was refused before anything of it was sent.

        Cancelled while it was written down, an intent may be open that we do not know of: the store does.
        """
        pending = await self._pending()
        name = f"acting:{self.visit.desktop.id}"

        def work(tx: Tx) -> None:
            lease = self.core.get_lease(tx, self.visit.lease.id)
            known = int(tx.get_meta(name) or 0)
            if pending and pending.of == known:
                self._write(tx, lease, pending)
            elif known:
                self._write(tx, lease, Pending(known, INTERRUPTED.code or "", None, [], {}))
            if refused:
                self._write_refusal(tx, lease, refused)
            if known:
                tx.set_meta(name, None)

        await self.core.note(work)
        self._seq = self._result = None
        if pending and pending.kept:
            self.frames.tidying.mind_the_quota()

    async def _pending(self) -> Pending | None:
        if self._seq is None:
            return None
        result = self._result or INTERRUPTED
        return Pending(self._seq, result.code or "ok", self._took, *await self.around.ready())

    def _write(self, tx: Tx, lease: Lease, pending: Pending) -> None:
        self.core.record(
            tx,
            "act.done",
            self.visit.who.who,
            lease=lease,
            of=pending.of,
            result=pending.code,
            seconds=pending.seconds,
            frames=self.frames.note(tx, pending.kept),
            facts=pending.facts,
        )

    def _write_refusal(self, tx: Tx, lease: Lease, action: Action) -> None:
        sent, facts = self._sent(action)
        who, intent, code = self.visit.who.who, self.visit.intent, self.done[-1].code
        self.core.record(tx, "act.refused", who, lease=lease, action=sent, intent=intent, result=code, facts=facts)


async def note_interrupted(core: Core) -> None:
    """After a start: batches that a killed controller left in the middle."""

    def work(tx: Tx) -> None:
        for desktop in tx.find(Desktop, stage=tuple(x.value for x in Stage)):
            open_seq = tx.get_meta(f"acting:{desktop.id}")
            if open_seq:
                core.record(tx, "act.done", "controller", desktop=desktop, of=int(open_seq), result=INTERRUPTED.code)
                tx.set_meta(f"acting:{desktop.id}", None)

    await core.note(work)
