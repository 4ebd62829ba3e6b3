from __future__ import annotations

import io

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from histodistill.training.engine.scoring import score_probabilities
from histodistill.training.tables import results_figures
from histodistill.training.tables.results_figures import draw_results, shown_rows
from histodistill.training.tables.results_summary import summarise
from histodistill.training.tables.rows import default_rows


NAMES = ["adipose", "stroma", "mucus"]
FILES = ("accuracy_by_size.png", "confusion.png", "per_class_f1.png", "reliability.png")


def scores(accuracy: float, seed: int) -> dict:
    """Those of a classifier that takes so many of 60 tiles for what they are and the rest for the next class."""
    labels = np.arange(60) % 3
    right = np.random.default_rng(seed).permutation(60) < round(60 * accuracy)
    said = np.where(right, labels, (labels + 1) % 3)
    found = score_probabilities(0.2 + 0.4 * np.eye(3)[said], labels)
    return {**found, "auc": None}


@pytest.fixture(scope="module", autouse=True)
def cells_are_quick():
    # The AUC takes most of the time of a score and is drawn nowhere.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("histodistill.training.engine.scoring.load_metric", lambda name: _Metric(name))
        yield


class _Metric:
    def __init__(self, name: str):
        self.name = name

    def compute(self, **values) -> dict:
        is_accuracy = self.name == "accuracy"
        return {self.name: float((values["predictions"] == values["references"]).mean()) if is_accuracy else 0.5}


def cell(
    architecture: str, row: str, size: int | None, seed: int, accuracy: float, validation: float | None = None, steps=7
):
    return {
        "architecture": architecture, "row": row, "size": size, "seed": seed, "num_train": 3 * (size or 50),
        "config": {"max_train_steps": steps, "batch_size": 32}, "test": scores(accuracy, seed),
        "validation": scores(accuracy if validation is None else validation, seed),
    }  # fmt: skip


WHOLE = [
    *(cell(architecture, "real_all", None, seed, 0.9) for architecture in ("convnet", "vit") for seed in (0, 1)),
    *(
        cell(architecture, row, size, seed, accuracy + size / 200)
        for architecture in ("convnet", "vit")
        for row, accuracy in (("real_random", 0.6), ("random", 0.4), ("infomap:quota=sqrt", 0.5))
        for size in (10, 50)
        for seed in (0, 1)
    ),
]


def draw(cells: list[dict]) -> tuple[dict[str, bytes], list[Figure]]:
    """The PNG files of some cells, and the figures in them."""
    figures = []
    as_png = results_figures.figure_png
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results_figures, "figure_png", lambda figure: figures.append(figure) or as_png(figure))
        return draw_results(summarise(cells), cells, NAMES), figures


@pytest.fixture(scope="module")
def whole() -> tuple[dict[str, bytes], list[Figure]]:
    return draw(WHOLE)


@pytest.fixture
def figures(whole) -> list[Figure]:
    """In the order of `FILES`."""
    return whole[1]


def check_pictures(files: dict[str, bytes]) -> None:
    assert tuple(files) == FILES
    for name, png in files.items():
        assert png.startswith(b"\x89PNG\r\n\x1a\n"), name
        picture = matplotlib.image.imread(io.BytesIO(png))[..., :3]
        assert min(picture.shape[:2]) > 200 and max(picture.shape[:2]) < 4000, name
        inked = np.abs(picture - picture[0, 0]).max(axis=2) > 0.1
        assert 0.005 < inked.mean() < 0.7, name


def test_figures_are_pictures_with_something_on_them(whole):
    check_pictures(whole[0])


@pytest.mark.parametrize(
    "cells",
    [
        [cell("vit", "random", 10, 3, 0.5)],
        [cell("convnet", "real_all", None, 0, 0.9), cell("convnet", "pool_all", None, 0, 0.8)],
        # The second classifier has but one row yet.
        [cell("convnet", "random", 10, 0, 0.5), cell("convnet", "kmeans@margin=0.2", 50, 0, 0.6), WHOLE[2]],
    ],
    ids=["one cell", "no sizes", "half done"],
)
def test_small_tables_have_figures_too(cells):
    files, figures = draw(cells)
    check_pictures(files)
    assert len(figures[0].axes) == len({c["architecture"] for c in cells})


def test_without_rows_there_is_nothing_to_draw():
    assert draw_results([], [], NAMES) == {}


