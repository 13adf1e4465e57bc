"""A home of its own with the real command line, a real controller and real desktops."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cu_fleet.app import audit_key, secret_of
from cu_fleet.client import Fleet
from cu_fleet.model.audit import Entry
from cu_fleet.stores.base import Tx, all_entries
from cu_fleet.stores.sqlite import SqliteStore

TOP = Path(__file__).resolve().parents[2]


class Home:
    def __init__(self, path: Path, **settings: object) -> None:
        self.path = path
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(path),
            "LANG": "C.UTF-8",
            "CU_FLEET_HOME": str(path / "fleet"),
            **{f"CU_FLEET_{key.upper()}": str(value) for key, value in settings.items()},
        }
        self.fleet_home = path / "fleet"

    def cli(self, *words: str, exit_code: int | None = 0, stdin: bytes | None = None) -> Any:
        """Run a command with --json and return what it prints; its exit code must be the one expected."""
        done = self.run(*words, "--json", stdin=stdin)
        if exit_code is not None:
            assert done.returncode == exit_code, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
        return json.loads(done.stdout)

    def run(self, *words: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "cu_fleet", *words],
            env=self.env,
            cwd=TOP,
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,
        )

    def client(self) -> Fleet:
        return Fleet.connect(home=self.fleet_home, start=False)

    def up(self) -> subprocess.Popen[bytes]:
        """A controller of ours in the background; it answers once `status` does."""
        log = (self.path / "up.log").open("ab")
        with log:
            return subprocess.Popen(
                [sys.executable, "-m", "cu_fleet", "up", "--on-demand"],
                env=self.env,
                cwd=TOP,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, controller: subprocess.Popen[bytes]) -> None:
        controller.send_signal(signal.SIGKILL)
        controller.wait(10)

    async def record(self) -> list[Entry]:
        """The whole audit record, straight from the database, while no controller runs."""
        store = await SqliteStore.open(self.fleet_home / "fleet.db", audit_key(secret_of(self.fleet_home)))
        try:
            return await store.transact(_all)
        finally:
            await store.close()

    def processes(self) -> list[str]:
        """The command lines of all processes that have to do with this home, desktops' included."""
        fleet = _fleet_of(self.fleet_home)
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if f"cu-fleet/{fleet}/" in line or str(self.path) in line:
                        found.append(line)
        return found


def _fleet_of(home: Path) -> str:
    async def look() -> str:
        store = await SqliteStore.open(home / "fleet.db", audit_key(secret_of(home)))
        try:
            return await store.transact(lambda tx: tx.get_meta("fleet") or "none")
        finally:
            await store.close()

    return asyncio.run(look()) if (home / "fleet.db").exists() else "none"


def _all(tx: Tx) -> list[Entry]:
    return list(all_entries(tx))


@contextlib.contextmanager
def home(**settings: object) -> Iterator[Home]:
    """A home that is taken down at the end, whatever the end is, and must leave no process behind."""
    path = Path(tempfile.mkdtemp(prefix="cu-fleet-test-"))
    one = Home(path, **settings)
    try:
        yield one
        one.run("down")
        left = one.processes()
        assert not left, f"left behind: {left}"
    finally:
        one.run("down")
        shutil.rmtree(path, ignore_errors=True)


def check_grants(entries: list[Entry]) -> int:
    """Replay the record: no desktop is ever granted while another lease has it. Returns how many grants there were."""
    holder: dict[str, str] = {}
    ends = {"lease.released", "lease.expired", "lease.revoked", "lease.reassigned", "lease.lost"}
    grants = 0
    generations: dict[str, int] = {}
    for entry in entries:
        if entry.what == "lease.granted" and entry.desktop and entry.lease:
            grants += 1
            assert entry.desktop not in holder, f"{entry.desktop} granted twice: {holder[entry.desktop]}, {entry.lease}"
            holder[entry.desktop] = entry.lease
            assert (entry.generation or 0) > generations.get(entry.desktop, 0), "an old generation was granted"
            generations[entry.desktop] = entry.generation or 0
        elif entry.what in ends and entry.desktop:
            holder.pop(entry.desktop, None)
    return grants
