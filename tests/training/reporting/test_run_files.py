from __future__ import annotations

import pytest

from histodistill.training.reporting.run_files import read_optional, read_results, read_run_record, source_name
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import write_json


READERS = {"run.json": read_run_record, "results.json": read_results}


def test_a_missing_file_is_none(tmp_path):
    assert read_optional(tmp_path / "audit.json") is None
    assert [read(tmp_path) for read in READERS.values()] == [None, None]


@pytest.mark.parametrize("file", list(READERS))
def test_a_file_from_before_there_were_formats_is_read(file, tmp_path):
    for value in ({"data": "phantom"}, {"format": 1, "data": "phantom"}):
        write_json(tmp_path / file, value)
        assert READERS[file](tmp_path) == value
        assert source_name(tmp_path) == "phantom"


@pytest.mark.parametrize("file", list(READERS))
def test_a_later_format_is_refused(file, tmp_path):
    write_json(tmp_path / file, {"format": 2, "data": "phantom"})
    for read in (READERS[file], source_name):
        with pytest.raises(InputError, match=rf"{file} has the format 2, .* install the version that made it"):
            read(tmp_path)


def test_a_damaged_file_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json cannot be read .*: delete it and run the command that made it"):
        read_run_record(tmp_path)
