"""The audit by group: overfitting, membership and dominance told of patients, by one permutation test.

All scores are computed without regard to who was held out. Then that is drawn anew many times, as it was drawn, and
what was found is compared with what these draws give (`selection.permutation`). So the test is exact for any number of
tiles of a patient, and any likeness among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from histodistill.selection.attacked import Attacked
from histodistill.selection.attribute_attack import attackable, attribute_gains
from histodistill.selection.audit_figures import (
    AttributeAttack,
    Dominance,
    MembershipAttack,
    Units,
    UnitTests,
    WeightsTest,
)
from histodistill.selection.class_test import class_p_value
from histodistill.selection.copies import CopyIndex
from histodistill.selection.group_attacks import Candidates, less_of_class, unit_extremes, unit_means
from histodistill.selection.image_rows import rows_of
from histodistill.selection.looks import LookSpace
from histodistill.selection.membership import (
    FALSE_POSITIVE_RATES,
    Attack,
    Interval,
    Overfitting,
    measure_attack,
    measure_overfitting,
)
from histodistill.selection.permutation import aucs_of_draws, detectable_auc, joint_test, shares_of_draws
from histodistill.selection.real_tiles import LabelledImages, RealTiles
from histodistill.selection.streams import stream
from histodistill.selection.units import redraw_units


#: Probability that an audit by group fails a model that leaks nothing, by any of its tests but that of single classes.
GROUP_FAILS_BY_CHANCE = 0.025
#: What of it is for dominance, for the pool, and for the attack of one who holds the weights.
DOMINANCE_FAILS_BY_CHANCE, POOL_FAILS_BY_CHANCE, WEIGHTS_FAIL_BY_CHANCE = 0.003, 0.004, 0.006
#: The rest is for overfitting, membership and attributes, which one test judges. So a set alone, without the model,
#: fails by chance with a probability of 0.015.
UNITS_FAIL_BY_CHANCE = 0.012
#: P-value that one attack alone must reach, about: the joint test asks more of each, the more of them there are.
SINGLE_TEST_LEVEL = UNITS_FAIL_BY_CHANCE / 8
#: The space of looks, beside pixels and embeddings.
LOOKS = "looks"
# Draws of who was held out.
_DRAWS = 9_999
# Draws of tiles that stand in for the images, for dominance.
_DOMINANCE_DRAWS = 1_999


class GroupAudit:
    """All that is the same for every set of synthetic images, in an audit by group.

    Args:
        real: The real tiles.
        attacked: Who is attacked, by group.
        index: The index of all real tiles.
        kind: What a group is.
        seed: Of all that is random.
    """

    def __init__(self, real: RealTiles, attacked: Attacked, index: CopyIndex, kind: str, seed: int):
        self.attacked, self.seed = attacked, seed
        self.units = _count_units(real, attacked, kind)
        self._embeddings = [name for name in index.spaces if name != "pixels"]
        mine = np.concatenate([attacked.reference, attacked.control])
        groups = np.concatenate([attacked.units, len(attacked.is_held_out) + attacked.groups_of_validation])
        rows = np.concatenate([attacked.rows, mine])
        self._space, looks = LookSpace.fit(
            rows_of(real.all_images, rows),
            {name: index.points_at(name, rows) for name in self._embeddings},
            real.all_labels[rows],
            groups,
        )
        count = len(attacked.rows)
        self.looks = looks[:count]
        self.reference_looks = looks[count : count + len(attacked.reference)]
        self._validation = looks[count:], real.all_labels[mine]
        self.control_looks = looks[count + len(attacked.reference) :]
        self._candidates = Candidates(self.looks, attacked.units, self._space.spread)
        rng = stream("redrawn membership of groups", seed)
        redrawn = redraw_units(attacked.units, attacked.labels, attacked.numbers[1], _DRAWS, rng)
        self._draws = np.concatenate([attacked.is_held_out[None], redrawn])
        self._tiles = np.bincount(attacked.units)
        self._attributes = attackable(attacked.attributes, attacked.units)

    def looks_of(self, synthetic: LabelledImages, views: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The looks of images, twice G×K, of which `views` are their symmetries in each space, 8×G×D.

        First with the mean of each class as that of real tiles, so that what a model gets wrong in all images does not
        count; then as they are.
        """
        looks = self._space.of(synthetic.images, {name: views[name][0] for name in self._embeddings}, synthetic.labels)
        moved = looks.copy()
        for label in np.unique(synthetic.labels):
            moved[synthetic.labels == label] -= looks[synthetic.labels == label].mean(axis=0)
        return moved, looks

    def overfitting(self, space: str, nearest: np.ndarray, confidence: float) -> Overfitting:
        """Whether images are nearer to units that were trained on than chance allows.

        Args:
            space: Where.
            nearest: int64 G, the unit that each image is nearest to, or −1 for none.
            confidence: Of the interval.
        """
        return measure_overfitting(nearest, self._tiles_in(space), self._draws, confidence)

    def nearest_by_look(self, looks: np.ndarray) -> np.ndarray:
        """The unit of whose look each of G images is likeliest: int64 G."""
        return self._candidates.likeliest(looks)

    def unit_scores(self, tile_scores: np.ndarray) -> dict[str, np.ndarray]:
        """Two scores of each unit by those of its tiles: their mean, less that of their class, and the extreme."""
        labels, units = self.attacked.labels, self.attacked.units
        return {
            "": unit_means(less_of_class(tile_scores, labels), units),
            "_extreme": unit_extremes(tile_scores, labels, units),
        }

    def look_scores(self, looks: np.ndarray) -> dict[str, np.ndarray]:
        """Scores of each unit by the looks of images, G×K: attack → float64 U."""
        return {
            "unit_density_ratio": self._candidates.density_ratio(looks, self.reference_looks),
            "mixture": self._candidates.mixture(looks),
        }

    def attack(
        self, main: np.ndarray, control: np.ndarray, within: Mapping[int, tuple[np.ndarray, np.ndarray]]
    ) -> MembershipAttack:
        """Figures of one attack, by the scores of units from the images, from control tiles, and within classes."""
        held = self.attacked.is_held_out
        aucs = aucs_of_draws(main[:, None], self._draws)[:, 0]
        return MembershipAttack(
            main=_measure(main, held, self.seed),
            control=_measure(control, held, self.seed),
            advantage=None,
            per_class={
                label: _measure(values, held[units], self.seed).auc for label, (units, values) in within.items()
            },
            p_value=float((aucs >= aucs[0]).mean()),
        )

    def within_classes(self, tile_scores: np.ndarray) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Class → units with tiles of it and their mean scores by these, where it has two of either kind or more."""
        found = {}
        for label in np.unique(self.attacked.labels).tolist():
            rows = self.attacked.labels == label
            units, codes = np.unique(self.attacked.units[rows], return_inverse=True)
            held = self.attacked.is_held_out[units]
            if min(held.sum(), (~held).sum()) >= 2:
                found[label] = units, unit_means(tile_scores[rows], codes)
        return found

    def class_p_value(
        self,
        nearest: Mapping[str, np.ndarray],
        labels: np.ndarray,
        within: Sequence[tuple[np.ndarray, np.ndarray]],
    ) -> float:
        """`class_p_value` of images of these classes, by the nearest units and by attacks `within_classes`."""
        return class_p_value(nearest, labels, {space: self._tiles_in(space) for space in nearest}, within, self._draws)

    def test(
        self,
        scores: list[np.ndarray],
        nearest: Mapping[str, np.ndarray],
        synthetic: LabelledImages,
        looks: tuple[np.ndarray, np.ndarray],
        copied_units: int,
    ) -> UnitTests:
        """The joint test.

        Args:
            scores: Scores of units, float64 U each, one for each attack.
            nearest: Space → int64 G, the unit that each image is nearest to, or −1 for none.
            synthetic: The images.
            looks: Theirs, as `looks_of` gives them.
            copied_units: Units that were copied from.
        """
        gains = {
            name: attribute_gains(self.looks, self.attacked.units, values, looks[0])
            for name, values in self._attributes.items()
        }
        attacks = np.stack([*scores, *gains.values()], axis=1)
        shares = [shares_of_draws(units, self._tiles_in(space), self._draws) for space, units in nearest.items()]
        columns = np.column_stack([aucs_of_draws(attacks, self._draws), *shares])
        families = {
            "membership": range(len(scores)),
            "disclosure": range(len(scores), attacks.shape[1]),
            "overfitting": range(attacks.shape[1], columns.shape[1]),
        }
        joint = joint_test(columns, families, UNITS_FAIL_BY_CHANCE)
        return UnitTests(
            membership=joint.adjusted["membership"],
            overfitting=joint.adjusted["overfitting"],
            level=joint.level,
            num_statistics=columns.shape[1],
            detectable_auc=detectable_auc(*self.attacked.numbers, joint.level),
            dominance=self._dominance(synthetic, *looks),
            copied_units=copied_units,
            attributes={
                name: AttributeAttack(
                    int(self._attributes[name].max()) + 1,
                    _measure(gains[name], self.attacked.is_held_out, self.seed).auc,
                    float(joint.p_values[len(scores) + place]),
                )
                for place, name in enumerate(gains)
            },
            disclosure=joint.adjusted["disclosure"],
        )

    def test_weights(self, losses: np.ndarray, rows: np.ndarray) -> tuple[Attack, WeightsTest]:
        """The attack of one who holds the weights, by the losses of M tiles of as many units as possible.

        The attack is that by the means of units; the test is of these and of extremes together, so it may fail where
        the interval of the AUC holds 0.5.

        Args:
            losses: float64 M, lower for a likelier member.
            rows: int64 M, the tiles among those attacked.
        """
        labels = self.attacked.labels[rows]
        members, units = np.unique(self.attacked.units[rows], return_inverse=True)
        held = self.attacked.is_held_out[members]
        scores = np.stack(
            [
                unit_means(less_of_class(-losses, labels), units),
                unit_extremes(-losses, labels, units),
            ],
            axis=1,
        )
        rng = stream("redrawn membership of the attack on weights", self.seed)
        redrawn = redraw_units(units, labels, int(held.sum()), _DRAWS, rng)
        aucs = aucs_of_draws(scores, np.concatenate([held[None], redrawn]))
        joint = joint_test(aucs, {"weights": (0, 1)}, WEIGHTS_FAIL_BY_CHANCE)
        numbers = int((~held).sum()), int(held.sum())
        test = WeightsTest(joint.adjusted["weights"], *numbers, detectable_auc(*numbers, joint.level))
        return _measure(scores[:, 0], held, self.seed), test

    def _tiles_in(self, space: str) -> np.ndarray:
        """Tiles of each unit; one, where each unit has one look."""
        return np.ones_like(self._tiles) if space == LOOKS else self._tiles

    def _dominance(self, synthetic: LabelledImages, moved: np.ndarray, looks: np.ndarray) -> Dominance:
        """Whether one training unit is nearest to more images than with independent real tiles in their place.

        Such tiles are drawn from validation groups that are drawn themselves, with replacement, since tiles of one of
        them go together; of each class as many as there are images. It must show, too, where the images have the means
        of real tiles: those of a model that makes all of them too light are near to the lightest patient.
        """
        real, labels = self._validation
        present = np.isin(synthetic.labels, labels)
        if not present.any():
            return Dominance(0.0, 0.0, 1.0)
        training = ~self.attacked.is_held_out
        mine, centred = (self.nearest_by_look(points[present]) for points in (looks, moved))
        theirs, share = self.nearest_by_look(real), self._largest(mine, training)
        classes, sizes = np.unique(synthetic.labels[present], return_counts=True)
        rng = stream("tiles in place of images, for dominance", self.seed)
        groups = self.attacked.groups_of_validation
        drawn = np.empty(_DOMINANCE_DRAWS)
        for i in range(len(drawn)):
            weights = np.bincount(rng.integers(groups.max() + 1, size=groups.max() + 1), minlength=groups.max() + 1)
            chosen = [
                _draw_tiles(theirs, labels == c, weights[groups], n, rng) for c, n in zip(classes, sizes, strict=True)
            ]
            drawn[i] = self._largest(np.concatenate(chosen), training)
        usual = float(np.median(drawn))
        p_value = (1 + int((drawn >= share).sum())) / (1 + len(drawn))
        return Dominance(share, usual, p_value if self._largest(centred, training) > usual else 1.0)

    def _largest(self, nearest: np.ndarray, training: np.ndarray) -> float:
        counts = np.bincount(nearest, minlength=len(training))
        return float(counts[training].max() / len(nearest))


def _draw_tiles(
    values: np.ndarray, of_class: np.ndarray, weights: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Values of `count` tiles of a class, each drawn by its weight; of any where all weigh nothing."""
    own = values[of_class]
    share = weights[of_class].astype(np.float64)
    share = share if share.any() else np.ones(len(own))
    return own[np.searchsorted(np.cumsum(share), rng.random(count) * share.sum(), side="right")]


def _count_units(real: RealTiles, attacked: Attacked, kind: str) -> Units:
    training, held_out = attacked.numbers
    sizes = np.bincount(attacked.units)[~attacked.is_held_out]
    in_training = ~attacked.tile_is_held_out
    pairs = np.unique(np.stack([attacked.labels[in_training], attacked.units[in_training]], axis=1), axis=0)
    classes, counts = np.unique(pairs[:, 0], return_counts=True)
    return Units(
        kind=kind,
        num_training=training,
        num_held_out=held_out,
        least_tiles=int(sizes.min()),
        median_tiles=float(np.median(sizes)),
        most_tiles=int(sizes.max()),
        per_class=dict(zip(classes.tolist(), counts.tolist(), strict=True)),
    )


def _measure(scores: np.ndarray, held_out: np.ndarray, seed: int) -> Attack:
    """`measure_attack` of units; of a single one of either kind nothing is known."""
    members, others = scores[~held_out], scores[held_out]
    if min(len(members), len(others)) >= 2:
        return measure_attack(members, others, seed=seed)
    auc = float(aucs_of_draws(scores[:, None], held_out[None])[0, 0])
    return Attack(Interval(auc, 0.0, 1.0), dict.fromkeys(FALSE_POSITIVE_RATES))
