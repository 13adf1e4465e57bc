"""Everything about desktops in containers that blocks, and so runs in threads: made, found, held still, removed."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cu_fleet.backends.base import Place, Spec, Usage
from cu_fleet.backends.docker import begin, far, walls
from cu_fleet.backends.docker.engine import Engine, image_of
from cu_fleet.backends.docker.layout import BOOT, DESKTOP, FLEET, MOST, SCREEN, SNAPSHOT, Desk, Layout
from cu_fleet.backends.docker.options import image, options
from cu_fleet.backends.inside import template
from cu_fleet.model.errors import ConflictError, UnavailableError
from cu_fleet.model.profile import Profile

if TYPE_CHECKING:
    from docker import APIClient
    from docker.errors import APIError

_SECONDS_TO_END = 20.0


class Settled(NamedTuple):
    """What is known of a desktop before anything of it is made."""

    uid: int  # whose it is on the engine's machine
    polled: bool  # whether its image has a screen that x11vnc looks at


class House:
    def __init__(self, place: Place, host: str | None) -> None:
        self.layout = Layout(place)
        self.engine = Engine(host)
        self._profile_dirs = place.profile_dirs

    # making

    def clear(self, api: APIClient, desk: Desk, spec: Spec) -> Settled:
        """Refuse what cannot be had, end what is left of an earlier start, and settle whose this one is."""
        options(spec.profile)
        polled = is_polled(self.image_of(api, image(spec.profile)))
        if desk.dir.exists():  # it is made before all else, and removed last
            self.end(api, desk, keep_slot=True)
        if self.engine.near is None:
            self.engine.near = self._try_near(api, desk, spec)
        self.layout.uids.take(desk.id, elsewhere=not self.engine.near)
        begin.mark(desk, far=not self.engine.near)
        return Settled(self.layout.uid(desk.id), polled)

    def _try_near(self, api: APIClient, desk: Desk, spec: Spec) -> bool:
        """Whether the engine sees our files, and what is bound there is of the same kernel, as sockets must be.

        It sees them if it finds a folder whose name nobody could know, to bind it into a container that never runs.
        """
        if api.info()["KernelVersion"] != os.uname().release:
            return False
        from docker.errors import APIError
        from docker.types import Mount

        self._refuse_foreign_container(api, desk)
        desk.dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        proof = Path(tempfile.mkdtemp(prefix="near-", dir=desk.dir))
        try:
            config = api.create_host_config(mounts=[Mount("/near", str(proof), type="bind")], network_mode="none")
            api.create_container(
                image(spec.profile), ["none"], name=desk.name, labels=self.layout.labels(desk.id), host_config=config
            )
        except APIError as e:
            if "bind source path does not exist" not in str(e.explanation):
                raise
            return False
        finally:
            proof.rmdir()
        self.end(api, desk, keep_slot=True)
        return True

    def image_of(self, api: APIClient, name: str) -> dict[str, Any]:
        if found := image_of(api, name):
            return found
        ours = name.split(":")[0].removeprefix("cu-fleet/")
        remedy = f"cu-fleet image build {ours}" if name.startswith("cu-fleet/") else f"docker pull {name}"
        raise UnavailableError(f"the Docker engine has no image {name}", remedy=remedy, code="no_image", image=name)

    def lay_in(self, api: APIClient, container: str, spec: Spec, uid: int) -> None:
        """What a far desktop needs, once its container is made."""
        state = None if spec.snapshot else begin.clean_state(template(spec.profile, self._profile_dirs))
        far.lay_in(api, container, begin.system_files(spec, uid), begin.own_files(spec), state, uid)

    def grounds(self, desk: Desk, spec: Spec, uid: int) -> list[Callable[[APIClient], None]]:
        """What to make before the container: all of it may be made at once."""
        volumes = (*desk.volumes, *([desk.slot_volume] if desk.far else []))
        files = [] if desk.far else [lambda _: self._furnish(desk, spec, uid)]
        network = [lambda api: self.create_network(api, desk)] if spec.profile.network == "full" else []
        return [*(partial(self._create_volume, desk=desk, name=name) for name in volumes), *files, *network]

    def _furnish(self, desk: Desk, spec: Spec, uid: int) -> None:
        begin.prepare(desk, spec, uid, template(spec.profile, self._profile_dirs))

    def _create_volume(self, api: APIClient, desk: Desk, name: str) -> None:
        made = api.create_volume(name, labels=self.layout.labels(desk.id))
        self._refuse_foreign("volume", name, made.get("Labels"))

    def create_network(self, api: APIClient, desk: Desk) -> None:
        api.create_network(desk.name, labels=self.layout.labels(desk.id), check_duplicate=True)

    def create(self, api: APIClient, desk: Desk, spec: Spec, settled: Settled) -> str:
        """Make the container, not yet running; returns its id."""
        own = options(spec.profile)
        labels = self.layout.labels(desk.id, **{BOOT: spec.boot, MOST: str(own.snapshot)})
        words = walls.container(api, desk, spec, settled.uid, labels, polled=settled.polled)
        return self.create_as(api, desk, spec.profile, words, require_limits=own.require_limits)

    def create_as(
        self, api: APIClient, desk: Desk, profile: Profile, words: dict[str, Any], *, require_limits: bool
    ) -> str:
        from docker.errors import APIError

        try:
            made = api.create_container(**words)
        except APIError as e:
            if e.status_code == 409:
                self._refuse_foreign_container(api, desk)
            raise
        self._insist(profile, made, require=require_limits)
        return str(made["Id"])

    def _refuse_foreign_container(self, api: APIClient, desk: Desk) -> None:
        if found := self._inspect(api, desk):
            self._refuse_foreign("container", desk.name, found["Config"]["Labels"])

    def _refuse_foreign(self, kind: str, name: str, labels: Mapping[str, str] | None) -> None:
        if not self.layout.is_ours(labels):
            raise ConflictError(
                f"the Docker engine has a {kind} {name} that is not ours, and it is left alone",
                remedy=f"see whose it is: docker inspect {name}",
                code="foreign_name",
                name=name,
            )

    def _insist(self, profile: Profile, made: Mapping[str, Any], *, require: bool) -> None:
        warnings: list[str] = made.get("Warnings") or []
        lacking = [said for said in warnings if "discard" in said.lower() and "swap" not in said.lower()]
        if lacking and require:
            raise UnavailableError(
                f'profile "{profile.name}" insists on its limits, which this engine cannot enforce: '
                + "; ".join(lacking),
                remedy="leave out options.require_limits, or mend the engine's machine",
                code="no_limits",
            )

    # finding

    def _inspect(self, api: APIClient, desk: Desk) -> dict[str, Any] | None:
        from docker.errors import NotFound

        try:
            found: dict[str, Any] = api.inspect_container(desk.name)
        except NotFound:
            return None
        return found

    def running(self, api: APIClient, desk: Desk) -> dict[str, Any] | None:
        """The desktop's container if it runs; None if there is none; in words why, if it has ended by itself."""
        found = self._inspect(api, desk)
        if found is None or not self.layout.is_ours(found["Config"]["Labels"]):
            return None
        state = found["State"]
        if state["Running"]:
            return found
        if state["Status"] == "created":
            return None
        raise UnavailableError(
            f"the container of desktop {desk.id} has ended, with {_how(state)}", code="not_running", desktop=desk.id
        )

    def must_run(self, api: APIClient, desk: Desk) -> dict[str, Any]:
        found = self.running(api, desk)
        if found is None:
            raise UnavailableError(f"desktop {desk.id} does not run", code="not_running", desktop=desk.id)
        return found

    def all(self, api: APIClient, desktop: str | None = None) -> dict[str, list[dict[str, Any]]]:
        """What the engine has of this fleet, or of one desktop of it, by kind, and only what is provably ours."""
        wanted = [f"{FLEET}={self.layout.fleet}", *([f"{DESKTOP}={desktop}"] if desktop else [])]
        filters = {"label": wanted}
        found = {
            "container": self._containers(api, wanted),
            "volume": api.volumes(filters=filters).get("Volumes") or [],
            "network": api.networks(filters=filters),
        }
        return {kind: [one for one in some if self.layout.is_ours(one.get("Labels"))] for kind, some in found.items()}

    def _containers(self, api: APIClient, wanted: list[str]) -> list[dict[str, Any]]:
        found = api.containers(all=True, filters={"label": wanted})
        return [one for one in found if self.layout.is_our_container(one)]

    def up(self, api: APIClient) -> dict[str, dict[str, Any]]:
        """The containers of all desktops that run, by desktop. Their sizes are of what is written over their images."""
        far_ones = any(self.layout.desk(desktop).far for desktop in self.layout.known())
        found = api.containers(size=far_ones, filters={"label": [f"{FLEET}={self.layout.fleet}"]})
        ours = [one for one in found if self.layout.is_our_container(one) and SNAPSHOT not in one["Labels"]]
        desks = [(self.layout.desk(one["Labels"][DESKTOP]), one) for one in ours]
        return {desk.id: one for desk, one in desks if f"/{desk.name}" in one["Names"]}

    def named(self, api: APIClient, desk: Desk, name: str) -> list[dict[str, Any]]:
        """A container of ours with this name, if there is one."""
        return [one for one in self.all(api, desk.id)["container"] if f"/{name}" in one["Names"]]

    def found(self, api: APIClient) -> dict[str, list[str]]:
        """Of each desktop that has left anything, what there is of it."""
        there: dict[str, list[str]] = {desktop: ["files"] for desktop in self.layout.known()}
        for kind, some in self.all(api).items():
            for one in some:
                there.setdefault(one["Labels"][DESKTOP], []).append(kind)
        return {desktop: sorted(set(kinds)) for desktop, kinds in sorted(there.items())}

    # ending

    def end(self, api: APIClient, desk: Desk, *, keep_slot: bool = False) -> None:
        """Remove all that the engine has of a desktop, and return when nothing is left."""
        there = self.all(api, desk.id)
        self.remove_containers(api, there["container"])
        kept = [desk.slot_volume] if keep_slot else []
        for volume in (one for one in there["volume"] if one["Name"] not in kept):
            _insist_gone(partial(api.remove_volume, volume["Name"]))
        for network in there["network"]:
            _insist_gone(partial(api.remove_network, network["Id"]))

    def remove_containers(self, api: APIClient, containers: Iterable[Mapping[str, Any]]) -> None:
        for one in containers:
            if one.get("State") == "paused":
                _lenient(partial(api.unpause, one["Id"]))
            _insist_gone(partial(api.remove_container, one["Id"], v=True, force=True))

    def of_snapshot(self, api: APIClient, snapshot: str | None = None) -> list[dict[str, Any]]:
        """Containers that are at work for a snapshot."""
        wanted = [f"{FLEET}={self.layout.fleet}", f"{SNAPSHOT}={snapshot}" if snapshot else SNAPSHOT]
        return self._containers(api, wanted)

    def remove(self, api: APIClient, desk: Desk) -> None:
        self.end(api, desk)
        self.layout.remove(desk)

    # holding still, and measuring

    def freeze(self, api: APIClient, desk: Desk) -> bool:
        """Returns whether it went on until now."""
        if self.must_run(api, desk)["State"]["Paused"]:
            return False
        from docker.errors import APIError

        try:
            _until_done(partial(api.pause, desk.name), lambda e: "freeze" in str(e.explanation))
        except APIError as e:
            if "already paused" not in str(e.explanation):
                raise
            return False
        return True

    def thaw(self, api: APIClient, desk: Desk) -> None:
        if (found := self.running(api, desk)) and found["State"]["Paused"]:
            api.unpause(desk.name)

    def usage(self, api: APIClient, desk: Desk) -> Usage:
        self.must_run(api, desk)
        said = api.stats(desk.name, stream=False, one_shot=True)
        memory = said.get("memory_stats", {}).get("stats", {})
        private = memory.get("total_rss", memory.get("anon"))  # of cgroup v1, of v2
        cpu = said.get("cpu_stats", {}).get("cpu_usage", {}).get("total_usage")
        return Usage(private, said.get("pids_stats", {}).get("current"), None if cpu is None else cpu / 1e9)


