from __future__ import annotations

import pytest

from histodistill.training.running.errors import InputError
from histodistill.training.running.formats import check_format


@pytest.mark.parametrize("value", [{}, {"format": 1}, {"format": 2, "data": "phantom"}])
def test_known_formats_are_read_and_files_without_a_number_are_of_the_first(value):
    check_format(value, "run.json", known=2)


def test_a_later_format_is_refused_with_what_to_do():
    with pytest.raises(InputError) as caught:
        check_format({"format": 3}, "runs/a/run.json", known=2)
    assert str(caught.value) == (
        "runs/a/run.json has the format 3, and this version of histodistill knows those up to 2: install the version "
        "that made it, or a later one"
    )


@pytest.mark.parametrize("value", [[], "text", {"format": "1"}, {"format": 0}, {"format": True}, {"format": None}])
def test_what_has_no_format_is_refused_in_one_sentence(value):
    with pytest.raises(InputError, match=r"^run\.json has|^run\.json holds no record of a run") as caught:
        check_format(value, "run.json", known=2)
    assert "\n" not in str(caught.value) and str(caught.value).endswith("delete it and run the command that made it")
