"""How the modules of `selection` depend on each other and on the rest."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np
import pytest

import histodistill.selection
from histodistill.selection import SELECTOR_NAMES, SELECTORS


PACKAGE = "histodistill.selection"
FOLDER = Path(histodistill.selection.__file__).parent


def imported_modules(file: Path) -> set[str]:
    """Modules of `histodistill` that a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import, which this test does not follow"
            found.add(node.module)
            # `from package import module` names a module, too.
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "histodistill"}


def imports_within() -> dict[str, set[str]]:
    """Module → the other modules of `selection` that it imports; the package itself is called `__init__`."""
    names = {file.stem for file in FOLDER.glob("*.py")}
    graph = {}
    for name in names:
        imported = imported_modules(FOLDER / f"{name}.py")
        inside = {module.removeprefix(f"{PACKAGE}.") for module in imported if module.startswith(f"{PACKAGE}.")}
        graph[name] = (inside & names) | ({"__init__"} if PACKAGE in imported else set())
    # The package also imports the homes of its names, on first use.
    graph["__init__"] |= set(histodistill.selection._HOME_OF_NAME.values())
    return graph


def test_no_module_imports_another_in_a_circle():
    try:
        TopologicalSorter(imports_within()).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other in a circle: {' → '.join(error.args[1])}")


def test_nothing_is_imported_from_other_packages_of_the_project():
    for file in FOLDER.glob("*.py"):
        foreign = {module for module in imported_modules(file) if not f"{module}.".startswith(f"{PACKAGE}.")}
        assert foreign == set(), f"{file.name} imports {foreign}"


# What the package holds itself, without an import of anything else.
NAMES = ("QUOTA_RULES", "RANKINGS", "SELECTOR_NAMES", "WEIGHTINGS")


def test_every_public_name_has_a_home():
    package = histodistill.selection
    assert sorted([*package._HOME_OF_NAME, *NAMES]) == sorted(package.__all__)
    assert set(package.__all__) <= set(dir(package))
    assert tuple(SELECTORS) == SELECTOR_NAMES


def test_a_saved_selector_of_any_kind_is_found_in_a_fresh_process(tmp_path):
    rng = np.random.default_rng(0)
    points = 10 * np.eye(4)[np.arange(40) % 4] + rng.standard_normal((40, 4))
    for name, selector in SELECTORS.items():
        options = {"n_neighbors": 5} if name == "infomap" else {}
        selector(n_per_class=4, **options).fit(points, np.zeros(40, int)).save_pretrained(tmp_path / name)
    code = """
import sys
from histodistill.selection import BaseSelector
for folder in sys.argv[1:]:
    print(type(BaseSelector.from_pretrained(folder)).__name__)
"""
    command = [sys.executable, "-c", code, *(str(tmp_path / name) for name in SELECTORS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.split() == [selector.__name__ for selector in SELECTORS.values()]
