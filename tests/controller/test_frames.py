"""Kept frames: which are kept, who may see them, and which go when."""

import hashlib
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cu_fleet.controller.shelf import Shelf
from cu_fleet.model.access import Caller, Role
from cu_fleet.model.errors import BrokenError, DeniedError, FleetError, InvalidError, LeaseOverError, NotFoundError
from tests.controller.fleet import ANA, Fleet, profile, running
from tests.controller.test_looking import Seat, seat_of, seated, size
from tests.support import run, until

KEEP_ACTIONS, KEEP_ALL = profile("local", frames="actions"), profile("local", frames="all")
KEY = {"type": "key", "keys": "a"}
DAY = 86400.0


def files(home: Path) -> dict[str, Path]:
    return {path.stem: path for path in (home / "frames").rglob("*.*")}


async def kept(seat: Seat, who: Caller = ANA) -> dict[str, bytes]:
    """The bytes of all that is kept of its lease, by hash; each is what it says it is."""
    found = {}
    for frame in await seat.fleet.controller.frames(who, seat.lease):
        view, data = await seat.fleet.controller.frame(who, frame.sha256)
        assert hashlib.sha256(data).hexdigest() == frame.sha256
        assert (view.size, Image.open(BytesIO(data)).size) == (len(data), (view.width, view.height))
        found[frame.sha256] = data
    return found


