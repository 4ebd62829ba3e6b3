from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import subprocess
import sys
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from histodistill.training.running.errors import InputError, param
from histodistill.training.running.options import (
    Kind,
    StepConfig,
    StepParser,
    check_values,
    config,
    like,
    option,
    require,
    run_config,
    run_script,
    to_argv,
)


@config
class EveryKind(StepConfig):
    """A field of every kind."""

    run: Path = option("folder of the run", positional=True, setting=False)
    data: str | Path = option("tiles", setting=False)
    output: Path = option("where to", default=Path("out"), setting=False)
    name: str = option("what to call it", default="it")
    mode: str = option("how", default="slow", choices=("slow", "quick"))
    count: int = option("how many", default=3, at_least=1, group="numbers")
    seed: int = option("where it begins", default=0, at_least=0, below=2**31, group="numbers")
    rate: float = option("how fast", default=0.25, above=0, group="numbers")
    share: float = option("of what", default=0.5, at_least=0, at_most=1, group="numbers")
    limit: float | None = option("at most so many; default: by mode", default=None, above=0, group="numbers")
    free: float = option("any number at all", default=0.0)
    flag: bool = option("whether", default=False)
    other_flag: bool = option("whether not", default=True)
    widths: tuple[int, ...] = option("of each level", default=[8, 16], at_least=1)
    interval: tuple[float, float] = option("from and to", default=(0.0, 1.0), metavar=("LOW", "HIGH"))
    names: tuple[str, ...] = option("of sites", default=())
    folders: tuple[Path, ...] = option("of sites", default=())
    modes: tuple[str, ...] = option("several", default=("slow",), choices=("slow", "quick"))
    model: str | Path | None = option("name or folder", default=None, setting=False)

    def check(self) -> None:
        low, high = self.interval
        require(low <= high, "interval", self.interval, "LOW must not be above HIGH")

    @cached_property
    def doubled(self) -> int:
        return 2 * self.count


def make_parser() -> StepParser[EveryKind]:
    return StepParser(EveryKind, prog="every-kind", description="First line.\n\n    second line", epilog="The end.")


def make(**values) -> EveryKind:
    return EveryKind(**{"run": "r", "data": "phantom", **values})


def read(*argv: str) -> EveryKind:
    return make_parser().read(["r", "--data", "phantom", *argv])


# ------------------------------------------------------------------------------------------------- in Python


