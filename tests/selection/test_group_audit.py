"""The audit by group, on patients of which each has a tint of its own."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from histodistill.selection import group_audit, image_audit
from histodistill.selection.attacked import find_attacked
from histodistill.selection.audit_verdict import SINGLE_TILES_ONLY, few_groups, fewest_held_out, judge_weights
from histodistill.selection.copies import CopyIndex
from histodistill.selection.image_audit import WeightLosses, audit, audit_images
from histodistill.selection.real_tiles import LabelledImages, RealTiles
from histodistill.selection.units import classes_of_units, evenly_cut, hold_out_units, redraw_units
from histodistill.selection.views import apply_symmetry


HAEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])


def draw_looks(count: int, seed: int) -> np.ndarray:
    """The look of each patient: amounts of two stains, a tint, and how coarse the tissue is."""
    rng = np.random.default_rng(seed)
    amounts = np.exp(0.35 * rng.standard_normal((count, 2)))
    return np.column_stack([amounts, 0.15 * rng.standard_normal((count, 3)), rng.uniform(0.8, 2.5, count)])


def tiles_of(looks: np.ndarray, names: np.ndarray | None, seed: int, size: int = 20) -> LabelledImages:
    """A tile for each look: textures of two stains, by turns of two classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(len(looks)) % 2
    images = np.empty((len(looks), size, size, 3), np.uint8)
    for i, (look, label) in enumerate(zip(looks, labels, strict=True)):
        fields = gaussian_filter(
            rng.standard_normal((size, size, 2)), (look[5] + label, look[5] + label, 0), mode="wrap"
        )
        stains = np.clip(0.35 + 0.15 * fields / fields.std(), 0, None) * look[:2]
        density = stains @ np.stack([HAEMATOXYLIN + look[2:5], EOSIN])
        images[i] = (245 * np.exp(-density) + 2 * rng.standard_normal(density.shape)).clip(0, 255)
    return LabelledImages(images, labels, names)


PER_PATIENT = 8


def patients(first: int, count: int, seed: int) -> LabelledImages:
    """`count` patients, from number `first` on, of eight tiles each."""
    numbers = np.repeat(np.arange(first, first + count), PER_PATIENT)
    return tiles_of(LOOKS[numbers], np.char.add("p", numbers.astype(str)), seed)


LOOKS = draw_looks(64, 0)


@pytest.fixture(scope="module")
def real() -> RealTiles:
    return RealTiles(patients(0, 28, 1), patients(28, 14, 2), patients(42, 22, 3))


@pytest.fixture(scope="module")
def leak() -> LabelledImages:
    """Images with the looks of patients in training, and none of their tiles."""
    return tiles_of(LOOKS[np.random.default_rng(4).integers(0, 28, 160)], None, 5)


@pytest.fixture(scope="module")
def honest() -> LabelledImages:
    return tiles_of(draw_looks(160, 6), None, 7)


def audited(images: LabelledImages, real: RealTiles, **options):
    parts = {"train": real.train, "held_out": real.held_out, "validation": real.validation}
    options = {"n_planted": 20, "group_kind": "patient", **options}
    return audit_images(images.images, images.labels, **parts, **options)


@pytest.fixture(scope="module")
def found(leak, real):
    return audited(leak, real)


def failed(verdict) -> set[str]:
    return {finding.name for finding in verdict.findings if not finding.passed}


def sentence(verdict, name: str) -> str:
    return next(finding.sentence for finding in verdict.findings if finding.name == name)


def without_groups(part: LabelledImages) -> tuple[np.ndarray, np.ndarray]:
    return part.images, part.labels


def test_a_leak_of_patients_fails_by_patient_and_passes_by_tile(found, leak, real):
    assert "membership" in failed(found)
    told = sentence(found, "membership")
    assert told.startswith("one who has the images alone tells patients in training with an AUC of ")
    assert "by patient: 28 in training, 14 held out; a leak with an AUC above 0." in told
    # Held out tile by tile, as who knows no patients would.
    tiles = np.concatenate([real.train.images, real.held_out.images])
    labels = np.concatenate([real.train.labels, real.held_out.labels])
    held = np.random.default_rng(8).random(len(tiles)) < 0.3
    parts = {"train": (tiles[~held], labels[~held]), "held_out": (tiles[held], labels[held])}
    by_tile = audit_images(leak.images, leak.labels, **parts, validation=without_groups(real.validation), n_planted=20)
    assert "membership" not in failed(by_tile)
    assert sentence(by_tile, "membership").endswith(SINGLE_TILES_ONLY)
    assert by_tile.figures.units is None and not by_tile.warnings


def test_images_of_other_patients_pass(honest, real):
    verdict = audited(honest, real)
    assert not failed(verdict) & {"membership", "overfitting", "dominance", "attributes"}
    told = sentence(verdict, "membership")
    assert " can only guess at patients in training: an AUC of " in told and "consistent with chance" in told
    assert sentence(verdict, "attributes").startswith("attributes: not measured")
    units = verdict.figures.units
    assert (units.num_training, units.num_held_out, units.per_class) == (28, 14, {0: 28, 1: 28})
    assert (units.least_tiles, units.median_tiles, units.most_tiles) == (8, 8, 8)


