"""Who may do what: operators with a role, agents with grants, and the bars that a revoke leaves."""

from enum import StrEnum
from fnmatch import fnmatchcase
from typing import ClassVar

from cu_fleet.model.errors import DeniedError
from cu_fleet.model.names import Name
from cu_fleet.model.record import Record, Value


class Role(StrEnum):
    OBSERVER = "observer"  # looks
    OPERATOR = "operator"  # supervises and approves
    ADMIN = "admin"  # also adds and removes agents and operators

    def includes(self, other: "Role") -> bool:
        order = list(Role)
        return order.index(self) >= order.index(other)


CHILDREN = 8  # that an agent may add which a door of its own made: each of its processes gets a name and a desktop


class Operator(Record):
    TABLE: ClassVar[str] = "operator"
    KEY: ClassVar[str] = "name"

    name: Name
    role: Role = Role.OPERATOR
    epoch: int = 1  # `EPOCH` counts them for everybody: tokens of earlier ones open nothing, whoever has the name now
    created_at: float


class Grants(Value):
    """What an agent may lease. Patterns as in a shell: `*` is everything, an empty list nothing."""

    profiles: tuple[str, ...] = ("*",)
    desktops: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    leases: int = 1  # how many at once, waiting ones included
    children: int = 0  # how many child agents it may add


class Agent(Record):
    TABLE: ClassVar[str] = "agent"
    KEY: ClassVar[str] = "name"
    COLUMNS: ClassVar[tuple[str, ...]] = ("parent",)

    name: Name
    grants: Grants = Grants()
    parent: str | None = None
    epoch: int = 1
    created_at: float
    barred_until: float | None = None  # None: not barred; `math.inf` is stored as FOREVER
    bar_reason: str = ""


EPOCH = "epoch"  # the store's counter
FOREVER = 253402300799.0  # the last second of the year 9999: sorts, prints and stores like any other time


_WILD = frozenset("*?[")


def matches(patterns: tuple[str, ...], name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def covers(wider: str, pattern: str) -> bool:
    """Whether all that the one pattern matches, the other does too; of those hard to compare only like is covered."""
    start = wider.removesuffix("*")
    if not _WILD & set(pattern):
        return matches((wider,), pattern)
    return wider == pattern or (start != wider and not _WILD & set(start) and pattern.startswith(start))


def check_grants(agent: Agent, profile: str, desktop: str | None, resources: tuple[str, ...], held: int) -> None:
    """Refuse what the agent's grants do not cover. `held` is how many live leases it has."""

    def refuse(what: str, needed: str) -> None:
        raise DeniedError(
            f"agent {agent.name} may not lease {what}",
            remedy=f"an operator can allow it: cu-fleet agent add {agent.name} {needed}",
            code="not_granted",
            agent=agent.name,
        )

    if not matches(agent.grants.profiles, profile):
        refuse(f"profile {profile}", f"--profile {profile}")
    if desktop is not None and not matches(agent.grants.desktops, desktop):
        refuse(f"desktop {desktop}", f"--desktop {desktop}")
    for resource in resources:
        if not matches(agent.grants.resources, resource):
            refuse(f"resource {resource}", f"--resource {resource}")
    if held >= agent.grants.leases:
        raise DeniedError(
            f"agent {agent.name} has {held} of the {agent.grants.leases} leases it may have at once",
            remedy="release one first, or an operator can raise the number with --leases",
            code="too_many_leases",
            agent=agent.name,
            held=held,
        )


def check_within(parent: Grants, child: Grants) -> None:
    """A child may have no more than its parent: every pattern must be one the parent's patterns cover."""
    for kind in ("profiles", "desktops", "resources"):
        for pattern in getattr(child, kind):
            if not any(covers(wider, pattern) for wider in getattr(parent, kind)):
                raise DeniedError(
                    f"a child agent cannot be granted {kind[:-1]} {pattern!r}: its parent does not have it",
                    remedy="grant no more than the parent has",
                    code="beyond_parent",
                )
    if child.leases > parent.leases or child.children > 0:
        raise DeniedError(
            f"a child agent cannot have {child.leases} leases and {child.children} children: "
            f"its parent has {parent.leases} leases, and grandchildren are not allowed",
            code="beyond_parent",
        )


def check_bar(agent: Agent, now: float, until: str) -> None:
    """Refuse an agent that a revoke has barred; `until` is the time in words."""
    if agent.barred_until is not None and now < agent.barred_until:
        why = f": {agent.bar_reason}" if agent.bar_reason else ""
        raise DeniedError(
            f"agent {agent.name} is barred from leasing {until}{why}",
            remedy="an operator can lift it: cu-fleet agent unbar " + agent.name,
            code="barred",
            agent=agent.name,
            until=agent.barred_until,
        )


class Caller(Value):
    """Who stands at a door, after their token or socket has been recognised."""

    operator: str | None = None
    role: Role | None = None
    agent: str | None = None
    lease: str | None = None  # a lease's own token: opens that lease and nothing else

    @property
    def who(self) -> str:
        """As tables and the audit record show it."""
        return f"operator {self.operator}" if self.operator else f"agent {self.agent}"

    def needs(self, role: Role) -> None:
        """Refuse a caller who is not an operator of at least this role."""
        if self.role is None or not self.role.includes(role):
            raise DeniedError(
                f"{self.who} may not do this: it needs an operator with the role {role.value}",
                code="needs_operator",
                needs=role.value,
            )