def test_defaults():
    made = make()
    assert (made.run, made.data, made.output) == (Path("r"), "phantom", Path("out"))
    assert (made.count, made.rate, made.flag, made.other_flag, made.limit) == (3, 0.25, False, True, None)
    assert (made.widths, made.interval, made.names) == ((8, 16), (0.0, 1.0), ())
    assert made == read()


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("run", "a/b", Path("a/b")),
        ("run", PurePosixPath("a/b"), Path("a/b")),
        ("data", "phantom", "phantom"),
        ("data", Path("phantom"), "./phantom"),  # a path is never a name
        ("data", Path("a/b"), "a/b"),
        ("data", Path("/phantom"), "/phantom"),
        ("model", None, None),
        ("model", Path("a"), "./a"),
        ("name", "x", "x"),
        ("name", Path("x"), "x"),
        ("name", np.str_("x"), "x"),
        ("count", np.int64(4), 4),
        ("rate", 2, 2.0),
        ("rate", np.float32(0.5), 0.5),
        ("rate", np.int16(2), 2.0),
        ("limit", None, None),
        ("limit", 1, 1.0),
        ("free", float("inf"), float("inf")),  # without bounds the step checks it
        ("flag", True, True),
        ("flag", np.bool_(True), True),
        ("widths", [4, 8], (4, 8)),
        ("widths", np.array([4, 8]), (4, 8)),
        ("widths", (width for width in (4, 8)), (4, 8)),
        ("widths", range(1, 4), (1, 2, 3)),
        ("interval", [0, 1], (0.0, 1.0)),
        ("names", [], ()),
        ("folders", ["a", Path("b")], (Path("a"), Path("b"))),
        ("seed", 2**31 - 1, 2**31 - 1),
        ("share", 1, 1.0),
    ],
)
def test_values_are_kept_as_their_field_has_them(name, given, kept):
    value = getattr(make(**{name: given}), name)
    assert value == kept
    assert type(value) is type(kept)
    if isinstance(kept, tuple):
        assert [type(item) for item in value] == [type(item) for item in kept]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("run", 3, "run=3 is of another type: it must be a path"),
        ("run", b"r", "run=b'r' is of another type: it must be a path"),
        ("data", None, "data=None is of another type: it must be text"),
        ("name", 3, "name=3 is of another type: it must be text"),
        ("count", "3", "count='3' is of another type: it must be a whole number"),
        ("count", 3.0, "count=3.0 is of another type: it must be a whole number: give 3"),
        ("count", 3.5, "count=3.5 is of another type: it must be a whole number"),
        ("count", True, "count=True is of another type: it must be a whole number"),
        ("count", None, "count=None is of another type: it must be a whole number"),
        ("count", 0, "count=0 is out of range: it must be at least 1"),
        ("rate", "0.5", "rate='0.5' is of another type: it must be a number"),
        ("rate", False, "rate=False is of another type: it must be a number"),
        ("rate", 1j, "rate=1j is of another type: it must be a number"),
        ("rate", 0, "rate=0.0 is out of range: it must be above 0"),
        ("rate", float("nan"), "rate=nan is out of range: it must be above 0"),
        ("rate", float("inf"), "rate=inf is out of range: it must be a finite number above 0"),
        ("limit", float("nan"), "limit=nan is out of range: it must be above 0"),
        ("seed", 2**31, "seed=2147483648 is out of range: it must be at least 0 and below 2^31"),
        ("share", 1.5, "share=1.5 is out of range: it must be 0 to 1"),
        ("share", float("-inf"), "share=-inf is out of range: it must be 0 to 1"),
        ("flag", 1, "flag=1 is of another type: it must be True or False"),
        ("flag", "yes", "flag='yes' is of another type: it must be True or False"),
        ("mode", "fast", "mode=fast is unknown: it must be one of slow, quick"),
        ("modes", ["slow", "fast"], "modes=fast is unknown: it must be one of slow, quick"),
        ("widths", 8, "widths=8 must be several values: give a list"),
        ("widths", "8 16", "widths='8 16' must be several values: give a list"),
        ("widths", {8, 16}, "widths={8, 16} must be several values: give a list"),
        ("widths", {8: 1}, "widths={8: 1} must be several values: give a list"),
        ("widths", [], "widths has no values: give at least one"),
        ("widths", [8, 0], "widths=8 0 is out of range: each must be at least 1"),
        ("widths", [8, 1.5], "widths=1.5 is of another type: it must be a whole number"),
        ("widths", [[8], [16]], "widths=[8] is of another type: it must be a whole number"),
        ("interval", [0.5], "interval=0.5 must be 2 values: give as many"),
        ("interval", [0, 0.5, 1], "interval=0.0 0.5 1.0 must be 2 values: give as many"),
        ("interval", [0.8, 0.2], "interval=0.8 0.2 is out of range: LOW must not be above HIGH"),
        ("interval", [0, float("nan")], "interval=0.0 nan is out of range: LOW must not be above HIGH"),
        ("folders", Path("a"), "folders=PosixPath('a') must be several values: give a list"),
    ],
)
def test_wrong_values_are_one_sentence(name, value, message):
    with pytest.raises(InputError) as error:
        make(**{name: value})
    assert str(error.value) == message
    assert error.value.for_command_line() == f"--{message}"


@pytest.mark.parametrize("value", [np.array([3]), np.array([True])], ids=["number", "bool"])
@pytest.mark.parametrize("name", ["count", "rate", "flag"])
def test_an_array_is_no_single_value(name, value):
    with pytest.raises(InputError, match="is of another type"):
        make(**{name: value})


def test_unknown_and_missing_parameters_are_errors_of_the_call():
    with pytest.raises(TypeError, match="counts"):
        make(counts=3)
    with pytest.raises(TypeError, match="data"):
        EveryKind(run="r")
    with pytest.raises(TypeError):
        EveryKind("r", "phantom")


def test_configuration_is_frozen_and_can_be_changed_into_another():
    made = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.count = 4
    assert made.doubled == 6
    other = dataclasses.replace(made, count=4)
    assert (other.count, other.doubled, made.count) == (4, 8, 3)
    with pytest.raises(InputError, match="count=0 is out of range"):
        dataclasses.replace(made, count=0)
    assert len({made, make(), other}) == 2


def test_short_repr():
    assert repr(make()) == f"EveryKind(run={Path('r')!r}, data='phantom')"
    text = repr(make(count=4, widths=[8], output="out"))
    assert text == f"EveryKind(run={Path('r')!r}, data='phantom', count=4, widths=(8,))"


