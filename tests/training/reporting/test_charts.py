from __future__ import annotations

import pytest

from histodistill.training.reporting.charts import MARKERS, Axis, Score, bar_chart, line_chart, mark_chart


@pytest.mark.parametrize(
    ("values", "low", "high", "step"),
    [
        ([0.885, 0.954], 0.88, 0.96, 0.02),
        ([0.0, 1.0], 0.0, 1.0, 0.2),
        ([0.5], 0.5, 0.51, 0.01),
        ([1.0, 1.0], 0.99, 1.0, 0.01),
        ([0.0], 0.0, 0.01, 0.01),
        ([0.3, 0.6], 0.3, 0.6, 0.1),
    ],
)
def test_axis_ends_at_round_numbers_around_the_values(values, low, high, step):
    axis = Axis.around(values)
    assert axis == pytest.approx((low, high, step))
    assert axis.ticks[0] == axis.low and axis.ticks[-1] == pytest.approx(axis.high) and len(axis.ticks) <= 6
    assert all(-1e-9 <= axis.share(value) <= 1 + 1e-9 for value in values)
    assert [axis.share(tick) for tick in (low, high)] == pytest.approx([0, 1])


def test_bars_are_as_wide_as_their_scores():
    bars = [
        {"title": "a", "score": Score(0.924, 0.1), "kind": "distilled"},
        {"title": "b", "score": Score(0.5), "kind": "real_all"},
    ]
    chart = bar_chart(bars, reference=0.7)
    assert [(row["title"], row["kind"], row["width"]) for row in chart["rows"]] == [
        ("a", "distilled", 92.4),
        ("b", "real_all", 50.0),
    ]
    # No deviation leaves the scale, and one seed has none.
    assert [row["range"] for row in chart["rows"]] == [[82.4, 100.0], None]
    assert chart["reference"] == 70.0
    assert bar_chart(bars, reference=None)["reference"] is None


def test_marks_lie_where_the_ticks_say():
    chart = mark_chart(["one", "two"], {"distilled": [0.8, 1.0], "real_all": [0.9, 0.95]})
    place = {float(text): x for text, x in chart["ticks"]}
    first, second = chart["rows"]
    assert [row["title"] for row in chart["rows"]] == ["one", "two"]
    assert [mark["kind"] for mark in first["marks"]] == ["distilled", "real_all"]
    assert first["marks"][0]["shape"] != first["marks"][1]["shape"]
    assert [mark["place"] for mark in first["marks"]] == pytest.approx([place[0.8], place[0.9]])
    assert [mark["place"] for mark in second["marks"]] == pytest.approx([place[1.0], place[0.95]])
    assert 0 < place[0.8] < place[1.0] < 100


def test_lines_lie_where_the_ticks_say():
    scores = {50: Score(0.7, 0.05), 10: Score(0.6), 100: Score(0.8)}
    chart = line_chart([{None: Score(0.9)}, scores, {10: Score(0.5)}])
    down, across = ({float(text): at for text, at in chart[name]} for name in ("ticks", "sizes"))
    level, line, single = chart["lines"]
    assert level == {"number": 0, "shape": MARKERS[0], "points": [], "level": pytest.approx(down[0.9])}
    assert (line["number"], line["shape"], line["level"]) == (1, MARKERS[1], None)
    assert [point["x"] for point in line["points"]] == [across[10], across[50], across[100]]
    assert [point["y"] for point in line["points"]] == pytest.approx([down[0.6], down[0.7], down[0.8]])
    assert line["points"][1]["range"] == pytest.approx([(down[0.6] + down[0.7]) / 2, (down[0.7] + down[0.8]) / 2])
    assert line["points"][0]["range"] == []
    assert single["points"] == [{"x": across[10], "y": pytest.approx(down[0.5]), "range": []}]
    # Higher is better is higher up, and sizes are apart by their ratio.
    assert down[0.9] < down[0.5] < chart["height"]
    assert (across[50] - across[10]) / (across[100] - across[50]) == pytest.approx(2.32, abs=0.01)


def test_one_size_stands_in_the_middle():
    chart = line_chart([{20: Score(0.5)}])
    assert chart["sizes"] == [("20", chart["lines"][0]["points"][0]["x"])]
    assert 40 < chart["sizes"][0][1] < 60
