"""Imports between the rooms go one way, up the table of CONTRIBUTING.md.

An own test, since import-linter finds packages by importing them and so does not see that an editable installation
maps the top-level folders to `histodistill.*`.

    python tests/test_house.py [ROOT]    # how many modules, imports, floors, rooms and arrows between rooms there are
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
FOLDERS = ("pipelines", "training", "selection", "hub_cards")
#: The rooms of `training` from the ground up; those on one floor import nothing of each other. "scripts" are the
#: modules directly in `training/` that are launched with Accelerate.
FLOORS = (
    ("running",),
    ("data",),
    ("models",),
    ("metrics",),
    ("engine",),
    ("scripts",),
    ("distillation",),
    ("evaluation",),
    ("tables",),
    ("reporting",),
    ("end_to_end",),
    ("publishing", "demo_app"),
    ("benchmarks",),
    ("cli",),
)
#: What `selection` may import beside the standard library: what computes on arrays.
ARRAY_LIBRARIES = {"PIL", "faiss", "infomap", "numpy", "scipy", "sklearn", "threadpoolctl"}
#: Its two files that may do more: saving and loading a selector, and a script that measures.
IMPURE = {"selection.storage", "selection.benchmark"}
#: What a `--help` may import: it has no time for more, and the environment in which the pages of options are built
#: (`.ci/docs`) has no more.
LIBRARIES_OF_HELP = {"numpy"}

#: When an import may happen: see `Import`.
ALWAYS = ("at once", "late", "never")

#: Module → modules that it imports; all without the leading "histodistill.".
Imports = dict[str, set[str]]


@dataclass(frozen=True)
class Import:
    """One import of a file: the module's full name, the name taken from it if any, and where it stands.

    `when` it happens: "at once", "late" inside a function, or "never" for type checkers alone.
    """

    module: str
    name: str | None
    line: int
    when: str


@functools.cache
def module_files(root: Path = ROOT) -> Mapping[str, Path]:
    """Every module of the four folders: its name without the leading "histodistill." → its file."""
    files = (path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py")))
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


@functools.cache
def read_imports(path: Path) -> tuple[Import, ...]:
    """All imports of a file: those at the top, those inside functions, and those for type checkers alone."""
    tree = ast.parse(path.read_text())
    for_types = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    when = dict.fromkeys(tree.body, "at once") | {node: "never" for block in for_types for node in block.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, None, node.lineno, when.get(node, "late")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found += [Import(module, alias.name, node.lineno, when.get(node, "late")) for alias in node.names]
    return tuple(found)


def own_targets(module: str, files: Mapping[str, Path], when: tuple[str, ...] = ALWAYS) -> Iterator[str]:
    """The modules of this project that a module imports."""
    for each in read_imports(files[module]):
        package, _, rest = each.module.partition(".")
        if package == "histodistill" and each.when in when:
            longer = f"{rest}.{each.name}".lstrip(".")
            yield longer if longer in files else rest


def import_graph(files: Mapping[str, Path], when: tuple[str, ...] = ALWAYS) -> Imports:
    """Who imports whom."""
    return {module: set(own_targets(module, files, when)) & files.keys() - {module} for module in files}


def room(module: str, files: Mapping[str, Path]) -> str:
    """The room of a module: one of `FLOORS`, or a top-level folder."""
    folder, *rest = module.split(".")
    if folder != "training" or not rest:
        return folder
    is_package = len(rest) > 1 or files[module].name == "__init__.py"
    return rest[0] if is_package or rest[0] == "cli" else "scripts"


def floor_of(room_name: str) -> int:
    """The number of a room's floor, from the ground up."""
    (number,) = [number for number, rooms in enumerate(FLOORS) if room_name in rooms]
    return number


