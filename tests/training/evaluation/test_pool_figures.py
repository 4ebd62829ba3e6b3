from __future__ import annotations

import numpy as np
import pytest

from histodistill.training.data.tiles import Tiles
from histodistill.training.evaluation.pool_figures import (
    DISTANCES,
    distance_lines,
    draw_distances,
    draw_tiles,
    format_distance,
)


MEASURED = {
    "frechet_distance": 12.3456, "kernel_distance": 0.0123456, "precision": 0.75, "recall": 0.5, "density": 1.0625,
    "coverage": 1.0,
}  # fmt: skip
REAL = {**MEASURED, "frechet_distance": 3.0, "kernel_distance": -0.00025, "density": 0.9996}
UNKNOWN = dict.fromkeys(DISTANCES)
RECORDS = [
    {"class": None, "num_images": 12345, "pool": MEASURED, "real_train": REAL},
    {"class": "smooth muscle", "num_images": 42, "pool": REAL, "real_train": MEASURED},
    {"class": "mucus", "num_images": 3, "pool": UNKNOWN, "real_train": UNKNOWN},
]


def test_a_distance_as_text():
    assert format_distance("frechet_distance", 12.345678) == "12.35"
    assert format_distance("kernel_distance", 0.0123456) == "12.35"
    assert format_distance("coverage", 0.97351) == "0.974"
    assert format_distance("coverage", 0.0) == "0.000"
    assert format_distance("density", None) == "–"


def test_lines_hold_every_figure_of_the_pool_and_its_ceiling():
    lines = distance_lines(RECORDS)
    assert len(lines) == 2 + len(RECORDS)
    assert lines[0] == "pool / real training tiles, both against validation tiles"
    assert " ".join(lines[2].split()) == (
        "all classes 12,345 12.35 / 3.00 12.35 / -0.25 0.750 / 0.750 0.500 / 0.500 1.062 / 1.000 1.000 / 1.000"
    )
    assert lines[3].startswith("smooth muscle ") and lines[3].split()[2:6] == ["42", "3.00", "/", "12.35"]
    assert lines[4].split() == ["mucus", "3"] + ["–", "/", "–"] * 6
    # Columns stand below their titles.
    assert len({len(line) for line in lines[1:]}) == 1
    for title, _ in DISTANCES.values():
        end = lines[1].index(title) + len(title)
        assert all(line[end - 1] != " " and line[end : end + 1] in ("", " ") for line in lines[1:])


def places_of(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Rows and columns, 2×N, of pixels of exactly this colour."""
    return np.stack(np.nonzero((pixels == colour).all(axis=-1)))


POOL_BAR, REAL_BAR = (0x8E, 0x3B, 0x73), (0xB9, 0xBF, 0xC7)


def test_distances_as_a_figure(read_png):
    pixels = read_png(draw_distances(RECORDS))
    height, width, _ = pixels.shape
    assert width == 13 * 130 and 300 < height < width
    assert len(places_of(pixels, POOL_BAR)[0]) > 1000 and len(places_of(pixels, REAL_BAR)[0]) > 1000
    # More classes take more room.
    assert read_png(draw_distances(RECORDS * 3)).shape[0] > 1.5 * height


def test_unmeasured_classes_have_no_bar(read_png):
    nothing = [{**record, "pool": UNKNOWN, "real_train": UNKNOWN} for record in RECORDS]
    pool_alone = [{**record, "real_train": UNKNOWN} for record in RECORDS]
    sizes = {
        name: [len(places_of(read_png(draw_distances(records)), colour)[0]) for colour in (POOL_BAR, REAL_BAR)]
        for name, records in (("nothing", nothing), ("pool", pool_alone), ("all", RECORDS))
    }
    # What is left are the squares of the legend.
    assert 0 < sizes["nothing"][0] < 1000 and 0 < sizes["nothing"][1] < 1000
    assert sizes["pool"] == [pytest.approx(sizes["all"][0], rel=0.1), pytest.approx(sizes["nothing"][1], rel=0.1)]
    assert min(sizes["all"]) > 10 * max(sizes["nothing"])


def plain_tiles(counts: list[int], red: int) -> Tiles:
    """Tiles of one colour each: (`red`, 60 + 50 × class, number in its class)."""
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.empty((len(labels), 8, 8, 3), np.uint8)
    images[..., 0] = red
    images[..., 1] = (60 + 50 * labels)[:, None, None]
    images[..., 2] = np.concatenate([np.arange(count) for count in counts])[:, None, None]
    return Tiles(images, labels)


def shown(pixels: np.ndarray, red: int, label: int) -> dict[int, tuple[float, float]]:
    """Number in its class of each tile that is shown, and the middle of the place (row, column) where it is."""
    rows, columns = np.nonzero((pixels[..., 0] == red) & (pixels[..., 1] == 60 + 50 * label))
    numbers = pixels[rows, columns, 2]
    # Fewer pixels than a tile has are mixtures at an edge.
    large = [number for number, count in zip(*np.unique(numbers, return_counts=True), strict=True) if count > 1000]
    return {int(n): (rows[numbers == n].mean(), columns[numbers == n].mean()) for n in large}


def test_real_tiles_stand_above_generated_ones_of_their_class(read_png):
    pixels = read_png(draw_tiles(plain_tiles([25, 10], red=250), plain_tiles([10, 12], red=20), ["one", "two"]))
    assert pixels.shape[1] > pixels.shape[0] > 400
    rows = [shown(pixels, red, label) for label in (0, 1) for red in (250, 20)]
    assert [len(row) for row in rows] == [10, 10, 10, 10]
    heights = [np.mean([place[0] for place in row.values()]) for row in rows]
    assert heights == sorted(heights)
    for row, height in zip(rows, heights, strict=True):
        assert all(abs(place[0] - height) < 2 for place in row.values())
        columns = [row[number][1] for number in sorted(row)]
        assert columns == sorted(columns)
    # Of more than there is room for, some from everywhere.
    assert min(rows[0]) < 3 and max(rows[0]) > 21
    assert set(rows[1]) == set(range(10))


@pytest.mark.parametrize("count", [1, 4, 7])
def test_fewer_tiles_than_there_is_room_for_are_shown_once_each(read_png, count):
    pixels = read_png(draw_tiles(plain_tiles([count, 10], red=250), plain_tiles([10, 10], red=20), ["one", "two"]))
    row = shown(pixels, 250, 0)
    assert set(row) == set(range(count))
    # Each at one place alone: as large as a tile of the row below.
    sizes = [len(places_of(pixels, (250, 60, number))[0]) for number in row]
    assert max(sizes) < 1.5 * len(places_of(pixels, (20, 60, 0))[0])


def test_a_class_without_tiles_leaves_its_row_empty(read_png):
    pixels = read_png(draw_tiles(plain_tiles([10, 0], red=250), plain_tiles([0, 10], red=20), ["one", "two"]))
    assert [len(shown(pixels, red, label)) for label in (0, 1) for red in (250, 20)] == [10, 0, 0, 10]
