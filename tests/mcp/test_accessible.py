"""What is told of a tree and what is not, over a tree of our own; and what references mean later."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from cu_fleet.controller.accessible import read
from cu_fleet.guest.accessible import MOST_NODES, ROOT, STATES, Reader
from cu_fleet.guest.terms import RefusedError
from cu_fleet.model.desktop import Desktop
from cu_fleet.model.errors import BrokenError
from cu_fleet.model.lease import Lease

Where = tuple[str, str]
HERE = ("showing", "visible", "enabled", "sensitive")


class GoneError(Exception):
    """As the bus says that nobody is there; or, late, that nobody has answered."""

    late = False


@dataclass
class Node:
    role: str
    name: str = ""
    states: tuple[str, ...] = HERE
    box: tuple[int, int, int, int] = (10, 20, 30, 40)
    text: str | None = None
    inner: list["Node"] = field(default_factory=list)
    gone: bool = False


class Tree:
    """A bus with these programs on it."""

    failed = GoneError
    busy = False  # whether programs take too long

    def late(self, error: GoneError) -> bool:
        return error.late

    def __init__(self, **apps: Node) -> None:
        self.apps = apps
        self.nodes: dict[Where, Node] = {}
        for name, app in apps.items():
            self._add(f":{name}", "", app)

    def _add(self, bus: str, path: str, node: Node) -> None:
        self.nodes[bus, path or "/"] = node
        for number, child in enumerate(node.inner):
            self._add(bus, f"{path}/{number}", child)

    def _node(self, where: Where) -> Node:
        node = self.nodes[where]
        if node.gone or self.busy:
            error = GoneError()
            error.late = self.busy
            raise error
        return node

    def children(self, where: Where) -> list[Where]:
        if where == ROOT:
            return [(f":{name}", "/") for name in self.apps]
        bus, path = where
        return [(bus, f"{path.rstrip('/')}/{number}") for number in range(len(self._node(where).inner))]

    def pid(self, name: str) -> int:
        return 100 + list(self.apps).index(name[1:])

    def get(self, where: Where, interface: str, name: str) -> Any:
        node = self._node(where)
        return {"Name": node.name, "ToolkitName": "gtk", "CurrentValue": 5.0}[name]

    def call(self, bus: str, path: str, method: str, types: str = "", *args: object) -> Any:
        node = self._node((bus, path))
        match method.rpartition(".")[2]:
            case "GetState":
                bits = sum(1 << STATES[state] for state in node.states)
                return ((bits & 0xFFFFFFFF, bits >> 32),)
            case "GetRoleName":
                return (node.role,)
            case "GetExtents":
                return (node.box,)
            case "GetText" if node.text is not None:
                return (node.text,)
        raise GoneError


def editor() -> Node:
    inner = [
        Node("filler", inner=[Node("menu", "File"), Node("menu", "Edit", ("visible",))]),
        Node("panel", inner=[Node("text", "", text="hello"), Node("password text", "Secret", text="hunter2")]),
        Node("push button", "Save", (*HERE[:2], "focused"), inner=[Node("static", "Save")]),
        Node("static", "Ready"),
        Node("static", "•"),
        Node("check box", "Wrap", (*HERE, "checked"), box=(0, 0, 0, 0)),
    ]
    return Node("application", "editor", inner=[Node("frame", "notes.txt", (*HERE, "active"), inner=inner)])


def told(reader: Reader, **asked: Any) -> list[tuple[str, str, str]]:
    return [(node["role"], node["name"], node["value"]) for node in reader.do_ui(**asked)["nodes"]]


def reader_of(**apps: Node) -> tuple[Reader, Tree]:
    tree = Tree(**apps)
    return Reader(tree), tree  # type: ignore[arg-type]  # a bus in all that is asked of it


def test_only_what_shows_and_matters_is_told() -> None:
    reader, _ = reader_of(editor=editor())
    assert told(reader) == [
        ("frame", "notes.txt", ""),
        ("menu", "File", ""),
        ("text", "", "hello"),
        ("password text", "Secret", ""),
        ("push button", "Save", ""),
        ("static", "Ready", ""),
    ]


def test_what_matters_of_an_element_is_noted() -> None:
    reader, _ = reader_of(editor=editor())
    (button,) = reader.do_ui(role="button")["nodes"]
    assert button["notes"] == ["focused", "disabled"]
    assert button["box"] == [10, 20, 30, 40]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"role": "MENU"}, ["File"]),
        ({"text": "hell"}, [""]),
        ({"text": "save", "role": "button"}, ["Save"]),
        ({"text": "nothing like it"}, []),
        ({"window": "notes", "role": "menu"}, ["File"]),
        ({"window": "EDITOR", "role": "menu"}, ["File"]),
        ({"window": "other"}, []),
    ],
)
def test_elements_are_found_by_role_and_text(asked: dict[str, str], found: list[str]) -> None:
    reader, _ = reader_of(editor=editor())
    assert [name for _, name, _ in told(reader, **asked)] == found


def test_the_program_with_the_focus_is_looked_at_first() -> None:
    other = Node("application", "shop", inner=[Node("frame", "Shop", HERE, inner=[Node("link", "Terms")])])
    reader, tree = reader_of(editor=editor(), shop=other)
    assert ("link", "Terms", "") not in told(reader)
    assert told(reader, focus=tree.pid(":shop")) == [("frame", "Shop", ""), ("link", "Terms", "")]
    windows = reader.do_ui(focus=tree.pid(":shop"))["windows"]
    assert [(x["app"], x["title"], x["active"]) for x in windows] == [
        ("editor", "notes.txt", False),
        ("shop", "Shop", True),
    ]


def test_a_program_that_does_not_answer_is_named_and_hides_no_other() -> None:
    dead = Node("application", "dead", inner=[Node("frame", "Dead", gone=True)])
    reader, _ = reader_of(dead=dead, editor=editor())
    answer = reader.do_ui()
    assert answer["silent"] == ["dead"]
    assert ("menu", "File", "") in told(reader)


def test_a_tree_without_end_is_cut_and_says_so() -> None:
    deep = Node("push button", "deepest")
    for number in range(300):
        deep = Node("push button", f"b{number}", inner=[deep])
    reader, _ = reader_of(
        deep=Node("application", "deep", inner=[Node("frame", "Deep", (*HERE, "active"), inner=[deep])])
    )
    answer = reader.do_ui()
    assert len(answer["nodes"]) <= 201
    assert answer["left_out"] > 0
    wide = [Node("push button", f"b{number}") for number in range(MOST_NODES + 50)]
    reader, _ = reader_of(wide=Node("application", "wide", inner=[Node("frame", "W", (*HERE, "active"), inner=wide)]))
    answer = reader.do_ui()
    assert (len(answer["nodes"]), answer["left_out"]) == (MOST_NODES, 51)


def test_a_reference_stays_with_its_element() -> None:
    reader, tree = reader_of(editor=editor())
    (button,) = reader.do_ui(text="Save")["nodes"]
    assert reader.do_ui(text="Save")["nodes"][0]["ref"] == button["ref"]
    found = reader.do_where(button["ref"])
    assert (found["x"], found["y"], found["name"]) == (25, 40, "Save")
    tree.nodes[":editor", "/0/2"].box = (100, 100, 10, 10)
    assert reader.do_where(button["ref"])["x"] == 105, "it has moved"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gone": True}, "is not on the screen any more"),
        ({"states": ("visible",)}, "is not on the screen any more"),
        ({"box": (0, 0, 0, 0)}, "is not on the screen any more"),
        ({"name": "Delete all"}, 'and is the push button "Delete all" now'),
    ],
)
def test_a_reference_says_when_it_is_stale(change: dict[str, Any], words: str) -> None:
    reader, tree = reader_of(editor=editor())
    (button,) = reader.do_ui(role="push button")["nodes"]
    for name, value in change.items():
        setattr(tree.nodes[":editor", "/0/2"], name, value)
    with pytest.raises(RefusedError, match=words) as caught:
        reader.do_where(button["ref"])
    assert caught.value.code == "stale"
    assert "ask ui again" in str(caught.value)


def test_a_busy_programs_element_is_not_said_to_be_gone() -> None:
    reader, tree = reader_of(editor=editor())
    (button,) = reader.do_ui(role="push button")["nodes"]
    tree.busy = True
    with pytest.raises(RefusedError, match="does not answer") as caught:
        reader.do_where(button["ref"])
    assert caught.value.code == "no_answer"
    tree.busy = False
    assert reader.do_where(button["ref"])["name"] == "Save"


def test_a_reference_nobody_gave_is_stale_too() -> None:
    reader, _ = reader_of(editor=editor())
    with pytest.raises(RefusedError, match="e99 is not known"):
        reader.do_where("e99")


def test_an_element_behind_another_programs_window_is_refused() -> None:
    over = Node("application", "over", inner=[Node("frame", "Over", HERE, box=(0, 0, 500, 500))])
    reader, tree = reader_of(editor=editor(), over=over)
    (button,) = reader.do_ui(text="Save", window="notes")["nodes"]
    with pytest.raises(RefusedError, match='is behind the window "Over"') as caught:
        reader.do_where(button["ref"], focus=tree.pid(":over"))
    assert caught.value.code == "covered"
    assert reader.do_where(button["ref"], focus=tree.pid(":editor"))


GOOD = {
    "windows": [{"app": "a", "toolkit": "gtk", "pid": 7, "title": "A", "active": True}],
    "nodes": [
        {"ref": "e1", "depth": 0, "role": "button", "name": "B", "value": "", "notes": [], "box": [100, 50, 20, 10]}
    ],
    "left_out": 0,
    "silent": [],
}
LEASE = Lease(id="ls_1", agent="a", profile="p", backend="b", asked_at=0.0, asked_by="x", view=500)
DESKTOP = Desktop(
    id="dk_1", profile="p", profile_digest="d", backend="b", boot="b", width=1000, height=800, created_at=0.0
)


def test_places_are_told_in_the_leases_view_and_mute_windows_by_name() -> None:
    windows: list[dict[str, object]] = [
        {"pid": 7, "title": "A", "class": "A", "focused": True},
        {"pid": 9, "title": "T", "class": "Tk", "focused": False},
    ]
    ui = read(GOOD, windows, LEASE, DESKTOP)
    assert (ui.nodes[0].x, ui.nodes[0].y) == (55, 27)
    assert [(x.title, x.toolkit, x.active) for x in ui.windows] == [("A", "gtk", True), ("T", "", False)]


@pytest.mark.parametrize(
    "change",
    [
        {"windows": None},
        {"windows": [5]},
        {"windows": [{"app": "a"}]},
        {"windows": [{**GOOD["windows"][0], "pid": []}]},  # type: ignore[index]
        {"nodes": "x"},
        {"nodes": [{"ref": "e1"}]},
        {"nodes": [{**GOOD["nodes"][0], "box": [0, 0]}]},  # type: ignore[index]
        {"nodes": [{**GOOD["nodes"][0], "name": "x" * 10_000}]},  # type: ignore[index]
        {"nodes": GOOD["nodes"] * 2000},  # type: ignore[operator]
        {"silent": 5},
        {"more": 1},
    ],
)
def test_what_a_hostile_desktop_tells_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BrokenError, match="dk_1 tells of its elements what nobody understands"):
        read({**GOOD, **change}, [], LEASE, DESKTOP)