def test_pickling():
    made = make(count=4, interval=[0, 0.5])
    assert made.doubled == 8
    again = pickle.loads(pickle.dumps(made))
    assert again == made and again.doubled == 8


def test_settings_are_sorted_and_leave_out_where_and_how():
    settings = make(data=Path("a"), model="m", output="x").settings()
    assert settings == make().settings()
    assert list(settings) == sorted(settings)
    assert not settings.keys() & {"run", "data", "output", "model"}
    assert settings != make(count=4).settings()
    assert settings["widths"] == (8, 16) and settings["rate"] == 0.25


def test_like_is_the_field_with_another_default():
    @config
    class Base(StepConfig):
        rate: float | None = option("how fast", default=None, above=0, group="numbers")
        folder: Path = option("where", setting=False)

    @config
    class Other(Base):
        rate: float = like(Base, "rate", default=0.5, at_most=2)
        folder: Path = like(Base, "folder", help="where to")

    assert Base(folder="a").rate is None
    assert Other(folder="a").rate == 0.5
    assert Other(folder="a").settings() == {"rate": 0.5}
    for value, rule in ((0, "above 0 and at most 2"), (3, "above 0 and at most 2")):
        with pytest.raises(InputError, match=rf"rate={float(value)} is out of range: it must be {rule}"):
            Other(folder="a", rate=value)
    with pytest.raises(TypeError):
        Other()  # what has no default keeps none
    assert "where to" in StepParser(Other, prog="other").format_help()


def test_none_is_a_value_where_it_is_the_default_alone():
    @config
    class Base(StepConfig):
        rate: float | None = option("how fast", default=0.5)

    @config
    class Other(Base):
        rate: float | None = like(Base, "rate", default=None)

    assert Other().rate is None
    with pytest.raises(InputError, match="rate=None is of another type: it must be a number"):
        Base(rate=None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "count=0 is out of range: it must be at least 1"),
        ({"name": "x", "rate": "fast"}, "rate='fast' is of another type: it must be a number"),
        ({"widths": []}, "widths has no values: give at least one"),
        ({"counts": 3}, "counts is no option (did you mean count?): it must be one of run, data, output, "),
    ],
)
def test_values_are_checked_without_a_whole_configuration(values, message):
    check_values(EveryKind, {"count": 1, "widths": [8]})  # though run and data are missing
    with pytest.raises(InputError) as error:
        check_values(EveryKind, values)
    assert str(error.value).startswith(message)


def test_require():
    require(True, "n", 1, "it must be more")
    with pytest.raises(InputError, match=r"^n=1 2 is out of range: it must be more$"):
        require(False, "n", (1, 2), "it must be more")


# ------------------------------------------------------------------------------------------- on the command line


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--data", "other"], "data", "other"),
        (["--output", "a"], "output", Path("a")),
        (["--mode", "quick"], "mode", "quick"),
        (["--count", "5"], "count", 5),
        (["--rate", "1e-3"], "rate", 0.001),
        (["--limit", "2"], "limit", 2.0),
        (["--free", "-2.5"], "free", -2.5),
        (["--flag"], "flag", True),
        (["--no-flag"], "flag", False),
        (["--no-other-flag"], "other_flag", False),
        (["--widths", "4", "8", "16"], "widths", (4, 8, 16)),
        (["--interval", "0.2", "0.9"], "interval", (0.2, 0.9)),
        (["--names"], "names", ()),
        (["--names", "a", "b"], "names", ("a", "b")),
        (["--folders", "a", "b"], "folders", (Path("a"), Path("b"))),
        (["--model", "phantom"], "model", "phantom"),
    ],
)
def test_words_of_a_command_line(argv, name, value):
    assert read(*argv) == make(**{name: value})


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--count", "0"], "--count=0 is out of range: it must be at least 1"),
        (["--rate", "nan"], "--rate=nan is out of range: it must be above 0"),
        (["--rate", "inf"], "--rate=inf is out of range: it must be a finite number above 0"),
        (["--widths", "8", "0"], "--widths=8 0 is out of range: each must be at least 1"),
        (["--interval", "0.8", "0.2"], "--interval=0.8 0.2 is out of range: LOW must not be above HIGH"),
    ],
)
def test_values_out_of_range(argv, message, capsys):
    with pytest.raises(SystemExit) as error:
        read(*argv)
    assert error.value.code == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {message}\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--mode", "fast"], "--mode=fast is unknown: it must be one of slow, quick"),
        (["--mode", "quik"], "--mode=quik is unknown (did you mean quick?): it must be one of slow, quick"),
        (["--modes", "slow", "fast"], "--modes=fast is unknown: it must be one of slow, quick"),
        (["--anything", "1"], "--anything is no option of every-kind: every-kind --help lists them"),
        (
            ["--coun", "1"],
            "--coun is no option of every-kind (did you mean --count?): every-kind --help lists them",
        ),
        (
            ["--no-other_flag"],
            "--no-other_flag is no option of every-kind (did you mean --no-other-flag?): every-kind --help lists them",
        ),
        (["--count", "many"], "--count=many cannot be read: it must be a whole number"),
        (["--count", "3.0"], "--count=3.0 cannot be read: it must be a whole number"),
        (["--widths", "8", "x"], "--widths=x cannot be read: it must be a whole number"),
        (["--rate", "x"], "--rate=x cannot be read: it must be a number"),
        (["--widths"], "--widths: expected at least one argument: every-kind --help tells how"),
        (["--interval", "0.5"], "--interval: expected 2 arguments: every-kind --help tells how"),
        (["--flag", "true"], "unrecognized arguments: true: every-kind --help tells how"),
    ],
)
def test_what_the_parser_refuses(argv, message, capsys):
    with pytest.raises(SystemExit) as error:
        read(*argv)
    assert error.value.code == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


