"""The document says all there is to know, and says it of every way in."""

from pathlib import Path
from typing import Any

import pytest

from cu_fleet.api.app import build
from tests.api.door import open_door
from tests.support import run

OPEN = {"/healthz"}
PROMISED = """
GET /healthz; GET /metrics; GET /v1/status; POST /v1/shutdown; POST /v1/leases; GET /v1/leases; GET /v1/leases/{lease};
POST /v1/leases/{lease}/renew; POST /v1/leases/{lease}/release; POST /v1/leases/{lease}/pause;
POST /v1/leases/{lease}/resume; POST /v1/leases/{lease}/take; POST /v1/leases/{lease}/revoke;
POST /v1/leases/{lease}/reassign; POST /v1/leases/{lease}/actions; GET /v1/leases/{lease}/screenshot;
GET /v1/leases/{lease}/files; GET /v1/leases/{lease}/files/{path}; PUT /v1/leases/{lease}/files/{path};
DELETE /v1/leases/{lease}/files/{path}; GET /v1/leases/{lease}/windows; POST /v1/leases/{lease}/focus;
GET /v1/leases/{lease}/ui; GET /v1/leases/{lease}/ui/{ref}; POST /v1/leases/{lease}/launch;
GET /v1/leases/{lease}/clipboard;
PUT /v1/leases/{lease}/clipboard;
GET /v1/desktops; GET /v1/desktops/{desktop}; DELETE /v1/desktops/{desktop}; POST /v1/desktops/{desktop}/exec;
PUT /v1/desktops/{desktop}/exec/{command}/input;
POST /v1/desktops/{desktop}/freeze; POST /v1/desktops/{desktop}/thaw; GET /v1/desktops/{desktop}/logs;
POST /v1/desktops/{desktop}/snapshots; GET /v1/snapshots; POST /v1/snapshots/{snapshot}/restore;
DELETE /v1/snapshots/{snapshot}; GET /v1/frames; GET /v1/frames/{sha256}; POST /v1/frames/prune;
POST /v1/leases/{lease}/watch; POST /v1/leases/{lease}/approvals; GET /v1/approvals; GET /v1/approvals/{approval};
POST /v1/approvals/{approval}/approve; POST /v1/approvals/{approval}/deny;
POST /v1/worktrees/plan; POST /v1/worktrees; GET /v1/worktrees; GET /v1/worktrees/{worktree};
GET /v1/worktrees/{worktree}/summary; GET /v1/worktrees/{worktree}/diff; POST /v1/worktrees/{worktree}/merge;
DELETE /v1/worktrees/{worktree}; POST /v1/worktrees/prune;
GET /v1/agents; POST /v1/agents; POST /v1/agents/token; POST /v1/agents/{name}/rotate;
POST /v1/agents/{name}/unbar; DELETE /v1/agents/{name}; GET /v1/operators; POST /v1/operators;
POST /v1/operators/{name}/rotate; DELETE /v1/operators/{name}; GET /v1/profiles; GET /v1/profiles/{name};
GET /v1/audit; GET /v1/audit/verify; GET /v1/events
"""


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    async def body() -> dict[str, Any]:
        async with open_door(tmp_path_factory.mktemp("home")) as door, door.tcp_client() as http:
            return dict((await http.get("/openapi.json")).json())

    return run(body())


def _operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(m.upper(), path, op) for path, ops in document["paths"].items() for m, op in ops.items()]


def test_every_promised_way_is_there_and_no_other(document: dict[str, Any]) -> None:
    assert {f"{m} {path}" for m, path, _ in _operations(document)} == {
        " ".join(way.split()) for way in PROMISED.split(";")
    }


def test_every_way_is_described_and_has_its_errors_as_problems(document: dict[str, Any]) -> None:
    for method, path, operation in _operations(document):
        where = f"{method} {path}"
        assert operation["summary"], where
        assert operation["description"], where
        assert operation["tags"], where
        for status, answer in operation["responses"].items():
            assert answer["description"], f"{where} {status}"
            if status >= "400":
                schema = answer["content"]["application/problem+json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Problem"}, f"{where} {status}"
        if path in OPEN:
            assert "security" not in operation, where
        else:
            assert operation["security"] == [{"token": []}], where
            assert {"401", "403", "422", "500", "503"} <= set(operation["responses"]), where
        if "{lease}" in path or "{desktop}" in path or "{snapshot}" in path or "{name}" in path:
            assert "404" in operation["responses"], where
    names = [op["operationId"] for _, _, op in _operations(document)]
    assert len(set(names)) == len(names)


def test_every_body_has_an_example_that_fits_it(document: dict[str, Any]) -> None:
    from cu_fleet.api import approvals, desktops, frames, leases, people, screen, snapshots, watch, worktrees
    from cu_fleet.model.request import Acquire

    models = {
        kind.__name__: kind
        for module in (approvals, desktops, frames, leases, people, screen, snapshots, watch, worktrees)
        for kind in vars(module).values()
        if isinstance(kind, type) and hasattr(kind, "model_validate")
    } | {"Acquire": Acquire}
    found = 0
    for method, path, operation in _operations(document):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content is None:
            continue
        schema = content["schema"]
        [name] = [ref["$ref"].rpartition("/")[2] for ref in schema.get("anyOf", [schema]) if "$ref" in ref]
        examples = schema.get("examples") or document["components"]["schemas"][name].get("examples")
        assert examples, f"{method} {path}: {name}"
        for example in examples:
            models[name].model_validate(example)
        found += 1
    assert found >= 15


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(value: object) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return own + [ref for part in value.values() for ref in references(part)]
        return [ref for part in value for ref in references(part)] if isinstance(value, list) else []

    schemas = document["components"]["schemas"]
    for ref in references(document):
        assert ref.removeprefix("#/components/schemas/") in schemas, ref
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert "Click" in schemas
    assert "HTTPValidationError" not in schemas


def test_what_answers_fits_what_is_documented(tmp_path: Path, document: dict[str, Any]) -> None:
    """Each status that comes back over HTTP for some ordinary questions is one the document names."""

    ids = {"lease": "ls_x", "desktop": "dk_x", "snapshot": "sn_x", "name": "nobody", "path": "f", "sha256": "0" * 64}
    ids |= {"ref": "e1", "command": "cm_x", "approval": "ap_x", "worktree": "wt_x"}

    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            for method, path, operation in _operations(document):
                if path in ("/v1/events", "/v1/shutdown"):
                    continue
                filled = path.format(**ids)
                answer = await http.request(method, filled, json={} if "requestBody" in operation else None)
                assert str(answer.status_code) in operation["responses"], (method, path, answer.text)

    run(body())


def test_the_app_needs_nothing_but_a_controller() -> None:
    app = build(None, shutdown=lambda: None)  # type: ignore[arg-type]  # nothing of it is touched
    assert callable(app)
