"""What a worktree would be, looked up before anything is made; what cannot be is refused in words."""

from pathlib import Path

from cu_fleet.controller import git
from cu_fleet.controller.repository import Repository, check_base
from cu_fleet.controller.yard import Yard
from cu_fleet.model.desktop import Desktop, Stage
from cu_fleet.model.errors import ConflictError, InvalidError
from cu_fleet.model.lease import Lease, LeaseState
from cu_fleet.model.worktree import NOT_GONE, Worktree, WorktreeAsk, WorktreePlan
from cu_fleet.stores.base import Tx


class Planning:
    def __init__(self, yard: Yard) -> None:
        self.yard = yard
        self.core = yard.core

    async def plan(self, ask: WorktreeAsk) -> WorktreePlan:
        """What it would be; refused in words if it cannot be."""
        if await self.yard.in_thread(_is_ours, Path(ask.repository), self.core.settings.home):
            raise InvalidError(f"{ask.repository} is a folder of the fleet's own", code="no_repository")
        common, own, top, owner = await self.yard.in_thread(git.found, Path(ask.repository))
        return await self.yard.within(str(common), owner, lambda repository: self._planned(repository, own, top, ask))

    def _planned(self, repository: Repository, own: Path, top: Path | None, ask: WorktreeAsk) -> WorktreePlan:
        if what := repository.under_way(own):
            raise ConflictError(
                f"{what} is under way in {top or own}", remedy="finish it or give it up first", code="under_way"
            )
        commit = repository.commit(ask.base, own)
        check_base(tree := repository.tree(commit), ask.base)
        branch = repository.branch(ask.base, own)
        if ask.into is not None:
            if repository.tip(f"refs/heads/{ask.into}") is None:
                raise ConflictError(f"there is no branch {ask.into} to merge into", code="no_target", into=ask.into)
            self.yard.refuse_protected(ask.into)
        protected = branch if ask.into is None and branch and self.yard.protected(branch) else None
        return WorktreePlan(
            repository=str(repository.git.folder),
            top=str(top) if top else None,
            owner=repository.git.owner.name,
            uid=repository.git.owner.uid,
            base=ask.base if ask.base != "HEAD" else branch or commit[:12],
            base_commit=commit,
            into=ask.into or (None if protected else branch),
            protected=protected,
            size_bytes=sum(blob.size for blob in tree.values()),
            review=self.core.settings.review,
            kept_for=self.core.settings.worktrees_for,
        )

    def desktop_for(self, tx: Tx, lease: Lease, size: int) -> Desktop:
        desktop = tx.get(Desktop, lease.desktop or "")
        if lease.state is not LeaseState.ACTIVE or desktop is None or desktop.stage is not Stage.HELD:
            raise ConflictError(f"lease {lease.id} holds no desktop now", code="no_desktop", lease=lease.id)
        if desktop.name:
            raise ConflictError(
                f'desktop "{desktop.name}" keeps what lies in its slot, and a worktree is taken out of it',
                remedy="lease any desktop of the profile, without a name",
                code="named_desktop",
            )
        if taken := tx.find(Worktree, lease=lease.id, state=NOT_GONE):
            raise ConflictError(f"lease {lease.id} has worktree {taken[0].id} already", code="has_worktree")
        self.yard.lending(desktop)
        if size >= (limit := self.core.profile(desktop.profile).limits.disk):
            raise ConflictError(
                f"its files take {size} bytes, and a desktop of profile {desktop.profile} may write {limit}",
                remedy="raise the profile's limits.disk",
                code="too_large",
            )
        return desktop


def _is_ours(place: Path, home: Path) -> bool:
    return place.resolve().is_relative_to(home.resolve())