def test_an_unknown_option_comes_before_what_is_missing(capsys):
    with pytest.raises(SystemExit):
        make_parser().read(["r", "--dat", "phantom"])
    assert "--dat is no option of every-kind (did you mean --data?)" in capsys.readouterr().err


def test_values_that_look_like_options():
    assert read("--name=--count").name == "--count"
    assert read("--names", "--north side", "b").names == ("--north side", "b")


def test_what_must_be_given(capsys):
    with pytest.raises(SystemExit):
        make_parser().read(["r"])
    assert capsys.readouterr().err == "error: --data must be given: every-kind --help tells how\n"
    with pytest.raises(SystemExit):
        make_parser().read(["--data", "phantom"])
    assert capsys.readouterr().err == "error: RUN must be given: every-kind --help tells how\n"


@config
class OfARun(StepConfig):
    """A positional that was an option once."""

    run: Path = option("folder", positional=True, also_named=True)
    seeds: tuple[int, ...] = option("seeds", default=(0,))


@pytest.mark.parametrize(
    "argv", [["r"], ["--run", "r"], ["--run=r"], ["r", "--seeds", "0"], ["--seeds", "0", "--run=r"]]
)
def test_a_positional_that_has_a_name_too(argv):
    assert StepParser(OfARun, prog="of-a-run").read(argv) == OfARun(run="r")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["r", "--run", "s"], "RUN=r and --run=s are the same: give one of them"),
        (["--run", "s", "r"], "RUN=r and --run=s are the same: give one of them"),
        ([], "RUN must be given, before the options: of-a-run --help tells how"),
    ],
)
def test_a_positional_is_given_once(argv, message, capsys):
    with pytest.raises(SystemExit) as error:
        StepParser(OfARun, prog="of-a-run").read(argv)
    assert error.value.code == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


