from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from histodistill.selection import copies, image_rows, looks, near_copies, windows
from histodistill.selection.audit_figures import ClassCopies
from histodistill.selection.audit_verdict import judge_set, judge_weights
from histodistill.selection.image_audit import WeightLosses, audit, audit_images, find_copies
from histodistill.selection.image_rows import ImageRows
from histodistill.selection.planting import MUST_FIND
from histodistill.selection.real_tiles import LabelledImages, RealTiles
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
    return audit(
        tiles(60, 3), tiles(200, 4), real, {"colours": colours}, n_planted=20, weight_losses=WeightLosses(*losses)
    )


@pytest.fixture(scope="module")
def thief(real):
    """The audit of images that are training tiles, a little brighter and noisier."""
    rng = np.random.default_rng(5)
    noise = 3 * rng.standard_normal(real.train.images.shape)
    copies = (real.train.images.astype(float) + 6 + noise).clip(0, 255).astype(np.uint8)
    pool = LabelledImages(copies, real.train.labels)
    losses = np.full(300, 0.1) + 0.01 * rng.standard_normal(300), np.full(100, 0.2) + 0.01 * rng.standard_normal(100)
    return audit(
        pool[np.arange(240)], pool, real, {"colours": colours}, n_planted=20, weight_losses=WeightLosses(*losses)
    )


class OnDisk(ImageRows):
    """Images that remember how many of them were read at once."""

    def __init__(self, images: np.ndarray):
        super().__init__(images.shape)
        self.images, self.most = images, 0

    def read(self, rows: np.ndarray) -> np.ndarray:
        self.most = max(self.most, len(rows))
        return self.images[rows]


@pytest.mark.parametrize("by_group", [False, True])
def test_images_that_are_not_in_memory_give_the_same_and_are_read_in_parts(real, monkeypatch, by_group):
    few = 40 * real.train.images[:1].nbytes
    monkeypatch.setattr(image_rows, "_BATCH_BYTES", few)
    for module in (looks, near_copies, windows):
        monkeypatch.setattr(module, "_BYTES_PER_CALL", few)
    monkeypatch.setattr(copies, "_EMBEDDED_PER_CALL", 40)
    monkeypatch.setattr(windows, "_TILES_PER_CALL", 40)
    monkeypatch.setattr(copies, "_QUERIES_PER_CALL", 40)
    monkeypatch.setattr(copies, "_BATCH", 1)

    def given(part: LabelledImages, moved: bool) -> LabelledImages:
        groups = np.arange(len(part)) // 3 + len(part) * 1000 if by_group else None
        return LabelledImages(OnDisk(part.images) if moved else part.images, part.labels, groups)

    published, pool = tiles(30, 3), tiles(110, 4)
    found = []
    for moved in (True, False):
        parts = [given(part, moved) for part in (real.train, real.held_out, real.validation, published, pool)]
        everything = RealTiles(*parts[:3])
        figures = audit(*parts[3:], everything, {"colours": colours}, n_planted=5, seed=2)
        found.append((repr(figures), find_copies(parts[4].images, everything, {"colours": colours})[0].tolist()))
        if moved:
            assert [part.images.most for part in parts] == [40, 40, 40, 30, 40]
    assert found[0] == found[1]


def failed(findings) -> set[str]:
    return {finding.name for finding in findings if not finding.passed}


def test_images_that_give_nothing_away_pass(honest):
    assert failed(judge_weights(honest)) == set()
    assert honest.is_random and honest.limits.num_same == 0 and honest.num_repeated == 0
    assert honest.published.copies.num_images == 60 and honest.pool.copies.num_images == 200
    assert all(share.value >= MUST_FIND[kind] for kind, share in honest.planted.items())
    assert set(honest.published.overfitting_per_class["pixels"]) == {0, 1}
    for by_name in honest.published.membership.values():
        for attack in by_name.values():
            assert set(attack.per_class) == {0, 1} and attack.advantage < 0.1
            assert attack.control.auc.covers(0.5)


