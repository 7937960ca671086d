"""The house: imports at module level run downwards, in no circle, and nothing leans on the command line."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "barlow"
# From the ground up: a room imports from rooms before it, never from one behind it.
FLOORS = (
    *("errors", "bounds", "records", "files", "devices", "ranks", "schedules", "numbers", "completion"),
    *("config", "objectives", "views", "data", "models", "plan", "methods", "run", "importing", "evaluation"),
    *("diagnostics", "embedding", "tables", "model_card", "exporting", "training", "report", "serve", "studies"),
    *("estimator", "doctor", "demo", "cli", "__main__"),
)
PURE = ("objectives", "views", "evaluation")  # plain arguments, never the settings
# Two rooms that lean on each other by design: a plan asks a method for its rate, a method works from a plan.
PAIRS = {("plan", "methods")}


def imports(file: Path) -> set[str]:
    """Modules of the package that a file imports at module level, by their place below it."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("barlow.") for alias in node.names if alias.name.startswith("barlow.")}
        if isinstance(node, ast.ImportFrom):
            package = file.relative_to(ROOT).parts[: -node.level] if node.level else ()
            base = ".".join([*package, *([node.module.removeprefix("barlow").strip(".")] if node.module else [])])
            if node.level or (node.module or "").split(".")[0] == "barlow":
                # `from package import module` needs the module; `from package import name` needs the package itself.
                submodules = [f"{base}.{alias.name}".strip(".") for alias in node.names]
                names |= {name if name in FILES else base for name in submodules}
    return names - {""}


def room(name: str) -> str:
    return name.split(".")[0]


# A package stands under its own name, so that a circle through its `__init__` shows.
FILES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(ROOT.rglob("*.py"))
}


def test_every_room_has_a_floor() -> None:
    assert {room(name) for name in FILES} - {"__init__"} == set(FLOORS)


@pytest.mark.parametrize("name", [name for name in FILES if name != "__init__"])
def test_a_module_imports_from_lower_floors(name: str) -> None:
    here = room(name)
    for other in {room(module) for module in imports(FILES[name])} - {here}:
        if (here, other) not in PAIRS:
            assert FLOORS.index(other) < FLOORS.index(here), f"{name} imports {other}"
        assert not (here in PURE and other == "config"), f"{name} imports the settings"


def test_modules_import_in_no_circle() -> None:
    graph = {name: {n for n in imports(file) if n in FILES and n != name} for name, file in FILES.items()}
    while leaves := {name for name, needed in graph.items() if not needed}:
        graph = {name: needed - leaves for name, needed in graph.items() if name not in leaves}
    assert not graph


def test_no_module_is_called_utils() -> None:
    assert not [name for name in FILES if "util" in name]
