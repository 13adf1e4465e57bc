"""Profiles over HTTP: the recipes this fleet knows."""

from fastapi import APIRouter

from cu_fleet.api.auth import At
from cu_fleet.api.problems import raises
from cu_fleet.api.words import NamePath
from cu_fleet.model.profile import Profile
from cu_fleet.model.record import Value

router = APIRouter(prefix="/v1/profiles", tags=["profiles"])


class ProfileView(Profile):
    source: str  # the file it was read from


class Profiles(Value):
    profiles: list[ProfileView]


@router.get("", summary="List profiles")
async def profiles(at: At) -> Profiles:
    """Shipped ones and the home's own."""
    return Profiles(profiles=[_view(*pair) for pair in await at.fleet.profiles(at.who)])


@router.get("/{name}", summary="Show a profile", responses=raises(404))
async def profile(name: NamePath, at: At) -> ProfileView:
    """One recipe, whole."""
    return _view(*await at.fleet.profile(at.who, name))


def _view(profile: Profile, source: str) -> ProfileView:
    return ProfileView(**dict(profile), source=source)
