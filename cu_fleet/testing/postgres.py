"""A private PostgreSQL for tests, of this machine's own packages: in a temporary folder, on a unix socket only.

It ends with whoever started it, even if that one is killed. Nothing is synced to disk: it is fast, and worth nothing
after a loss of power.
"""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
import pytest

from cu_fleet.model.errors import UnavailableError

DEADLINE = 30.0  # seconds to start or stop
_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "shared_buffers": "16MB",
    "max_connections": "20",
    "log_min_messages": "fatal",
}


def programs() -> Path | None:
    """The folder with `postgres` and `initdb`, or None if they are not installed."""
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name.zfill(4))
    on_path = shutil.which("postgres")
    found = [Path(on_path).resolve().parent] if on_path else []
    return next((path for path in [*found, *reversed(packaged)] if (path / "initdb").exists()), None)


def need_programs() -> Path:
    """The same for a test that needs them: a failure in CI, a skip with the reason elsewhere."""
    if found := programs():
        return found
    reason = "PostgreSQL is not installed (apt-get install postgresql)"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class PrivatePostgres:
    """`with PrivatePostgres(need_programs()) as server: url = server.new_database()`"""

    def __init__(self, bin: Path) -> None:  # noqa: A002 - the folder is called so
        self._bin = bin
        self._user = None if os.geteuid() else _unprivileged()
        self._folder = Path(tempfile.mkdtemp(prefix="cf-pg-"))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            if self._user:
                os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)
            self._run_initdb()
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def url(self, database: str = "postgres") -> str:
        return f"postgresql:///{database}?host={self._folder}&user=fleet"

    def new_database(self) -> str:
        """The URL of a fresh, empty database."""
        name = f"db_{secrets.token_hex(6)}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)

    def start(self) -> None:
        """From a thread that lasts: the kernel ends the server when the thread that started it ends."""
        settings = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
        command = [self._bin / "postgres", "-D", self._folder / "data", "-k", self._folder, *settings]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._as_user("--pdeathsig=QUIT", *map(str, command)),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        self._await_answer(time.monotonic() + DEADLINE)

    def stop(self) -> None:
        """End every connection, and the server."""
        process, self._process = self._process, None
        if process and process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def restart(self) -> None:
        self.stop()
        self.start()

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def _run_initdb(self) -> None:
        command = [self._bin / "initdb", "-D", self._folder / "data", "--no-sync", "--no-instructions"]
        done = subprocess.run(
            self._as_user(*map(str, command), "--auth=trust", "--username=fleet", "--encoding=UTF8", "--locale=C"),
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=2 * DEADLINE,
        )
        if done.returncode:
            raise UnavailableError(f"initdb failed: {done.stderr.strip() or done.stdout.strip()}", code="no_postgres")

    def _as_user(self, *command: str) -> list[str]:
        """PostgreSQL does not run as root."""
        if self._user is None:
            return ["setpriv", *command]
        who = [f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}", "--clear-groups"]
        return ["setpriv", *who, *command]

    def _await_answer(self, deadline: float) -> None:
        assert self._process
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=2).close()
            except psycopg.OperationalError as e:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log = (self._folder / "log").read_text("utf-8", "replace")[-2000:]
                    raise UnavailableError(f"PostgreSQL did not start: {e}\n{log}", code="no_postgres") from e
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(0.02)
            else:
                return


def _unprivileged() -> pwd.struct_passwd:
    """The packages' own user, or else nobody."""
    users = {user.pw_name: user for user in pwd.getpwall()}
    return users.get("postgres") or users["nobody"]