def test_no_name_of_a_group_is_told(found):
    assert "p1" not in str(found) and "p1" not in repr(found.figures)


def test_one_patient_in_many_images_dominates(real):
    mixed = np.where((np.arange(160) % 5 < 3)[:, None], LOOKS[3], draw_looks(160, 9))
    verdict = audited(tiles_of(mixed, None, 10), real)
    assert "dominance" in failed(verdict)
    assert " of the images are nearest to a single patient in training, where " in sentence(verdict, "dominance")


def test_duplicates_do_not_count(leak, real, found):
    """A tile that is there again, turned, tells nothing that was not known."""
    again = np.concatenate([np.arange(len(real.train)), np.repeat(np.arange(6), 20)])
    train = real.train[again]
    images = np.array(train.images)
    images[len(real.train) :] = [apply_symmetry(image[None], 3)[0] for image in images[len(real.train) :]]
    more = RealTiles(LabelledImages(images, train.labels, train.groups), real.held_out, real.validation)
    attacked = find_attacked(more, 0)
    assert attacked.numbers == (28, 14) and attacked.num_left_out == 0
    tiles = RealTiles(
        *(LabelledImages(*without_groups(part)) for part in (more.train, more.held_out, more.validation))
    )
    assert find_attacked(tiles, 0).numbers == (len(real.train), len(real.held_out))


def test_near_copies_on_both_sides_are_no_non_members(real):
    held_out = LabelledImages(real.held_out.images.copy(), real.held_out.labels, real.held_out.groups)
    held_out.images[:3] = np.clip(real.train.images[:3, ::-1].astype(int) + 2, 0, 255)
    for parts in (
        (real.train, held_out),
        (LabelledImages(*without_groups(real.train)), LabelledImages(*without_groups(held_out))),
    ):
        attacked = find_attacked(RealTiles(*parts, real.validation), 0)
        by_group = parts[0].groups is not None
        # With groups their whole patient is joined to the one in training.
        assert attacked.num_left_out == (PER_PATIENT if by_group else 3)
        assert not np.isin(len(real.train) + np.arange(3), attacked.rows).any()


def test_a_group_on_both_sides_is_refused(leak, real):
    shared = LabelledImages(real.held_out.images, real.held_out.labels, real.train.groups[: len(real.held_out)])
    with pytest.raises(ValueError, match="14 groups are in train and in held_out: give each to one of them"):
        audited(leak, RealTiles(real.train, shared, real.validation))
    bare = LabelledImages(*without_groups(real.held_out))
    with pytest.raises(ValueError, match="of train and held_out only one has groups"):
        audited(leak, RealTiles(real.train, bare, real.validation))


def test_groups_that_are_attacked_are_not_the_attackers_own(real):
    both = LabelledImages(
        np.concatenate([real.validation.images, real.train.images[:16]]),
        np.concatenate([real.validation.labels, real.train.labels[:16]]),
        np.concatenate([real.validation.groups, real.train.groups[:16]]),
    )
    attacked = find_attacked(RealTiles(real.train, real.held_out, both), 0)
    start = len(real.train) + len(real.held_out)
    mine = np.concatenate([attacked.reference, attacked.control])
    assert np.array_equal(np.sort(mine), start + np.arange(len(real.validation)))
    reference, control = (set(both.groups[rows - start]) for rows in (attacked.reference, attacked.control))
    assert len(reference) == len(control) == 11 and not reference & control


def test_an_attacker_must_have_patients_of_their_own(real):
    with pytest.raises(ValueError, match="0 validation tiles are of groups that are neither trained on nor held out"):
        find_attacked(RealTiles(real.train, real.held_out, real.train), 0)


def test_validation_patients_stand_in_where_none_was_held_out(real):
    attacked = find_attacked(RealTiles(real.train, None, real.validation), 0)
    assert attacked.by_group and attacked.numbers == (28, 11)
    bare = RealTiles(real.train, None, LabelledImages(*without_groups(real.validation)))
    assert not find_attacked(bare, 0).by_group


def test_with_too_few_held_out_patients_nothing_passes(honest, real):
    few = RealTiles(real.train, real.held_out[np.arange(PER_PATIENT)], real.validation)
    verdict = audited(honest, few)
    assert "membership" in failed(verdict)
    assert sentence(verdict, "membership").endswith(
        "by patient: 28 in training, 1 held out, too few to see any leak: at least 4 must be held out"
    )
    assert fewest_held_out(4) is None


def test_a_class_of_few_patients_is_warned_of_and_still_passes(real):
    rare = real.train.labels.copy()
    rare[[0, 8, 16]] = 2
    units = audit(
        real.validation,
        real.validation,
        RealTiles(LabelledImages(real.train.images, rare, real.train.groups), real.held_out, real.validation),
        {},
        group_kind="slide",
        n_planted=0,
    ).units
    assert units.per_class == {0: 28, 1: 28, 2: 3}
    assert few_groups(units) == ("class 2 rests on 3 slides: it may point to persons",)
    assert few_groups(units, ["fat", "gland", "lesion"]) == (
        "class lesion rests on 3 slides: it may point to persons",
    )


