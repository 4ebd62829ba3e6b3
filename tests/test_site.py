"""The documentation site: its list of pages, and what `docs/hooks.py` writes into them. mkdocs is not needed here."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import histodistill
from histodistill.training.cli import COMMANDS


ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


class ConfigLoader(yaml.SafeLoader):
    """Reads mkdocs.yml without the functions that it names."""


ConfigLoader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, suffix, node: suffix)


@pytest.fixture(scope="module")
def config() -> dict:
    return yaml.load((ROOT / "mkdocs.yml").read_text(), ConfigLoader)


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(hooks: ModuleType, page: str) -> str:
    """A page with what the hook writes into it."""
    return hooks.on_page_markdown((DOCS / page).read_text(encoding="utf-8"))


def test_the_list_of_pages_is_that_of_the_files(config):
    listed = [
        page
        for section in config["nav"]
        for entries in section.values()
        for entry in entries
        for page in entry.values()
    ]
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_no_other_server_is_asked(config):
    assert config["theme"]["font"] is False
    assert not {"analytics", "consent"} & set(config["extra"])
    # Material's own plugin for pages without a server loads a script from elsewhere.
    assert [name for plugin in config["plugins"] for name in [*plugin, plugin] if name == "offline"] == []
    sources = re.findall(
        r"""(?:src|url)\s*[=(:]\s*["']?https?://""", "".join(p.read_text() for p in DOCS.rglob("*.css"))
    )
    assert sources == []


def test_every_warning_counts(config):
    assert set(config["validation"]["links"].values()) | set(config["validation"]["nav"].values()) == {"warn"}
    assert "--strict" in (ROOT / ".ci" / "docs").read_text()


def sections(text: str) -> dict[str, str]:
    """The text below each heading of the third level."""
    parts = re.split(r"^### `(.+)`$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def options_of(step: str) -> set[str]:
    """The options that `--help` shows, but for itself; an older spelling may be hidden."""
    shown = (a for a in import_module(step).make_parser()._actions if a.dest != "help" and a.help != argparse.SUPPRESS)
    return {name for action in shown for name in action.option_strings}


def test_every_command_is_on_its_page_with_every_option(hooks):
    page = sections(written(hooks, "command-line.md"))
    for name, command in COMMANDS.items():
        text = page[f"histodistill {name}"]
        missing = [
            option for option in options_of(f"histodistill.training.{command.step}") if f"`{option}" not in text
        ]
        assert missing == [], name


def test_every_program_is_on_the_page_of_commands(hooks):
    page = sections(written(hooks, "command-line.md"))
    for name in hooks.PROGRAMS:
        text = page[name.rpartition(".")[2]]
        assert f"`python -m {name}`" in text
        assert [option for option in options_of(name) if f"`{option}" not in text] == []


def test_what_help_says_of_an_option(hooks):
    text = sections(written(hooks, "command-line.md"))["histodistill select"]
    assert "`--n-per-class N_PER_CLASS`\n:   images to keep of each class (default: 100)" in text
    assert "`--pool POOL`\n:   folder that generate left; required" in text
    assert "%" not in re.sub(r"\d ?%", "", text)
    assert "(selection.md)" in text  # docs/selection.md of the docstring


def test_options_in_descriptions_are_code(hooks):
    given = "With --data SRC, and `run --x`:\n\n    run --y 1\n\nSee `docs/python.md`."
    wanted = "With `--data` SRC, and `run --x`:\n\n    run --y 1\n\nSee [python.md](python.md)."
    assert hooks.description(given) == wanted


def test_fields_of_every_configuration_are_in_the_reference(hooks):
    text = written(hooks, "api.md")
    for name in (name for name in histodistill.__all__ if name.endswith("Config")):
        about = re.search(rf"^::: histodistill\.{name}\n(.*?)(?=^:::|\Z)", text, re.DOTALL | re.MULTILINE)[1]
        fields = [field.name for field in dataclasses.fields(getattr(histodistill, name))]
        assert sorted(re.findall(r"^`(\w+): ", about, re.MULTILINE)) == sorted(fields), name


@pytest.mark.parametrize("page", ["contribute.md", "security.md", "changelog.md"])
def test_included_files_lead_from_page_to_page(hooks, page):
    text = written(hooks, page)
    assert text.startswith("# ") and "<!-- include" not in text
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        assert (DOCS / target).is_file(), f"{page} refers to {target}"


def test_included_code_is_a_block(hooks):
    preset = (ROOT / "training" / "presets" / "cpu.toml").read_text()
    assert f"```toml\n{preset}```" in written(hooks, "own-tiles.md")
