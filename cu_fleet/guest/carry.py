"""How the helper's modules get into a desktop: as one argument of `python3 -I -c`, whatever the desktop is.

Nothing of cu_fleet is installed there, and nothing can be mounted into what already runs. So the argument holds the
text of every module and a finder that imports them from it under their own names, each when it is first imported: one
that needs more than the standard library and python3-xlib is imported by the request that wants it, and its absence is
that request's refusal. An argument ends at 128 KiB.
"""

from importlib.resources import files

_PACKAGE = "cu_fleet.guest"
_NOT_OURS = (
    *("__init__.py", "backdrop.py", "carry.py", "channel.py", "files.py", "frames.py", "init.py", "port.py"),
    *("slot.py", "tunnel.py"),
)
_FINDER = """\
import sys
from importlib.machinery import ModuleSpec
class Carried:
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self, is_package=name in PACKAGES) if name in SOURCES else None
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        name = module.__name__
        exec(compile(SOURCES[name], name, "exec"), module.__dict__)
sys.meta_path.insert(0, Carried())
"""


def carried(first: str = "helper") -> str:
    """The program to give to `python3 -I -c`: the `main` of this module, with all others at hand."""
    packages = {"cu_fleet": "", _PACKAGE: ""}
    sources = {**packages, **{f"{_PACKAGE}.{name}": text for name, text in _modules()}}
    return (
        f"SOURCES = {sources!r}\nPACKAGES = {set(packages)!r}\n{_FINDER}from {_PACKAGE}.{first} import main\nmain()\n"
    )


def _modules() -> list[tuple[str, str]]:
    here = sorted((f for f in files(_PACKAGE).iterdir() if f.name.endswith(".py")), key=lambda f: f.name)
    return [(f.name.removesuffix(".py"), f.read_text("utf-8")) for f in here if f.name not in _NOT_OURS]
