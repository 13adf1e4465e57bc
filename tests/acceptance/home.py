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
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cu_fleet.app import open_store
from cu_fleet.client import Fleet
from cu_fleet.home import secret_of
from cu_fleet.model.audit import Entry
from cu_fleet.model.errors import FleetError
from cu_fleet.settings import read_settings
from cu_fleet.stores.base import Tx, all_entries
from tests.support import until

KNOWS = "that knows the home"
TOP = Path(__file__).resolve().parents[2]
SOMEBODY = 47_112  # an ordinary user, for tests that run as root

# Python and the checkout may lie in a folder that root alone may enter: in a mount namespace of its own, only the
# folders that are needed stand in its place. Then the rest runs as an ordinary user.
_AS_SOMEBODY = """uid=$1 stash=$2; shift 2
n=0; for d in "$@"; do [ "$d" = -- ] && break; n=$((n + 1)); mkdir "$stash/$n" && mount --bind "$d" "$stash/$n"; done
n=0; while [ "$1" != -- ]; do
  n=$((n + 1)); p=; IFS=/; set -f; for step in $1; do
    [ -z "$step" ] && continue; p=$p/$step
    case $(stat -c %A "$p") in *[xt]) ;; *) mount -t tmpfs -o mode=755 tmpfs "$p"; mkdir -p "$1"; break;; esac
  done; unset IFS; mkdir -p "$1"; mount --bind "$stash/$n" "$1"; shift
done; shift
cd /; exec setpriv --reuid="$uid" --regid="$uid" --clear-groups "$@" """


