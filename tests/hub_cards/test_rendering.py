from __future__ import annotations

import pytest

from histodistill.hub_cards.rendering import ScoreText, format_score


@pytest.mark.parametrize(
    ("score", "mean", "std", "text"),
    [
        ({"mean": 0.7568, "std": 0.0041}, "0.757", "0.004", "0.757 ± 0.004"),
        ({"mean": 0.7568, "std": None}, "0.757", None, "0.757"),
        ({"mean": 1}, "1.000", None, "1.000"),
        ({"mean": None, "std": None}, "–", None, "–"),
        (None, "–", None, "–"),
    ],
)
def test_scores_as_text(score, mean, std, text):
    assert ScoreText.of(score) == ScoreText(mean, std)
    assert format_score(score) == str(ScoreText.of(score)) == text