def test_nothing_is_kept_unless_the_profile_says_so(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            await seat.act(KEY, shot={})
            await seat.look()
            assert await kept(seat) == {}
            assert files(tmp_path) == {}

    run(body())


def test_around_each_action_and_named_by_the_record(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path, KEEP_ACTIONS) as seat:
            await seat.act(KEY, KEY, KEY, shot={"settle_ms": 0, "max_edge": 100})
            looked = await seat.look()
            pictures = await kept(seat)
            done = await seat.entries("act.done")
            assert len(done) == 3
            assert all(len(entry.frames) == 2 for entry in done), "one before and one after"
            assert [entry.frames[0] for entry in done[1:]] == [entry.frames[1] for entry in done[:-1]]
            named = {sha256 for entry in done for sha256 in entry.frames}
            assert named <= set(pictures)
            shot, plain = (await seat.entries("look"))[0], (await seat.entries("look"))[1]
            assert shot.frames[1] == done[-1].frames[1], "the settled screen, whole: nothing has changed since"
            assert plain.frames == (looked.sha256,)
            assert {Image.open(BytesIO(data)).size for data in pictures.values()} == {(200, 120)}
            assert {frame.agent for frame in await seat.fleet.controller.frames(ANA)} == {"a"}
            await seat.fleet.check()

    run(body())


def test_all_that_was_handed_out(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path, KEEP_ALL) as seat:
            shown = await seat.look(max_edge=100, format="webp")
            assert size(shown) == (100, 60)
            assert await kept(seat) == {shown.sha256: shown.data}
            await seat.look(if_changed_since=shown.frame, max_edge=100, format="webp")
            (frame,) = await seat.fleet.controller.frames(ANA)
            assert (frame.why, frame.format, frame.lease) == ("shown", "webp", seat.lease)

    run(body())


def test_files_are_private_and_lie_under_their_hash_once(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path, KEEP_ALL) as fleet:
            a, b = await seat_of(fleet), await seat_of(fleet, "b")
            shown, same = await a.look(), await b.look()
            assert shown.sha256 == same.sha256
            path = tmp_path / "frames" / shown.sha256[:2] / f"{shown.sha256}.png"
            assert files(tmp_path) == {shown.sha256: path}
            assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
            assert len(await fleet.controller.frames(ANA)) == 2, "of two leases"

    run(body())


def test_the_newest_of_all_come_first_whosever_they_are(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path, KEEP_ALL) as fleet:
            seats = [await seat_of(fleet, agent, ttl=7 * DAY) for agent in ("a", "b", "c")]
            hashes = []
            for number in range(9):
                await fleet.clock.advance(1)
                hashes += await pictures(seats[number % 3], 1, begin=number)
            await fleet.controller.release(ANA, seats[0].lease)
            await fleet.clock.advance(3600)
            hashes += await pictures(seats[1], 1, begin=99)
            for limit in (1, 2, 5, 100):
                found = await fleet.controller.frames(ANA, limit=limit)
                assert [frame.sha256 for frame in found] == hashes[::-1][:limit]

    run(body())


def test_read_by_operators_and_by_its_agent_while_it_holds_the_lease(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path, KEEP_ALL) as fleet:
            a, b = await seat_of(fleet), await seat_of(fleet, "b")
            b.desktop.screen.fill(0, 0, 9, 9, (1, 2, 3))
            mine, theirs = await a.look(), await b.look()
            assert set(await kept(a, a.who)) == {mine.sha256}
            assert set(await kept(a, Caller(operator="otto", role=Role.OBSERVER))) == {mine.sha256}
            assert [frame.sha256 for frame in await fleet.controller.frames(a.who)] == [mine.sha256]
            assert (await fleet.controller.frame(a.who, mine.sha256[:8]))[1] == mine.data
            with pytest.raises(NotFoundError):
                await fleet.controller.frame(a.who, theirs.sha256)
            with pytest.raises(DeniedError):
                await fleet.controller.frames(a.who, b.lease)
            for call in (
                fleet.controller.frames(Caller(agent="a"), a.lease),
                fleet.controller.frames(Caller(agent="a")),
            ):
                with pytest.raises(DeniedError):
                    await call
            await fleet.controller.release(ANA, a.lease)
            for late in (fleet.controller.frames(a.who, a.lease), fleet.controller.frame(a.who, mine.sha256)):
                with pytest.raises(LeaseOverError):
                    await late
            assert set(await kept(a)) == {mine.sha256}
            seen = await fleet.controller.audit(ANA, what="frame.get", limit=100)
            assert {entry.who for entry in seen} == {"agent a", "operator otto", "operator ana"}
            for wrong in ("xyz", mine.sha256[:7], f"../{mine.sha256[:8]}", mine.sha256 + "0"):
                with pytest.raises(InvalidError, match="no frame's hash"):
                    await fleet.controller.frame(ANA, wrong)

    run(body())


def test_what_cannot_be_kept_stops_nothing_and_the_record_says_so(tmp_path: Path) -> None:
    async def body() -> None:
        (tmp_path / "frames").write_text("in the way")
        async with seated(tmp_path, KEEP_ACTIONS) as seat:
            acted = await seat.act(KEY, shot={"settle_ms": 0})
            assert acted.done[0].ok
            assert acted.screenshot
            for what in ("act.done", "look"):
                (entry,) = await seat.entries(what)
                assert entry.result == "ok"
                assert "NotADirectoryError" in str(entry.facts["not_kept"])

    run(body())


def test_a_damaged_file_is_not_handed_out_and_is_mended_when_seen_again(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path, KEEP_ALL) as seat:
            shown = await seat.look()
            path = files(tmp_path)[shown.sha256]
            path.write_bytes(b"\0" * len(shown.data))
            with pytest.raises(BrokenError, match="is damaged"):
                await seat.fleet.controller.frame(ANA, shown.sha256)
            path.write_bytes(b"")  # what a loss of power leaves
            assert (await seat.look()).sha256 == shown.sha256
            assert (await seat.fleet.controller.frame(ANA, shown.sha256))[1] == shown.data

    run(body())


def test_what_a_crash_left_half_written_is_gone_after_a_start(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "frames")
    sha256 = shelf.put(b"picture", "png")
    half = tmp_path / "frames" / "ab" / f"ab{'0' * 62}.part"
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"pict")
    again = Shelf(tmp_path / "frames")
    again.open()
    assert not half.exists()
    assert (again.size, set(again.files())) == (len(b"picture"), {sha256})
    assert again.named(sha256[:8]) == [sha256]
    assert again.drop(sha256, "png")
    assert not again.drop(sha256, "png")
    assert again.size == 0


