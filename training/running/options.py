"""Options of a step: one frozen dataclass says what they are, for Python and for the command line alike.

    @config
    class GenerateConfig(StepConfig):
        output: Path = option("folder for the pool")
        per_class: int = option("images of each class", default=1000, at_least=1)


    def make_parser() -> StepParser[GenerateConfig]:
        return StepParser(GenerateConfig, prog="histodistill generate", description=__doc__)

A configuration checks itself when it is made. The parser is built from its fields, and what it reads is a
configuration. Nothing here imports torch, so that every `--help` is instant.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import numbers
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, Union, dataclass_transform

from histodistill.training.running.claims import works_for_another
from histodistill.training.running.errors import InputError, option_string, param
from histodistill.training.running.program import as_program, end_with, require_temporary_folders, speaks
from histodistill.training.running.sentence_parser import SentenceParser
from histodistill.training.running.signals import ended_by_signals
from histodistill.training.running.suggestions import did_you_mean


_Config = TypeVar("_Config", bound="StepConfig")
_Result = TypeVar("_Result")
# Where a field's metadata holds its `Option`.
_METADATA = "option"
# What a value must be, by the type of its field; of a command line's text, true and false are written small.
_WANTED: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    Path: "a path",
}
# From here on a power of two is shown as one: 2^31 is easier to read than 2147483648.
_SHOWN_AS_POWER = 2**20


@dataclass(frozen=True)
class Option:
    """What is known of an option beside its type and default.

    Attributes:
        help: What it says, for `--help`; a part "default: …" replaces the default that is shown otherwise.
        at_least, above, at_most, below: Bounds of a number, or of each number of several. Where there is one, NaN and
            infinity are refused, too; without any, the step checks the number itself.
        choices: The only values it takes.
        suggested: Values that a shell completes, of a text that may be another one.
        metavar: What stands for its value, or values, in `--help`.
        group: Title of the group that `--help` shows it in.
        positional: Whether the command line takes it without a name.
        also_named: Whether the command line takes a positional by its name, too, as it did when it was no positional.
        repeatable: Whether the command line takes it, with one value or several, more than once.
        may_be_empty: Whether there may be none of several values, though there are some by default.
        setting: Whether it decides what comes out, and so is recorded as a setting of the result; others say where
            from, where to and how a script runs.
        later: Whether earlier versions did not have it: at its default it is then no setting, so that what they
            finished stays finished.
        claimed: Whether it is the folder that the step writes to, which is then its own as long as it runs.
        resolve: Puts what a value stands for on this machine in its place, so that records hold that.
    """

    help: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] | None = None
    suggested: tuple[str, ...] | None = None
    metavar: str | tuple[str, ...] | None = None
    group: str | None = None
    positional: bool = False
    also_named: bool = False
    repeatable: bool = False
    may_be_empty: bool = False
    setting: bool = True
    later: bool = False
    claimed: bool = False
    resolve: Callable[[Any], Any] | None = None

    def rule(self) -> str:
        """The bounds in words, such as "at least 0 and below 1"; empty where there are none."""
        if self.at_least is not None and self.at_most is not None:
            return f"{_number(self.at_least)} to {_number(self.at_most)}"
        words = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        return " and ".join(f"{word} {_number(bound)}" for word, bound in words.items() if bound is not None)

    def allows(self, number: float) -> bool:
        """Whether a number is within the bounds; NaN never is."""
        return (
            number == number
            and (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )


def option(help: str, *, default: Any = MISSING, **about: Any) -> Any:
    """A field of a configuration: `name: type = option("what it says", default=…, at_least=…)`.

    Args:
        help: See `Option`.
        default: Its value where none is given; without one it must be given. None stands for a choice that the
            program makes later; where the default is another, None is refused.
        about: The other attributes of `Option`.

    Returns:
        What a dataclass takes for a field; typed as anything, since it stands where a value of the field's type does.
    """
    if isinstance(default, list):
        default = tuple(default)
    return dataclasses.field(default=default, metadata={_METADATA: Option(help, **about)})


def like(base: type[StepConfig], name: str, *, default: Any = MISSING, **changes: Any) -> Any:
    """The field of another configuration again, with another default or other attributes.

    Args:
        base: The other configuration.
        name: The field's name there.
        default: The new default; without one it stays what it is.
        changes: The attributes of `Option` that change.

    Returns:
        See `option`.
    """
    (field,) = [field for field in dataclasses.fields(base) if field.name == name]
    default = field.default if default is MISSING else default
    return dataclasses.field(
        default=default, metadata={_METADATA: dataclasses.replace(field.metadata[_METADATA], **changes)}
    )


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(option, like))
def config(cls: type[_Config]) -> type[_Config]:
    """Makes a subclass of `StepConfig` a frozen dataclass whose fields are given by name."""
    return dataclass(frozen=True, kw_only=True, repr=False)(cls)


@dataclass(frozen=True, kw_only=True, repr=False)
class StepConfig:
    """The options of a step; a subclass is decorated with `config` and has fields made by `option`.

    Lists become tuples, numbers of NumPy plain ones, and texts paths where a field is one.

    Raises:
        InputError: For a value of another type or out of range, and for what a subclass refuses in `check`.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            # The fields are frozen for all others; here they get their types.
            object.__setattr__(self, field.name, _take(type(self), field, getattr(self, field.name)))
        self.check()

    def check(self) -> None:
        """Raises `InputError` for values that do not go together."""

    def __repr__(self) -> str:
        given = (
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        )
        return f"{type(self).__name__}({', '.join(given)})"

    def claims(self) -> Path | None:
        """The folder that the step writes to and has to itself, see `claims.claiming`; None where it has none."""
        own = (field.name for field in dataclasses.fields(self) if field.metadata[_METADATA].claimed)
        return next((getattr(self, name) for name in own), None)

    def settings(self) -> dict[str, Any]:
        """The options that decide the result, by name in alphabetical order."""
        found = {}
        for field in sorted(dataclasses.fields(self), key=lambda field: field.name):
            about, value = field.metadata[_METADATA], getattr(self, field.name)
            if about.setting and not (about.later and value == field.default):
                found[field.name] = value
        return found


