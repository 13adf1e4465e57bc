"""What SQLite and PostgreSQL have in common: one connection on one thread, and transactions that run there in order.

The thread is the lock: two transactions never overlap, and no event loop waits on a disk. A caller who is cancelled
before its transaction began has changed nothing; one who is cancelled later hears of it once the transaction is over,
done or undone, so that cleaning up never races with it.

The way there and back takes longer than to write an entry down. So while nothing is given to the thread, what need not
last is done at once by the caller, if the database can begin it without waiting for anybody (`begin_now`).
"""

import asyncio
import hmac
import inspect
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from cu_fleet.model.errors import BrokenError, UnavailableError
from cu_fleet.stores.base import Tx
from cu_fleet.stores.migrations import migrate
from cu_fleet.stores.tables import Params
from cu_fleet.stores.transaction import RefusedError, Rows, SqlTx, why_refused
from cu_fleet.threads import Job, Threads

T = TypeVar("T")
LIMIT = 30.0  # seconds a transaction may take before it is broken off


class SqlStore(ABC):
    """See `stores.base.Store`. What is abstract runs on the store's thread, but `interrupt` and `begin_now`."""

    dialect: str

    def __init__(self, audit_key: bytes) -> None:
        self._key = audit_key
        self._line = Threads(f"store-{self.dialect}", most=1)
        self._thread: int | None = None
        self._began: float | None = None  # when the running transaction did
        self._given = 0  # to the thread, and not over: while it is none, the connection is the loop's
        self._closed = False

    @abstractmethod
    def connect(self) -> None: ...

    @abstractmethod
    def disconnect(self) -> None: ...

    @abstractmethod
    def begin(self, *, lasting: bool) -> None: ...

    def begin_now(self) -> bool:
        """Begin one that need not last, to be done by the loop; False if that might mean to wait."""
        return False

    @abstractmethod
    def commit(self) -> None: ...

    @abstractmethod
    def rollback(self) -> None: ...

    @abstractmethod
    def execute(self, statement: str, params: Params) -> Rows:
        """Run one statement. Raises RefusedError, or another error in words."""

    @abstractmethod
    def run_script(self, script: str) -> None: ...

    @abstractmethod
    def interrupt(self) -> None:
        """Break off what the thread is waiting for; called from another thread."""

    async def start(self) -> None:
        """Connect and bring the schema up to date; on failure nothing stays open."""
        try:
            await self.on_thread(self._open)
        except BaseException:
            self._closed = True
            self._line.give(self.disconnect)
            self._line.close()
            raise

    async def transact(self, work: Callable[[Tx], T], *, lasting: bool = True) -> T:
        if threading.get_ident() == self._thread:
            raise BrokenError("a transaction was begun inside another one", code="nested_transaction")
        if self._closed:
            raise UnavailableError("the store is closed", code="store_closed")
        if not lasting and not self._given and self.begin_now():
            return self._whole(work)
        return await self.on_thread(partial(self.run, work, lasting=lasting))

    async def close(self) -> None:
        """Finish what was begun, and let go of the database. Again is harmless."""
        if not self._closed:
            self._closed = True
            try:
                await self.on_thread(self.disconnect)
            finally:
                self._line.give(self.disconnect)  # if we were cancelled before the first one began
                self._line.close()

    def run(self, work: Callable[[Tx], T], *, lasting: bool = True) -> T:
        """One transaction, on the thread."""
        self._began = time.monotonic()
        try:
            self.begin(lasting=lasting)
            return self._whole(work)
        finally:
            self._began = None

    def _whole(self, work: Callable[[Tx], T]) -> T:
        """Between begin and commit: the end of it is one of the two, whatever happens."""
        tx = SqlTx(self.execute, self._key)
        try:
            result = work(tx)
            _refuse_coroutine(result)
            tx.check()
            self.commit()
        except RefusedError as refused:
            self.rollback()
            raise why_refused(refused) from None
        except BaseException:
            self.rollback()
            raise
        finally:
            tx.over = True
        return result

    def _open(self) -> None:
        self._thread = threading.get_ident()
        self.connect()
        self.run(self._prepare)

    def _prepare(self, tx: Tx) -> None:
        migrate(self)
        mark = hmac.new(self._key, b"whose audit record this is", "sha256").hexdigest()[:16]
        if (known := tx.get_meta("audit_key")) is None:
            tx.set_meta("audit_key", mark)
        elif known != mark:
            raise BrokenError(
                "the audit record in this database was begun with another key than the home has",
                remedy="put the home's own audit key back, or use the database that belongs to it",
                code="wrong_audit_key",
            )

    async def on_thread(self, work: Callable[[], T]) -> T:
        """Do this when its turn comes. A caller who is cancelled hears of it when it is over, unless it never began."""
        job = self._line.give(work)
        self._given += 1
        watch = asyncio.get_running_loop().call_later(LIMIT, self._watch, job)
        try:
            return await job.settled()
        finally:
            self._given -= 1
            watch.cancel()

    def _watch(self, job: Job[Any]) -> None:
        """Break off a transaction that takes too long; one that waits for its turn is left alone."""
        began = self._began
        if job.running and began is not None and time.monotonic() - began >= LIMIT:
            self.interrupt()
        elif not job.over:
            asyncio.get_running_loop().call_later(1.0, self._watch, job)


def _refuse_coroutine(result: object) -> None:
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise BrokenError("a transaction's work must be a plain function, not async", code="async_work")
