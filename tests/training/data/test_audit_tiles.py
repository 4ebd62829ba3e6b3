from __future__ import annotations

import numpy as np
import pytest
from textures import textures

from histodistill.selection import real_tiles as selection_real_tiles
from histodistill.selection.repeats import find_repeats
from histodistill.selection.views import shift
from histodistill.training.data.audit_tiles import audit_share_of, real_tiles
from histodistill.training.data.sources import load_tiles
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import write_json


@pytest.mark.parametrize(("settings", "share"), [({}, 0.0), ({"audit_share": 0.1}, 0.1)])
def test_the_share_is_that_of_the_run(settings, share, tmp_path):
    assert audit_share_of(tmp_path) == 0.0
    for record in ({"settings": settings}, {"format": 1, "settings": settings}):
        write_json(tmp_path / "run.json", record)
        assert audit_share_of(tmp_path) == share


def test_a_record_of_a_later_format_is_refused(tmp_path):
    write_json(tmp_path / "run.json", {"format": 2, "settings": {}})
    with pytest.raises(InputError, match=r"run\.json has the format 2, .* install the version that made it"):
        audit_share_of(tmp_path)


@pytest.mark.parametrize(
    "settings", [None, [], "x", {"audit_share": "0.1"}, {"audit_share": None}, {"audit_share": 1}]
)
def test_a_record_that_does_not_say_it(tmp_path, settings):
    write_json(tmp_path / "run.json", {"format": 1, "settings": settings})
    with pytest.raises(InputError, match=r"run\.json does not say which share of the tiles was held out: give "):
        audit_share_of(tmp_path)


def test_what_decoding_found_is_not_looked_for_again(tmp_path, monkeypatch):
    tiles = textures(60, 0)
    tiles[50], tiles[51], tiles[52] = np.rot90(tiles[3]), tiles[7], shift(tiles[4:5], 2, 1)[0]
    arrays = {"train": tiles[:40], "val": tiles[40:55], "test": tiles[55:]}
    arrays = {f"{split}_images": images for split, images in arrays.items()}
    labels = {name.replace("images", "labels"): np.arange(len(x))[:, None] % 2 for name, x in arrays.items()}
    np.savez(tmp_path / "tiles.npz", **arrays, **labels)
    source = load_tiles(tmp_path / "tiles.npz", audit_share=0.2, cache_dir=tmp_path / "cache")
    real = real_tiles(source)
    assert real.held_out is not None and len(real) == 55
    expected = find_repeats(real.all_images)
    monkeypatch.setattr(selection_real_tiles, "find_repeats", None)
    np.testing.assert_array_equal(real.repeats.first, expected.first)
    np.testing.assert_array_equal(real.repeats.pairs, expected.pairs)
    assert len(np.unique(real.kinds)) == 52