@dataclass(frozen=True)
class Kind:
    """The type of a field.

    Attributes:
        item: str, int, float, bool or Path: of the value, or of each of several.
        count: 0 for one value, a number for as many values, None for any number of them.
        optional: Whether it may be None.
        text_or_path: Whether it is text where a `Path` is never a name: `Path("phantom")` is kept as `./phantom`.
    """

    item: type
    count: int | None = 0
    optional: bool = False
    text_or_path: bool = False

    @classmethod
    def of(cls, config_class: type[StepConfig], name: str) -> Kind:
        """The kind of a field."""
        return _kinds(config_class)[name]  # type: ignore[arg-type]  # classes are hashable

    @classmethod
    def read(cls, hint: Any) -> Kind:
        """The kind that a type hint says."""
        optional = False
        if typing.get_origin(hint) in (Union, types.UnionType):
            parts = [part for part in typing.get_args(hint) if part is not type(None)]
            optional = len(parts) < len(typing.get_args(hint))
            if set(parts) == {str, Path}:
                return cls(str, 0, optional, text_or_path=True)
            (hint,) = parts
        if typing.get_origin(hint) is not tuple:
            return cls(hint, 0, optional)
        items = typing.get_args(hint)
        return cls(items[0], None if items[-1] is Ellipsis else len(items), optional)

    def take(self, name: str, value: Any) -> Any:
        """A value as the field holds it.

        Args:
            name: The field's, for messages.
            value: What was given for it.

        Raises:
            InputError: For a value of another type.
        """
        if value is None and self.optional:
            return None
        if self.count == 0:
            return self._take_item(name, value)
        # The characters of a text, the keys of a mapping and a set in whatever order are not what somebody meant.
        if not isinstance(value, Iterable) or isinstance(value, (str, bytes, os.PathLike, Mapping, AbstractSet)):
            raise InputError(f"{param(name)}={value!r} must be several values: give a list")
        values = tuple(self._take_item(name, item) for item in value)
        if self.count is not None and len(values) != self.count:
            raise InputError(f"{param(name)}={_shown(values)} must be {self.count} values: give as many")
        return values

    def _take_item(self, name: str, value: Any) -> Any:
        is_path = isinstance(value, os.PathLike) and isinstance(os.fspath(value), str)
        if self.item is str and is_path:
            return self._text_of_path(Path(value))
        fits = {
            str: isinstance(value, str),
            Path: isinstance(value, str) or is_path,
            bool: isinstance(value, bool) or _is_numpy_bool(value),
            int: isinstance(value, numbers.Integral) and not isinstance(value, bool),
            float: isinstance(value, numbers.Real) and not isinstance(value, bool),
        }
        if fits[self.item]:
            if isinstance(value, (str, os.PathLike)):
                _require_utf8(name, os.fspath(value))
            try:
                return self.item(value)
            except OverflowError as error:
                raise InputError(f"{param(name)} is out of range: it must be a number below 1e308") from error
        remedy = f": give {int(value)}" if self.item is int and isinstance(value, float) and value.is_integer() else ""
        raise InputError(f"{param(name)}={value!r} is of another type: it must be {_WANTED[self.item]}{remedy}")

    def _text_of_path(self, path: Path) -> str:
        is_name = self.text_or_path and len(path.parts) == 1 and not path.is_absolute()
        return os.path.join(os.curdir, path) if is_name else str(path)

    def read_words(self, name: str, words: Any) -> Any:
        """The value that one word or several of a command line stand for, which `take` has still to see.

        Args:
            name: The field's, for messages.
            words: Text or texts; what is none, such as a default, stays what it is.

        Raises:
            InputError: For a word that stands for no number where there should be one.
        """
        if isinstance(words, list):
            return [self.read_words(name, word) for word in words]
        if not isinstance(words, str) or self.item not in (int, float):
            return words
        try:
            return self.item(words)
        except ValueError as error:
            raise InputError(f"{param(name)}={words} cannot be read: it must be {_WANTED[self.item]}") from error

    def read_text(self, name: str, text: str) -> Any:
        """The value that a text stands for; several numbers are separated by commas, several texts by spaces.

        Args:
            name: The field's, for messages.
            text: Such as "3", "true", "none" or "8,16".

        Returns:
            The value, which `take` has still to see.

        Raises:
            InputError: If it stands for none.
        """
        try:
            if self.item is bool:
                return {"true": True, "false": False}[text.lower()]
            if text.lower() == "none" and self.optional:
                return None
            if self.count == 0:
                return self.item(text)
            is_text = self.item in (str, Path)  # which may hold commas
            return tuple(self.item(item) for item in (text.split() if is_text else text.split(",")))
        except (ValueError, LookupError) as error:
            wanted = _WANTED[self.item].lower()
            several = "" if self.count == 0 else ", or several with commas between them"
            raise InputError(f"{param(name)}={text} cannot be read: it must be {wanted}{several}") from error


