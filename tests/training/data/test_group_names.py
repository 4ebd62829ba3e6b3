"""Names of groups: their one spelling, and what columns are called after."""

from __future__ import annotations

import pytest

from histodistill.training.data.group_names import kind_called, spelled
from histodistill.training.running.errors import InputError


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("patient", "patient"),
        ("Patient_ID", "patient"),
        (" slide-id ", "slide"),
        ("case no", "case"),
        ("site", "site"),
        ("group", "group"),
        ("specimenID", "specimen"),
        ("patient_age", None),
        ("inpatient", None),
        ("id", None),
        ("", None),
    ],
)
def test_what_a_column_is_called_after(column, kind):
    assert kind_called(column) == kind


def test_one_spelling():
    assert spelled(["e\u0301 ", "\u00e9", "01", "1", "P p"], str).tolist() == ["\u00e9", "\u00e9", "01", "1", "P p"]
    assert spelled([], str).tolist() == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["a", " ", ""], "row 1 has no slide: give"),
        (["a", "b", "x" * 201], "row 2 has a slide of more than 200 characters"),
    ],
)
def test_names_that_are_refused(values, expected):
    with pytest.raises(InputError, match=expected):
        spelled(values, lambda row: f"row {row}", "slide")
