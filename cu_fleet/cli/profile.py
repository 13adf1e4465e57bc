"""`cu-fleet profile`: the recipes of desktops. Needs no controller."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cu_fleet.cli import complete, output
from cu_fleet.cli.common import Json, command, group
from cu_fleet.model.errors import FleetError, NotFoundError

app = group("profile", "The recipes desktops are made from.")


def register(root: typer.Typer) -> None:
    root.add_typer(app)


def _known() -> list[Any]:
    from cu_fleet.cli.root import profiles
    from cu_fleet.settings import read_settings

    return sorted(profiles(read_settings()), key=lambda entry: entry[0].name if entry[0] else entry[1].stem)


@command(app, "list", "cu-fleet profile list", "cu-fleet profile list --json")
def list_(as_json: Json = False) -> None:
    """Show all profiles, where each comes from, and which cannot be used."""
    known = _known()
    if as_json:
        return output.document({"profiles": [_json(*entry) for entry in known]})
    rows = [_row(*entry) for entry in known]
    empty = "There are no profiles. Put one in $CU_FLEET_HOME/profiles and try: cu-fleet profile check FILE"
    output.table(
        ["profile", "backend", "screen", "network", "gates", "warm", "source", "description"], rows, empty=empty
    )
    return None


def _row(profile: Any, source: Path, error: FleetError | None) -> list[output.Cell]:
    if error:
        return [source.stem, "", "", "", "", "", str(source), f"broken: {error.what}"]
    screen = f"{profile.screen.width}x{profile.screen.height}"
    text = profile.description
    return [profile.name, profile.backend, screen, profile.network, profile.gates, profile.warm, str(source), text]


def _json(profile: Any, source: Path, error: FleetError | None) -> dict[str, Any]:
    fields = profile.model_dump(mode="json") if profile else {"name": source.stem}
    return {**fields, "source": str(source), "problem": error.what if error else None}


@command(app, "show", "cu-fleet profile show local", "cu-fleet profile show local --json")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The profile's name.", autocompletion=complete.profiles)],
    as_json: Json = False,
) -> None:
    """Show one profile with every key, also those its file leaves to their defaults."""
    profile, source = _one(name)
    if as_json:
        return output.document(_json(profile, source, None))
    import yaml

    output.say(f"# {source}")
    text = yaml.safe_dump(profile.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    output.say(text.rstrip())
    return None


def _one(name: str) -> tuple[Any, Path]:
    known = _known()
    for profile, source, error in known:
        if error and source.stem == name:
            raise error
        if profile and profile.name == name:
            return profile, source
    names = ", ".join(sorted(profile.name for profile, _, _ in known if profile))
    raise NotFoundError(f"there is no profile {name}", remedy=f"there are {names}", code="no_profile", profile=name)


@command(app, "check", "cu-fleet profile check profiles/local.yaml", "cu-fleet profile check mine.yaml --json")
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A profile's YAML file.")], as_json: Json = False
) -> None:
    """Check a profile's file, and say line, key and what was expected if something is wrong with it."""
    from cu_fleet.model.profile import read_profile

    profile = read_profile(file)
    if as_json:
        output.document({"ok": True, **_json(profile, file, None)})
    else:
        output.say(f"{file} is a good profile: {profile.name}, backend {profile.backend}")