def test_rows_to_look_at_closely():
    assert shown_rows(summarise(WHOLE)) == [
        ("real_all", None), ("real_random", 50), ("infomap:quota=sqrt", 50), ("random", 50),
    ]  # fmt: skip
    # What is best on validation tiles comes first, whatever the test tiles say.
    turned = [cell("convnet", "a", 5, 0, 0.9, 0.2), cell("convnet", "b", 5, 0, 0.1, 0.8), cell("vit", "c", 9, 0, 1.0)]
    assert shown_rows(summarise(turned)) == [("b", 5), ("a", 5)]
    assert shown_rows(summarise(turned), at_most=1) == [("b", 5)]
    fixed = [cell("convnet", "pool_all", None, 0, 0.9), cell("convnet", "real_all", None, 0, 0.8)]
    assert shown_rows(summarise(fixed)) == [("real_all", None), ("pool_all", None)]


def test_accuracy_against_images_per_class(figures):
    panels = figures[0].axes
    assert [panel.get_title() for panel in panels] == ["convnet", "vit"]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == [
        "all real training tiles", "random real training tiles", "random", "infomap:quota=sqrt",
    ]  # fmt: skip
    for panel in panels:
        assert [tick.get_text() for tick in panel.get_xticklabels()] == ["10", "50"]
        level = [line for line in panel.lines if list(line.get_xdata()) == [0, 1]]
        assert [line.get_ydata()[0] for line in level] == pytest.approx([0.9])
        means = sorted(bars.lines[0].get_ydata().tolist() for bars in panel.containers)
        expected = [[0.45, 0.65], [0.55, 0.75], [0.65, 0.85]]
        np.testing.assert_allclose(means, expected, atol=1e-9)


def test_figures_are_of_the_steps_that_count():
    # More steps did better on validation tiles, and are all that is shown.
    cells = [cell("convnet", "random", 5, 0, 0.5, 0.4, steps=9), cell("convnet", "random", 5, 0, 0.9, 0.3, steps=7)]
    _, figures = draw(cells)
    shares = figures[1].axes[0].images[0].get_array()
    np.testing.assert_allclose(np.diag(shares).mean(), 0.5)


def test_no_two_rows_of_the_whole_table_look_alike():
    rows = default_rows("convnet")
    sizes = {row: [None] if row.split("@")[0] in ("real_all", "pool_all") else [10, 50] for row in rows}
    _, figures = draw([cell("convnet", row, size, 0, 0.5) for row in rows for size in sizes[row]])
    (panel,) = figures[0].axes
    drawn = [line for line in panel.lines if len(line.get_ydata()) == 2]
    assert len(drawn) == len(rows)
    looks = {(line.get_color(), line.get_marker(), str(line._dash_pattern)) for line in drawn}
    assert len(looks) == len(rows)


def test_confusion_is_the_share_of_a_true_class(figures):
    panels = figures[1].axes
    titles = [panel.get_title().replace("\n", " ") for panel in panels]
    assert titles == [
        "all real training tiles", "random real training tiles, 50 per class", "infomap:quota=sqrt, 50 per class",
        "random, 50 per class",
    ]  # fmt: skip
    shares = panels[3].images[0].get_array()
    counts = np.sum(
        [
            c["test"]["confusion"]
            for c in WHOLE
            if (c["architecture"], c["row"], c["size"]) == ("convnet", "random", 50)
        ],
        axis=0,
    )
    np.testing.assert_allclose(shares, counts / counts.sum(axis=1, keepdims=True))
    assert [tick.get_text() for tick in panels[0].get_yticklabels()] == NAMES
    texts = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in panels[3].texts}
    assert texts[0, 0] == f"{100 * shares[0, 0]:.0f}" and (0, 2) not in texts


def test_f1_of_each_class(figures):
    panel = figures[2].axes[0]
    bars = [container for container in panel.containers if hasattr(container, "patches")]
    assert len(bars) == 4
    mine = [c for c in WHOLE if (c["architecture"], c["row"], c["size"]) == ("convnet", "real_all", None)]
    expected = np.mean([c["test"]["per_class_f1"] for c in mine], axis=0)
    np.testing.assert_allclose([patch.get_width() for patch in bars[0].patches], expected)


def test_reliability_says_how_far_confidence_is_off(figures):
    panel = figures[3].axes[0]
    diagonal, first, *rest = panel.lines
    assert list(diagonal.get_xdata()) == [0, 1] and len(rest) == 3
    # All tiles have confidence 0.6, and nine of ten are taken for what they are.
    np.testing.assert_allclose((first.get_xdata(), first.get_ydata()), [[0.6], [0.9]], atol=1e-9)
    assert panel.get_legend().get_texts()[0].get_text() == "all real training tiles (ECE 0.300)"