def _is_numpy_bool(value: Any) -> bool:
    # Without importing NumPy, which a command line of plain words does not need.
    return getattr(getattr(value, "dtype", None), "kind", None) == "b" and value.shape == ()


@functools.cache
def _kinds(config_class: type[StepConfig]) -> dict[str, Kind]:
    hints = typing.get_type_hints(config_class)
    kinds = {}
    for field in dataclasses.fields(config_class):
        kind = Kind.read(hints[field.name])
        # A subclass may have a default where its base leaves a choice to the program: then None is no value any more.
        kinds[field.name] = dataclasses.replace(kind, optional=kind.optional and field.default is None)
    return kinds


def _take(config_class: type[StepConfig], field: dataclasses.Field[Any], value: Any) -> Any:
    """A value as a field holds it, checked."""
    value = Kind.of(config_class, field.name).take(field.name, value)
    if value == () and field.default != () and not field.metadata[_METADATA].may_be_empty:
        raise InputError(f"{param(field.name)} has no values: give at least one")
    about = field.metadata[_METADATA]
    _check_value(field.name, value, about)
    return about.resolve(value) if about.resolve else value


def _check_value(name: str, value: Any, about: Option) -> None:
    several = isinstance(value, tuple)
    for item in value if several else (value,):
        if item is None or isinstance(item, bool):
            continue
        if about.choices is not None and item not in about.choices:
            meant = did_you_mean(item, about.choices)
            raise InputError(f"{param(name)}={item} is unknown{meant}: it must be one of {', '.join(about.choices)}")
        if isinstance(item, (int, float)) and about.rule():
            is_within = about.allows(item)
            # The record of the settings is JSON, which knows no infinity.
            is_infinite = is_within and isinstance(item, float) and math.isinf(item)
            rule = f"a finite number {about.rule()}" if is_infinite else about.rule()
            require(is_within and not is_infinite, name, value, f"{'each' if several else 'it'} must be {rule}")


def _require_utf8(name: str, text: str) -> None:
    """Refuses a name that Python can open, and libraries for tiles and weights, which take all for UTF-8, cannot."""
    try:
        if os.fsencode(text) == text.encode():
            return
    except UnicodeEncodeError:  # of bytes that it cannot read, Python makes characters that no text can hold
        pass
    encoding = sys.getfilesystemencoding()
    remedy = "rename it" if encoding == "utf-8" else f"set PYTHONUTF8=1, since file names are {encoding} otherwise"
    raise InputError(f"{param(name)}={text} has bytes that are not UTF-8, which libraries cannot open: {remedy}")


