"""Acting and looking over HTTP."""

import asyncio
import base64
import hashlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tests.api.door import open_door, problem
from tests.controller.fleet import ANA
from tests.support import run, until


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


def test_headers_and_json_say_the_same_of_a_picture(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door:
            lease = await door.fleet.granted("a", view=100)
            async with door.tcp_client(door.fleet.lease_token(lease.lease)) as http:
                where = f"/v1/leases/{lease.lease}"
                looked = (await http.get(f"{where}/screenshot", params={"settle_ms": 1})).headers
                acted = (
                    await http.post(f"{where}/actions", json={"actions": [], "screenshot": {"settle_ms": 1}})
                ).json()
                shot = acted["screenshot"]
                facts = {"width": 100, "height": 60, "screen_width": 200, "screen_height": 120, "scale": 0.5}
                facts |= {"within": 0.0, "format": "png", "generation": lease.generation}
                assert {name: shot[name] for name in facts} == facts
                assert {name: looked[f"cu-fleet-{name.replace('_', '-')}"] for name in facts} == {
                    name: str(value) for name, value in facts.items()
                }
                assert (looked["cu-fleet-settled"], shot["settled"]) == ("true", True)
                assert looked["cu-fleet-sha256"] == shot["sha256"]
                assert set(shot) - {"data", "unchanged"} == {
                    name.removeprefix("cu-fleet-").replace("-", "_") for name in looked if name.startswith("cu-fleet-")
                }
                assert "cu-fleet-settled" not in (await http.get(f"{where}/screenshot")).headers

    run(body())


def test_what_has_not_changed_is_answered_without_pixels(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door:
            lease = await door.fleet.granted("a")
            async with door.tcp_client(door.fleet.lease_token(lease.lease)) as http:
                where = f"/v1/leases/{lease.lease}"
                frame = (await http.get(f"{where}/screenshot")).headers["cu-fleet-frame"]
                same = await http.get(f"{where}/screenshot", params={"if_changed_since": frame})
                assert (same.status_code, same.content, same.headers["cu-fleet-frame"]) == (304, b"", frame)
                wanted = {"if_changed_since": frame, "settle_ms": 0}
                shot = (await http.post(f"{where}/actions", json={"actions": [], "screenshot": wanted})).json()[
                    "screenshot"
                ]
                assert (shot["unchanged"], shot["frame"], "data" in shot) == (True, frame, False)
                await http.post(f"{where}/actions", json={"actions": [{"type": "key", "keys": "a"}]})
                changed = await http.get(f"{where}/screenshot", params={"if_changed_since": frame})
                assert (changed.status_code, changed.headers["cu-fleet-frame"] != frame) == (200, True)

    run(body())


def test_coordinates_are_pixels_of_the_frame_named(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door:
            lease = await door.fleet.granted("a", view=100)
            screen = door.fleet.backend.desktop(lease.desktop or "")
            async with door.tcp_client(door.fleet.lease_token(lease.lease)) as http:
                where = f"/v1/leases/{lease.lease}"
                zoom = await http.get(f"{where}/screenshot", params={"region": "50,30,20,10", "max_edge": 40})
                assert Image.open(BytesIO(zoom.content)).size == (40, 20)
                click = {"type": "click", "x": 39, "y": 19}
                words = {"actions": [click], "frame": zoom.headers["cu-fleet-frame"]}
                assert (await http.post(f"{where}/actions", json=words)).status_code == 200
                assert ("pointer", 139, 79, 1) in screen.events
                click["x"] = 40
                problem(await http.post(f"{where}/actions", json=words), 422, "off_screen")
                problem(await http.post(f"{where}/actions", json={**words, "frame": "fr_no"}), 404, "no_frame")

    run(body())


def test_a_blank_screen_is_a_problem_with_its_colour(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door, door.socket_client() as http:
            lease = await door.fleet.granted("a")
            door.fleet.backend.desktop(lease.desktop or "").screen.fill(0, 0, 200, 120, (0, 0, 0))
            where = f"/v1/leases/{lease.lease}"
            said = problem(await http.get(f"{where}/screenshot"), 503, "blank_screen")
            assert said["colour"] == "#000000"
            assert (await http.get(f"{where}/screenshot", params={"allow_blank": "true"})).status_code == 200
            words = {"actions": [{"type": "move", "x": 0, "y": 0}], "screenshot": {"settle_ms": 0}}
            door.fleet.backend.desktop(lease.desktop or "").screen.fill(0, 0, 200, 120, (0, 0, 0))
            words["actions"] = [{"type": "key_up", "key": "a"}]
            answer = (await http.post(f"{where}/actions", json=words)).json()
            assert (answer["done"], answer["screenshot"]) == ([{"ok": True}], None)
            assert answer["not_shown"]["code"] == "blank_screen"

    run(body())


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8"], ids=["short", "framework"])
def test_keys_go_up_and_nothing_more_is_done_when_the_client_leaves_in_the_middle(tmp_path: Path, kind: str) -> None:
    held = b'{"actions": [{"type": "hold_key", "keys": "shift", "seconds": 20}, {"type": "type", "text": "never"}]}'
    shift = ("key", 0xFFE1)

    async def body() -> None:
        async with open_door(tmp_path) as door:
            lease = await door.fleet.granted("a")
            where = f"/v1/leases/{lease.lease}/actions"
            (desktop,) = door.fleet.world.desktops.values()
            async with door.tcp_client(door.fleet.lease_token(lease.lease)) as http:
                asking = asyncio.create_task(http.post(where, content=held, headers={"Content-Type": kind}, timeout=60))
                await until(lambda: (*shift, True) in desktop.events or asking.done())
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
            async with door.tcp_client(door.fleet.lease_token(lease.lease)) as http:
                await until(lambda: (*shift, False) in desktop.events, timeout=10)
                click = {"actions": [{"type": "click", "x": 3, "y": 3}]}
                assert (await http.post(where, json=click)).json()["done"] == [{"ok": True}]
            assert not [event for event in desktop.events if event[0] == "key" and event[1] == ord("n")]
            entries = await door.fleet.controller.audit(ANA, limit=1000, what="act.done")
            assert [x.result for x in entries][-2:] == ["interrupted", "ok"]

    run(body())
