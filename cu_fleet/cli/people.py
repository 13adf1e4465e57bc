"""`cu-fleet agent` and `cu-fleet operator`: who may lease what, and who may supervise."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from cu_fleet.cli import complete, connect, output
from cu_fleet.cli.common import Json, command, given, group

agent = group("agent", "Who may lease what.")
operator = group("operator", "Who may supervise.")

AgentName = Annotated[str, typer.Argument(metavar="AGENT", help="The agent's name.", autocompletion=complete.agents)]
OperatorName = Annotated[
    str, typer.Argument(metavar="OPERATOR", help="The operator's name.", autocompletion=complete.operators)
]


class Role(StrEnum):
    observer = "observer"
    operator = "operator"
    admin = "admin"


def register(root: typer.Typer) -> None:
    root.add_typer(agent)
    root.add_typer(operator)


@command(
    agent,
    "add",
    "cu-fleet agent add codex-a",
    "cu-fleet agent add codex-a --profile local --desktop 'finance-*' --resource browser:bank --leases 3",
)
def add_agent(
    name: AgentName,
    profile: Annotated[
        list[str] | None,
        typer.Option("--profile", help="A profile it may lease, or a pattern as in a shell; repeatable (default *)."),
    ] = None,
    desktop: Annotated[
        list[str] | None, typer.Option("--desktop", help="A named desktop it may ask for; repeatable (default none).")
    ] = None,
    resource: Annotated[
        list[str] | None, typer.Option("--resource", help="A resource it may hold; repeatable (default none).")
    ] = None,
    leases: Annotated[int | None, typer.Option("--leases", min=0, help="How many at once (default 1).")] = None,
    children: Annotated[
        int | None, typer.Option("--children", min=0, help="How many child agents it may add (default 0).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Add an agent and print its token, which is shown only now."""
    grants = given(profiles=profile, desktops=desktop, resources=resource, leases=leases, children=children)
    view = connect.post("/v1/agents", {"agent": name, **{k: v for k, v in grants.items() if v != []}})
    _with_token(f"agent {view['agent']} may lease {_grants(view['grants'])}", view, as_json)


@command(agent, "list", "cu-fleet agent list", "cu-fleet agent list --json")
def list_agents(as_json: Json = False) -> None:
    """Show all agents, what they may lease, and who is barred."""
    answer = connect.get("/v1/agents")
    if as_json:
        return output.document(answer)
    rows = [_agent_row(view) for view in answer["agents"]]
    empty = "There are no agents. Add one: cu-fleet agent add NAME (a lease acquired by an operator adds its agent too)"
    output.table(["agent", "parent", "leases", "may lease", "barred until", "why"], rows, empty=empty)
    return None


def _agent_row(view: dict[str, Any]) -> list[output.Cell]:
    leases = f"{view['leases']} of {view['grants']['leases']}"
    return [view["agent"], view["parent"], leases, _grants(view["grants"]), view["barred_until"], view["bar_reason"]]


def _grants(grants: dict[str, Any]) -> str:
    kinds = {"profiles": "profiles", "desktops": "desktops", "resources": "resources"}
    parts = [f"{word} {' '.join(grants[kind])}" for kind, word in kinds.items() if grants[kind]]
    return ", ".join(parts) or "nothing"


@command(agent, "rotate", "cu-fleet agent rotate codex-a")
def rotate_agent(name: AgentName, as_json: Json = False) -> None:
    """Give an agent a new token; the old one opens nothing from now on."""
    view = connect.post(connect.path("agents", name, "rotate"), {})
    _with_token(f"agent {name} has a new token", view, as_json)


@command(agent, "unbar", "cu-fleet agent unbar codex-a")
def unbar_agent(name: AgentName, as_json: Json = False) -> None:
    """Let an agent lease again that a revoke has barred."""
    view = connect.post(connect.path("agents", name, "unbar"), {})
    _done(view, f"agent {name} may lease again", as_json)


@command(agent, "remove", "cu-fleet agent remove codex-a")
def remove_agent(name: AgentName, as_json: Json = False) -> None:
    """Remove an agent; its token opens nothing from now on."""
    connect.run(lambda wire: connect.ask(wire, "DELETE", connect.path("agents", name)))
    _done({"agent": name, "removed": True}, f"agent {name} is removed", as_json)


@command(operator, "add", "cu-fleet operator add ana", "cu-fleet operator add dashboard --role observer --json")
def add_operator(
    name: OperatorName,
    role: Annotated[
        Role, typer.Option("--role", help="observer looks, operator supervises, admin also adds people.")
    ] = Role.operator,
    as_json: Json = False,
) -> None:
    """Add an operator and print their token, which is shown only now."""
    view = connect.post("/v1/operators", {"operator": name, "role": role.value})
    _with_token(f"operator {name} is added, role {role.value}", view, as_json)


@command(operator, "list", "cu-fleet operator list", "cu-fleet operator list --json")
def list_operators(as_json: Json = False) -> None:
    """Show who may supervise, and how far."""
    answer = connect.get("/v1/operators")
    if as_json:
        return output.document(answer)
    rows = [[view["operator"], view["role"], view["created_at"]] for view in answer["operators"]]
    empty = "There are no operators besides the owner of the home. Add one: cu-fleet operator add NAME"
    output.table(["operator", "role", "added"], rows, empty=empty)
    return None


@command(operator, "rotate", "cu-fleet operator rotate ana")
def rotate_operator(name: OperatorName, as_json: Json = False) -> None:
    """Give an operator a new token; the old one opens nothing from now on."""
    view = connect.post(connect.path("operators", name, "rotate"), {})
    _with_token(f"operator {name} has a new token", view, as_json)


@command(operator, "remove", "cu-fleet operator remove ana")
def remove_operator(name: OperatorName, as_json: Json = False) -> None:
    """Remove an operator; their token opens nothing from now on."""
    connect.run(lambda wire: connect.ask(wire, "DELETE", connect.path("operators", name)))
    _done({"operator": name, "removed": True}, f"operator {name} is removed", as_json)


def _with_token(sentence: str, view: dict[str, Any], as_json: bool) -> None:
    """The token alone on standard output, so that `$(cu-fleet agent add x)` is the token."""
    if as_json:
        return output.document(view)
    output.note(f"{sentence}; this token is shown only now:")
    output.say(view["token"])
    return None


def _done(view: dict[str, Any], sentence: str, as_json: bool) -> None:
    if as_json:
        output.document(view)
    else:
        output.say(sentence)