def test_copies_of_training_tiles_fail_on_every_point(thief):
    assert failed(judge_set(thief)) == {"copies", "overfitting", "membership", "classes"}
    assert failed(judge_weights(thief)) == {"copies", "overfitting", "membership", "classes", "pool", "weights"}
    copies = thief.published.copies
    assert copies.of_training == copies.num_images == 240 and copies.share.low > 0.9
    assert copies.per_class == {0: ClassCopies(120, 120, 0), 1: ClassCopies(120, 120, 0)}
    # The pairs name the tiles that were copied.
    rows, originals = thief.published.closest.T
    assert len(rows) == 10 and (rows == originals).all() and (np.diff(thief.published.closest_scores) >= 0).all()
    assert thief.published.overfitting["pixels"].share.value == 1
    assert thief.pool.membership["pixels"]["distance"].main.auc.value > 0.99
    assert thief.weights.auc.value > 0.99 and thief.weights.true_positives[0.01].value > 0.9
    for finding in judge_weights(thief):
        assert "\n" not in finding.sentence and not finding.sentence.endswith(".")


def test_a_point_that_passes_does_not_read_like_one_that_fails(honest, thief):
    good = {finding.name: finding.sentence for finding in judge_weights(honest)}
    bad = {finding.name: finding.sentence for finding in judge_weights(thief)}
    for name in ("membership", "weights"):
        assert " can only guess at training tiles: an AUC of " in good[name] and " of guessing" in good[name]
        assert " tells training tiles with an AUC of " in bad[name] and "guess" not in bad[name]
    for name in ("overfitting", "pool", "false alarms"):
        assert "consistent with" in good[name]
    assert bad["overfitting"].endswith("more than the 0.5 of chance")
    assert bad["pool"].endswith("and at most 1% may be") and "consistent" not in bad["pool"]
    assert good["planted exact"] == "100% of the planted exact copies are found; at least 100% must be"


def test_nothing_passes_where_nothing_was_planted_or_the_weights_not_attacked(real):
    result = audit(tiles(20, 3), tiles(20, 4), real, {}, n_planted=0)
    assert "planted" in failed(judge_set(result))
    assert failed(judge_weights(result)) >= {"planted", "weights"}


def test_a_quick_trial_passes_nothing(real):
    losses = np.random.default_rng(0).uniform(size=(2, 10))
    result = audit(tiles(20, 3), tiles(20, 4), real, {}, n_planted=2, weight_losses=WeightLosses(*losses))
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
    # Some are there twice, and count once.
    train = real.train[np.concatenate([np.arange(len(real.train)), np.arange(40)])]
    parts = RealTiles(train, None, real.validation)
    result = audit(tiles(40, 3), tiles(40, 4), parts, {}, n_planted=2)
    assert not result.is_random
    assert (result.published.copies.num_training, result.published.copies.num_others) == (len(real.train), 160)
    stolen = audit(real.train[np.arange(120)], tiles(40, 4), parts, {}, n_planted=2)
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
    again = audit(
        tiles(60, 3), tiles(200, 4), real, {"colours": colours}, n_planted=20, weight_losses=WeightLosses(*losses)
    )
    assert judge_weights(again) == judge_weights(honest)


# Arrays in, verdict out.


def as_arrays(part: LabelledImages) -> tuple[np.ndarray, np.ndarray]:
    return part.images, part.labels


def test_verdict_on_arrays_is_that_of_the_audit(real):
    published, pool = tiles(60, 3), tiles(200, 4)
    verdict = audit_images(
        published.images,
        published.labels.tolist(),
        train=as_arrays(real.train),
        held_out=real.held_out,
        validation=list(as_arrays(real.validation)),
        pool=pool,
        embeddings={"colours": colours},
        n_planted=20,
    )
    expected = audit(published, pool, real, {"colours": colours}, n_planted=20)
    assert verdict.passed is True
    assert list(verdict.findings) == judge_set(expected)
    for name in ("limits", "is_random", "planted", "num_planted", "disguised", "num_disguised", "weights"):
        assert getattr(verdict.figures, name) == getattr(expected, name)
    assert verdict.figures.pool.copies == expected.pool.copies
    assert verdict.figures.weights is None


def test_verdict_on_copies_says_what_failed(real):
    images, labels = as_arrays(real.train)
    verdict = audit_images(
        images[:60], labels[:60], train=real.train, validation=real.validation, n_planted=20, seed=1
    )
    assert verdict.passed is False and failed(verdict.findings) == {"copies", "overfitting", "membership", "classes"}
    assert repr(verdict) == "Verdict(passed=False, failed: copies, overfitting, membership, classes)"
    lines = str(verdict).splitlines()
    assert lines[0] == "NOT PASSED: the images should not be published"
    assert "✗ 60 of 60 images are copies of real tiles" in lines and len(lines) == 1 + len(verdict.findings)
    # Nothing beyond pixels unless it is given, and the pool is the images themselves.
    assert set(verdict.figures.published.overfitting) == {"pixels", "structure", "parts"}
    assert verdict.figures.pool.copies == verdict.figures.published.copies
    assert not verdict.figures.is_random


