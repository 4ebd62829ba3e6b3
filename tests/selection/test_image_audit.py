from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from histodistill.selection.image_audit import LabelledImages, RealTiles, audit, find_copies, judge_set, judge_weights
from histodistill.selection.planting import MUST_FIND
from histodistill.selection.views import apply_symmetry


def tiles(count: int, seed: int, size: int = 20) -> LabelledImages:
    """Textures of two stains; those of class 1 are coarser."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    noise = rng.standard_normal((count, size, size, 2))
    fields = np.where(
        labels[:, None, None, None] == 0,
        gaussian_filter(noise, (0, 1.5, 1.5, 0), mode="wrap"),
        gaussian_filter(noise, (0, 2.5, 2.5, 0), mode="wrap"),
    )
    amounts = np.clip(0.35 + 0.2 * fields / fields.std(axis=(1, 2, 3), keepdims=True), 0, None)
    colours = 255 * np.exp(-(amounts @ np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])))
    return LabelledImages((colours + 2 * rng.standard_normal(colours.shape)).clip(0, 255).astype(np.uint8), labels)


def colours(images: np.ndarray) -> np.ndarray:
    return np.concatenate([images.mean(axis=(1, 2)), images.std(axis=(1, 2))], axis=1) / 255


@pytest.fixture(scope="module")
def real() -> RealTiles:
    return RealTiles(tiles(300, 0), tiles(100, 1), tiles(160, 2))


@pytest.fixture(scope="module")
def honest(real):
    """The audit of images that have nothing to do with any tile."""
    losses = np.random.default_rng(0).uniform(size=300), np.random.default_rng(1).uniform(size=100)
    return audit(tiles(60, 3), tiles(200, 4), real, {"colours": colours}, n_planted=20, weight_losses=losses)


@pytest.fixture(scope="module")
def thief(real):
    """The audit of images that are training tiles, a little brighter and noisier."""
    rng = np.random.default_rng(5)
    noise = 3 * rng.standard_normal(real.train.images.shape)
    copies = (real.train.images.astype(float) + 6 + noise).clip(0, 255).astype(np.uint8)
    pool = LabelledImages(copies, real.train.labels)
    losses = np.full(300, 0.1) + 0.01 * rng.standard_normal(300), np.full(100, 0.2) + 0.01 * rng.standard_normal(100)
    return audit(pool[np.arange(240)], pool, real, {"colours": colours}, n_planted=20, weight_losses=losses)


def failed(findings) -> set[str]:
    return {finding.name for finding in findings if not finding.passed}


def test_images_that_give_nothing_away_pass(honest):
    assert failed(judge_weights(honest)) == set()
    assert honest.is_random and honest.limits.num_same == 0
    assert honest.published.copies.num_images == 60 and honest.pool.copies.num_images == 200
    assert all(share.value >= MUST_FIND[kind] for kind, share in honest.planted.items())
    assert set(honest.published.overfitting_per_class["pixels"]) == {0, 1}
    for by_name in honest.published.membership.values():
        for attack in by_name.values():
            assert set(attack.per_class) == {0, 1} and attack.advantage < 0.1
            assert attack.control.auc.covers(0.5)


def test_copies_of_training_tiles_fail_on_every_point(thief):
    assert failed(judge_set(thief)) == {"copies", "overfitting", "membership"}
    assert failed(judge_weights(thief)) == {"copies", "overfitting", "membership", "pool", "weights"}
    copies = thief.published.copies
    assert copies.of_training == copies.num_images == 240 and copies.share.low > 0.9
    assert copies.per_class == {0: 120, 1: 120}
    # The pairs name the tiles that were copied.
    rows, originals = thief.published.closest.T
    assert len(rows) == 10 and (rows == originals).all() and (np.diff(thief.published.closest_scores) >= 0).all()
    assert thief.published.overfitting["pixels"].share.value == 1
    assert thief.pool.membership["pixels"]["distance"].main.auc.value > 0.99
    assert thief.weights.auc.value > 0.99 and thief.weights.true_positives[0.01].value > 0.9
    for finding in judge_weights(thief):
        assert "\n" not in finding.sentence and not finding.sentence.endswith(".")


def test_nothing_passes_where_nothing_was_planted_or_the_weights_not_attacked(real):
    result = audit(tiles(20, 3), tiles(20, 4), real, {}, n_planted=0)
    assert "planted" in failed(judge_set(result))
    assert failed(judge_weights(result)) >= {"planted", "weights"}


def test_a_quick_trial_passes_nothing(real):
    losses = np.random.default_rng(0).uniform(size=(2, 10))
    result = audit(tiles(20, 3), tiles(20, 4), real, {}, n_planted=2, weight_losses=tuple(losses))
    findings = {finding.name: finding for finding in judge_weights(result) if not finding.passed}
    assert findings["planted"].sentence.startswith("2 copies of each kind were planted; it must be at least 20")
    assert findings["weights"].sentence.endswith("; 10 tiles say little: it must be at least 100")


def test_copies_of_a_tile_that_is_there_many_times_are_found(real):
    """Such tiles are the ones that models repeat. Their copies must not be judged by each other."""
    turned = [apply_symmetry(real.train.images[:3], symmetry) for symmetry in range(8)]
    many = LabelledImages(
        np.concatenate([real.train.images, *turned]), np.concatenate([real.train.labels, np.zeros(24, dtype=int)])
    )
    noise = np.random.default_rng(5).normal(0, 3, (30, *real.train.images.shape[1:]))
    copies = (np.repeat(real.train.images[:3], 10, axis=0) + noise).round().clip(0, 255).astype(np.uint8)
    images = np.concatenate([copies, tiles(30, 6).images])
    parts = RealTiles(many, real.held_out, real.validation)
    found, scores = find_copies(images, parts, {"colours": colours})
    assert found[:30].all() and found[30:].mean() <= 0.1
    assert scores.nearest["structure"][:30].tolist() == np.repeat([0, 1, 2], 10).tolist()


def test_a_pool_of_few_tiles_fails_however_few_they_are(real):
    pool = LabelledImages(
        np.concatenate([real.train.images[[0, 1]]] * 30 + [tiles(140, 4).images]), np.arange(200) % 2
    )
    result = audit(tiles(60, 3), pool, real, {"colours": colours}, n_planted=20)
    assert result.pool.copies.p_value > 0.05  # two tiles may be chance
    assert "pool" in failed(judge_weights(result))


def test_validation_tiles_stand_in_for_held_out_ones(real):
    parts = RealTiles(real.train, None, real.validation)
    result = audit(tiles(40, 3), tiles(40, 4), parts, {}, n_planted=2)
    assert not result.is_random
    assert result.published.copies.num_others == 160
    stolen = audit(real.train[np.arange(60)], tiles(40, 4), parts, {}, n_planted=2)
    sentences = [finding.sentence for finding in judge_set(stolen) if finding.name == "membership"]
    assert "no tiles were held out at random" in sentences[0]


def test_copies_of_any_real_tile_are_found(real):
    others = tiles(30, 6)
    images = np.concatenate([part.images[:4] for part in (real.train, real.held_out, real.validation)])
    found, scores = find_copies(np.concatenate([images, others.images]), real, {"colours": colours})
    assert found[:12].all() and found[12:].mean() <= 0.1
    assert scores.nearest["structure"][:12].tolist() == [0, 1, 2, 3, 300, 301, 302, 303, 400, 401, 402, 403]
    # A set without these images then has no copies for the audit to find.
    kept = LabelledImages(others.images[~found[12:]], others.labels[~found[12:]])
    result = audit(kept, kept, real, {"colours": colours}, n_planted=2)
    assert result.published.copies.of_training + result.published.copies.of_others == 0


def test_same_seed_gives_the_same_audit(real, honest):
    losses = np.random.default_rng(0).uniform(size=300), np.random.default_rng(1).uniform(size=100)
    again = audit(tiles(60, 3), tiles(200, 4), real, {"colours": colours}, n_planted=20, weight_losses=losses)
    assert judge_weights(again) == judge_weights(honest)


def test_real_tiles_and_images_print_in_a_line():
    images = LabelledImages(np.zeros((1200, 8, 8, 3), dtype=np.uint8), np.arange(1200) % 3)
    assert repr(images) == "LabelledImages(1,200 images of 8×8 px, 3 classes)"
    some = images[np.arange(40)]
    assert repr(RealTiles(images, None, some)) == (
        "RealTiles(1,200 training tiles of 8×8 px, 3 classes; nothing held out; 40 for validation)"
    )
    assert "; 40 held out; 40 for validation)" in repr(RealTiles(images, some, some))