def test_help_teaches_the_positional_alone(capsys):
    with pytest.raises(SystemExit):
        StepParser(OfARun, prog="of-a-run").read(["--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: of-a-run [-h] [--seeds SEEDS [SEEDS ...]] RUN") and "--run" not in text
    assert to_argv(OfARun(run="r")) == ["r"]


def test_a_positional_is_called_by_its_name_in_messages(capsys):
    @config
    class One(StepConfig):
        run: Path = option("folder", positional=True)

        def check(self) -> None:
            raise InputError(f"{param('run')} is not {param('n_per_class')}")

    with pytest.raises(SystemExit):
        StepParser(One, prog="one").read(["r"])
    assert capsys.readouterr().err == "error: RUN is not --n-per-class\n"


def test_help_shows_defaults_and_keeps_lines(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as error:
        read("--help")
    assert error.value.code == 0
    text = capsys.readouterr().out
    assert "\n    second line\n" in text and text.endswith("\nThe end.\n")
    assert "\nnumbers:\n" in text
    assert max(map(len, text.splitlines())) <= 119  # however wide the terminal is
    lines = dict(line.split("  ", 1) for line in map(str.strip, text.splitlines()) if "  " in line)
    lines = {name: about.strip() for name, about in lines.items()}
    assert lines["--count COUNT"] == "how many (default: 3)"
    assert lines["--mode {slow,quick}"] == "how (default: slow)"
    assert lines["--interval LOW HIGH"] == "from and to (default: 0.0 1.0)"
    assert lines["RUN"] == "folder of the run"
    # Each default once: not where the help tells it, nor where there is none.
    assert lines["--limit LIMIT"] == "at most so many; default: by mode"
    assert lines["--model MODEL"] == "name or folder"
    assert lines["--data DATA"] == "tiles"


def test_an_option_that_is_given_more_than_once():
    @config
    class Several(StepConfig):
        set: tuple[str, ...] = option("what to set", default=(), repeatable=True)

    parser = StepParser(Several, prog="several")
    assert parser.read(["--set", "a=1", "b=2", "--set", "c=3"]) == Several(set=["a=1", "b=2", "c=3"])
    assert parser.read([]) == Several()  # nothing of the command line before is left
    assert parser.read(to_argv(Several(set=["a=1", "b=2"]))) == Several(set=["a=1", "b=2"])


def test_no_values_where_they_mean_something():
    @config
    class Rows(StepConfig):
        rows: tuple[str, ...] = option("rows", default=("a", "b"), may_be_empty=True)

    parser = StepParser(Rows, prog="rows")
    assert parser.read(["--rows"]) == Rows(rows=[])
    assert parser.read(to_argv(Rows(rows=[]))) == Rows(rows=[])
    assert parser.read([]).rows == ("a", "b")


def test_per_cent_in_a_help_text():
    @config
    class Share(StepConfig):
        share: float = option("at most 50 % of them", default=0.5)

    assert "at most 50 % of them (default: 0.5)" in StepParser(Share, prog="share").format_help()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"run": "-r", "data": "-phantom", "output": "-out", "name": "--name"},
        {"data": Path("phantom"), "model": "--model"},
        {"name": "", "mode": "quick"},
        {"name": "two words"},
        {"count": 7, "rate": 1e-7, "limit": 2.5, "free": -1e-9},
        {"free": float("-inf")},
        {"flag": True, "other_flag": False},
        {"widths": [1], "interval": [0.1 + 0.2, 1], "modes": ["quick", "slow"]},
        {"interval": [-2.5, -1]},
        {"names": ["a b", "c"], "folders": ["-a", "b"]},
    ],
)
def test_command_line_of_a_configuration_is_read_back(values):
    made = make(**values)
    assert make_parser().read(to_argv(made)) == made


def test_command_line_names_what_is_not_a_default_alone():
    assert to_argv(make(count=4, flag=True, output="-x")) == [
        "r",
        "--data=phantom",
        "--output=-x",
        "--count=4",
        "--flag",
    ]


def test_texts_that_look_like_options_have_no_command_line():
    with pytest.raises(InputError, match=r"^names=-b looks like an option on a command line: begin it otherwise$"):
        to_argv(make(names=["a", "-b"]))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("run", "a/b", Path("a/b")),
        ("data", "phantom", "phantom"),
        ("count", "4", 4),
        ("rate", "1e-3", 0.001),
        ("limit", "none", None),
        ("limit", "None", None),
        ("name", "none", "none"),
        ("flag", "true", True),
        ("flag", "False", False),
        ("widths", "8,16", (8, 16)),
        ("widths", "8", (8,)),
        ("names", "", ()),
    ],
)
def test_value_of_a_text(name, text, value):
    assert Kind.of(EveryKind, name).read_text(name, text) == value


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("count", "many", "count=many cannot be read: it must be a whole number"),
        ("rate", "none", "rate=none cannot be read: it must be a number"),
        ("flag", "yes", "flag=yes cannot be read: it must be true or false"),
        ("widths", "8 16", "widths=8 16 cannot be read: it must be a whole number, or several with commas between"),
    ],
)
def test_a_text_that_stands_for_no_value(name, text, message):
    with pytest.raises(InputError, match=f"^{message}"):
        Kind.of(EveryKind, name).read_text(name, text)


# ------------------------------------------------------------------------------------------------ as a program


ARGV = ["r", "--data", "phantom"]


def bad_input(_):
    raise InputError(f"{param('n_per_class')}=0 does not go with {param('run')}: give another")