def test_short_texts_of_verdict_and_images(real):
    published = tiles(60, 3)
    verdict = audit_images(*as_arrays(published), train=real.train, validation=real.validation, n_planted=20)
    assert repr(verdict) == "Verdict(passed=True)" and str(verdict).startswith("passed\n✓ ")
    assert repr(published) == "LabelledImages(60 images of 20×20 px, 2 classes)"


def test_the_fewest_tiles_that_an_audit_takes_are_enough():
    rows = np.arange(2)
    verdict = audit_images(
        *as_arrays(tiles(1, 3)),
        train=tiles(2, 0),
        held_out=tiles(9, 1)[rows],
        validation=tiles(8, 2),
        embeddings={"colours": colours},
        n_planted=1,
    )
    assert verdict.passed is False
    assert audit_images(*as_arrays(tiles(1, 3)), train=tiles(2, 0), validation=tiles(8, 2), n_planted=0).findings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": tiles(4, 3).images / 255}, "images has dtype float64: it must be uint8, colours from 0 to 255"),
        ({"images": tiles(4, 3).images[:, :-1]}, r"images has shape \(4, 19, 20, 3\): it must be \(N, S, S, 3\)"),
        ({"images": tiles(4, 3).images[..., 0]}, r"images has shape \(4, 20, 20\): it must be \(N, S, S, 3\)"),
        ({"images": tiles(4, 3).images[:0]}, r"images has shape \(0, 20, 20, 3\): .*at least one square RGB image"),
        ({"images": [np.zeros((2, 2)), np.zeros((3, 3))]}, "images has images of different sizes"),
        ({"labels": [0, 1]}, r"labels has shape \(2,\): it must be .* one label for each of the 4 images"),
        ({"labels": ["fat"] * 4}, "labels has dtype <U3: it must hold whole numbers"),
        ({"train": (tiles(9, 0).images, np.zeros(9))}, "labels of train has dtype float64: it must hold whole num"),
        ({"train": tiles(9, 0).images}, "train is a ndarray: it must be a pair of images and labels"),
        ({"train": None}, "train is a NoneType: it must be a pair of images and labels"),
        ({"train": tiles(1, 0)}, "train has 1 tiles: it must be at least 2"),
        ({"train": (np.full((9, 20, 20, 3), 200, np.uint8), np.zeros(9, int))}, "images of train show nothing"),
        ({"validation": tiles(7, 2)}, "validation has 7 tiles: it must be at least 8"),
        ({"validation": (np.full((9, 20, 20, 3), 9, np.uint8), np.zeros(9, int))}, "0 validation tiles show somethi"),
        ({"held_out": tiles(1, 2)}, "held_out has 1 tiles: it must be at least 2"),
        ({"pool": tiles(9, 2, size=16)}, "images of pool are 16 px wide and images 20 px: they must have the same"),
        ({"embeddings": {"pixels": colours}}, "embeddings has the name 'pixels', which the audit uses itself"),
        ({"embeddings": {"c": lambda x: colours(x)[1:]}}, r"embeddings\['c'\] returned \d+ rows for \d+ images"),
        ({"embeddings": {"c": lambda x: colours(x)[:, 0]}}, r"what embeddings\['c'\] returned has shape"),
        ({"n_planted": -1}, "n_planted=-1 is out of range: it must be at least 0"),
        ({"seed": -1}, "seed=-1 is out of range: it must be at least 0"),
    ],
)
def test_arrays_that_cannot_be_audited_are_refused_in_one_sentence(changes, message):
    given = {"images": tiles(4, 3).images, "labels": [0, 1, 0, 1], "train": tiles(9, 0), "validation": tiles(9, 2)}
    with pytest.raises(ValueError, match=message) as caught:
        audit_images(**{**given, "n_planted": 1, **changes})
    assert "\n" not in str(caught.value)


def test_real_tiles_and_images_print_in_a_line():
    images = LabelledImages(np.zeros((1200, 8, 8, 3), dtype=np.uint8), np.arange(1200) % 3)
    assert repr(images) == "LabelledImages(1,200 images of 8×8 px, 3 classes)"
    some = images[np.arange(40)]
    assert repr(RealTiles(images, None, some)) == (
        "RealTiles(1,200 training tiles of 8×8 px, 3 classes; nothing held out; 40 for validation)"
    )
    assert "; 40 held out; 40 for validation)" in repr(RealTiles(images, some, some))
