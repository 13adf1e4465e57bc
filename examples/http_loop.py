#!/usr/bin/env python3
"""A complete agent loop over plain HTTP, with nothing but httpx: lease, look, ask a model, act, until it is done.

    CU_FLEET_URL=http://127.0.0.1:PORT CU_FLEET_TOKEN=… MODEL_URL=http://… examples/http_loop.py "write a haiku"

The model is any program behind MODEL_URL that takes `{"task", "width", "height", "image", "done"}` and answers either
`{"actions": […]}`, as in the HTTP API, or `{"answer": "…"}`. Coordinates are pixels of the pictures it gets.
"""

import os
import sys
from typing import Any

import httpx

AGENT = os.environ.get("AGENT", "http-agent")
PROFILE = os.environ.get("PROFILE", "local")
MOST_TURNS = 50
WAIT = 25  # seconds that one look at the queue may take


def problem(answer: httpx.Response) -> str:
    """What the controller says went wrong, and what to do about it."""
    said = answer.json()
    return " ".join(str(said[key]) for key in ("detail", "remedy") if said.get(key))


def leased(http: httpx.Client) -> dict[str, Any]:
    """A lease once it is granted; whoever must wait is told why."""
    answer = http.post("/v1/leases", json={"agent": AGENT, "profile": PROFILE}, params={"hold": 0})
    if answer.is_error:
        raise SystemExit(problem(answer))
    lease: dict[str, Any] = answer.json()
    token = lease["token"]
    while lease["state"] == "waiting":
        print(lease.get("message") or "waiting for a desktop", file=sys.stderr)
        answer = http.get(f"/v1/leases/{lease['lease']}", params={"hold": WAIT, "while": "waiting"})
        lease = answer.raise_for_status().json()
    if lease["state"] != "active":
        raise SystemExit(f"no desktop: {lease.get('reason') or lease['state']}")
    return {**lease, "token": token}


def work(http: httpx.Client, lease: dict[str, Any], task: str, model: httpx.Client) -> str:
    """Ask and act in turn; what was not done, and why, goes back to the model with the next picture."""
    bearer = {"Authorization": f"Bearer {lease['token']}"}
    actions: list[dict[str, Any]] = []
    for _ in range(MOST_TURNS):
        body = {"actions": actions, "screenshot": {"max_bytes": 1_000_000}, "intent": task[:2000]}
        answer = http.post(f"/v1/leases/{lease['lease']}/actions", json=body, headers=bearer)
        if answer.status_code == 410:
            raise SystemExit(problem(answer))  # revoked or expired: nothing more to do here
        said = answer.json()
        done = [{"ok": False, "detail": problem(answer)}] if answer.is_error else said["done"]
        shot = (None if answer.is_error else said["screenshot"]) or {}
        asked = {"task": task, "width": shot.get("width"), "height": shot.get("height"), "done": done}
        told = model.post(os.environ["MODEL_URL"], json={**asked, "image": shot.get("data")}).raise_for_status().json()
        if "answer" in told:
            return str(told["answer"])
        actions = told["actions"]
    raise SystemExit(f"not done after {MOST_TURNS} turns")


def main(task: str) -> None:
    operator = {"Authorization": f"Bearer {os.environ['CU_FLEET_TOKEN']}"}
    with (
        httpx.Client(base_url=os.environ["CU_FLEET_URL"], headers=operator, timeout=120) as http,
        httpx.Client(timeout=600) as model,
    ):
        lease = leased(http)
        try:
            print(work(http, lease, task, model))
        finally:
            http.post(f"/v1/leases/{lease['lease']}/release", headers={"Authorization": f"Bearer {lease['token']}"})


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "Say what is on the screen.")