def is_polled(found: Mapping[str, Any]) -> bool:
    """Whether an image, or a container of it, has a screen that x11vnc looks at."""
    return (found["Config"].get("Labels") or {}).get(SCREEN) == "x11vnc"


def _how(state: Mapping[str, Any]) -> str:
    why = f"exit code {state['ExitCode']}"
    if state.get("OOMKilled"):
        why += ": it ran out of its memory limit"
    return why + (f": {state['Error']}" if state.get("Error") else "")


def _lenient(work: Callable[[], object]) -> None:
    """What somebody else may be doing, or may have done, at the same moment."""
    from docker.errors import APIError

    try:
        work()
    except APIError as e:
        if e.status_code not in (404, 409):
            raise


def _insist_gone(remove: Callable[[], object]) -> None:
    """Remove something until it is gone: another may be at it, or what uses it only just ending and still busy."""
    _until_done(remove, lambda e: e.status_code in (403, 409, 500), gone_is_done=True)


def _until_done(work: Callable[[], object], again: Callable[[APIError], bool], *, gone_is_done: bool = False) -> None:
    """Try until it works, while the engine refuses for reasons that pass: a busy machine is slow to freeze, too."""
    from docker.errors import APIError, NotFound

    until = time.monotonic() + _SECONDS_TO_END
    while True:
        try:
            work()
        except APIError as e:
            if gone_is_done and isinstance(e, NotFound):
                return
            if not again(e) or time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return
