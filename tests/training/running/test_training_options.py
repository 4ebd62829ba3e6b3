from __future__ import annotations

import json
from pathlib import Path

import pytest

from histodistill.training.running.errors import InputError
from histodistill.training.running.options import StepParser, config, like
from histodistill.training.running.training_options import PrivateTrainingConfig, TrainingConfig


@config
class Script(TrainingConfig):
    """A script with defaults of its own."""

    max_train_steps: int = like(TrainingConfig, "max_train_steps", default=70)
    batch_size: int = like(TrainingConfig, "batch_size", default=5)
    learning_rate: float = like(TrainingConfig, "learning_rate", default=0.25)
    weight_decay: float = like(TrainingConfig, "weight_decay", default=0.125)


def parse(*argv: str) -> Script:
    return StepParser(Script, prog="script").read(["--data", "phantom", "--output", "out", *argv])


def private(**values) -> PrivateTrainingConfig:
    return PrivateTrainingConfig(data="phantom", output="out", **values)


def test_defaults_are_those_of_the_script():
    args = parse()
    assert (args.max_train_steps, args.batch_size, args.learning_rate, args.weight_decay) == (70, 5, 0.25, 0.125)
    assert (args.output, args.class_balance, args.seed) == (Path("out"), 0.5, 0)


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
        (["--audit-share", "1"], "--audit-share=1.0 is out of range: it must be at least 0 and below 1"),
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


def test_settings_leave_out_where_and_how():
    first = parse("--output", "a", "--resume", "latest", "--checkpointing-steps", "3").settings()
    assert first == parse("--output", "b", "--report-to", "tensorboard", "--audit-share", "0.25").settings()
    assert first != parse("--seed", "1").settings()
    assert first["learning_rate"] == 0.25
    assert "data" not in first  # its content counts, which the scripts add as a fingerprint
    assert json.dumps(first)  # plain values


def test_class_balance_goes_by_privacy():
    assert private().class_balance == 0.5
    assert private(class_balance=1).class_balance == 1.0
    assert private(dp_epsilon=1).class_balance == 0.0
    assert private(dp_epsilon=1, class_balance=0).class_balance == 0.0


def test_settings_of_privacy_are_recorded_where_there_is_any():
    assert not [name for name in private(dp_views=2).settings() if name.startswith("dp_")]
    settings = private(dp_epsilon=2).settings()
    names = {"dp_epsilon": 2.0, "dp_delta": None, "dp_max_grad_norm": 1.0, "dp_views": 4, "class_balance": 0.0}
    assert {name: settings[name] for name in names} == names


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dp_epsilon": 0}, "dp_epsilon=0.0 is out of range: it must be above 0"),
        ({"dp_epsilon": 1, "dp_delta": 1}, "dp_delta=1.0 is out of range: it must be above 0 and below 1"),
        ({"dp_delta": 1e-5}, "dp_delta says nothing without dp_epsilon: give both or neither"),
        (
            {"dp_epsilon": 1, "class_balance": 0.5},
            "class_balance=0.5 is out of range: with dp_epsilon it must be 0, which draws all tiles alike",
        ),
        (
            {"dp_epsilon": 1, "gradient_accumulation_steps": 2},
            "gradient_accumulation_steps=2 is out of range: with dp_epsilon it must be 1: give a larger batch_size, "
            "which needs no more memory",
        ),
        (
            {"dp_epsilon": 1, "mixed_precision": "fp16"},
            "mixed_precision=fp16 is out of range: with dp_epsilon it must be bf16 or no",
        ),
    ],
)
def test_what_does_not_go_with_privacy(values, message):
    with pytest.raises(InputError) as error:
        private(**values)
    assert str(error.value) == message
