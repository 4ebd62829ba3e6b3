"""The built-in drawings: same for a seed, of their class, with a shifted test split."""

from __future__ import annotations

import numpy as np
import pytest

from histodistill.training.data.phantom import PHANTOM_CLASSES, phantom_source, phantom_tiles
from histodistill.training.data.sources import load_tiles
from histodistill.training.running.errors import InputError


# Row 9, column 14 of the first tile of each class.
GOLDEN = [[214, 150, 215], [189, 130, 196], [233, 213, 235], [220, 219, 233], [212, 129, 220]]


@pytest.fixture(scope="module")
def small():
    return phantom_source(sizes={"train": 40, "validation": 4, "test": 20})


def test_load_tiles_gives_the_default_sizes():
    source = load_tiles("phantom")
    assert source.class_names == list(PHANTOM_CLASSES) and source.image_size == 28
    for split, count in (("train", 300), ("validation", 60), ("test", 100)):
        tiles = source.split(split)
        assert tiles.images.shape == (5 * count, 28, 28, 3) and tiles.images.dtype == np.uint8
        assert np.bincount(tiles.labels).tolist() == [count] * 5
    assert "not histology" in source.attribution


def test_same_seed_same_tiles(small):
    again = phantom_source(sizes={"train": 40, "validation": 4, "test": 20})
    assert again.fingerprint() == small.fingerprint()
    other = phantom_source(sizes={"train": 40, "validation": 4, "test": 20}, seed=1)
    assert not np.array_equal(other.split("train").images, small.split("train").images)


def test_no_tile_occurs_twice(small):
    images = np.concatenate([tiles.images for tiles in small.splits.values()])
    assert len({image.tobytes() for image in images}) == len(images)


def test_golden_pixels():
    """The drawings of a seed must not change unnoticed: whoever compares runs relies on them."""
    images = phantom_tiles("train", 2, seed=7).images
    np.testing.assert_allclose(
        images[::2, 9, 14].astype(int), GOLDEN, atol=2
    )  # arithmetic may differ in the last bit between machines


@pytest.mark.parametrize("size", [16, 33, 64, 130])
def test_any_size(size):
    tiles = phantom_tiles("train", 2, image_size=size)
    assert tiles.images.shape == (10, size, size, 3)


def test_a_larger_size_shows_the_same_field_of_view():
    small = phantom_tiles("train", 4, image_size=28).images.astype(float)
    large = phantom_tiles("train", 4, image_size=56).images.astype(float)
    halved = large.reshape(20, 28, 2, 28, 2, 3).mean(axis=(2, 4))
    a, b = (x.mean(axis=3) - x.mean(axis=(1, 2, 3))[:, None, None] for x in (small, halved))
    likeness = (a * b).sum(axis=(1, 2)) / np.sqrt((a**2).sum(axis=(1, 2)) * (b**2).sum(axis=(1, 2)))
    assert np.median(likeness) > 0.9


def test_classes_have_their_colours(small):
    train = small.split("train")
    mean = np.stack([train.images[train.labels == c].mean(axis=(0, 1, 2)) for c in range(5)])
    by_name = dict(zip(PHANTOM_CLASSES, mean, strict=True))
    assert by_name["lymphocytes"].mean() < min(by_name[c].mean() for c in PHANTOM_CLASSES if c != "lymphocytes")
    assert by_name["adipose"].mean() > by_name["glands"].mean() > by_name["lymphocytes"].mean()
    # Eosin takes away green, so that stroma is pink; of the two pale tissues, mucus is the bluer one.
    assert by_name["stroma"][0] - by_name["stroma"][1] > 60
    assert {name for name, colour in by_name.items() if colour[1] > 170} == {"adipose", "mucus"}
    assert by_name["mucus"][2] - by_name["mucus"][0] > by_name["adipose"][2] - by_name["adipose"][0] + 5


def test_the_test_split_is_stained_otherwise():
    def density(split: str) -> np.ndarray:
        images = phantom_tiles(split, 40).images
        od = -np.log(np.clip(images, 1, None) / 243.0).reshape(-1, 3)
        od = od[od.sum(axis=1) > 0.5]
        return (od / od.sum(axis=1, keepdims=True)).mean(axis=0)

    train, validation, test = (density(split) for split in ("train", "validation", "test"))
    assert np.abs(train - test).max() > 3 * np.abs(train - validation).max()


def test_classes_can_be_learned_but_are_not_trivial(small):
    """Colour statistics alone tell much, and not all; chance is 0.2."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def features(images: np.ndarray) -> np.ndarray:
        flat = images.reshape(len(images), -1, 3).astype(float)
        return np.concatenate([flat.mean(axis=1), flat.std(axis=1), np.quantile(flat, 0.1, axis=1)], axis=1)

    train, test = small.split("train"), small.split("test")
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(features(train.images), train.labels)
    assert 0.5 < model.score(features(test.images), test.labels) < 0.97


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "val"}, "split='val' is unknown: it must be one of train, validation, test"),
        ({"n_per_class": 0}, "n_per_class=0 is out of range"),
        ({"image_size": 15}, "image_size=15 is out of range: it must be at least 16"),
        ({"seed": -1}, "seed=-1 is out of range"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError) as caught:
        phantom_tiles(**({"split": "train", "n_per_class": 1} | options))
    assert str(caught.value).startswith(message)
