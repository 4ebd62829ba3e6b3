"""Names of classes: one spelling for each, and none that cannot be printed or stored."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest

from histodistill.hub_cards.names import LONGEST_NAME
from histodistill.training.data.make_source import make_source
from histodistill.training.data.names import fault_of_name
from histodistill.training.data.tiles import Tiles
from histodistill.training.running.errors import InputError, one_line


def class_names_of(*names: str, source: str = "slides") -> list[str]:
    images = np.random.default_rng(0).integers(0, 256, (2 * len(names), 8, 8, 3), dtype=np.uint8)
    return make_source(source, names, {"train": Tiles(images, np.arange(len(images)) % len(names))}).class_names


def refused(*names: str, **options: str) -> str:
    with pytest.raises(InputError) as caught:
        class_names_of(*names, **options)
    message = str(caught.value)
    assert "\n" not in message and message.encode()
    return message


@pytest.mark.parametrize("name", ["Dr\udcfcse", "\udce9pith\udce9lium", "\ud83d"])
def test_names_that_are_no_utf8(name):
    assert refused(name, "b").startswith(
        f"slides has the class '{one_line(name)}' with bytes that are no UTF-8: ".replace("\\", "\\\\")
    )


@pytest.mark.parametrize("name", ["a\nb", "a\x00", "\x1b[31mred", "a\u2028b", "\ue000n\ue001", "\x7f"])
def test_names_with_control_characters(name):
    assert "with control characters" in refused(name, "b")


@pytest.mark.parametrize("name", ["", " ", "\u3000 \u00a0"])
def test_empty_names(name):
    assert "with no letters" in refused(name, "b")


@pytest.mark.parametrize("name", ["gland\u200b", "../b", "http://x.org", "<b>x</b>", "a\u202eb"])
def test_names_that_could_not_be_published_are_refused_at_loading(name):
    assert refused(name, "b").endswith(": rename it")


def test_long_names():
    name = "a " * (LONGEST_NAME // 2 - 1) + "aa"
    assert class_names_of(name, "b")[0] == name
    assert f"more than {LONGEST_NAME} characters: rename it" in refused(name + "a", "b")


def test_a_source_that_is_called_so():
    assert "the source 'Dr\\\\udcfcse' has a name with bytes" in refused("a", "b", source="Dr\udcfcse")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("u\u0308", "ü"),
        ("e\u0301pithe\u0301lium", "épithélium"),
        (" gland  ", "gland"),
        ("\uac00", "\u1100\u1161"),
        ("粘液", "粘液"),
    ],
)
def test_one_spelling(given, kept):
    assert class_names_of(given, "b")[0] == unicodedata.normalize("NFC", kept)
    assert "names two classes alike" in refused(given, kept)


@pytest.mark.parametrize("other", ["Gland", "ＧLAND", "ｇland", "gland_", "GLAND"])
def test_names_that_differ_in_little_are_warned_of(capsys, other):
    class_names_of("gland", other, "stroma")
    warned = "_" not in other
    assert (f"warning: slides has classes 'gland' and {other!r}: if they are one" in capsys.readouterr().err) is warned


@pytest.mark.parametrize("names", [("ER+", "ER-"), ("3+", "3"), ("Gleason 3", "Gleason 4"), ("a", "á")])
def test_other_names_are_not_warned_of(capsys, names):
    assert class_names_of(*names) == list(names)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "name", ["Screenshot 10.00.00\u202fAM.png", "a b-c_(1) [2].tif", "ü.png", "\u200eIMG.jpg", "%s{}.png"]
)
def test_names_of_files_that_are_harmless(name):
    assert fault_of_name(name) is None