class Home:
    def __init__(self, path: Path, uid: int | None = None, **settings: object) -> None:
        self.path = path
        self.uid = uid
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(path),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(TOP),
            "CU_FLEET_HOME": str(path / "fleet"),
            **{f"CU_FLEET_{key.upper()}": str(value) for key, value in settings.items()},
        }
        self.fleet_home = path / "fleet"
        self.prefix: list[str] = []  # what the commands run under
        self.started: list[subprocess.Popen[bytes]] = []

    def cli(self, *words: str, exit_code: int | None = 0, stdin: bytes | None = None, **env: str) -> Any:
        """Run a command with --json and return what it prints; its exit code must be the one expected."""
        own = words.index("--") if "--" in words else len(words)
        done = self.run(*words[:own], "--json", *words[own:], stdin=stdin, **env)
        if exit_code is not None:
            assert done.returncode == exit_code, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
        return json.loads(done.stdout)

    def run(self, *words: str, stdin: bytes | None = None, **env: str) -> subprocess.CompletedProcess[bytes]:
        process = self.start(*words, stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE, **env)
        out, err = process.communicate(stdin, timeout=120)
        self.started.remove(process)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def start(self, *words: str, stdin: int = subprocess.DEVNULL, **env: str) -> subprocess.Popen[bytes]:
        """A command as a process of its own, under way; it is ended with the home at the latest."""
        process = subprocess.Popen(
            [*self._as_user(), *self.prefix, sys.executable, "-m", "cu_fleet", *words],
            env=self.env | env,
            cwd="/",
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        return process

    def end_commands(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()
        self.started.clear()

    def _as_user(self) -> list[str]:
        if self.uid is None or os.geteuid() == self.uid:
            return []
        stash = tempfile.mkdtemp(dir=self.path.parent, prefix=f"{self.path.name}-stash-")
        folders = [str(folder) for folder in (sys.base_prefix, sys.prefix, TOP)]
        script = ["sh", "-c", _AS_SOMEBODY, "sh", str(self.uid), stash, *folders, "--"]
        return ["unshare", "--mount", "--propagation", "private", *script]

    def client(self) -> Fleet:
        return Fleet.connect(home=self.fleet_home, start=False)

    def up(self, *words: str) -> subprocess.Popen[bytes]:
        """A controller of ours in the background; it answers once `status` does."""
        with (self.path / "up.log").open("ab") as log:
            return subprocess.Popen(
                [*self._as_user(), *self.prefix, sys.executable, "-m", "cu_fleet", "up", "--on-demand", *words],
                env=self.env,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, controller: subprocess.Popen[bytes]) -> None:
        controller.send_signal(signal.SIGKILL)
        controller.wait(10)

    def write_profile(self, name: str, text: str) -> None:
        """A profile of the home's own; a controller reads it when it starts."""
        folder = self.fleet_home / "profiles"
        self.fleet_home.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text(text)

    async def record(self) -> list[Entry]:
        """The whole audit record, straight from the database, while no controller runs."""
        return await self._in_store(_all)

    async def fleet(self) -> str:
        return await self._in_store(lambda tx: tx.get_meta("fleet") or "none")

    async def _in_store(self, work: Any) -> Any:
        settings = read_settings(self.fleet_home, self.env)
        store = await open_store(settings, secret_of(self.fleet_home))
        try:
            return await store.transact(work)
        finally:
            await store.close()

    def warnings(self) -> str:
        """What the controllers of this home complained of: shown where a test fails."""
        logs = (self.fleet_home / "controller.log", self.path / "up.log")
        lines = [line for log in logs if log.exists() for line in log.read_text().splitlines()]
        return "\n".join(line for line in lines if " INFO " not in line)

    def left(self) -> list[str]:
        """What there still is of this home outside its folder, while no controller runs."""
        if "CU_FLEET_DATABASE" not in self.env and not (self.fleet_home / "fleet.db").exists():
            return []
        marks = (f"cu-fleet/{(fleet := asyncio.run(self.fleet()))}/", str(self.path))
        left = [f"process {words}" for words in command_lines() if any(mark in words for mark in marks)]
        left += [f"process {pid} {KNOWS}" for pid in knowing(f"CU_FLEET_HOME={self.fleet_home}")]
        left += [f"mount {x}" for x in Path("/proc/self/mounts").read_text().splitlines() if f"{self.path}/" in x]
        left += [f"socket {x}" for x in Path("/proc/net/unix").read_text().splitlines() if any(m in x for m in marks)]
        left += [f"cgroup {path}" for path, _, _ in os.walk("/sys/fs/cgroup") if fleet in Path(path).name]
        desktops = self.fleet_home / "desktops"
        return left + [f"desktop {path}" for path in desktops.glob("*") if not path.name.startswith(".")]


def command_lines() -> list[str]:
    """Of all processes but this one."""
    return list(_of_processes("cmdline").values())


def knowing(variable: str) -> list[str]:
    """The processes that have this in their environment."""
    return [pid for pid, words in _of_processes("environ").items() if f" {variable} " in f" {words}"]


def _of_processes(name: str) -> dict[str, str]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                found[entry.name] = (entry / name).read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def _all(tx: Tx) -> list[Entry]:
    return list(all_entries(tx))


@contextlib.contextmanager
def home(*, somebody: bool = False, **settings: object) -> Iterator[Home]:
    """A home that is taken down at the end, whatever the end is, and must leave nothing behind."""
    path = Path(tempfile.mkdtemp(prefix="cu-fleet-test-"))
    uid = SOMEBODY if somebody and os.geteuid() == 0 else None
    if uid is not None:
        os.chown(path, uid, uid)
    one = Home(path, uid, **settings)
    try:
        yield one
        one.run("down")
        until_gone = time.monotonic() + 10  # a client of the test's own may take a moment on a busy machine
        while (left := one.left()) and all(KNOWS in x for x in left) and time.monotonic() < until_gone:
            time.sleep(0.2)
        assert not left, f"left behind: {left}"
    except BaseException:
        print(one.warnings(), file=sys.stderr)
        raise
    finally:
        one.end_commands()
        one.run("down")
        for leftover in [path, *path.parent.glob(f"{path.name}-stash-*")]:
            shutil.rmtree(leftover, ignore_errors=True)


async def serving(one: Home) -> None:
    """Wait until the controller of this home answers."""

    async def answers() -> bool:
        try:
            async with one.client() as fleet:
                return bool(await fleet.status())
        except (FleetError, OSError):
            return False

    await until(answers, timeout=60, every=0.1)


async def at_rest(fleet: Fleet) -> None:
    """Wait until nobody waits, every desktop is ready or asleep, and the warm ones are there."""

    async def rests() -> bool:
        desktops = await fleet.desktops()
        waiting = [x for x in await fleet.leases() if x.state == "waiting"]
        return not waiting and bool(desktops) and all(x.stage in ("ready", "held", "parked") for x in desktops)

    await until(rests, timeout=60)


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
