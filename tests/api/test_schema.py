"""Whatever the document allows, and much that it does not, is answered as the document says: thousands of requests.

A controller of its own over desktops in memory, asked what a generator makes of `/openapi.json`. Where an id is asked
for there is mostly one that exists. The same requests every time; TEST_EXAMPLES makes more of them, by hand.
"""

import itertools
import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from cu_fleet.sync import Fleet
from tests.cli.test_live import Controller

pytestmark = [pytest.mark.real, pytest.mark.slow]

EXAMPLES = int(os.environ.get("TEST_EXAMPLES", "5"))  # for each operation
LEFT_OUT = {("post", "/v1/shutdown"), ("get", "/v1/events")}  # the end of it all, and what has none
WAITS = {"hold": 0.01, "wait": 0.01, "seconds": 0.01, "timeout_ms": 10, "settle_ms": 10, "settle_timeout_ms": 10}
WAITS |= {"timeout": 0.5, "linger": 0.01, "quiet_ms": 10, "duration": 0.01}
CHECKS: list[Any] = [
    allow_header_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]


class House:
    """What the requests are about: leases that live, and names that exist."""

    def __init__(self, controller: Controller, fleet: Fleet) -> None:
        self.fleet = fleet
        self.url = str(fleet.status()["url"])
        self.headers = {"Authorization": f"Bearer {(controller.home / 'operator.token').read_text().strip()}"}
        self._numbers = itertools.count()
        self._lease = ""

    def known(self, name: str) -> str | None:
        """One that is there now."""
        view = self._live()
        if name == "lease":
            return view.lease
        if name == "desktop":
            return view.desktop
        if name == "snapshot":
            return self.fleet.save(view.lease).id
        if name == "name":
            return f"agent-{next(self._numbers) % 5}"
        return None

    def _live(self) -> Any:
        """A lease that its agent can use; one that a request has paused or frozen is given back for another."""
        if self._lease:
            view = self.fleet.show(self._lease)
            if (view.state, view.control) == ("active", "agent"):
                return view
            if view.state in ("active", "waiting"):
                self.fleet.release(self._lease)
        view = self.fleet.acquire(agent=f"worker-{next(self._numbers)}", profile="mem", wait=20).lease
        self._lease = view.lease
        return view


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    controller = Controller(tmp_path_factory.mktemp("schema") / "home")
    (controller.home / "config.yaml").write_text("max_desktops: 8\n")
    controller.start()
    try:
        controller.ready()
        with Fleet.connect(home=controller.home, start=False) as fleet:
            yield House(controller, fleet)
    finally:
        controller.end()


def bounded(value: Any) -> Any:
    """The same, but that nothing waits for long."""
    if isinstance(value, list):
        return [bounded(part) for part in value]
    if not isinstance(value, dict):
        return value
    return {key: _short(key, bounded(part)) for key, part in value.items()}


def _short(key: Any, value: Any) -> Any:
    most = WAITS.get(key)
    return min(value, most) if most is not None and type(value) in (int, float) else value


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])
def test_every_operation_answers_what_the_document_says(house: House, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{house.url}/openapi.json")
    found = []
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        operation = result.ok()
        if (operation.method, operation.path) not in LEFT_OUT:
            try:
                _asked(house, operation, mode)
            except Unsatisfiable:
                assert mode is GenerationMode.NEGATIVE, "only what takes nothing cannot be asked wrongly"
            except BaseException as e:  # noqa: BLE001 - all of them are told
                found.append(f"{operation.method} {operation.path}: {_told(e)}")
    assert not found, "\n\n".join(found)
    assert house.fleet.verify_audit() > 0


def _told(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "\n".join(_told(e) for e in error.exceptions)
    return f"{error}\n" + "\n".join(getattr(error, "__notes__", []))


def _asked(house: House, operation: Any, mode: GenerationMode) -> None:
    strategy = operation.as_strategy(generation_mode=mode)

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy, known=st.integers(0, 3))
    def ask(case: Any, known: int) -> None:
        for name in case.path_parameters or {}:
            if known and (value := house.known(name)):
                case.path_parameters[name] = value
        case.query = bounded(case.query)
        if isinstance(case.body, dict | list):
            case.body = bounded(case.body)
        answer = case.call(headers=house.headers, timeout=30)
        if operation.path.endswith("/freeze") and answer.status_code == 200:
            house.fleet.thaw(case.path_parameters["desktop"])
        try:
            assert answer.status_code != 500, "the controller failed"
            if answer.status_code >= 400:
                said = answer.json()
                assert said["code"], "an error has a code"
                assert said["detail"], "an error has words"
            case.validate_response(answer, checks=CHECKS)
        except BaseException as e:
            e.add_note(f"{case.as_curl_command()}\n{answer.status_code} {answer.text[:300]!r}")
            raise

    ask()