def check_values(config_class: type[StepConfig], values: Mapping[str, Any]) -> None:
    """Checks values for some fields of a configuration, one by one, as the configuration itself would.

    Args:
        config_class: The configuration.
        values: By the name of the field.

    Raises:
        InputError: For a name that is no field, or a value that the field does not take.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    for name, value in values.items():
        if name not in fields:
            meant = did_you_mean(name, fields)
            raise InputError(f"{name} is no option{meant}: it must be one of {', '.join(fields)}")
        _take(config_class, fields[name], value)


def _number(value: float) -> str:
    if value >= _SHOWN_AS_POWER and float(value).is_integer() and int(value) & (int(value) - 1) == 0:
        return f"2^{int(value).bit_length() - 1}"
    return f"{value:g}" if abs(value) < 1e6 else str(value)


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def require(is_right: bool, name: str, value: Any, rule: str) -> None:
    """Refuses a value that breaks a rule.

    Args:
        is_right: Whether it keeps the rule.
        name: The parameter's.
        value: Its value.
        rule: The end of the sentence, such as "it must be at least 1".

    Raises:
        InputError: Unless `is_right`.
    """
    if not is_right:
        raise InputError(f"{param(name)}={_shown(value)} is out of range: {rule}")


class StepParser(SentenceParser, Generic[_Config]):
    """Reads a command line into a configuration.

    Args:
        config_class: What it reads; its fields are the options.
        prog: What the user typed.
        description: For `--help`, mostly the module's docstring.
        epilog: What stands below the options.

    Attributes:
        config_class: What it reads.
        called: What the command line calls the parameters that are no options there: see
            `InputError.for_command_line`.
    """

    def __init__(
        self, config_class: type[_Config], *, prog: str, description: str | None = None, epilog: str | None = None
    ):
        super().__init__(prog=prog, description=description, epilog=epilog)
        self.config_class = config_class
        self.called: dict[str, str] = {}
        groups: dict[str | None, Any] = {None: self}
        for field in dataclasses.fields(config_class):
            about: Option = field.metadata[_METADATA]
            if about.group not in groups:
                groups[about.group] = self.add_argument_group(about.group)
            self._add_option(groups[about.group], field, about)

    def _add_option(self, group: Any, field: dataclasses.Field[Any], about: Option) -> None:
        kind = Kind.of(self.config_class, field.name)
        required = field.default is MISSING
        options: dict[str, Any] = {"help": _help_text(about, field.default), "metavar": about.metavar}
        if kind.item is bool:
            del options["metavar"]
            options["action"] = argparse.BooleanOptionalAction
        else:
            if about.choices is not None:
                options["choices"] = _Choices(about.choices)
            if kind.count is None:
                # No value at all is one that can be given only where it is the default, or means something.
                options["nargs"] = "*" if field.default == () or about.may_be_empty else "+"
            elif kind.count:
                options["nargs"] = kind.count
        if about.positional:
            self._add_positional(group, field.name, about, options)
            return
        default: Any = None if required else field.default
        if about.repeatable:
            options["action"], default = "extend", list(default or ())
        group.add_argument(option_string(field.name), dest=field.name, required=required, default=default, **options)

    def _add_positional(self, group: Any, name: str, about: Option, options: dict[str, Any]) -> None:
        metavar = about.metavar if isinstance(about.metavar, str) else name.upper()
        self.called[name] = metavar
        positional = group.add_argument(name, **{**options, "metavar": metavar})
        if about.also_named:
            positional.required = False  # `_take_by_name` sees to it
            group.add_argument(option_string(name), dest=_by_name(name), help=argparse.SUPPRESS)

    def read(self, argv: Sequence[str] | None = None) -> _Config:
        """The configuration that a command line stands for.

        Args:
            argv: Its words without the program's name; None takes those that this process was started with.

        Raises:
            SystemExit: With code 2 where it is wrong, after one sentence about it.
        """
        values = vars(self.parse_args(argv))
        self._take_by_name(values)
        try:
            kinds = {name: Kind.of(self.config_class, name) for name in values}
            return self.config_class(**{name: kinds[name].read_words(name, value) for name, value in values.items()})
        except InputError as error:
            end_with(error, self.called)

    def _take_by_name(self, values: dict[str, Any]) -> None:
        """Puts what was given by the name of a positional in its place."""
        for name, metavar in self.called.items():
            by_name = values.pop(_by_name(name), None)
            if values[name] is None:
                values[name] = by_name
            elif by_name is not None:
                self.end(
                    f"{metavar}={values[name]} and {option_string(name)}={by_name} are the same: give one of them"
                )
            if values[name] is None:
                self.error(f"{metavar} must be given, before the options")


class _Choices(tuple[str, ...]):
    """What `--help` shows as the only values; the configuration refuses others, with a sentence of ours."""

    def __contains__(self, _: object) -> bool:
        return True


def _by_name(name: str) -> str:
    """Where the parser keeps what is given by the name of a positional; no field can be called so."""
    return option_string(name)


def _help_text(about: Option, default: Any) -> str:
    text = about.help.replace("%", "%%")
    # None is no value that a user could give: it stands for a choice that the program makes later.
    if default is MISSING or default is None or default == () or "default" in about.help:
        return text
    return f"{text} (default: {_shown(default)})".replace("\n", " ")


def to_argv(configuration: StepConfig) -> list[str]:
    """A configuration as the words of a command line, which its parser reads back: those that are not the defaults.

    Raises:
        InputError: For several texts of which one begins with a dash: a command line takes it for an option.
    """
    words: list[str] = []
    positional: list[str] = []
    for field in dataclasses.fields(configuration):
        value = getattr(configuration, field.name)
        if field.metadata[_METADATA].positional:
            positional += _items(field.name, value if isinstance(value, tuple) else (value,))
        elif value != field.default:
            words += _words(field.name, value)
    return [*positional, *words]


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{'' if value else 'no-'}{name.replace('_', '-')}"]
    if isinstance(value, tuple):
        return [option_string(name), *_items(name, value)]
    # In a word of its own a value such as "-folder" would look like an option.
    return [f"{option_string(name)}={value}"]


def _items(name: str, values: tuple[Any, ...]) -> list[str]:
    for value in values:
        if isinstance(value, str) and value.startswith("-"):
            raise InputError(f"{param(name)}={value} looks like an option on a command line: begin it otherwise")
    # A path that begins with a dash is the same path behind "./".
    return [f"./{value}" if isinstance(value, Path) and str(value).startswith("-") else str(value) for value in values]


def run_config(
    run: Callable[[_Config], _Result],
    configuration: _Config,
    called: Mapping[str, str] | None = None,
    exit_code: Callable[[_Result], int] | None = None,
) -> None:
    """Runs a step as a program does: bad input ends it with one sentence, not with a traceback.

    Args:
        run: The step.
        configuration: Its options.
        called: What the command line calls some parameters: see `InputError.for_command_line`.
        exit_code: The exit code by what the step returns, of a step that can answer no; others end with 0.

    Raises:
        SystemExit: With code 2 for bad input, and with that of `exit_code` where it is not 0.
    """
    require_temporary_folders()
    try:
        result = run(configuration)
    except InputError as error:
        end_with(error, called)
    if exit_code is not None and (code := exit_code(result)):
        raise SystemExit(code)


def run_script(
    make_parser: Callable[[], StepParser[_Config]],
    run: Callable[[_Config], _Result],
    argv: Sequence[str] | None = None,
    exit_code: Callable[[_Result], int] | None = None,
) -> None:
    """What `python -m` does with a step: reads the command line once and runs the step as a program.

    Args:
        make_parser: Makes the step's parser.
        run: The step.
        argv: See `StepParser.read`.
        exit_code: See `run_config`.

    Raises:
        SystemExit: With code 2 for bad input and for errors, see `as_program`. With 130 after Ctrl-C and 143 after
            SIGTERM, as shells have it, and in silence where a command started this process: it says what to do.
    """
    with as_program(), ended_by_signals(_when_ended(make_parser)):
        parser = make_parser()
        run_config(run, parser.read(argv), parser.called, exit_code)


def _when_ended(make_parser: Callable[[], StepParser[Any]]) -> str | None:
    """What a script says where a signal ended it: see `ended_by_signals`."""
    if works_for_another() or not speaks():
        return None
    parser = make_parser()
    resumes = any(field.name == "resume" for field in dataclasses.fields(parser.config_class))
    return f"{parser.prog} was {{}}: run the same command again{' with --resume latest' if resumes else ''}"
