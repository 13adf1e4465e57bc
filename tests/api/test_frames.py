"""Kept frames over HTTP."""

import hashlib
from pathlib import Path

from tests.api.door import open_door, problem
from tests.controller.fleet import profile
from tests.support import run

KEEP = profile("local", frames="all")


def test_kept_frames_are_listed_shown_and_pruned(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path, KEEP) as door:
            lease = await door.fleet.granted("a")
            async with door.tcp_client(door.fleet.lease_token(lease.lease)) as agent, door.socket_client() as ana:
                shown = await agent.get(f"/v1/leases/{lease.lease}/screenshot", params={"format": "webp"})
                for http in (agent, ana):
                    (frame,) = (await http.get("/v1/frames", params={"lease": lease.lease})).json()["frames"]
                    assert (frame["lease"], frame["agent"], frame["why"]) == (lease.lease, "a", "shown")
                    assert frame["sha256"] == shown.headers["cu-fleet-sha256"]
                    one = await http.get(f"/v1/frames/{frame['sha256'][:12]}")
                    assert (one.content, one.headers["content-type"]) == (shown.content, "image/webp")
                    assert one.headers["cu-fleet-sha256"] == hashlib.sha256(one.content).hexdigest()
                    assert (one.headers["cu-fleet-why"], one.headers["cu-fleet-lease"]) == ("shown", lease.lease)
                problem(await agent.post("/v1/frames/prune", json={}), 403, "needs_operator")
                problem(await ana.post("/v1/frames/prune", json={"older": "soon"}), 422, "invalid")
                assert (await ana.post("/v1/frames/prune", json={"older": "1h"})).json()["removed"] == 0
                pruned = (await ana.post("/v1/frames/prune", json={"lease": lease.lease})).json()
                assert pruned == {"removed": 1, "bytes": len(shown.content), "left": 0, "left_bytes": 0}
                problem(await ana.get(f"/v1/frames/{frame['sha256']}"), 404, "no_kept_frame")
                problem(await ana.get("/v1/frames/nothing"), 422, "invalid")
                problem(await ana.get("/v1/frames", params={"lease": "ls_no"}), 404, "no_lease")

    run(body())


def test_who_may_not_look_may_not_look_back_either(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path, KEEP) as door:
            lease, other = await door.fleet.granted("a"), await door.fleet.granted("b")
            async with door.tcp_client(door.fleet.lease_token(lease.lease)) as mine:
                frame = (await mine.get(f"/v1/leases/{lease.lease}/screenshot")).headers["cu-fleet-sha256"]
                async with door.tcp_client(door.fleet.lease_token(other.lease)) as theirs:
                    problem(await theirs.get(f"/v1/frames/{frame}"), 404, "no_kept_frame")
                    problem(await theirs.get("/v1/frames", params={"lease": lease.lease}), 403, "other_lease")
                async with door.tcp_client(await door.agent("a")) as agent:
                    problem(await agent.get("/v1/frames", params={"lease": lease.lease}), 403, "needs_lease_token")
                async with door.tcp_client(await door.operator("observer")) as observer:
                    assert (await observer.get(f"/v1/frames/{frame}")).status_code == 200
                async with door.socket_client() as ana:
                    await ana.post(f"/v1/leases/{lease.lease}/pause", json={"looking": False})
                    problem(await mine.get(f"/v1/frames/{frame}"), 423, "lease_paused")
                    await ana.post(f"/v1/leases/{lease.lease}/revoke", json={"bar": "none"})
                    problem(await mine.get(f"/v1/frames/{frame}"), 410, "lease_revoked")

    run(body())
