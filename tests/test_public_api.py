"""`import histodistill`: quick, and with the names that are documented, which type checkers see as well."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import histodistill


ROOT = Path(__file__).parents[1]
PACKAGES = ("histodistill", "histodistill.pipelines", "histodistill.selection", "histodistill.hub_cards")


def test_documented_names_are_the_exported_ones():
    text = (ROOT / "docs" / "api.md").read_text()
    documented = re.findall(r"^::: histodistill\.(\w+)$", text, re.MULTILINE)
    assert sorted(documented) == sorted(histodistill.__all__)


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_pages_import_public_names_only(page):
    path = ROOT / page
    text = path.read_text() if path.is_file() else ""
    imported = re.findall(r"^\s*from histodistill import (.+)$", text, re.MULTILINE)
    names = {name for line in imported for name in re.findall(r"\w+", line)} | set(
        re.findall(r"\bhistodistill\.(\w+)\(", text)
    )
    assert names <= set(histodistill.__all__)


@pytest.mark.parametrize("name", histodistill.__all__)
def test_every_name_is_there(name):
    value = getattr(histodistill, name)
    assert value is getattr(histodistill, name)
    if name.endswith("Config"):
        step = getattr(histodistill, re.sub(r"(?<!^)([A-Z])", r"_\1", name.removesuffix("Config")).lower())
        assert value.__module__ == step.__module__
        assert import_module(value.__module__).make_parser().config_class is value


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(histodistill.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname or alias.name: (node.module.removeprefix("histodistill."), alias.name)
        for node in block.body
        for alias in node.names
    }
    assert seen == histodistill._HOMES
    assert {*seen, "__version__"} == set(histodistill.__all__)


def test_import_is_quick():
    """It loads nothing but the standard library, and of it only a few modules."""
    program = "import sys; before = set(sys.modules); import histodistill, json; print(json.dumps(list(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    modules = {name.split(".")[0] for name in json.loads(printed)}
    assert not modules & {"numpy", "torch", "diffusers", "datasets", "huggingface_hub", "PIL", "sklearn"}
    assert {name for name in json.loads(printed) if name.startswith("histodistill.")} == set()


def test_names_are_listed():
    assert dir(histodistill) == sorted(histodistill.__all__)
    namespace: dict[str, object] = {}
    exec("from histodistill import InputError, load_tiles", namespace)
    assert {"InputError", "load_tiles"} <= namespace.keys()


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="has no attribute 'distil'"):
        histodistill.distil  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_says_what_is_public(package):
    module = import_module(package)
    assert module.__all__ == sorted(module.__all__, key=module.__all__.index)
    assert len(module.__all__) == len(set(module.__all__))
    for name in module.__all__ if package != "histodistill" else ():
        assert getattr(module, name) is not None
