"""The pytest plugin, installed with the package: a `desktop` for each test that asks for one.

    def test_saves(desktop):                       # cu_fleet.sync.Desktop; `desktop.exec([...])` runs a command inside
        desktop.launch("editor")
        desktop.type("hello")

    @pytest.mark.desktop(profile="browser", isolation="worker")

With isolation `test`, the default, every test gets a clean desktop of its own; with `worker` the tests of one process
share one, as each left it. Under pytest-xdist every worker has its own, and its name in the agent's. What is said here
is imported by every pytest of this Python, so it loads nothing until a test wants a desktop.

Leases are given back whatever ends a test. Those of a worker that crashed its controller gives back, for each is noted
in a folder while it is held; those of a pytest that was killed are over within a minute.
"""

from __future__ import annotations  # names of newer versions of pytest than this one may be

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from cu_fleet.testing.leased import House, Leased

_NOTES = "cu_fleet_leases"  # where a worker notes its leases
_DESKTOP = "_cu_fleet_desktop"
_OPTIONS = {
    "profile": (None, "What kind of desktop tests get; else local"),
    "isolation": (None, "A desktop of its own for each `test`, or one for each `worker`; else test"),
    "report-dir": ("desktop-report", "Where the last frame, film, record and log of a failed test's desktop go"),
    "wait": ("5m", "How long a test may stand in line for its desktop"),
}


class Wish(NamedTuple):
    """What a test wants; None: nobody said."""

    profile: str | None
    isolation: str | None


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("desktop", "desktops of cu-fleet")
    for name, (default, text) in _OPTIONS.items():
        ini = f"desktop_{name.replace('-', '_')}"
        said = f"{text}. Also as {ini} in the ini file." + (f" Default: {default}." if default else "")
        group.addoption(f"--desktop-{name}", metavar=name.upper(), dest=ini, help=said)
        parser.addini(ini, text, default=default)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "desktop(profile=…, isolation=test|worker): the desktop that a test gets as its fixture `desktop`"
    )


@pytest.fixture(scope="session")
def _cu_fleet_house(pytestconfig: pytest.Config) -> Iterator[House]:
    from cu_fleet.testing.leased import House

    worker = getattr(pytestconfig, "workerinput", {})
    notes = worker.get(_NOTES)
    house = House(_option(pytestconfig, "wait"), worker.get("workerid", ""), Path(notes) if notes else None)
    try:
        yield house
    finally:
        house.close()


@pytest.fixture
def desktop(request: pytest.FixtureRequest) -> Iterator[Leased]:
    """A desktop of cu-fleet: the blocking client's, with `exec` for commands inside."""
    from cu_fleet.model.errors import FleetError

    wish = _wish(request.node)
    house: House = request.getfixturevalue("_cu_fleet_house")
    with ExitStack() as held:
        try:
            leased = held.enter_context(house.lend(wish.profile, wish.isolation))
        except FleetError as error:
            pytest.fail(f"no desktop for this test: {error}", pytrace=False)
        setattr(request.node, _DESKTOP, leased)
        held.callback(delattr, request.node, _DESKTOP)
        yield leased


def _wish(node: pytest.Item) -> Wish:
    """The nearest marker's word, else the command line's, else the ini file's."""
    said: dict[str, str] = {}
    for marker in node.iter_markers("desktop"):
        if marker.args or not marker.kwargs.keys() <= {"profile", "isolation"}:
            raise pytest.UsageError("mark it as desktop(profile=…, isolation=…)")
        said = {**marker.kwargs, **said}
    wish = Wish(*(said.get(name) or _option(node.config, name) or None for name in Wish._fields))
    if wish.isolation not in (None, "test", "worker"):
        raise pytest.UsageError(f"a desktop's isolation is test or worker, not {wish.isolation!r}")
    return wish


def _option(config: pytest.Config, name: str) -> Any:
    ini = f"desktop_{name.replace('-', '_')}"
    return config.getoption(ini) or config.getini(ini)


# what failed


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome: Any = yield
    leased = getattr(item, _DESKTOP, None)
    report = outcome.get_result()
    if leased is not None and report.failed:
        _tell(item, report, leased)


def _tell(item: pytest.Item, report: pytest.TestReport, leased: Leased) -> None:
    """What its desktop showed and said, beside the test's report, and where it is, in that."""
    from cu_fleet.testing.evidence import collect

    top = item.config.invocation_params.dir / _option(item.config, "report-dir")
    found, lacking = collect(leased, top, item.nodeid)
    lease = leased.lease
    lines = [f"agent {lease.agent}, desktop {lease.desktop}, lease {lease.lease}", *lacking]
    lines += [line for what, path in found for line in (f"{what}: {path}", f"[[ATTACHMENT|{path}]]")]
    report.sections.append(("Captured stdout desktop", "\n".join(lines)))
    item.add_report_section("desktop", "stdout", "\n".join(lines))  # JUnit XML reads the report of the teardown
    facts = [("desktop.lease", lease.lease), ("desktop.id", str(lease.desktop))]
    facts += [(f"desktop.{what.replace(' ', '_')}", str(path)) for what, path in found]
    item.user_properties.extend(facts)
    report.user_properties.extend(facts)


# with pytest-xdist


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Before a worker starts: where it may note its leases. The folder is made when the first is."""
    if not hasattr(node.config, _NOTES):
        setattr(node.config, _NOTES, str(Path(tempfile.gettempdir(), f"cu-fleet-pytest-{secrets.token_hex(16)}")))
    node.workerinput[_NOTES] = getattr(node.config, _NOTES)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    _give_back(node.config, node.workerinput["workerid"])


def pytest_unconfigure(config: pytest.Config) -> None:
    _give_back(config, "")


def _give_back(config: pytest.Config, worker: str) -> None:
    """What a worker that is down, or any if none is named, still had."""
    if (notes := getattr(config, _NOTES, None)) and Path(notes).is_dir():
        from cu_fleet.testing.leased import give_back

        give_back(Path(notes), worker)
