"""The one rule for names that are published."""

import unicodedata

import pytest

from histodistill.hub_cards.names import fault_of_published_name


@pytest.mark.parametrize(
    "name",
    [
        "Drüse", "01_TUMOR", "腺癌", "pT1–2", "40× HE", "เนื้อเยื่อ", "ऊतक", "é́", "α-SMA+",
        "G1 (>50 %)", "tumor/stroma", "T-cell's", "5µm", "label: 3",
        "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
        "poorly_differentiated_adenocarcinoma_of_the_colon",
    ],
)  # fmt: skip
def test_names_that_people_give(name):
    assert fault_of_published_name(name) is None


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "no letters"),
        ("  ", "no letters"),
        ("a\nb", "not seen"),
        ("gland\u202e", "not seen"),
        ("gl\u200band", "not seen"),
        ("gland\ufe0f", "not seen"),
        ("gl\udcffnd", "not seen"),
        (unicodedata.normalize("NFD", "Drüse"), "accents apart"),
        ("gland ", "a space"),
        ("gland " * 20 + "x", "more than 100"),
        ("iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAIAAADt2x", "a word of more than 40"),
        ("/home/x", "other signs"),
        ("C:\\x", "other signs"),
        ("https://a.b/c", "other signs"),
        ("<img src=x>", "other signs"),
        ("`code`", "other signs"),
        ("a|b", "other signs"),
        ("me@ward.example", "other signs"),
        ("{{ x }}", "other signs"),
    ],
)
def test_names_that_are_not_published(name, fault):
    assert fault in fault_of_published_name(name)


@pytest.mark.parametrize(
    ("name", "sign"), [("non-tumor*", "*"), ("pT1—2", "—"), ("site:a", ":"), ("{s}", "{"), ("/a", "/")]
)
def test_the_sign_that_is_in_the_way_is_named(name, sign):
    assert fault_of_published_name(name).startswith(f"other signs ({sign}) than ")
