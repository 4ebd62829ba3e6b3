from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from histodistill.selection.attribute_attack import attackable, attribute_gains
from histodistill.selection.group_attacks import Candidates, less_of_class, unit_extremes, unit_means
from histodistill.selection.looks import LookSpace, look_features
from histodistill.selection.names import SYMMETRIES
from histodistill.selection.permutation import aucs_of_draws
from histodistill.selection.views import apply_symmetry


def test_means_of_units_and_classes():
    units, labels = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 0, 1])
    values = np.array([1.0, 3.0, 5.0, 7.0, 10.0])
    assert unit_means(values, units).tolist() == [2.0, 5.0, 8.5]
    assert unit_means(np.stack([values, -values], axis=1), units)[:, 1].tolist() == [-2.0, -5.0, -8.5]
    assert less_of_class(values, labels).tolist() == [-3.0, -3.0, -1.0, 3.0, 4.0]


def test_extreme_of_a_unit_does_not_grow_with_its_tiles():
    rng = np.random.default_rng(0)
    sizes = np.tile([1, 4, 30], 300)
    units = np.repeat(np.arange(900), sizes)
    extremes = unit_extremes(rng.standard_normal(len(units)), rng.integers(0, 3, len(units)), units)
    for size in (1, 4, 30):
        assert kstest(np.exp(extremes[sizes == size]), "uniform").pvalue > 0.01


@pytest.fixture(scope="module")
def patients():
    """Sixty units of six looks each, in four directions, of which the first forty made images."""
    rng = np.random.default_rng(1)
    spread = np.array([9.0, 9.0, 4.0, 4.0])
    true = rng.standard_normal((60, 4)) * np.sqrt(spread)
    units = np.repeat(np.arange(60), 6)
    looks = true[units] + rng.standard_normal((360, 4))
    images = true[rng.integers(0, 40, 300)] + rng.standard_normal((300, 4))
    return looks, units, spread, images, rng.standard_normal((500, 4)) * np.sqrt(1 + spread)


def test_units_that_images_were_made_of_are_told(patients):
    looks, units, spread, images, reference = patients
    candidates, held = Candidates(looks, units, spread), np.arange(60) >= 40
    aucs = aucs_of_draws(
        np.stack([candidates.mixture(images), candidates.density_ratio(images, reference)], axis=1), held[None]
    )[0]
    assert aucs[0] > 0.75 and aucs[1] > 0.6 and aucs[0] > aucs[1]
    honest = aucs_of_draws(candidates.mixture(reference)[:, None], held[None])[0, 0]
    assert abs(honest - 0.5) < 0.2


def test_look_of_a_unit_is_known_by_bayes_rule(patients):
    """A tile of a unit is likelier for it than for anyone, by what its other tiles say, and no more than that."""
    looks, units, spread, _, _ = patients
    candidates = Candidates(looks, units, spread)
    posterior = 1 / (6 + 1 / spread)
    assert np.allclose(candidates.variances, 1 + posterior)
    assert np.allclose(candidates.means, posterior * 6 * unit_means(looks, units))
    fresh = np.random.default_rng(2).standard_normal((4000, 4)) * np.sqrt(1 + spread)
    likelihoods = candidates.likelihoods(fresh)
    assert (likelihoods[:, :-1] / likelihoods[:, -1:]).mean() == pytest.approx(1, abs=0.2)


def textures(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 250, (count, 20, 20, 3)).astype(np.uint8)


def test_look_is_the_same_in_all_symmetries():
    images = textures(5, 0)
    expected = look_features(images)
    for symmetry in range(SYMMETRIES):
        assert np.allclose(look_features(apply_symmetry(images, symmetry)), expected, atol=1e-3)


def test_looks_tell_tinted_groups_apart_and_nothing_else():
    rng = np.random.default_rng(3)
    groups, labels = np.repeat(np.arange(20), 12), np.tile(np.arange(3), 80)
    tints = rng.uniform(0.75, 1, (20, 3))
    plain = textures(240, 4)
    tinted = (plain * tints[groups][:, None, None, :]).astype(np.uint8)
    space, looks = LookSpace.fit(tinted, {}, labels, groups)
    assert space.spread[0] > 5 and looks.shape == (240, len(space.spread))
    within = np.mean([looks[groups == group].var(axis=0, ddof=1) for group in range(20)], axis=0)
    assert within == pytest.approx(np.ones(looks.shape[1]), rel=0.5)
    assert LookSpace.fit(plain, {}, labels, groups)[0].spread.max() < 0.5
    assert np.allclose(space.of(tinted, {}, labels), looks)


def test_a_tile_for_each_group_tells_nothing_of_groups_but_has_a_look():
    space, looks = LookSpace.fit(textures(30, 5), {}, np.zeros(30, int), np.arange(30))
    assert np.isfinite(looks).all() and len(space.spread) >= 2


def test_attributes_with_few_values_are_attacked_under_harmless_names():
    units = np.repeat(np.arange(30), 2)
    attributes = {
        "Site": np.repeat(["east", "west", "east"], 20),
        "surgeon": np.repeat(["a", "b"], 30),
        "name": units.astype(str),
        "same": np.repeat("x", 60),
        "one of a kind": np.where(units == 0, "x", "y"),
    }
    found = attackable(attributes, units)
    assert set(found) == {"site", "attribute 4"}
    assert found["site"].tolist() == np.repeat([0, 1, 0], 20).tolist()


def test_attribute_is_told_better_where_the_images_hold_the_looks(patients):
    looks, units, _, _, reference = patients
    values = (unit_means(looks, units)[:, 0] > 0).astype(int)[units]
    held = np.arange(60) >= 40
    close = looks[units < 40] + 0.05
    told, untold = (attribute_gains(looks, units, values, points) for points in (close, reference))
    told_auc, untold_auc = aucs_of_draws(np.stack([told, untold], axis=1), held[None])[0]
    assert told_auc > untold_auc + 0.05 and abs(untold_auc - 0.5) < 0.15
