from __future__ import annotations

import pytest

from histodistill.selection import SELECTOR_NAMES
from histodistill.training.reporting.selector_texts import SELECTOR_TEXTS, selector_text


def test_every_selector_has_words():
    assert set(SELECTOR_TEXTS) == set(SELECTOR_NAMES)


@pytest.mark.parametrize("name", SELECTOR_NAMES)
def test_only_the_default_is_called_so_and_only_infomap_goes_by_communities(name):
    text = selector_text({"selector": name})
    sentences = " ".join(text["sentences"])
    assert text["name"] in sentences
    assert ("the default" in sentences) == (name == "kernel_herding")
    assert text["by_communities"] == (name == "infomap")


def test_the_ranking_of_infomap_is_told():
    assert "most central images" in selector_text({"selector": "infomap"})["sentences"][0]
    assert "random images" in selector_text({"selector": "infomap", "ranking": "random"})["sentences"][0]


@pytest.mark.parametrize("settings", [{}, {"selector": "of another version"}])
def test_what_is_not_known_is_not_told(settings):
    assert selector_text(settings) is None
