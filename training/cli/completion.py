"""Prints a script with which a shell completes commands, options and the values that an option may have.

    histodistill completion bash > ~/.local/share/bash-completion/completions/histodistill
    histodistill completion zsh > ~/.zfunc/_histodistill
    histodistill completion fish > ~/.config/fish/completions/histodistill.fish

New shells then complete with the Tab key, at once, since no program is started for it. bash needs its package
bash-completion for this, or else a line `source FILE` in ~/.bashrc; zsh needs `fpath+=~/.zfunc` before `compinit` in
~/.zshrc. After an update of histodistill, write the script again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from histodistill.training.cli import COMMANDS, command_parser
from histodistill.training.running.options import Kind, StepConfig, StepParser, config, option, run_script


# The shells that are tested.
SHELLS = ("bash", "zsh", "fish")


@config
class CompletionConfig(StepConfig):
    """Options of `completion`."""

    shell: str = option("the shell that is to complete", positional=True, choices=SHELLS)


def make_parser() -> StepParser[CompletionConfig]:
    """The parser of the command line."""
    return StepParser(CompletionConfig, prog="histodistill completion", description=__doc__)


def run(config: CompletionConfig) -> str:
    """Prints the script.

    Returns:
        The script.
    """
    import shtab

    script = shtab.complete(whole_parser(), config.shell)
    print(script)
    return script


def whole_parser() -> argparse.ArgumentParser:
    """One parser of all commands with all their options; the command line itself makes that of one command alone."""
    root = argparse.ArgumentParser(prog="histodistill")
    root.add_argument("--version", action="version")
    groups = {"": _add_commands(root)}
    for name, command in COMMANDS.items():
        group, _, word = name.rpartition(" ")
        if group not in groups:
            parser = argparse.ArgumentParser(prog=f"histodistill {group}")
            groups[group] = _add_commands(parser)
            groups[""].add_parser(group, parser=parser, help=f"{group} one of the models")
        parser = command_parser(name)
        _complete_values(parser)
        groups[group].add_parser(word, parser=parser, help=command.help)
    return root


def _add_commands(parser: argparse.ArgumentParser) -> argparse._SubParsersAction:
    # Where argparse would make a parser for a command, it is given one that is there.
    return parser.add_subparsers(parser_class=lambda *, parser, **_: parser)  # type: ignore[call-overload, no-any-return]


def _complete_values(parser: StepParser) -> None:
    """Has values offered that an option suggests, and files and folders where it takes a path."""
    import shtab

    for action in parser._actions:
        field = parser.config_class.__dataclass_fields__.get(action.dest)
        if field is not None:
            if suggested := field.metadata["option"].suggested:
                action.choices = suggested
            kind = Kind.of(parser.config_class, action.dest)
            if kind.item is Path or kind.text_or_path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # what shtab looks for


if __name__ == "__main__":
    run_script(make_parser, run)
