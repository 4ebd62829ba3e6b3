from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from threadpoolctl import threadpool_limits

from histodistill.training.distillation import community_figures
from histodistill.training.distillation.community_figures import community_map, community_tiles


NAMES = ["fat", "$stroma"]  # a name is no formula
NOTHING = np.array([], dtype=np.int64)
PLACE = community_figures._SIDE + community_figures._GAP
FRAME = (0x00, 0xA3, 0x6C)


def blobs(per_class=24, num_classes=2):
    """Embeddings of classes with three communities each, their labels, and the communities."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(num_classes), per_class)
    modules = 3 * labels + np.arange(len(labels)) % 3
    embeddings = rng.normal(size=(len(labels), 5)) + 9 * rng.normal(size=(3 * num_classes, 5))[modules]
    return embeddings.astype(np.float32), labels, modules


def read(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def draw_map(path, embeddings, labels, modules, chosen=NOTHING, names=NAMES):
    community_map(embeddings, labels, modules, chosen, names, path)
    return read(path)


def test_map_has_a_panel_for_each_class_and_leaves_one_file(tmp_path):
    shapes = {}
    for count in (1, 2, 4, 7):
        names = [f"class {i}" for i in range(count)]
        shapes[count] = draw_map(tmp_path / "map.png", *blobs(6, count), names=names).shape
    assert shapes[2][1] == shapes[4][1] == 2 * shapes[1][1]
    assert shapes[1][0] == shapes[2][0] < shapes[4][0] < shapes[7][0]
    assert shapes[7][1] == 3 * shapes[1][1]
    assert [file.name for file in tmp_path.iterdir()] == ["map.png"]


def test_map_is_the_same_with_any_number_of_threads(tmp_path):
    data = blobs()
    files = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            draw_map(tmp_path / "map.png", *data, np.array([0, 30]))
        files.append((tmp_path / "map.png").read_bytes())
    assert files[0] == files[1]


def test_map_marks_the_chosen(tmp_path):
    data = blobs(9)
    none, some, others = (draw_map(tmp_path / "map.png", *data, np.array(c, int)) for c in ([], [3, 12], [4, 13]))
    assert (none != some).any() and (some != others).any()
    # The titles count them, and the rings are dark: in the panels, below the titles, too.
    assert (some[70:400] < 60).all(-1).sum() > (none[70:400] < 60).all(-1).sum() + 50


def test_map_shows_dropped_images_in_grey_and_not_as_a_community(tmp_path):
    embeddings, labels, modules = blobs(9)
    grey = np.array([0xB4, 0xBA, 0xC2])
    before = draw_map(tmp_path / "map.png", embeddings, labels, modules)
    dropped = draw_map(tmp_path / "map.png", embeddings, labels, np.where(labels == 0, -1, modules))
    assert (dropped == grey).all(-1).sum() > (before == grey).all(-1).sum()
    assert (before == dropped)[:, before.shape[1] // 2 + 20 : -20][60:440].all()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 9, 10])
@pytest.mark.parametrize("width", [1, 4])
def test_map_of_few_images(tmp_path, count, width):
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(count + 3, width)).astype(np.float32)
    labels = np.r_[np.zeros(count, int), 1, 1, 1]
    draw_map(tmp_path / "map.png", embeddings, labels, np.arange(count + 3), np.array([count]))


def test_map_of_identical_images(tmp_path):
    embeddings = np.full((24, 3), 0.1, dtype=np.float32)
    embeddings[-12:-6] = 7
    _, labels, modules = blobs(12)
    draw_map(tmp_path / "map.png", embeddings, labels, modules, np.array([0]))


def test_communities_side_by_side_differ_in_colour():
    places = np.stack(np.meshgrid(np.arange(12.0), np.arange(12.0)), axis=-1).reshape(-1, 2)
    inverse = (places[:, 0] // 3 + 4 * (places[:, 1] // 3)).astype(int)
    colours = community_figures._spread_colours(places, inverse).reshape(4, 4)
    assert (colours[:, 1:] != colours[:, :-1]).all()
    assert (colours[1:] != colours[:-1]).all()


def test_a_large_class_is_thinned_out_but_for_the_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(community_figures, "MAP_IMAGES", 20)
    laid_out = []
    layout = community_figures._layout
    monkeypatch.setattr(community_figures, "_layout", lambda *args: laid_out.append(args[0]) or layout(*args))
    embeddings, labels, modules = blobs(40)
    chosen = np.r_[np.arange(0, 15), np.arange(45, 70)]
    draw_map(tmp_path / "map.png", embeddings, labels, modules, chosen)
    assert [len(drawn) for drawn in laid_out] == [20, 25]
    drawn = {tuple(row) for rows in laid_out for row in rows}
    assert {tuple(row) for row in embeddings[chosen]} <= drawn


def flat_images(values, size=8):
    """Images of one colour each, by which a test finds them."""
    images = np.zeros((len(values), size, size, 3), np.uint8)
    images[..., 0] = 255
    images[..., 1] = np.asarray(values)[:, None, None]
    return images


def draw_tiles(path, images, modules, centrality, chosen=NOTHING, labels=None, names=("a",), **options):
    labels = np.zeros(len(images), int) if labels is None else labels
    community_tiles(images, labels, modules, centrality, chosen, list(names), path, **options)
    return read(path)


def shown(pixels):
    """The second channel of the images in each row of the figure, from left to right."""
    is_image = (pixels[..., 0] == 255) & (pixels[..., 2] == 0)
    rows = []
    for y in np.flatnonzero(is_image.any(1) & ~np.roll(is_image.any(1), 1)):
        starts = is_image[y] & ~np.roll(is_image[y], 1)
        rows.append(pixels[y, starts, 1].tolist())
    return rows


def test_tiles_are_the_largest_communities_from_most_to_least_central(tmp_path):
    modules = np.r_[np.full(4, 2), np.full(9, 7), np.full(2, 0), np.full(3, -1)]
    centrality = np.arange(len(modules)).astype(float)
    pixels = draw_tiles(tmp_path / "tiles.png", flat_images(range(18)), modules, centrality, communities=2, tiles=3)
    assert shown(pixels) == [[12, 11, 10, 6, 5, 4], [3, 2, 1, 0]]
    # Equally central ones by index; a community of fewer images shows each once.
    pixels = draw_tiles(tmp_path / "tiles.png", flat_images(range(18)), modules, 0 * centrality)
    assert shown(pixels) == [list(range(4, 13)), list(range(4)), [13, 14]]
    assert [file.name for file in tmp_path.iterdir()] == ["tiles.png"]


def test_tiles_of_chosen_images_are_framed(tmp_path):
    images, modules, centrality = flat_images(range(6)), np.zeros(6, int), -np.arange(6.0)
    framed = [
        (draw_tiles(tmp_path / "tiles.png", images, modules, centrality, np.array(chosen, int)) == FRAME).all(-1)
        for chosen in ([], [0], [4])
    ]
    assert not framed[0].any()
    first, fifth = (np.flatnonzero(mask.any(0)) for mask in framed[1:])
    assert fifth[0] - first[0] == 4 * PLACE


def test_classes_lie_side_by_side_and_may_be_empty(tmp_path):
    labels = np.r_[np.zeros(30, int), np.full(30, 1), np.full(2, 2)]
    modules = np.r_[np.zeros(30, int), np.full(30, 1), np.full(2, -1)]
    names = ["a", "$b", "dropped", "none"]
    images = flat_images(np.arange(62), size=70)
    pixels = draw_tiles(tmp_path / "tiles.png", images, modules, np.zeros(62), NOTHING, labels, names, tiles=2)
    assert shown(pixels) == [[0, 1, 28, 29, 30, 31, 58, 59]]
    one = draw_tiles(tmp_path / "tiles.png", images[:30], modules[:30], np.zeros(30), tiles=2)
    assert pixels.shape == (2 * one.shape[0], 2 * one.shape[1], 3)


@pytest.mark.parametrize("size", [1, 28, 56, 57, 300])
def test_tiles_of_any_size_fit(tmp_path, size):
    pixels = draw_tiles(tmp_path / "tiles.png", flat_images([9, 8], size), np.zeros(2, int), np.array([1.0, 0.5]))
    assert shown(pixels) == [[9, 8]]
    assert ((pixels == [255, 9, 0]).all(-1)).sum() == 56 * 56


def test_tiles_that_are_not_square_keep_their_shape(tmp_path):
    images = np.zeros((1, 14, 28, 3), np.uint8) + np.array([255, 9, 0], np.uint8)
    pixels = draw_tiles(tmp_path / "tiles.png", images, np.zeros(1, int), np.zeros(1))
    assert ((pixels == [255, 9, 0]).all(-1)).sum() == 28 * 56


def test_arrays_of_other_lengths_are_refused(tmp_path):
    embeddings, labels, modules = blobs(6)
    with pytest.raises(ValueError, match=r"\[12, 12, 11\]"):
        draw_map(tmp_path / "map.png", embeddings, labels, modules[:-1])
    with pytest.raises(ValueError, match=r"\[12, 12, 12, 3\]"):
        draw_tiles(tmp_path / "tiles.png", flat_images(range(12)), modules, np.zeros(3))
    assert list(tmp_path.iterdir()) == []