@pytest.fixture
def alone(monkeypatch):
    """This process is not one of several."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def test_run_script_turns_bad_input_into_one_sentence(capsys, alone):
    with pytest.raises(SystemExit) as error:
        run_script(make_parser, bad_input, ARGV)
    assert error.value.code == 2
    assert capsys.readouterr().err == "error: --n-per-class=0 does not go with RUN: give another\n"


@pytest.mark.parametrize(("rank", "speaks"), [("0", True), ("1", False)])
@pytest.mark.parametrize("argv", [ARGV, [*ARGV, "--count", "0"], [*ARGV, "--count", "many"]])
def test_only_the_first_of_several_processes_speaks(argv, rank, speaks, capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(SystemExit) as error:
        run_script(make_parser, bad_input, argv)
    assert error.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("error: ") == (1 if speaks else 0)
    assert speaks or captured.err == ""


@pytest.mark.parametrize(
    ("number", "how"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "told to end")], ids=["Ctrl-C", "SIGTERM"]
)
@pytest.mark.parametrize("becomes", [None, ImportError, SystemError], ids=str)
def test_a_signal_ends_a_script_with_one_sentence_whatever_libraries_make_of_it(
    number, how, becomes, capsys, monkeypatch
):
    def work(_):
        try:
            signal.raise_signal(number)
        except BaseException:
            raise becomes("while it was imported") if becomes else sys.exc_info()[1] from None

    handlers = [signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)]
    told = []
    for started_by_another in (False, True):
        if started_by_another:
            monkeypatch.setenv("HISTODISTILL_CLAIMS", "")
        with pytest.raises(SystemExit) as error:
            run_script(make_parser, work, ARGV)
        assert error.value.code == 128 + number
        told.append(capsys.readouterr().err)
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
        signal.signal(number, handler)
    assert told == [f"error: every-kind was {how}: run the same command again\n", ""]


def test_other_errors_keep_their_traceback(capsys):
    def broken(_):
        raise ZeroDivisionError

    with pytest.raises(SystemExit) as error:
        run_script(make_parser, broken, ARGV)
    assert error.value.code == 2
    assert capsys.readouterr().err.startswith("Traceback (most recent call last):\n")
    # From Python it stays the exception that it is.
    with pytest.raises(ZeroDivisionError):
        run_config(broken, make())


@pytest.mark.parametrize("code", [0, 1])
def test_a_step_whose_answer_can_be_no_says_so_by_its_exit_code(code):
    seen = []

    def answer(configuration):
        seen.append(configuration)
        return {"code": code}

    for run in (run_script, run_config):
        arguments = (make_parser, answer, ARGV) if run is run_script else (answer, make())
        if code:
            with pytest.raises(SystemExit) as ended:
                run(*arguments, exit_code=lambda result: result["code"])
            assert ended.value.code == code
        else:
            run(*arguments, exit_code=lambda result: result["code"])
    assert seen == [make(), make()]


@pytest.mark.parametrize("name", [b"r\xe9sultats", b"\xc4rzte/run", b"run\xff", b"\x80"])
def test_names_that_no_library_can_open_are_refused_at_once(name, capsys, alone):
    for argv in ([os.fsdecode(name), "--data", "phantom"], ["r", "--data", os.fsdecode(name)]):
        with pytest.raises(SystemExit) as error:
            run_script(make_parser, pytest.fail, argv)
        assert error.value.code == 2
        told = capsys.readouterr().err
        assert "has bytes that are not UTF-8" in told and told.count("\n") == 1
        told.encode()


@pytest.mark.parametrize("name", ["Drüsen/Ärzte", "腺癌", "run [1]", "100%", 'it\'s "it"', "a\nb", "*?{x}$HOME", "🔬"])
def test_other_odd_names_are_names(name):
    seen = []
    run_script(make_parser, seen.append, [name, "--data", f"./-{name}"])
    assert [str(seen[0].run), seen[0].data] == [name, f"./-{name}"]


def test_run_script_hands_over_what_it_parsed(monkeypatch):
    seen = []
    run_script(make_parser, seen.append, [*ARGV, "--count", "5"])
    assert seen == [make(count=5)]
    monkeypatch.setattr(sys, "argv", ["every-kind", *ARGV])
    run_script(make_parser, seen.append)
    assert seen[1:] == [make()]


def test_run_config_says_it_with_options(capsys, alone):
    seen = []
    run_config(seen.append, make())
    assert seen == [make()]
    with pytest.raises(SystemExit) as error:
        run_config(bad_input, make(), {"run": "RUN"})
    assert error.value.code == 2
    assert capsys.readouterr().err == "error: --n-per-class=0 does not go with RUN: give another\n"


def test_options_import_nothing_heavy(tmp_path):
    code = """
import sys
import histodistill.training.running.options
import histodistill.training.running.training_options
print([name for name in ("numpy", "torch", "accelerate") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
