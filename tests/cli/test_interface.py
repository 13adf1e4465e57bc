"""The names that users and scripts rely on: every command offered so far exists with its options."""

import pytest

from tests.cli import tree

PROMISED = {
    "up": {"--host", "--port"},
    "down": set(),
    "status": set(),
    "doctor": {"--fix"},
    "profile list": set(),
    "profile show": set(),
    "profile check": set(),
    "lease acquire": {"--agent", "--profile", "--desktop", "--resource", "--ttl", "--wait", "--no-wait", "--view"},
    "lease list": set(),
    "lease show": set(),
    "lease renew": {"--ttl"},
    "lease release": set(),
    "lease pause": {"--reason"},
    "lease resume": set(),
    "lease take": {"--reason"},
    "lease watch": {"--control", "--web", "--open", "--for"},
    "lease revoke": {"--bar", "--reason", "--snapshot"},
    "lease reassign": {"--to", "--clean", "--as-is"},
    "desktop list": set(),
    "desktop show": set(),
    "desktop exec": set(),
    "desktop logs": set(),
    "desktop freeze": set(),
    "desktop thaw": set(),
    "desktop remove": set(),
    "agent add": {"--profile", "--desktop", "--resource", "--leases", "--children"},
    "agent list": set(),
    "agent rotate": set(),
    "agent unbar": set(),
    "agent remove": set(),
    "operator add": {"--role"},
    "operator list": set(),
    "operator rotate": set(),
    "operator remove": set(),
    "screenshot": {"-o", "--region", "--max-edge", "--format"},
    "act": {"--screenshot", "--intent", "--approval"},
    "frames list": {"--lease"},
    "frames get": {"-o"},
    "frames prune": {"--older", "--lease"},
    "cp": set(),
    "snapshot save": set(),
    "snapshot list": set(),
    "snapshot restore": set(),
    "snapshot delete": set(),
    "approval list": {"--all", "--watch"},
    "approval show": {"-o"},
    "approval approve": {"--reason"},
    "approval deny": {"--reason"},
    "worktree list": {"--all"},
    "worktree show": set(),
    "worktree diff": set(),
    "worktree merge": {"--reason"},
    "worktree discard": set(),
    "serve-machines": set(),
    "worktree prune": {"--older"},
    "mcp": {"--agent", "--profile"},
    "mcp-config": {"--client"},
    "codex": {"--agent", "--profile", "--wait", "--worktree", "--repo", "--into"},
    "run": {"--profile", "--desktops", "--beside", "--wait", "--put", "--keep-artifacts"},
    "image list": set(),
    "image build": set(),
    "audit show": set(),
    "audit verify": set(),
    "audit export": set(),
}
MAY_COME_AND_GO = {"bench"}


@pytest.mark.parametrize("words", PROMISED)
def test_command_has_its_options(words: str) -> None:
    assert PROMISED[words] <= tree.options(tree.named(words))


def test_there_is_nothing_else() -> None:
    assert {words for words, _ in tree.commands()} - MAY_COME_AND_GO == set(PROMISED)


def test_positional_arguments_in_order() -> None:
    arguments = {
        words: [p.name for p in command.params if p.param_type_name == "argument"] for words, command in tree.commands()
    }
    assert arguments["cp"] == ["source", "target"]
    assert arguments["act"] == ["lease", "actions"]
    assert arguments["desktop exec"] == ["desktop", "words"]
    assert arguments["screenshot"] == ["lease"]
    assert arguments["profile check"] == ["file"]


def test_waits_a_minute_unless_told_otherwise() -> None:
    (wait,) = [p for p in tree.named("lease acquire").params if p.name == "wait"]
    assert wait.default == "60s"


def test_a_revoked_agent_is_barred_for_ten_minutes_unless_told_otherwise() -> None:
    (bar,) = [p for p in tree.named("lease revoke").params if p.name == "bar"]
    assert bar.default == "10m"
