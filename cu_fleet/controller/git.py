"""git, run so that nothing an agent can write steers it.

It works on its own database only. It is never told of an agent's folder: files go from trees to folders and back by
`carrying`, byte for byte. So a `.git` that was rewritten, attributes, filters, nested repositories, submodules and
links mean nothing, and what is left is the repository itself: there no hooks run, no monitor, no filter, no helper that
talks to anybody, whatever its configuration says, and never with more rights than its owner has.

All of it blocks, and belongs into a thread; each command is bounded in time and in what it may say. `stop` ends what
runs, from any other thread.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from cu_fleet.model.errors import DeniedError, NotFoundError, TooLongError, UnavailableError

WITHIN = 60.0  # seconds for what only looks things up
LONG = 600.0  # for what goes through all files
MOST = 64 << 20  # bytes of an answer
_PATH = "/usr/local/bin:/usr/bin:/bin"
_QUIET = {
    "advice.detachedHead": "false",
    "attr.tree": "",  # newer ones read attributes of HEAD where there is no work tree
    "commit.gpgSign": "false",
    "core.alternateRefsCommand": "",
    "core.askPass": "",
    "core.attributesFile": "/dev/null",
    "core.fsmonitor": "false",
    "core.hooksPath": "/dev/null",
    "core.pager": "cat",
    "core.sshCommand": "false",
    "core.untrackedCache": "false",
    "credential.helper": "",
    "diff.external": "",
    "diff.noprefix": "false",
    "fetch.recurseSubmodules": "false",
    "gc.auto": "0",
    "log.showSignature": "false",
    "maintenance.auto": "false",
    "merge.renormalize": "false",
    "protocol.allow": "never",
    "submodule.recurse": "false",
}


class Owner:
    """Whose repository it is: git has that user's rights and no more."""

    def __init__(self, uid: int) -> None:
        self.uid = uid
        try:
            found = pwd.getpwuid(uid)
            self.gid, self.home, self.name = found.pw_gid, found.pw_dir, found.pw_name
        except KeyError:
            self.gid, self.home, self.name = uid, "/nonexistent", f"uid {uid}"

    @property
    def ours(self) -> bool:
        return self.uid == os.geteuid()

    def drop(self) -> dict[str, Any]:
        """For `Popen`: run as this user."""
        if self.ours:
            return {}
        if os.geteuid() != 0:
            raise DeniedError(
                f"the repository belongs to {self.name}, and the controller does not run as that user",
                remedy=f"run cu-fleet as {self.name}",
                code="not_your_repository",
            )
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


