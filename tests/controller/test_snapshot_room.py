"""How much room snapshots take together is bounded, and told with what makes room."""

from pathlib import Path

import pytest

from cu_fleet.model.errors import ConflictError
from tests.controller.fleet import ANA, running
from tests.support import run


def test_no_more_snapshots_than_there_is_room_for(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            lease = await fleet.granted("a")
            first = await fleet.controller.save(ANA, lease.lease, "first")
            assert fleet.controller
            core = fleet.controller.core
            core.settings = core.settings.model_copy(update={"snapshots_quota": first.size_bytes})
            with pytest.raises(ConflictError, match="snapshots take") as caught:
                await fleet.controller.save(ANA, lease.lease, "second")
            assert caught.value.code == "snapshots_full"
            assert "snapshot delete" in (caught.value.remedy or "")
            await fleet.controller.delete_snapshot(ANA, first.id)
            await fleet.controller.save(ANA, lease.lease, "second")

    run(body())
