"""The images of desktops: which there are, and building one, which is proved before it is used.

A new image gets its name only when a desktop of it has proved its screen, pointer, keyboard and clipboard; until then
the old one stays in use. It is built again only if its recipe, or the image it rests on, has changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cu_fleet.backends.docker.building import Say, as_layer, by_dockerfile, from_packages, load, of_packages
from cu_fleet.backends.docker.engine import Engine, image_of, patient
from cu_fleet.backends.docker.house import is_polled
from cu_fleet.backends.docker.recipes import DIGEST, IMAGES, PACKAGED, Recipe, names
from cu_fleet.backends.docker.trial import prove

if TYPE_CHECKING:
    from docker import APIClient

__all__ = ["IMAGES", "Image", "Say", "build", "from_packages", "listing", "load", "names", "prove"]
_SECONDS_TO_BUILD = 1800


@dataclass(frozen=True)
class Image:
    name: str
    id: str | None  # None: not built yet
    size_bytes: int = 0
    created: str = ""
    current: bool = True  # False: its recipe, or the image it rests on, has changed since


def listing(api: APIClient) -> list[Image]:
    return [_state(api, Recipe(name)) for name in names()]


def _state(api: APIClient, recipe: Recipe) -> Image:
    found = image_of(api, recipe.image)
    if found is None:
        return Image(recipe.image, None)
    current = (found["Config"].get("Labels") or {}).get(DIGEST) == _digest(api, recipe)
    return Image(recipe.image, found["Id"], found["Size"], found["Created"], current)


def _digest(api: APIClient, recipe: Recipe) -> str:
    """What the recipe comes to on this engine."""
    base = image_of(api, recipe.base) if recipe.under else None
    return recipe.digest(str(base["Id"]) if base else "")


async def build(engine: Engine, name: str, say: Say, base: str | None = None, *, fresh: bool = False) -> Image:
    """Build an image, prove it, and only then give it its name.

    `base` is one to build from instead of the recipe's; `fresh` builds also what is there and up to date.
    """
    recipe = Recipe(name)
    if recipe.under and base is None:
        await build(engine, recipe.under.name, say)
    there = await engine.do(lambda api: _state(api, recipe))
    if there.id and there.current and base is None and not fresh:
        say(f"{recipe.image} is there, and its recipe has not changed")
        return there
    await engine.do(lambda api: _build(api, recipe, say, base, fresh=fresh), slow=True)
    try:
        say(f"trying a desktop of {recipe.image}")
        candidate = await engine.do(lambda api: image_of(api, recipe.candidate))
        await prove(engine.host, recipe.candidate, say, polled=bool(candidate and is_polled(candidate)))
        await engine.do(lambda api: _replace(api, recipe))
    finally:
        await engine.do(lambda api: _untag(api, recipe.candidate))
    return await engine.do(lambda api: _state(api, recipe))


def _replace(api: APIClient, recipe: Recipe) -> None:
    """Give the image its name, and remove the one that had it, unless a desktop or a snapshot still needs that."""
    from docker.errors import APIError

    before, new = image_of(api, recipe.image), image_of(api, recipe.candidate)
    api.tag(recipe.candidate, recipe.image, "latest")
    if before and new and before["Id"] != new["Id"] and not before.get("RepoTags", [])[1:]:
        try:
            api.remove_image(before["Id"])
        except APIError as e:
            if e.status_code not in (404, 409):
                raise


def _untag(api: APIClient, name: str) -> None:
    if image_of(api, name):
        api.remove_image(name)


def _build(api: APIClient, recipe: Recipe, say: Say, base: str | None, *, fresh: bool) -> None:
    digest = _digest(api, recipe)
    with patient(api, _SECONDS_TO_BUILD):
        if base is None and recipe.under and _packaged(image_of(api, recipe.base)):
            as_layer(api, recipe, recipe.base, digest, say)
        elif base is None and recipe.under is None and not _pulled(api, recipe.base, say):
            of_packages(api, recipe, digest, say)
        else:
            by_dockerfile(api, recipe, base or recipe.base, digest, say, fresh=fresh)


def _packaged(base: dict[str, Any] | None) -> bool:
    """Whether the image it rests on was built without a registry, so that this one has to be, too."""
    return base is not None and PACKAGED in (base["Config"].get("Labels") or {})


def _pulled(api: APIClient, base: str, say: Say) -> bool:
    """Whether the public base is here, or could be had."""
    from docker.errors import APIError

    say(f"fetching {base}")
    repository, _, tag = base.partition(":")
    try:
        api.pull(repository, tag=tag)
    except APIError as e:
        say(f"no image registry can be reached ({e.explanation}): building from the distribution's packages instead")
        return image_of(api, base) is not None
    return True
