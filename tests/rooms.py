"""The rooms of the repository and the arrows between them, read from the imports: `python -m tests.rooms` prints them.

A room is a folder of modules below `models`, `service` or `training`; modules that lie in `service` itself are rooms of
their own.
"""

import ast
from collections import defaultdict

from tests.paths import ROOT

PARTS = ("models", "service", "training")
SHARED = "installation"
"""The one module beside the parts, which every room may import."""


def modules():
    """Path of every module by its full name."""
    found = {f"tapline.{SHARED}": ROOT / "src" / "tapline" / f"{SHARED}.py"}
    for part in PARTS:
        for path in sorted((ROOT / part).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found["tapline." + name.removesuffix(".__init__")] = path
    return found


def imported(path):
    """Every name that a file imports: `a.b` for `import a.b`, `a.b.c` for `from a.b import c`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path):
    """The room of a file, by its path."""
    relative = path.relative_to(ROOT)
    if relative.parts[0] == "service" and len(relative.parts) == 2 and relative.stem != "__init__":
        return f"service/{relative.stem}"
    return relative.parent.as_posix()


def module_arrows():
    """By module the modules that it imports, as full names."""
    known = modules()
    found = {}
    for name, path in known.items():
        targets = {full if full in known else full.rpartition(".")[0] for full in imported(path)}
        found[name] = sorted((targets & set(known)) - {name, f"tapline.{SHARED}"})
    return found


def arrows():
    """By room the rooms that it imports."""
    known, found = modules(), defaultdict(set)
    for name, targets in module_arrows().items():
        found[room(known[name])] |= {room(known[target]) for target in targets}
    found.pop("src/tapline")
    return {name: sorted(targets - {name}) for name, targets in sorted(found.items())}


def graph():
    """The arrows as text."""
    return "\n".join(f"{name:23} {' '.join(targets)}".rstrip() for name, targets in arrows().items())


def sizes():
    """Modules and lines of each room, as text."""
    lines = defaultdict(list)
    for path in modules().values():
        lines[room(path)].append(len(path.read_text().splitlines()))
    return "\n".join(f"{len(found):3} modules {sum(found):6} lines  {name}" for name, found in sorted(lines.items()))


if __name__ == "__main__":
    print(f"{graph()}\n\n{sizes()}")
