from __future__ import annotations

import pickle

from histodistill.training.running.errors import InputError, option_string, param, reason_of


def test_one_message_in_two_voices():
    error = InputError(f"{param('n_per_class')}=0 is out of range with {param('run')} --as-it-is")
    assert str(error) == "n_per_class=0 is out of range with run --as-it-is"
    assert error.for_command_line() == "--n-per-class=0 is out of range with --run --as-it-is"
    assert error.for_command_line({"run": "RUN"}) == "--n-per-class=0 is out of range with RUN --as-it-is"
    assert isinstance(error, ValueError)


def test_a_longer_message_may_quote_it():
    first = InputError(f"{param('loss')}=x is unknown")
    second = InputError(f"row 3: {first.marked()}, or leave {param('rows')} out")
    assert str(second) == "row 3: loss=x is unknown, or leave rows out"
    assert second.for_command_line() == "row 3: --loss=x is unknown, or leave --rows out"


def test_both_voices_survive_pickling():
    error = pickle.loads(pickle.dumps(InputError(f"{param('seed')}=-1 is out of range")))
    assert type(error) is InputError
    assert str(error) == "seed=-1 is out of range"
    assert error.for_command_line() == "--seed=-1 is out of range"


def test_a_subclass_stays_one():
    class Special(InputError):
        pass

    assert type(Special("x").__reduce__()[0]("x")) is Special


def test_option_string():
    assert option_string("n_per_class") == "--n-per-class"


def test_what_a_library_says_is_shown_on_one_line():
    assert reason_of(ValueError("type \x0f of \x1b[2J:\nmore")) == r"type \x0f of \x1b[2J"
    assert reason_of(KeyError()) == "KeyError"
    assert reason_of(ValueError("x" * 10**5)) == "x" * 299 + "…"
