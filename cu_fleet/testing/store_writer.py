"""A process that writes to a store until it is killed: `python -m cu_fleet.testing.store_writer`.

It reads a pickled opener from stdin and prints the number of each transaction once that is acknowledged. Every
transaction takes a number, writes a record and appends to the chain; whoever looks later finds all three or none. Every
other one need not last: a process's death loses nothing of them either.
"""

import asyncio
import pickle
import subprocess
import sys
from collections.abc import Awaitable, Callable

from cu_fleet.model.audit import Draft
from cu_fleet.model.snapshot import Snapshot
from cu_fleet.stores.base import Store, Tx

Opener = Callable[[], Awaitable[Store]]


def write_one(tx: Tx) -> int:
    number = tx.next_number("written")
    name = f"sn_{number:010d}"
    tx.put(Snapshot(id=name, desktop="dk_0", profile="p", backend="b", created_at=float(number)))
    tx.append(Draft(at=float(number), what="written", who="a writer", facts={"snapshot": name}))
    return number


def start_writer(opener: Opener, count: int = 1_000_000) -> "subprocess.Popen[bytes]":
    """A process that writes; read the acknowledged numbers from its stdout, line by line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cu_fleet.testing.store_writer"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin
    with process.stdin as stdin:
        pickler = pickle.Pickler(stdin)
        pickler.dispatch_table = {}  # Twisted, once imported, has class methods pickled so that they cannot be read
        pickler.dump((opener, count))
    return process


def acknowledged(process: "subprocess.Popen[bytes]", kill_after: int | None = None) -> list[int]:
    """What it was told is done, by its own end or until it is killed after so many, in the middle of the next."""
    assert process.stdout
    with process.stdout as lines:
        seen = [int(lines.readline()) for _ in range(kill_after or 0)]
        if kill_after is not None:
            process.kill()
        seen += [int(line) for line in lines if line.endswith(b"\n")]
    process.wait()
    return seen


async def _write(opener: Opener, count: int) -> None:
    store = await opener()
    for turn in range(count):
        print(await store.transact(write_one, lasting=turn % 2 == 0), flush=True)
    await store.close()


if __name__ == "__main__":
    asyncio.run(_write(*pickle.load(sys.stdin.buffer)))  # noqa: S301 - our own parent wrote it
