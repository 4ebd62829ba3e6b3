from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from histodistill.training.data.latent_store import find_latents, open_latents
from histodistill.training.data.pixels import to_model_input
from histodistill.training.data.tile_cache import NoRoomError, TileCache
from histodistill.training.data.tiles import Tiles
from histodistill.training.engine import kept_latents
from histodistill.training.engine.augment import apply_symmetries
from histodistill.training.engine.kept_latents import Encoding, KeptLatents, keep_latents, make_block, plan_latents
from histodistill.training.running.errors import InputError


CPU = torch.device("cpu")
TILES = Tiles(np.random.default_rng(0).integers(0, 256, (11, 8, 8, 3), dtype=np.uint8), np.arange(11) % 2)


def latents_of(tiles, symmetries):
    """What a view shows at every other pixel, of which the turned image is not the turned one of the image."""
    return 3 * apply_symmetries(to_model_input(tiles), symmetries)[:, :, ::2, ::2]


def encoding(**changes) -> Encoding:
    usual = Encoding(latents_of, decides=["weights"], latent_shape=(3, 4, 4), symmetries=8, device=CPU)
    return replace(usual, **changes)


def keep(folder, dtype="float16", encoded=None):
    encoded = encoded or encoding()
    plan = plan_latents(encoded, TILES, "mine", dtype)
    stored = open_latents(TileCache(folder), plan, lambda *block: make_block(encoded, TILES, dtype, *block))
    return plan, KeptLatents(stored, dtype)


@pytest.mark.parametrize(("dtype", "digits"), [("float16", 11), ("bfloat16", 8)])
def test_latents_are_those_of_the_turned_images(tmp_path, monkeypatch, dtype, digits):
    monkeypatch.setattr(kept_latents, "_LARGEST_BATCH", 2)
    _, kept = keep(tmp_path / "cache", dtype)
    indices, symmetries = np.array([10, 0, 3, 3, 7]), torch.tensor([1, 7, 4, 0, 6])
    read = kept.read(indices, symmetries, CPU)
    expected = latents_of(torch.from_numpy(TILES.images[indices]), symmetries)
    assert read.dtype == getattr(torch, dtype)
    assert torch.equal(read, expected.to(read.dtype))
    # The error is stated: numbers up to 3 are rounded to half a unit of their last digit, and most are.
    images = torch.from_numpy(TILES.images)
    every = torch.stack([latents_of(images, torch.full((11,), view)) for view in range(8)])
    errors = every.to(read.dtype).float() - every
    assert kept.stored.largest_error == pytest.approx(errors.abs().max().item())
    assert 0 < kept.stored.largest_error <= 2 * 2.0**-digits
    assert kept.stored.rms_error == pytest.approx(errors.double().square().mean().sqrt().item())


def test_each_view_is_encoded_once_in_batches_that_do_not_change(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_latents, "_LARGEST_BATCH", 2)
    calls = []
    encoded = encoding(
        encode=lambda tiles, views: calls.append((len(tiles), int(views[0]))) or latents_of(tiles, views)
    )
    plan, _ = keep(tmp_path, encoded=encoded)
    assert plan.shape == (11, 8, 3, 4, 4) and plan.tiles_per_block == 8
    assert sorted(calls) == sorted([(2, view) for view in range(8)] * 5 + [(1, view) for view in range(8)])


def test_latents_do_not_take_the_place_of_what_is_read_beside_them(tmp_path, monkeypatch):
    cache = TileCache(tmp_path)
    features = encoding(decides=["features"], what="features")
    stored = keep_latents(cache, features, plan_latents(features, TILES, "mine", "float16"), TILES, False)
    plan = plan_latents(encoding(), TILES, "mine", "float16")
    (entry,) = cache.entries()
    monkeypatch.setenv("HISTODISTILL_CACHE_LIMIT", f"{entry.size + plan.nbytes - 1}B")
    with pytest.raises(NoRoomError, match="latents of these tiles take"):
        keep_latents(cache, encoding(), plan, TILES, False, [stored.folder])
    assert [entry.what for entry in cache.entries()] == ["features"]
    keep_latents(cache, encoding(), plan, TILES, False)
    assert [entry.what for entry in cache.entries()] == ["latents"]


def test_what_decides_latents_is_in_their_key():
    def key(dtype="float16", tiles=TILES, **changes):
        return plan_latents(encoding(**changes), tiles, "mine", dtype).key

    others = [
        key("bfloat16"), key(symmetries=1), key(decides=["other weights"]), key(latent_shape=(6, 4, 4)),
        key(tiles=TILES.subset(np.arange(11)[::-1])),
    ]  # fmt: skip
    assert len({key(), *others}) == 6
    assert key() == plan_latents(encoding(), TILES, "called otherwise", "float16").key


def test_numbers_that_do_not_fit_are_refused(tmp_path):
    encoded = encoding(encode=lambda tiles, views: 1e5 * latents_of(tiles, views))
    with pytest.raises(
        InputError, match=r"cannot be kept as float16, since some are too large .* another latent_cache"
    ):
        keep(tmp_path, encoded=encoded)
    plan, _ = keep(tmp_path, "bfloat16", encoded)
    assert find_latents(TileCache(tmp_path), plan)
