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


def good(answer: httpx.Response) -> dict[str, Any]:
    if answer.is_error:
        raise SystemExit(problem(answer))
    said: dict[str, Any] = answer.json()
    return said


class Lease:
    """A lease from asking for it to giving it back, whatever happens in between."""

    def __init__(self, url: str, token: str) -> None:
        self.http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=120)
        view = good(self.http.post("/v1/leases", json={"agent": AGENT, "profile": PROFILE}, params={"hold": 0}))
        self.path = f"/v1/leases/{view['lease']}"

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.post(f"{self.path}/release")  # of one that is over already, this changes nothing
        self.http.close()

    def granted(self) -> None:
        """Wait for it; whoever must wait is told why."""
        view = good(self.http.get(self.path))
        while view["state"] == "waiting":
            print(view.get("message") or "waiting for a desktop", file=sys.stderr)
            view = good(self.http.get(self.path, params={"hold": WAIT, "while": "waiting"}))
        if view["state"] != "active":
            raise SystemExit(f"no desktop: {view.get('reason') or view['state']}")
        self.http.headers["Authorization"] = f"Bearer {view['token']}"  # which opens this lease and nothing else

    def act(self, actions: list[dict[str, Any]], intent: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """What became of each action, and the settled picture; of a batch that was refused, why."""
        body = {"actions": actions, "screenshot": {"max_bytes": 1_000_000}, "intent": intent[:2000]}
        answer = self.http.post(f"{self.path}/actions", json=body)
        if not answer.is_error:
            said = answer.json()
            return said["done"], said["screenshot"] or {}
        if answer.status_code == 410 or not actions:
            raise SystemExit(problem(answer))  # revoked or expired, or nothing to be seen: no more to do here
        return [{"ok": False, "detail": problem(answer)}], self.act([], intent)[1]


def work(lease: Lease, task: str, model: httpx.Client) -> str:
    """Ask and act in turn; what was not done, and why, goes back to the model with the next picture."""
    actions: list[dict[str, Any]] = []
    for _ in range(MOST_TURNS):
        done, shot = lease.act(actions, task)
        picture = {"image": shot.get("data"), "width": shot.get("width"), "height": shot.get("height")}
        told = good(model.post(os.environ["MODEL_URL"], json={"task": task, "done": done, **picture}))
        if "answer" in told:
            return str(told["answer"])
        actions = told["actions"]
    raise SystemExit(f"not done after {MOST_TURNS} turns")


def main(task: str) -> None:
    with Lease(os.environ["CU_FLEET_URL"], os.environ["CU_FLEET_TOKEN"]) as lease, httpx.Client(timeout=600) as model:
        lease.granted()
        print(work(lease, task, model))


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "Say what is on the screen.")
