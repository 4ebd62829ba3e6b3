import numpy as np
import pytest
from PIL import Image

from histodistill.training.data.left_out import check_left_out
from histodistill.training.data.pixel_source import LeftOut
from histodistill.training.data.reading import Reading
from histodistill.training.data.sources import load_tiles
from histodistill.training.running.errors import InputError


SKIPPING = Reading(skip_unreadable=True, max_unreadable=0.25)


def tiles_of(*why):
    return {row: LeftOut(each, InputError(f"tile {row} is bad")) for row, each in enumerate(why)}


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for label in "ab":
        for number in range(20):
            place = tmp_path / "tiles" / "train" / label
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(place / f"{number:02d}.png")
    return tmp_path / "tiles"


def test_what_lies_outside_or_on_glass_is_no_error():
    check_left_out("mine", tiles_of("outside", "glass"), 2, Reading())
    check_left_out("mine", {}, 2, Reading())


def test_what_cannot_be_read_is_an_error_unless_it_is_skipped():
    with pytest.raises(InputError, match=r"^tile 1 is bad$"):
        check_left_out("mine", tiles_of("glass", "unreadable", "unreadable"), 8, Reading())
    check_left_out("mine", tiles_of("glass", "unreadable", "unreadable"), 8, SKIPPING)
    with pytest.raises(
        InputError, match=r"3 of 8 tiles of mine cannot be read, more than max_unreadable=0.25 of them: "
    ):
        check_left_out("mine", tiles_of(*["unreadable"] * 3), 8, SKIPPING)


def test_tiles_that_cannot_be_read_are_counted_by_class_and_listed(folder, capsys):
    for name in ("a/03.png", "b/00.png", "b/01.png"):
        (folder / "train" / name).write_bytes(b"")
    with pytest.raises(InputError, match="3 empty image files"):
        load_tiles(folder)
    with pytest.raises(InputError, match=r"3 of 40 tiles of tiles cannot be read, more than max_unreadable=0.05"):
        load_tiles(folder, skip_unreadable=True)
    whole = load_tiles(folder, skip_unreadable=True, max_unreadable=0.1, hold_out_validation=False)
    assert np.bincount(whole.split("train").labels).tolist() == [19, 18]
    told = capsys.readouterr().err
    assert "warning: 3 of 40 tiles of tiles cannot be read and are left out (a 1, b 2)\n" in told
    assert told.count("left out: ") == 3 and "03.png" in told
    # What is left are the tiles themselves.
    first = np.asarray(Image.open(folder / "train" / "b" / "02.png"))
    assert np.array_equal(whole.split("train").images[19], first)
