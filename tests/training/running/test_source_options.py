import json
from pathlib import Path

import pytest

from histodistill.training.data import colour_forms
from histodistill.training.running.errors import InputError
from histodistill.training.running.formats import RUN_FORMAT
from histodistill.training.running.source_options import (
    CONVERSIONS,
    SourceOptions,
    of_groups,
    settings_of,
    source_options_of_run,
)


GIVEN = {"group_column": "patient", "convert": ("grey", "16bit"), "labels": Path("labels.csv"), "mpp": 0.5}


def run_of(folder, options, **settings):
    record = {"format": RUN_FORMAT, "settings": {**settings_of(options), **settings}}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_what_was_said_is_taken_from_the_run(tmp_path):
    run = run_of(tmp_path, GIVEN)
    expected = {**GIVEN, "labels": Path("labels.csv").absolute()}
    assert SourceOptions().source_options(run) == {**expected, "labels": str(expected["labels"])}
    assert SourceOptions().source_options() == {} == SourceOptions().source_options(tmp_path / "nothing")
    assert of_groups(expected) == {"group_column": "patient"}


def test_what_is_given_counts_for_its_part(tmp_path):
    run = run_of(tmp_path, GIVEN)
    options = SourceOptions(skip_unreadable=True, cache_dir=Path("cache")).source_options(run)
    assert options == {"group_column": "patient", "skip_unreadable": True, "cache_dir": Path("cache")}
    assert "cache_dir" not in str(settings_of(options))
    assert SourceOptions(split_seed=3).source_options(run)["convert"] == ("grey", "16bit")


@pytest.mark.parametrize(
    "wrong", [{"reading": []}, {"reading": {"mpp": -1}}, {"groups": {"mpp": 1}}, {"reading": {"x": 1}}]
)
def test_a_damaged_record_is_refused(tmp_path, wrong):
    with pytest.raises(InputError, match="does not say how tiles are read and grouped"):
        source_options_of_run(run_of(tmp_path, {}, **wrong))


def test_what_can_be_asked_for_is_what_can_be_done():
    assert tuple(colour_forms.CONVERSIONS) == CONVERSIONS
