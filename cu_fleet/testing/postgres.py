"""A private PostgreSQL for tests, of this machine's own packages: in a temporary folder, on a unix socket only.

It ends with whoever started it, even if that one is killed: see `private`. Nothing is synced to disk: it is fast, and
worth nothing after a loss of power.
"""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
from pathlib import Path

import psycopg

from cu_fleet.model.errors import UnavailableError
from cu_fleet.testing.private import Server, refuse

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
    if (found := programs()) is None:
        refuse("PostgreSQL is not installed (apt-get install postgresql)")
    return found


class PrivatePostgres(Server):
    """`with PrivatePostgres(need_programs()) as server: url = server.new_database()`"""

    name, code, deadline = "PostgreSQL", "no_postgres", 30.0

    def __init__(self, bin: Path) -> None:  # noqa: A002 - the folder is called so
        super().__init__("cf-pg-")
        self._bin = bin
        self._user = None if os.geteuid() else _unprivileged()

    def _prepare(self) -> None:
        if self._user:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        self._run_initdb()

    def url(self, database: str = "postgres") -> str:
        return f"postgresql:///{database}?host={self.folder}&user=fleet"

    def new_database(self) -> str:
        """The URL of a fresh, empty database."""
        name = f"db_{secrets.token_hex(6)}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)

    def start(self) -> None:
        settings = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
        command = [self._bin / "postgres", "-D", self.folder / "data", "-k", self.folder, *settings]
        self._begin(self._as_user("--pdeathsig=QUIT", *map(str, command)), os.environ)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """End every connection, and the server."""
        self._end(signal.SIGINT)

    def restart(self) -> None:
        self.stop()
        self.start()

    def remove(self) -> None:
        self.stop()
        super().remove()

    def _run_initdb(self) -> None:
        command = [self._bin / "initdb", "-D", self.folder / "data", "--no-sync", "--no-instructions"]
        done = subprocess.run(
            self._as_user(*map(str, command), "--auth=trust", "--username=fleet", "--encoding=UTF8", "--locale=C"),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=2 * self.deadline,
        )
        if done.returncode:
            raise UnavailableError(f"initdb failed: {done.stderr.strip() or done.stdout.strip()}", code="no_postgres")

    def _as_user(self, *command: str) -> list[str]:
        """PostgreSQL does not run as root."""
        if self._user is None:
            return ["setpriv", *command]
        who = [f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}", "--clear-groups"]
        return ["setpriv", *who, *command]


def _unprivileged() -> pwd.struct_passwd:
    """The packages' own user, or else nobody."""
    users = {user.pw_name: user for user in pwd.getpwall()}
    return users.get("postgres") or users["nobody"]
