"""What each load tells: tiles by class and split, and tiles that occur twice."""

from __future__ import annotations

import numpy as np
import pytest

from histodistill.selection.views import apply_symmetry
from histodistill.training.data.loading_notes import tiles_in_one_line, warnings_of_copies
from histodistill.training.data.make_source import make_source
from histodistill.training.data.sources import load_tiles
from histodistill.training.data.splits import hold_out_for_audit
from histodistill.training.data.tiles import Tiles, TileSource


def random_tiles(n: int, size: int = 12, classes: int = 2, seed: int = 0) -> Tiles:
    rng = np.random.default_rng(seed)
    return Tiles(rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8), np.arange(n) % classes)


def source(train: Tiles, classes: int = 2, **splits: Tiles) -> TileSource:
    names = [f"c{i}" for i in range(classes)]
    return make_source("x", names, {"train": train, **splits}, hold_out_validation=False)


def test_each_load_tells_its_tiles_once(capsys):
    load_tiles("phantom")
    assert capsys.readouterr().err == (
        "tiles of phantom, 28x28 px: train 1,500 (adipose 300, glands 300, lymphocytes 300, mucus 300, stroma 300), "
        "validation 300 (adipose 60, glands 60, lymphocytes 60, mucus 60, stroma 60), "
        "test 500 (adipose 100, glands 100, lymphocytes 100, mucus 100, stroma 100)\n"
    )


def test_splits_that_are_made_are_told(tmp_path, capsys):
    tiles = random_tiles(40)
    np.savez(tmp_path / "t.npz", train_images=tiles.images, train_labels=tiles.labels)
    load_tiles(tmp_path / "t.npz", audit_share=0.5)
    assert capsys.readouterr().err == (
        "tiles of t, 12x12 px: train 16 (class 0 8, class 1 8), "
        "validation 4 (class 0 2, class 1 2; a tenth of train, for there is no such split), "
        "test 4 (class 0 2, class 1 2; a tenth of train, for there is no such split), "
        "held out for the audit 16 (class 0 8, class 1 8)\n"
    )


def test_many_classes_are_told_in_one_short_line():
    line = tiles_in_one_line(source(random_tiles(2000, classes=1000), classes=1000))
    assert "c11 2, and 2 of each of 988 more classes), no validation, no test" in line and len(line) < 300


@pytest.mark.parametrize("symmetry", range(8))
@pytest.mark.parametrize("size", [8, 13, 40, 41])
def test_copies_in_other_splits_are_warned_of(symmetry, size):
    train, test = random_tiles(10, size), random_tiles(6, size, seed=1)
    copies = apply_symmetry(train.images[4:7], symmetry)
    test = Tiles(np.concatenate([test.images, copies]), np.append(test.labels, train.labels[4:7]))
    turned = 3 if symmetry else 0
    for split in ("test", "validation"):
        assert warnings_of_copies(source(train, **{split: test})) == [
            f"3 of 9 {split} tiles of x are train tiles too, {turned} of them turned, mirrored, moved or a little "
            "changed: what is measured on them looks better than it is; take them out of one of the two splits"
        ]


@pytest.mark.parametrize("size", [12, 40])
def test_other_tiles_are_no_copies(size):
    train = random_tiles(10, size)
    test = random_tiles(10, size, seed=1)
    test.images[:, :, : size // 2] = train.images[:, :, : size // 2]
    assert warnings_of_copies(source(train, test=test)) == []


def test_moved_and_brighter_tiles_are_copies():
    train = random_tiles(10, 40)
    moved = np.roll(train.images, 1, axis=1)
    brighter = np.where(train.images < 230, train.images + 20, train.images)
    for images in (moved, brighter):
        (warning,) = warnings_of_copies(source(train, test=Tiles(images, train.labels)))
        assert warning.startswith("10 of 10 test tiles of x are train tiles too, 10 of them turned, mirrored, moved")


@pytest.mark.parametrize("size", [12, 40])
def test_tiles_that_were_changed_a_little_are_copies(size):
    train = random_tiles(10, size)
    changed = train.images.copy()
    changed[:, 0, 0] ^= 1
    brighter = np.minimum(train.images.astype(int) + 5, 255).astype(np.uint8)
    for images in (changed, brighter):
        (warning,) = warnings_of_copies(source(train, test=Tiles(images, train.labels)))
        assert "10 of 10 test tiles of x are train tiles too, 10 of them turned" in warning


def test_empty_tiles_are_no_copies():
    train = random_tiles(10)
    train.images[::2] = 255
    train.images[1::4] = (240, 230, 250)
    assert warnings_of_copies(source(train, test=train.subset([0, 1, 2, 5]))) == []


def test_tiles_with_several_labels_are_warned_of():
    train = random_tiles(10)
    train.images[3] = train.images[2].transpose(1, 0, 2)
    assert warnings_of_copies(source(train)) == [
        "2 train tiles of x occur with several labels, as they are, turned, moved or a little changed (such as one "
        "with 'c0' and 'c1'): keep each with the label that is right"
    ]
    train.images[3] = random_tiles(1, seed=5).images[0]
    train.images[4] = train.images[2]
    assert warnings_of_copies(source(train)) == []


def test_copies_are_never_in_two_splits_that_we_make(tmp_path, capsys):
    tiles = random_tiles(40)
    images = np.concatenate([tiles.images[:20], tiles.images[:20]])
    np.savez(tmp_path / "t.npz", train_images=images, train_labels=tiles.labels)
    source = load_tiles(tmp_path / "t.npz", audit_share=0.2)
    assert list(source.splits) == ["train", "validation", "test", "held_out"]
    assert warnings_of_copies(source) == [] and "warning" not in capsys.readouterr().err


def test_copies_of_tiles_that_are_held_out_are_copies_of_train_tiles():
    train, test = random_tiles(40), random_tiles(40)
    test.images[0] = 0
    held = hold_out_for_audit(source(train, test=test), 0.25)
    assert len(held.splits["held_out"]) == 10
    (warning,) = warnings_of_copies(held)
    assert "39 of 40 test tiles of x are train tiles too, 0 of them turned" in warning
