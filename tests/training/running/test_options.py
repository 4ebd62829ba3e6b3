from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from histodistill.training.running.errors import InputError
from histodistill.training.running.options import (
    HelpFormatter,
    add_training_options,
    check_option,
    check_training_options,
    fail,
    result_settings,
    run_script,
)


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="First line.\n\n    second line")
    add_training_options(parser, max_train_steps=70, batch_size=5, learning_rate=0.25, weight_decay=0.125)
    args = parser.parse_args(["--data", "phantom", "--output", "out", *argv])
    check_training_options(args)
    return args


def test_defaults_are_those_of_the_script():
    args = parse()
    assert (args.max_train_steps, args.batch_size, args.learning_rate, args.weight_decay) == (70, 5, 0.25, 0.125)
    assert args.output == Path("out")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--max-train-steps", "0"], "--max-train-steps=0 is out of range: it must be at least 1"),
        (["--batch-size", "-3"], "--batch-size=-3 is out of range: it must be at least 1"),
        (["--gradient-accumulation-steps", "0"], "--gradient-accumulation-steps=0 is out of range"),
        (["--validation-steps", "0"], "--validation-steps=0 is out of range: it must be at least 1"),
        (["--validation-tiles", "0"], "--validation-tiles=0 is out of range: it must be at least 1"),
        (["--checkpointing-steps", "0"], "--checkpointing-steps=0 is out of range: it must be at least 1"),
        (["--learning-rate", "0"], "--learning-rate=0.0 is out of range: it must be above 0"),
        (["--learning-rate", "nan"], "--learning-rate=nan is out of range: it must be above 0"),
        (["--max-grad-norm", "-1"], "--max-grad-norm=-1.0 is out of range: it must be above 0"),
        (["--weight-decay", "-0.1"], "--weight-decay=-0.1 is out of range: it must be at least 0"),
        (["--seed", "-1"], "--seed=-1 is out of range: it must be at least 0"),
        (["--warmup", "1.5"], "--warmup=1.5 is out of range: it must be 0 to 1"),
        (["--class-balance", "-0.5"], "--class-balance=-0.5 is out of range: it must be 0 to 1"),
    ],
)
def test_values_out_of_range(argv, message, capsys):
    with pytest.raises(SystemExit) as error:
        parse(*argv)
    assert error.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("argv", [["--mixed-precision", "fp8"], ["--unknown", "1"], ["--batch-size", "many"]])
def test_what_argparse_refuses(argv, capsys):
    with pytest.raises(SystemExit) as error:
        parse(*argv)
    assert error.value.code == 2
    assert argv[0] in capsys.readouterr().err


def test_help_shows_defaults_and_keeps_lines(capsys):
    with pytest.raises(SystemExit) as error:
        parse("--help")
    assert error.value.code == 0
    text = capsys.readouterr().out
    assert "\n    second line\n" in text
    assert "(default: 0.25)" in text


def test_help_shows_each_default_once():
    parser = argparse.ArgumentParser(formatter_class=HelpFormatter)
    parser.add_argument("--told", default="a", help="which; default: b or a")
    parser.add_argument("--needed", required=True, help="what is needed")
    parser.add_argument("--empty", default=None, help="nothing")
    parser.add_argument("--shown", type=int, default=3, help="how many")
    lines = [line.split(maxsplit=2)[2] for line in parser.format_help().splitlines()[-4:]]
    assert lines == ["which; default: b or a", "what is needed", "nothing", "how many (default: 3)"]


def test_settings_leave_out_where_and_how():
    first = result_settings(parse("--output", "a", "--resume", "latest", "--checkpointing-steps", "3"))
    assert first == result_settings(parse("--output", "b", "--report-to", "tensorboard"))
    assert first != result_settings(parse("--seed", "1"))
    assert first["learning_rate"] == 0.25
    assert "data" not in first  # its content counts, which the scripts add as a fingerprint


def test_check_option_names_option_value_and_rule(capsys):
    args = argparse.Namespace(kl_weight=-1.0)
    check_option(args, "kl_weight", True, "it must be at least 0")
    with pytest.raises(SystemExit):
        check_option(args, "kl_weight", False, "it must be at least 0")
    assert capsys.readouterr().err == "error: --kl-weight=-1.0 is out of range: it must be at least 0\n"


def test_fail(capsys):
    with pytest.raises(SystemExit) as error:
        fail("there is no such thing")
    assert error.value.code == 2
    assert capsys.readouterr().err == "error: there is no such thing\n"


def bad_input(_):
    raise InputError("x does not exist: give another")


def test_run_script_turns_bad_input_into_one_sentence(capsys, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(SystemExit) as error:
        run_script(lambda argv: argv, bad_input, [])
    assert error.value.code == 2
    assert capsys.readouterr().err == "error: x does not exist: give another\n"


def test_only_the_first_of_several_processes_speaks(capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as error:
        run_script(lambda argv: argv, bad_input, [])
    assert error.value.code == 2
    assert capsys.readouterr().err == ""


def test_interrupted_script_ends_in_silence(capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as error:
        run_script(lambda argv: argv, interrupted, [])
    assert error.value.code == 130
    assert capsys.readouterr().err == ""


def test_other_errors_keep_their_traceback():
    def broken(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_script(lambda argv: argv, broken, [])


def test_run_script_hands_over_what_it_parsed():
    seen = []
    run_script(lambda argv: [*argv, "parsed"], seen.append, ["given"])
    assert seen == [["given", "parsed"]]