def reached(graph: Imports, module: str) -> set[str]:
    """All that a module imports, directly or by way of others."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        new = graph[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def circles(graph: Imports) -> list[list[str]]:
    """Groups of modules each of which imports the others, directly or by way of others."""
    reach = {module: reached(graph, module) for module in graph}
    groups = {tuple(sorted(other for other in reach[module] if module in reach[other])) for module in graph}
    return sorted(list(group) for group in groups if group)


def height(graph: Imports) -> int:
    """How many modules the longest chain has in which each imports the next; a circle counts as one module."""
    reach = {module: reached(graph, module) for module in graph}

    @functools.cache
    def height_of(module: str) -> int:
        return 1 + max((height_of(target) for target in reach[module] if module not in reach[target]), default=0)

    return max(map(height_of, graph))


def libraries(module: str, when: tuple[str, ...] = ALWAYS) -> set[str]:
    """The top-level names that a module imports from outside the project and the standard library."""
    imports = [each for each in read_imports(module_files()[module]) if each.when in when]
    return {each.module.split(".")[0] for each in imports} - sys.stdlib_module_names - {"histodistill"}


def in_folder(*folders: str) -> list[str]:
    """The modules of some top-level folders."""
    return [module for module in module_files() if module.split(".")[0] in folders]


def training_arrows() -> Iterator[tuple[str, str]]:
    """Each import between modules of `training`: who imports, and what."""
    graph = import_graph(module_files())
    modules = set(in_folder("training")) - {"training"}
    for module in sorted(modules):
        yield from ((module, target) for target in sorted(graph[module] & modules))


def test_every_room_has_a_floor():
    rooms = {room(module, module_files()) for module in in_folder("training") if module != "training"}
    assert rooms == {name for floor in FLOORS for name in floor}


def test_imports_go_up_the_table():
    files = module_files()
    wrong = []
    for module, target in training_arrows():
        here, there = room(module, files), room(target, files)
        if here != there and floor_of(there) >= floor_of(here):
            wrong.append(f"{module} imports {target}")
    assert not wrong


@pytest.mark.parametrize("folder", ["pipelines", "selection", "hub_cards"])
def test_three_folders_import_nothing_of_each_other_or_of_the_training(folder):
    graph = import_graph(module_files())
    wrong = {module: graph[module] - set(in_folder(folder)) for module in in_folder(folder)}
    assert not {module: others for module, others in wrong.items() if others}


def test_every_import_is_by_full_name():
    """`import pipelines` would work in a clone alone, and relative imports hide which way an arrow goes."""
    wrong = [
        f"{module}:{each.line} imports {each.module}"
        for module, path in module_files().items()
        for each in read_imports(path)
        if each.module.startswith(".") or each.module.split(".")[0] in FOLDERS
    ]
    assert not wrong


def test_nothing_below_imports_the_public_names():
    """`histodistill` itself gives names of all rooms: whoever imported one there would import from above."""
    files = module_files()
    wrong = [module for module in files for target in own_targets(module, files) if target not in files]
    assert not wrong


def test_no_modules_import_each_other_in_a_circle():
    """What a function of another module takes may be imported for type checkers: a step's options, for its parts."""
    assert circles(import_graph(module_files(), ("at once", "late"))) == []


def test_selection_is_pure():
    """Arrays in, arrays out: it loads nothing and prints nothing, but for the two files that say so."""
    for module in set(in_folder("selection")) - IMPURE:
        assert libraries(module) <= ARRAY_LIBRARIES, module
        names = {
            node.id for node in ast.walk(ast.parse(module_files()[module].read_text())) if isinstance(node, ast.Name)
        }
        assert "print" not in names, module


def test_the_ground_floor_needs_the_standard_library_only():
    for module in module_files():
        if room(module, module_files()) == "running":
            assert libraries(module, ("at once",)) == set(), module


def steps() -> list[str]:
    """The modules with `make_parser`: what a command or `python -m` starts."""
    trees = {module: ast.parse(path.read_text()) for module, path in module_files().items()}
    return [
        module
        for module, tree in trees.items()
        if any(isinstance(node, ast.FunctionDef) and node.name == "make_parser" for node in tree.body)
    ]


@pytest.mark.parametrize("step", steps())
def test_help_of_a_step_imports_nothing_heavy(step):
    files = module_files()
    seen, waiting = set(), [step, "training.cli"]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            assert libraries(module, ("at once",)) <= LIBRARIES_OF_HELP, f"{step} imports {module}"
            waiting += own_targets(module, files, ("at once",))
            # Importing a module imports the packages that it is in.
            waiting += [package for package in (module.rpartition(".")[0],) if package]


def test_circles_and_chains_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}, "e": set()}
    assert circles(graph) == [["b", "c"]]
    assert height(graph) == 3


def summary(root: Path) -> str:
    """Numbers of what is in `training`, for comparison."""
    files = module_files(root)
    graph = {
        module: {target for target in targets if target.startswith("training.")}
        for module, targets in import_graph(files).items()
        if module.startswith("training.")
    }
    modules = [module for module in graph if files[module].name != "__init__.py"]
    arrows = [(room(module, files), room(target, files)) for module in graph for target in graph[module]]
    between = [(here, there) for here, there in arrows if here != there]
    return (
        f"{len(modules)} modules, {len(arrows)} imports between them, {height(graph)} floors of modules; "
        f"{len({room(module, files) for module in graph})} rooms, {len(set(between))} arrows between rooms, "
        f"made by {len(between)} imports; {len(circles(import_graph(files, ('at once', 'late'))))} circles"
    )


if __name__ == "__main__":
    print(summary(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT))