def test_a_revoke_keeps_its_last_frame_beside_the_others(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            await seat.fleet.controller.revoke(ANA, seat.lease, reason="enough")
            await seat.fleet.settled()
            (frame,) = await seat.fleet.controller.frames(ANA, seat.lease)
            assert frame.why == "evidence"
            (entry,) = await seat.entries("lease.evidence")
            assert entry.frames == (frame.sha256,)

    run(body())


# what goes


async def sweep(fleet: Fleet, seconds: float) -> None:
    """Let time pass, and what it brings."""
    await fleet.clock.advance(seconds)
    await fleet.controller.sweeper.sweep()


async def pictures(seat: Seat, count: int, begin: int = 0) -> list[str]:
    """So many different ones are handed out."""
    hashes = []
    for number in range(begin, begin + count):
        seat.desktop.screen.fill(0, 0, 30, 30, (number, 99, 7))
        hashes.append((await seat.look()).sha256)
    return hashes


def test_the_old_go_unless_their_lease_is_under_way(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path, KEEP_ALL, frames_for=2 * DAY) as fleet:
            a, b = await seat_of(fleet, ttl=7 * DAY), await seat_of(fleet, "b")
            (still,), (over,) = await pictures(a, 1), await pictures(b, 1, begin=9)
            await fleet.controller.release(ANA, b.lease)
            await sweep(fleet, 1.9 * DAY)
            assert set(files(tmp_path)) == {still, over}
            await sweep(fleet, 0.2 * DAY)
            assert set(files(tmp_path)) == {still}
            assert set(await kept(a)) == {still}
            assert await kept(b) == {}
            (pruned,) = await fleet.controller.audit(ANA, what="frames.pruned")
            assert (pruned.who, pruned.facts["removed"]) == ("controller", 1)

    run(body())


def test_past_the_quota_the_oldest_go_and_what_is_needed_goes_last(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path, KEEP_ALL) as fleet:
            done, live = await seat_of(fleet), await seat_of(fleet, "b")
            first = await pictures(live, 2)
            old: list[str] = []
            for number in range(10):
                await fleet.clock.advance(1)
                old += await pictures(done, 1, begin=20 + number)
            await fleet.controller.release(ANA, done.lease)
            one = sum(path.stat().st_size for path in files(tmp_path).values()) // 12
            await fleet.controller.close()
            fleet.settings = fleet.settings.but(frames_quota=7 * one)
            await fleet.start()
            await sweep(fleet, 1)
            left = files(tmp_path)
            assert set(first) <= set(left), "of a lease that is under way"
            assert set(left) - set(first) == set(old[-len(left) + 2 :]), "the newest of the others"
            assert 4 * one <= sum(path.stat().st_size for path in left.values()) <= 7 * one

    run(body())


def test_the_quota_holds_while_pictures_come(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path, KEEP_ALL, frames_quota=4000) as seat:
            hashes = await pictures(seat, 40)

            def within() -> bool:
                return sum(path.stat().st_size for path in files(tmp_path).values()) <= 4000

            await until(within)
            assert hashes[0] not in files(tmp_path)
            rows = {frame.sha256 for frame in await seat.fleet.controller.frames(ANA, limit=1000)}
            assert rows == set(files(tmp_path)), "no row without its file"

    run(body())


def test_an_operator_prunes_by_age_or_by_lease(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path, KEEP_ALL) as fleet:
            a, b = await seat_of(fleet, ttl=7 * DAY), await seat_of(fleet, "b", ttl=7 * DAY)
            mine, (theirs,) = await pictures(a, 2), await pictures(b, 1)
            assert theirs == mine[0], "the same picture"
            await fleet.clock.advance(DAY)
            prune = fleet.controller.prune_frames
            assert (await prune(ANA, older=3600)).removed == 0, "of leases under way"
            assert (await prune(ANA)).removed == 0
            pruned = await prune(ANA, lease=a.lease)
            assert (pruned.removed, pruned.left) == (1, 1)
            assert set(files(tmp_path)) == {theirs}, "another lease has it too"
            await fleet.controller.release(ANA, b.lease)
            assert (await prune(ANA, older=2 * DAY)).removed == 0
            assert (await prune(ANA, older=3600)).removed == 1
            assert files(tmp_path) == {}
            with pytest.raises(NotFoundError):
                await prune(ANA, lease="ls_nobody")
            for who in (Caller(operator="otto", role=Role.OBSERVER), a.who):
                with pytest.raises(FleetError) as refused:
                    await prune(who)
                assert refused.value.status == 403

    run(body())


def test_a_forgotten_lease_takes_its_frames_along(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path, KEEP_ALL, frames_for=1000 * DAY) as fleet:
            seat = await seat_of(fleet)
            await pictures(seat, 1)
            await fleet.controller.release(ANA, seat.lease)
            await sweep(fleet, fleet.settings.keep_leases + 10)
            await sweep(fleet, 2 * 3600.0)
            assert files(tmp_path) == {}
            assert await fleet.controller.frames(ANA) == []

    run(body())


def test_what_is_tidied_away_between_two_looks_is_put_back(tmp_path: Path) -> None:
    """A file that another lease let go of is on the shelf again before a row says so."""

    async def body() -> None:
        async with seated(tmp_path, KEEP_ALL) as seat:
            shown = await seat.look()
            frames: Any = seat.fleet.controller._frames  # noqa: SLF001 - between making a file and its row
            lease = await seat.fleet.controller.core.read(
                lambda tx: seat.fleet.controller.core.get_lease(tx, seat.lease)
            )
            screen = seat.fleet.controller.actors.of(lease.desktop or "").screen
            assert screen
            one = await frames.keep(lease, await screen.frame(), "before")
            frames.shelf.drop(one.row.sha256, "png")
            await seat.fleet.controller.core.note(lambda tx: frames.note(tx, [one]))
            assert set(await kept(seat)) == {shown.sha256, one.row.sha256}

    run(body())
