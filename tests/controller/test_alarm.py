"""A record that is cut while the controller runs: it says so, and goes on."""

import contextlib
import sqlite3
from pathlib import Path

from tests.controller.fleet import ANA, Fleet, running
from tests.support import run, until


def test_a_record_cut_under_a_running_controller_raises_an_alarm_that_stays(tmp_path: Path) -> None:
    async def alarm(fleet: Fleet) -> str | None:
        await fleet.clock.advance(fleet.settings.anchor_every)
        told: str | None = (await fleet.controller.status(ANA))["audit"]["alarm"]
        return told

    async def body() -> None:
        async with running(tmp_path) as fleet:
            await fleet.granted("a")

            async def anchored() -> bool:
                assert await alarm(fleet) is None
                return (tmp_path / "audit.anchors").exists()

            await until(anchored)
            _cut(tmp_path / "fleet.db")
            told = await until(lambda: alarm(fleet))
            assert "was cut or rewritten" in told
            assert "cu_fleet_audit_broken 1" in await fleet.controller.metrics(ANA)
            await fleet.granted("b")
            assert await alarm(fleet) == told

    run(body())


def _cut(database: Path) -> None:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("DELETE FROM audit WHERE seq > 1")
        connection.commit()