class Git:
    def __init__(self, folder: Path, owner: int) -> None:
        self.folder = folder
        self.owner = Owner(owner)
        self._program = shutil.which("git", path=_PATH)
        if self._program is None:
            raise UnavailableError("git is not installed", remedy="apt install git", code="no_git")
        self._live: set[subprocess.Popen[bytes]] = set()
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()
        for process in list(self._live):
            _kill(process)

    def run(
        self,
        *words: str,
        stdin: bytes | IO[bytes] | None = None,
        within: float = WITHIN,
        most: int = MOST,
        fine: tuple[int, ...] = (0,),
        cut: bool = False,
        **more: Any,
    ) -> tuple[int, bytes]:
        """Its exit code and what it said. Only `fine` codes are; more than `most` is cut off, or refused."""
        with tempfile.TemporaryFile() as complaints, _stream(stdin) as source:
            with self.talking(*words, stdin=source, stderr=complaints, within=within, **more) as process:
                assert process.stdout
                said = process.stdout.read(most + 1)
                if len(said) > most:
                    _kill(process)
                    if not cut:
                        raise UnavailableError(f"git {words[0]} said more than {most} bytes", code="git_failed")
                code = 0 if len(said) > most else process.wait()
            if code not in fine:
                raise self._failed(words, code, complaints)
        return code, said[:most]

    def ask(self, *words: str, **more: Any) -> str:
        return self.run(*words, **more)[1].decode("utf-8", "replace").strip()

    def _failed(self, words: tuple[str, ...], code: int, complaints: IO[bytes]) -> UnavailableError:
        complaints.seek(0)
        lines = complaints.read(10_000).decode("utf-8", "replace").strip().split("\n")
        why = lines[0].removeprefix("fatal: ").removeprefix("error: ") or f"it ended with {code}"
        return UnavailableError(f"git {words[0]} failed: {why[:500]}", code="git_failed")

    @contextlib.contextmanager
    def talking(
        self,
        *words: str,
        stdin: int | IO[bytes] = subprocess.PIPE,
        stderr: int | IO[bytes] = subprocess.DEVNULL,
        within: float = LONG,
        git_dir: Path | None = None,
        work_tree: Path | None = None,
        cwd: Path | None = None,
        config: Mapping[str, str] | None = None,
        homely: bool = False,
    ) -> "Iterator[subprocess.Popen[bytes]]":
        """A git that runs meanwhile. Without a work tree it believes that there is none; `homely`: it reads its
        owner's own configuration too.
        """
        settings = {**_QUIET, **({} if work_tree or cwd else {"core.bare": "true"}), **(config or {})}
        argv = [str(self._program), "--no-pager", "--no-replace-objects"]
        argv += [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        argv += [] if cwd else [f"--git-dir={git_dir or self.folder}"]
        argv += [f"--work-tree={work_tree}"] if work_tree else []
        place = cwd or work_tree or Path("/")
        with self._process([*argv, *words], stdin, stderr, place, _environment(self.owner, homely)) as process:
            late = threading.Event()
            timer = threading.Timer(within, _too_late, [late, process])
            timer.daemon = True
            timer.start()
            try:
                yield process
            except (OSError, UnavailableError):  # as it is for whoever talks to what was ended
                if not late.is_set():
                    raise
            finally:
                timer.cancel()
            if late.is_set():
                raise TooLongError(f"git {words[0]} took longer than {within:g} s", code="git_slow")

    def as_owner(self, *argv: str, stdin: bytes = b"") -> None:
        """A plain command with the owner's rights: what we write into the repository is theirs."""
        with tempfile.TemporaryFile() as complaints, _stream(stdin) as source:
            env = {"PATH": _PATH, "LC_ALL": "C"}
            with self._process(list(argv), source, complaints, Path("/"), env) as process:
                assert process.stdout
                process.stdout.read(1 << 20)
                code = process.wait(WITHIN)
            if code:
                complaints.seek(0)
                why = complaints.read(2000).decode("utf-8", "replace").strip()
                raise UnavailableError(f"{argv[0]} failed: {why}", code="git_failed")

    @contextlib.contextmanager
    def _process(
        self, argv: list[str], stdin: int | IO[bytes], stderr: int | IO[bytes], cwd: Path, env: dict[str, str]
    ) -> "Iterator[subprocess.Popen[bytes]]":
        try:
            process = subprocess.Popen(
                argv,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=env,
                cwd=cwd,
                start_new_session=True,
                umask=0o022,
                **self.owner.drop(),
            )
        except OSError as e:
            raise UnavailableError(f"{argv[0]} could not be started: {e.strerror}", code="git_failed") from None
        self._live.add(process)
        try:
            if self._stopped.is_set():
                raise UnavailableError("it was broken off", code="stopped")
            yield process
        finally:
            self._live.discard(process)
            _end(process)


def _environment(owner: Owner, homely: bool) -> dict[str, str]:
    env = {
        "PATH": _PATH,
        "HOME": owner.home,
        "LC_ALL": "C.UTF-8",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_ATTR_NOSYSTEM": "1",
    }
    return env if homely else {**env, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}


@contextlib.contextmanager
def _stream(stdin: bytes | IO[bytes] | None) -> Iterator[IO[bytes]]:
    """What a command reads, as a file: nothing has to be fed to it while it speaks."""
    if stdin is not None and not isinstance(stdin, bytes):
        yield stdin
        return
    with tempfile.TemporaryFile() as source:
        source.write(stdin or b"")
        source.seek(0)
        yield source


def _too_late(late: threading.Event, process: "subprocess.Popen[bytes]") -> None:
    late.set()
    _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _end(process: "subprocess.Popen[bytes]") -> None:
    _kill(process)
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with contextlib.suppress(OSError):
                pipe.close()
    process.wait()


def found(place: Path) -> tuple[Path, Path, Path | None, int]:
    """The repository that one stands in: its common folder, the folder of this work tree, its top, and its owner."""
    try:
        uid = place.stat().st_uid
    except OSError as e:
        raise NotFoundError(f"{place} cannot be entered: {e.strerror}", code="no_repository") from None
    git = Git(place, uid)
    try:
        common, own, bare = git.ask(
            "rev-parse", "--path-format=absolute", "--git-common-dir", "--git-dir", "--is-bare-repository", cwd=place
        ).split("\n")
    except (UnavailableError, ValueError) as e:
        if isinstance(e, UnavailableError) and e.code != "git_failed":
            raise
        raise NotFoundError(
            f"{place} is in no git repository ({e})",
            remedy="stand in one, or name it with --repo",
            code="no_repository",
        ) from None
    top = None if bare == "true" else Path(git.ask("rev-parse", "--path-format=absolute", "--show-toplevel", cwd=place))
    owner = Path(common).stat().st_uid
    if owner != uid:
        raise DeniedError(
            f"{place} and its repository {common} belong to two users", remedy="see to that", code="two_owners"
        )
    return Path(common), Path(own), top, owner
