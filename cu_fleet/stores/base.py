"""What the controller asks of a store.

Work happens in transactions: a plain function is given a `Tx`, and either all it wrote lands or nothing does. They
run one after another, so a function reads what it then changes without races; the unique indexes
still referee, so that even a wrong function cannot grant one desktop twice. They referee each write, not only the end:
within a transaction, what holds is let go before another takes it.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Protocol, TypeVar

from cu_fleet.model.audit import Draft, Entry
from cu_fleet.model.errors import ConflictError
from cu_fleet.model.record import Record

R = TypeVar("R", bound=Record)
T = TypeVar("T")


class TakenError(ConflictError):
    """A unique index refused the write: somebody else holds it.

    Facts: `index`, its name; `table`, `key` of the refused record; `values`, the columns that another record has.
    """

    default_code = "taken"


class Tx(Protocol):
    """One transaction. Valid only inside the function it was given to.

    A write that fails dooms it: nothing of it lands, even if the function catches the error.
    """

    def get(self, kind: type[R], key: str) -> R | None: ...

    def find(self, kind: type[R], /, **equal: object) -> list[R]:
        """The records whose columns equal the values given (a tuple, list or set means any of them), oldest first."""
        ...

    def put(self, record: Record) -> None:
        """Write a record, new or changed. Raises TakenError if a unique index refuses it.

        A `Holding` does not change hands by being put: it is deleted, and put anew.
        """
        ...

    def delete(self, record: Record) -> None: ...

    def next_number(self, name: str) -> int:
        """The next of a lasting sequence of numbers, counting from 1."""
        ...

    def append(self, draft: Draft) -> Entry:
        """Add an entry to the audit chain, in this same transaction."""
        ...

    def add(self, draft: Draft) -> int:
        """The same, for whoever needs no more of it than its number."""
        ...

    def head(self) -> Entry | None:
        """The newest audit entry."""
        ...

    def entries(self, *, after: int = 0, limit: int = 1000, **equal: object) -> list[Entry]:
        """Audit entries by number, those whose columns equal the values given."""
        ...

    def newest(self, *, limit: int, **equal: object) -> list[Entry]:
        """The last audit entries of those whose columns equal the values given, by number."""
        ...

    def get_meta(self, name: str) -> str | None: ...

    def set_meta(self, name: str, value: str | None) -> None:
        """Write a fact about the fleet down; None forgets it."""
        ...


class Store(Protocol):
    async def transact(self, work: Callable[[Tx], T], *, lasting: bool = True) -> T:
        """Run `work` in one transaction, and return what it returns. A raised error undoes all of it.

        Unless it is `lasting`, a loss of power may undo it yet, as long as nothing lasting followed: then nobody waits
        for a disk.

        `work` is a plain function, run once, on another thread; or here, if it need not last and nothing has to be
        waited for. Cancelled, this call ends when the transaction has:
        undone if it never began, else done or undone.
        """
        ...

    async def make_durable(self) -> None:
        """Return when all that was committed would outlive a loss of power."""
        ...

    async def close(self) -> None: ...


async def stream_entries(store: Store, *, after: int = 0, batch: int = 500, **equal: object) -> AsyncIterator[Entry]:
    """Audit entries in order, however many, in many short transactions: for exports."""

    def some(tx: Tx, after: int) -> list[Entry]:
        return tx.entries(after=after, limit=batch, **equal)

    while True:
        entries = await store.transact(partial(some, after=after))
        for entry in entries:
            yield entry
        if len(entries) < batch:
            return
        after = entries[-1].seq


def all_entries(tx: Tx, batch: int = 1000) -> Iterator[Entry]:
    """The whole audit chain, in order, inside one transaction."""
    after = 0
    while entries := tx.entries(after=after, limit=batch):
        yield from entries
        after = entries[-1].seq
