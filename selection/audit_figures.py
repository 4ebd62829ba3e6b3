"""All figures of an audit, as plain dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from histodistill.selection.copies import CopyLimits
from histodistill.selection.membership import Attack, Interval, Overfitting


@dataclass(frozen=True)
class Units:
    """The units of an audit by group.

    Attributes:
        kind: What a group is, one of `GROUP_KINDS`.
        num_training: Units that were trained on; groups that have a near copy in common are one.
        num_held_out: Units that no model has seen.
        least_tiles, median_tiles, most_tiles: Tiles of a unit that was trained on.
        per_class: Class → units that were trained on and have a tile of it.
    """

    kind: str
    num_training: int
    num_held_out: int
    least_tiles: int
    median_tiles: float
    most_tiles: int
    per_class: dict[int, int]


@dataclass(frozen=True)
class Dominance:
    """Whether a single unit that was trained on is the nearest, by its look, to many of the images.

    Attributes:
        share: Share of the images that the unit which is nearest to most of them has.
        usual: What that share is where independent real tiles stand in for the images: the median of many draws.
        p_value: Share of these draws in which it is as high or higher.
    """

    share: float
    usual: float
    p_value: float


@dataclass(frozen=True)
class AttributeAttack:
    """Whether images tell an attribute of units that were trained on better than of others.

    Attributes:
        num_values: Values that it has.
        auc: How far the gains of units in training are above those of others: 0.5 if they are alike.
        p_value: Probability of so high an AUC by chance, of this attribute on its own.
    """

    num_values: int
    auc: Interval
    p_value: float


@dataclass(frozen=True)
class UnitTests:
    """What a permutation test over units says, in which who was held out is drawn anew as it was drawn.

    Attributes:
        membership: Probability, if nothing leaked, that any attack or share is as extreme as the best attack is.
        overfitting: The same of the highest share of images that are nearer to training units.
        level: P-value of a single attack from which on the test finds it.
        num_statistics: Attacks and shares that are judged together.
        detectable_auc: AUC from which on an attack would have been found with 95 % probability; None where not even a
            perfect one would.
        dominance: See `Dominance`.
        copied_units: Units that were trained on and of which an image is a copy.
        attributes: Attribute that is not the label → whether it is disclosed; empty where none can be measured.
        disclosure: As `membership`, of the attribute that is told best; 1 where there is none.
    """

    membership: float
    overfitting: float
    level: float
    num_statistics: int
    detectable_auc: float | None
    dominance: Dominance
    copied_units: int
    attributes: dict[str, AttributeAttack]
    disclosure: float


@dataclass(frozen=True)
class WeightsTest:
    """The permutation test over units of one who holds the weights.

    Attributes:
        p_value: Probability, if nothing leaked, that the mean or the extreme loss of units tells as much.
        num_training, num_held_out: Units whose losses were measured.
        detectable_auc: As in `UnitTests`.
    """

    p_value: float
    num_training: int
    num_held_out: int
    detectable_auc: float | None


@dataclass(frozen=True)
class ClassCopies:
    """Copies among the images of one class.

    Attributes:
        num_images: Images of it.
        of_training, of_others: Those that are copies of a training tile, and of another one.
    """

    num_images: int
    of_training: int
    of_others: int


@dataclass(frozen=True)
class Copies:
    """Copies among N synthetic images.

    Attributes:
        num_images: N.
        of_training: Images that are copies of a training tile.
        of_others: Images that are copies of a tile that no model was trained on: the control.
        num_training, num_others: Different tiles of either kind; what is there several times counts once.
        share: `of_training` over N, with its interval.
        control: `of_others` over N, as if there were as many of these tiles as training tiles.
        naive: Share of independent real tiles that are taken for copies.
        p_value: Probability of so many training tiles among those that were copied, if all tiles were alike to the
            model; each tile counts once, however many times it is there.
        per_class: Copies by class.
    """

    num_images: int
    of_training: int
    of_others: int
    num_training: int
    num_others: int
    share: Interval
    control: float
    naive: float
    p_value: float
    per_class: dict[int, ClassCopies]


@dataclass(frozen=True)
class MembershipAttack:
    """One attack in one space: on the training tiles, its control, and by class.

    Attributes:
        main: Members are training tiles, non-members tiles that no model has seen; in an audit by group, units.
        control: The same with independent real tiles in place of the synthetic images.
        advantage: What the images add at 1 % false positives, beyond the control: from 0 for nothing to 1.
        naive: AUC of an attacker who guesses.
        per_class: AUC within each class, where it has two units of either kind or more.
        p_value: Of an audit by group: probability of such an AUC by chance, of this attack on its own.
    """

    main: Attack
    control: Attack
    advantage: float | None
    naive: float = 0.5
    per_class: dict[int, Interval] = field(default_factory=dict)
    p_value: float | None = None


@dataclass(frozen=True)
class SetAudit:
    """What one set of synthetic images gives away.

    Attributes:
        copies: See `Copies`.
        overfitting: Space → overfitting of all images; also by `structure` and `parts`, the scores of copying.
        overfitting_per_class: Space → class → overfitting of its images.
        membership: Space → attack → figures, of an attacker who has nothing but the images.
        closest: Rows of the images and of `RealTiles.all_images` that are most alike, at most 10×2.
        closest_scores: Their scores; below the limit is a copy.
        tests: What is told by group, in an audit by group.
        class_p_value: Probability, if nothing leaked, that any class shows as much as the worst one does; None for a
            pool.
    """

    copies: Copies
    overfitting: dict[str, Overfitting]
    overfitting_per_class: dict[str, dict[int, Overfitting]]
    membership: dict[str, dict[str, MembershipAttack]]
    closest: np.ndarray
    closest_scores: np.ndarray
    tests: UnitTests | None = None
    class_p_value: float | None = None


@dataclass(frozen=True)
class AuditResult:
    """All figures.

    Attributes:
        limits: Where copying begins.
        is_random: Whether non-members were held out at random. If not, validation tiles stand in for them, and
            figures of overfitting and membership hold whatever else makes these differ.
        published: The audit of the images to be published.
        pool: The audit of all generated images, before any was dropped; no attacks on membership by class.
        planted: Kind of copy → share found, with its interval; empty where none was planted.
        num_planted: Copies of each kind.
        disguised: Disguise of training tiles → share found, with its interval: how far the search sees beyond the
            kinds that must be found.
        num_disguised: Tiles in each disguise.
        weights: The attack of one who holds the weights, where it was made.
        num_weight_tiles: Members and non-members whose losses it had, the fewer of the two.
        least_weight_tiles: How many it must have had, of those that there are.
        num_left_out: Tiles that no model has seen and that were not attacked, since they are near copies of tiles that
            were trained on.
        units: The units of an audit by group; None where nothing is known of groups, and a unit is a tile.
        weights_test: The attack on the weights by group, in an audit by group.
        num_repeated: Training tiles that are another one once more, turned, moved or a little changed.
    """

    limits: CopyLimits
    is_random: bool
    published: SetAudit
    pool: SetAudit
    planted: dict[str, Interval]
    num_planted: int
    weights: Attack | None
    num_weight_tiles: int
    least_weight_tiles: int
    num_left_out: int = 0
    units: Units | None = None
    weights_test: WeightsTest | None = None
    disguised: dict[str, Interval] = field(default_factory=dict)
    num_disguised: int = 0
    num_repeated: int = 0