def test_losses_are_told_by_patient(honest, real):
    rng = np.random.default_rng(11)
    losses = rng.uniform(0.5, 0.6, 120), rng.uniform(0.5, 0.6, 80)
    rows = np.arange(120), np.arange(80)

    def finding(members):
        result = audit(honest, honest, real, {}, n_planted=0, weight_losses=WeightLosses(members, losses[1], *rows))
        assert (result.weights_test.num_training, result.weights_test.num_held_out) == (15, 10)
        return next(finding for finding in judge_weights(result) if finding.name == "weights")

    guessing, told = finding(losses[0]), finding(losses[0] - 0.04)
    assert guessing.passed is False and "120 tiles say little" not in guessing.sentence  # 80 of 112 tiles are too few
    assert guessing.sentence.endswith("80 tiles say little: it must be at least 112")
    assert "can only guess at groups in training" in guessing.sentence
    assert not told.passed and "tells groups in training with an AUC of" in told.sentence


def test_losses_alike_within_patients_do_not_tell_who_was_held_out(real, monkeypatch):
    """As many tiles of either kind are asked about, and so more of each patient that was held out."""
    monkeypatch.setattr(group_audit, "_DRAWS", 99)
    attacked = find_attacked(real, 0)
    test = group_audit.GroupAudit(real, attacked, CopyIndex(real.all_images, {}), "patient", 0)
    turns = np.arange(len(real.train)) % PER_PATIENT
    rows = np.flatnonzero(turns < 2), np.flatnonzero(turns[: len(real.held_out)] < 4)
    assert len(rows[0]) == len(rows[1]) == 56
    groups = [part.groups[chosen] for part, chosen in zip((real.train, real.held_out), rows, strict=True)]

    def p_value(seed: int, leak: float = 0.0) -> float:
        rng = np.random.default_rng(seed)
        of_patient = dict(zip(np.unique(np.concatenate(groups)), rng.standard_normal(42), strict=True))
        members, others = ([of_patient[g] + 0.3 * rng.standard_normal() for g in side] for side in groups)
        losses = WeightLosses(np.array(members) - leak, np.array(others), *rows)
        return test.test_weights(*image_audit._losses_of_attacked(losses, real, attacked, seed))[1].p_value

    by_chance = np.array([p_value(seed) for seed in range(200)])
    assert (by_chance < 0.05).mean() <= 0.08 and by_chance.mean() > 0.4
    assert np.mean([p_value(seed, leak=1.5) < 0.05 for seed in range(20)]) > 0.9


def test_units_are_cut_to_the_same_number_of_tiles():
    units, sizes = np.array([0, 1, 3, 1, 0, 1, 1, 3]), np.array([5, 4, 9, 9])
    kept = evenly_cut(units, sizes, np.random.default_rng(0))
    assert np.bincount(units[kept]).tolist() == [2, 2, 0, 2]  # of unit 0 and 3 two were asked about, and one has more
    seen = sum(evenly_cut(units, sizes, np.random.default_rng(seed)) for seed in range(400)) / 400
    assert np.allclose(seen[units == 1], 0.5, atol=0.1)
    # Where all tiles of each are there, none has to go.
    assert evenly_cut(units, np.bincount(units), np.random.default_rng(0)).all()
    assert not len(evenly_cut(np.empty(0, np.int64), sizes, np.random.default_rng(0)))


def test_site_is_told_of_where_it_is_known(leak, real):
    def with_sites(part: LabelledImages) -> LabelledImages:
        numbers = np.char.lstrip(part.groups, "p").astype(int)
        sites = np.where(LOOKS[numbers, 0] > 1, "north", "south")
        return LabelledImages(part.images, part.labels, part.groups, {"site": sites, "doctor": sites})

    verdict = audited(leak, RealTiles(*map(with_sites, (real.train, real.held_out, real.validation))))
    told = sentence(verdict, "attributes")
    assert "one of 2 values, is told " in told and "2 attributes measured" in told
    assert set(verdict.figures.published.tests.attributes) == {"site", "attribute 1"}
    assert "north" not in repr(verdict.figures) and "doctor" not in str(verdict)


def test_same_seed_gives_the_same_audit(found, leak, real):
    again = audited(leak, real)
    assert again.findings == found.findings and again.figures.published.tests == found.figures.published.tests


def test_held_out_groups_are_drawn_anew_as_they_were_drawn():
    units, labels = np.repeat(np.arange(12), 3), np.repeat([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2], 3)
    rng = np.random.default_rng(0)
    drawn = redraw_units(units, labels, 4, 2000, rng)
    first = np.unique(units, return_index=True)[1]
    held = np.array([hold_out_units(units, labels, 1 / 3, rng)[first] for _ in range(2000)])
    assert (drawn.sum(axis=1) == 4).all() and not drawn[:, 11].any()  # its class would have none left
    assert np.allclose(drawn.mean(axis=0), held.mean(axis=0), atol=0.05)
    assert len(classes_of_units(units, labels)) == 12
