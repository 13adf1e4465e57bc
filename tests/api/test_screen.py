"""Acting and looking over HTTP."""

import base64
import hashlib
from io import BytesIO
from pathlib import Path

from PIL import Image

from tests.api.door import open_door, problem
from tests.support import run


def test_a_screenshot_comes_with_its_facts(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door:
            lease = await door.fleet.granted("a")
            async with door.tcp_client(door.fleet.lease_token(lease.lease)) as http:
                for kind in ("png", "jpeg", "webp"):
                    answer = await http.get(f"/v1/leases/{lease.lease}/screenshot", params={"format": kind})
                    assert answer.headers["content-type"] == f"image/{kind}"
                    assert answer.headers["cu-fleet-sha256"] == hashlib.sha256(answer.content).hexdigest()
                    assert answer.headers["cu-fleet-frame"].startswith("fr_")
                    assert float(answer.headers["cu-fleet-age"]) >= 0
                    assert (answer.headers["cu-fleet-width"], answer.headers["cu-fleet-height"]) == ("200", "120")
                    assert Image.open(BytesIO(answer.content)).size == (200, 120)

    run(body())


def test_a_batch_may_answer_with_the_settled_picture(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door:
            lease = await door.fleet.granted("a")
            async with door.tcp_client(door.fleet.lease_token(lease.lease)) as http:
                words = {"actions": [{"type": "key", "keys": "a"}], "screenshot": {"format": "png"}}
                answer = (await http.post(f"/v1/leases/{lease.lease}/actions", json=words)).json()
                shot = answer["screenshot"]
                data = base64.b64decode(shot["data"], validate=True)
                assert hashlib.sha256(data).hexdigest() == shot["sha256"]
                assert (shot["width"], shot["format"], answer["generation"]) == (200, "png", lease.generation)

    run(body())


def test_a_picture_wanted_wrongly_names_the_key(tmp_path: Path) -> None:
    async def body() -> None:
        wrong = {"region": "1,2,3", "format": "gif", "quality": "0", "max_edge": "3", "max_bytes": "10"}
        async with open_door(tmp_path) as door, door.socket_client() as http:
            lease = await door.fleet.granted("a")
            for key, value in wrong.items():
                answer = await http.get(f"/v1/leases/{lease.lease}/screenshot", params={key: value})
                said = problem(answer, 422, "invalid")
                assert (said["key"], said["where"]) == (key, "query")

    run(body())


WRONG: list[object] = [
    {"type": "click", "x": 200, "y": 0},
    {"type": "click", "x": "1", "y": 2},
    {"type": "key", "keys": "no-such-key"},
    {"type": "explode"},
    {"type": "click", "x": 1, "y": 1, "speed": 3},
    "click",
]


def test_a_wrong_action_anywhere_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door:
            lease = await door.fleet.granted("a")
            screen = door.fleet.backend.desktop(lease.desktop or "")
            async with door.tcp_client(door.fleet.lease_token(lease.lease)) as http:
                for wrong in WRONG:
                    before = list(screen.events)
                    words = {"actions": [{"type": "click", "x": 1, "y": 1}, wrong]}
                    answer = await http.post(f"/v1/leases/{lease.lease}/actions", json=words)
                    assert answer.status_code == 422, answer.text
                    assert answer.json()["code"] in ("bad_action", "off_screen")
                    assert screen.events == before

    run(body())


def test_approvals_are_refused_by_name_as_long_as_there_are_none(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            lease = await door.fleet.granted("a")
            words = {"actions": [{"type": "click", "x": 1, "y": 1}], "approval": "ap_1"}
            problem(await http.post(f"/v1/leases/{lease.lease}/actions", json=words), 501, "no_approvals")

    run(body())
