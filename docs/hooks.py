"""What `mkdocs build` adds to the pages that lie here: what is known elsewhere is not written down again.

A line of a page says what goes there:

    <!-- commands -->               every command with its options, as its parser knows them
    <!-- programs -->               what is started with `python -m` and is no command, in the same way
    <!-- include CONTRIBUTING.md --> a file of the repository; one that is not Markdown becomes a block of code
    ::: histodistill.SelectConfig   (mkdocstrings) is followed by the configuration's fields

Parsers import neither torch nor mkdocs, so that the pages are built, and tested, without the one or the other.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

import histodistill
from histodistill.training.cli import COMMANDS


ROOT = Path(__file__).resolve().parents[1]
#: Modules that no command runs, with a command line of their own.
PROGRAMS = (
    "histodistill.training.benchmarks.speed",
    "histodistill.training.benchmarks.peers",
    "histodistill.training.benchmarks.memory",
    "histodistill.training.benchmarks.input_path",
    "histodistill.training.benchmarks.latent_cache",
    "histodistill.training.benchmarks.freed_memory",
    "histodistill.training.benchmarks.stage_memory",
    "histodistill.training.benchmarks.decoding",
    "histodistill.training.benchmarks.large_pool",
    "histodistill.training.benchmarks.audit_speed",
    "histodistill.training.benchmarks.leak_study",
    "histodistill.training.benchmarks.dp_study",
    "histodistill.training.benchmarks.sites_study",
)
# Names of files at the top of the repository, and the page that holds each.
_PAGE_OF_FILE = {"CONTRIBUTING.md": "contribute.md", "SECURITY.md": "security.md", "CHANGELOG.md": "changelog.md"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fills in what the lines above stand for; mkdocs calls it with the text of each page."""
    markdown = re.sub(r"^<!-- commands -->$", lambda _: "\n\n".join(command_sections()), markdown, flags=re.MULTILINE)
    markdown = re.sub(r"^<!-- programs -->$", lambda _: "\n\n".join(program_sections()), markdown, flags=re.MULTILINE)
    markdown = re.sub(r"^<!-- include (\S+) -->$", lambda m: included(m[1]), markdown, flags=re.MULTILINE)
    return re.sub(r"^::: histodistill\.(\w+Config)$", lambda m: configuration(m[1]), markdown, flags=re.MULTILINE)


def command_sections() -> Iterator[str]:
    """A section for each command: what it does, and its options."""
    for name, command in COMMANDS.items():
        parser = import_module(f"histodistill.training.{command.step}").make_parser()
        yield section(f"histodistill {name}", parser)


def program_sections() -> Iterator[str]:
    """A section for each of `PROGRAMS`."""
    for name in PROGRAMS:
        text = section(name.rpartition(".")[2], import_module(name).make_parser())
        yield text.replace("\n\n", f"\n\n`python -m {name}`\n\n", 1)


def section(called: str, parser: argparse.ArgumentParser) -> str:
    """The help of a parser in Markdown.

    Args:
        called: Its heading.
        parser: Says the rest.
    """
    parts = [f"### `{called}`", description(parser.description or "")]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        actions = [action for action in actions if not isinstance(action, argparse._HelpAction)]
        if actions:
            parts += [f"**{_title(group.title)}**", *map(_definition, actions)]
    if parser.epilog:
        parts.append(f"```text\n{parser.epilog.strip()}\n```")
    return "\n\n".join(parts)


def description(text: str) -> str:
    """What a docstring says, which is nearly Markdown: names of pages become links, and options code."""
    text = re.sub(r"`docs/([\w-]+\.md)`", r"[\1](\1)", text.strip())
    return "\n".join(line if line.startswith("    ") else _options_as_code(line) for line in text.splitlines())


def _options_as_code(line: str) -> str:
    parts = line.split("`")
    parts[::2] = [re.sub(r"(?<!\w)--[a-z][\w-]*", r"`\g<0>`", part) for part in parts[::2]]
    return "`".join(parts)


def _title(title: str | None) -> str:
    words = "arguments" if title == "positional arguments" else title or "options"
    return words[0].upper() + words[1:]


def _definition(action: argparse.Action) -> str:
    """An option as an entry of a definition list."""
    takes_value = action.nargs != 0 and not isinstance(action, argparse.BooleanOptionalAction)
    value = argparse.HelpFormatter("")._format_args(action, _metavar(action)) if takes_value else ""
    names = [f"`{name} {value}`" if value else f"`{name}`" for name in action.option_strings] or [f"`{value}`"]
    notes = ["required"] if action.required and action.option_strings else []
    # What argparse would put into a line of help, such as %(default)s or a doubled %.
    text = (action.help or "") % {**vars(action), "prog": ""}
    choices = [f"one of {', '.join(map(str, action.choices))}"] if action.choices and action.metavar else []
    return f"{', '.join(names)}\n:   {'; '.join([escape(text, quote=False), *choices, *notes])}"


def _metavar(action: argparse.Action) -> str:
    if action.choices and not action.metavar:
        return "|".join(map(str, action.choices))
    return action.dest.upper()


def included(name: str) -> str:
    """A file of the repository, with links that lead from page to page."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if not name.endswith(".md"):
        return text if name.endswith(".svg") else f"```{Path(name).suffix[1:]}\n{text}```"
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\]\((\w+\.md)\b", lambda m: f"]({_PAGE_OF_FILE.get(m[1], m[1])}", text)


def configuration(name: str) -> str:
    """What mkdocstrings is told of a configuration, and its fields, those without a default first."""
    fields = dataclasses.fields(getattr(histodistill, name))
    entries = map(_field, sorted(fields, key=lambda field: field.default is not dataclasses.MISSING))
    return "\n\n".join(
        [f"::: histodistill.{name}\n    options:\n      members: false\n      show_signature: false", *entries]
    )


def _field(field: dataclasses.Field[Any]) -> str:
    """A field as an entry of a definition list."""
    about = field.metadata["option"]
    default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
    rule = [about.rule()] if about.rule() else []
    choices = [f"one of {', '.join(about.choices)}"] if about.choices else []
    meaning = escape("; ".join([about.help, *rule, *choices]), quote=False)
    return f"`{field.name}: {field.type}{default}`\n:   {meaning}"
