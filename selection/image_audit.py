"""The privacy audit: what synthetic images give away about the real tiles that a model was trained on.

Arrays in, plain dataclasses out. Three questions, each asked in pixels and in every embedding: are there copies, are
the images nearer to training tiles than chance allows, and can an attacker tell who was in the training set? Each has
a main attack, a control where nothing can have been learned, and a naive baseline, as anonymeter has (Giomi et al.,
PoPETs 2023). `docs/privacy-audit.md` gives the reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from scipy.stats import binomtest

from histodistill.selection.checks import check_embeddings, check_images, check_integer, check_labels
from histodistill.selection.copies import (
    CopyIndex,
    CopyLimits,
    CopyScores,
    Embed,
    calibrate,
    nearest_under_views,
    views_of,
)
from histodistill.selection.membership import (
    FALSE_POSITIVE_RATES,
    Attack,
    Interval,
    Overfitting,
    advantage,
    binomial_interval,
    density_ratio_scores,
    distance_scores,
    measure_attack,
    measure_overfitting,
)
from histodistill.selection.planting import MUST_FIND, plant
from histodistill.selection.streams import stream
from histodistill.selection.summaries import summarise
from histodistill.selection.views import has_content


#: Share of independent real tiles that may be taken for copies.
MAX_FALSE_ALARMS = 0.01
#: Copies of each kind that must be planted: fewer could not tell that the audit finds what it must.
FEWEST_PLANTED = 20
#: Members, and as many non-members, whose losses the attack on the weights must have where there are so many tiles: an
#: attack on fewer says little.
FEWEST_WEIGHT_TILES = 200
#: An attack whose AUC is at most this far from 0.5 is as good as guessing.
AUC_TOLERANCE = 0.02
#: An attack that surely tells more than this share of the training tiles, at 1 % false positives, tells some.
MAX_TRUE_POSITIVES = 0.03
#: Probability that a verdict of a kind fails by chance alone, over all spaces and attacks of that kind.
FAILS_BY_CHANCE = 0.05
#: The attacks of one who has the images alone: see `distance_scores` and `density_ratio_scores`.
ATTACKS = ("distance", "density_ratio")
#: Validation tiles that an audit takes at least. Where no tile was held out for it, a quarter of
# them is the attacker's own reference, whose density is estimated, and that takes two tiles.
FEWEST_VALIDATION_TILES = 8
# Tiles of each part that `audit_images` takes at least: of those that are attacked there must be two for an interval.
_FEWEST_TILES = {"train": 2, "validation": FEWEST_VALIDATION_TILES, "held_out": 2}
# What the audit itself calls two of its scores, so that no embedding can have these names.
_OWN_SCORES = ("pixels", "structure")
# Validation tiles that the limits of copying are set by: more would say little more, and take their time.
_MOST_CALIBRATING = 2000
# Views of synthetic images by which their density is estimated, for the same reason.
_MOST_FOR_DENSITY = 4000


@dataclass(frozen=True)
class LabelledImages:
    """Images uint8 N×S×S×3 and their classes, int64 N."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: np.ndarray) -> LabelledImages:
        return LabelledImages(self.images[rows], self.labels[rows])

    def __repr__(self) -> str:
        return f"LabelledImages({summarise(self.images, self.labels)})"


class HasLabelledImages(Protocol):
    """Anything with images and their labels, such as `LabelledImages`, or the tiles that `load_tiles` gives."""

    @property
    def images(self) -> np.ndarray:
        """uint8 N×S×S×3."""

    @property
    def labels(self) -> np.ndarray:
        """N whole numbers."""


@dataclass(frozen=True)
class RealTiles:
    """The real tiles, by what a model saw of them.

    Attributes:
        train: What the models were trained on.
        held_out: A random part of the same tiles that no model has seen; none where nothing was held out.
        validation: Other tiles, that no model was trained on.
    """

    train: LabelledImages
    held_out: LabelledImages | None
    validation: LabelledImages

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def __repr__(self) -> str:
        held_out = "nothing held out" if self.held_out is None else f"{len(self.held_out):,} held out"
        train = summarise(self.train.images, self.train.labels, "training tile")
        return f"RealTiles({train}; {held_out}; {len(self.validation):,} for validation)"

    @cached_property
    def all_images(self) -> np.ndarray:
        """The images of train, held-out and validation tiles, in this order, uint8 N×S×S×3."""
        return np.concatenate([part.images for part in self._parts])

    def at(self, rows: np.ndarray) -> LabelledImages:
        """The tiles at these rows of `all_images`."""
        return LabelledImages(self.all_images[rows], np.concatenate([part.labels for part in self._parts])[rows])

    @property
    def _parts(self) -> list[LabelledImages]:
        return [part for part in (self.train, self.held_out, self.validation) if part is not None]


@dataclass(frozen=True)
class Copies:
    """Copies among N synthetic images.

    Attributes:
        num_images: N.
        of_training: Images that are copies of a training tile.
        of_others: Images that are copies of a tile that no model was trained on: the control.
        num_training, num_others: Tiles of either kind.
        share: `of_training` over N, with its interval.
        control: `of_others` over N, as if there were as many of these tiles as training tiles.
        naive: Share of independent real tiles that are taken for copies.
        p_value: Probability of so many training tiles among those that were copied, if all tiles were alike to the
            model; each tile counts once.
        per_class: Copies of training tiles by class.
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
    per_class: dict[int, int]


@dataclass(frozen=True)
class MembershipAttack:
    """One attack in one space: on the training tiles, its control, and by class.

    Attributes:
        main: Members are training tiles, non-members tiles that no model has seen.
        control: The same with independent real tiles in place of the synthetic images.
        advantage: What the images add at 1 % false positives, beyond the control: from 0 for nothing to 1.
        naive: AUC of an attacker who guesses.
        per_class: AUC within each class, where it has two tiles of either kind or more.
    """

    main: Attack
    control: Attack
    advantage: float | None
    naive: float = 0.5
    per_class: dict[int, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class SetAudit:
    """What one set of synthetic images gives away.

    Attributes:
        copies: See `Copies`.
        overfitting: Space → overfitting of all images.
        overfitting_per_class: Space → class → overfitting of its images.
        membership: Space → attack → figures, of an attacker who has nothing but the images.
        closest: Rows of the images and of `RealTiles.all_images` that are most alike, at most 10×2.
        closest_scores: Their scores; below the limit is a copy.
    """

    copies: Copies
    overfitting: dict[str, Overfitting]
    overfitting_per_class: dict[str, dict[int, Overfitting]]
    membership: dict[str, dict[str, MembershipAttack]]
    closest: np.ndarray
    closest_scores: np.ndarray


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
        weights: The attack of one who holds the weights, where it was made.
        num_weight_tiles: Members and non-members whose losses it had, the fewer of the two.
        least_weight_tiles: How many it must have had, of those that there are.
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


@dataclass(frozen=True)
class Finding:
    """One point of a verdict.

    Attributes:
        name: What was looked at, such as `"copies"`.
        passed: Whether the point holds.
        sentence: The figures for people, in one sentence.
    """

    name: str
    passed: bool
    sentence: str


@dataclass(frozen=True, repr=False)
class Verdict:
    """Whether a set of images gives nothing away, and why; printed, it says so in sentences.

    Attributes:
        passed: whether all findings hold.
        findings: the points that were looked at.
        figures: all that was measured.
    """

    passed: bool
    findings: tuple[Finding, ...]
    figures: AuditResult

    def __repr__(self) -> str:
        failed = "".join(f", {finding.name}" for finding in self.findings if not finding.passed)
        return f"Verdict(passed={self.passed}{failed and f', failed: {failed[2:]}'})"

    def __str__(self) -> str:
        lines = ["passed" if self.passed else "NOT PASSED: the images should not be published"]
        return "\n".join(lines + [f"{'✓' if f.passed else '✗'} {f.sentence}" for f in self.findings])


def find_limits(real: RealTiles, index: CopyIndex, seed: int = 0) -> CopyLimits:
    """Where copying begins: what validation tiles score against the other real tiles.

    They come from other regions or slides where a source has such, as an independent tile would.

    Args:
        real: The real tiles.
        index: The index of `real.all_images`.
        seed: Seed of the draw of validation tiles.

    Raises:
        ValueError: If hardly any validation tile is left that is no copy of another tile.
    """
    rows = stream("tiles that set the limits of copying", seed).permutation(len(real.validation))[:_MOST_CALIBRATING]
    others = len(real) - len(real.validation)  # validation tiles come last
    scores = index.search(real.validation.images[np.sort(rows)], num_tiles=others)
    return calibrate(scores, MAX_FALSE_ALARMS, seed)


def find_copies(
    images: np.ndarray, real: RealTiles, embeddings: Mapping[str, Embed], seed: int = 0
) -> tuple[np.ndarray, CopyScores]:
    """Which images are copies of any real tile, N bool, and their scores against all of them.

    The limits are those of `audit` with the same seed and embeddings, and a hair's breadth more, lest rounding leave a
    copy. To drop near training tiles alone would make the rest look farther from these than from held-out tiles, and
    hide what the audit looks for; so all real tiles count.
    """
    index = CopyIndex(real.all_images, embeddings)
    limits = find_limits(real, index, seed)
    scores = index.search(images)
    return limits.score(scores) < 1.05 * limits.limit, scores


def audit_images(
    images: Any,
    labels: Any,
    *,
    train: HasLabelledImages | tuple[Any, Any],
    validation: HasLabelledImages | tuple[Any, Any],
    held_out: HasLabelledImages | tuple[Any, Any] | None = None,
    pool: HasLabelledImages | tuple[Any, Any] | None = None,
    embeddings: Mapping[str, Embed] | None = None,
    n_planted: int = 100,
    seed: int = 0,
) -> Verdict:
    """Whether synthetic images give anything away about the real tiles that their model was trained on.

    Sets of real tiles are pairs of images and labels, or anything with `images` and `labels`. All images are uint8
    N×S×S×3 of the same side, and labels N whole numbers ≥ 0, the same number for the same class.

    Args:
        images: the synthetic images, those that are to be published.
        labels: the classes that they were made as.
        train: the real tiles that the model was trained on, at least 2.
        validation: real tiles that no model was trained on, at least 8; they tell how alike independent tiles are.
        held_out: a random part of the training tiles that no model has seen, at least 2: the better control. Without
            it validation tiles stand in for them, and may differ from training tiles for other reasons.
        pool: all images of the model, of which `images` were chosen; by default these themselves.
        embeddings: name → a function that embeds uint8 M×S×S×3 images as M×D real numbers, in which copies and
            attacks are looked for beside pixels; none by default. It must not come from a model that was trained on
            the labels of these tiles.
        n_planted: copies of training tiles, of each kind, that are planted to see whether they are found; with fewer
            than 20 nothing passes.
        seed: of all that is random, from 0 on.

    Returns:
        The verdict on the images. On the weights of their model nothing is said.

    Raises:
        ValueError: for arrays of another shape, type or size, too few tiles, an embedding that returns something
            else, or tiles that have nothing on them.

    Examples:
        verdict = audit_images(images, labels, train=(tiles, classes), validation=source.split("validation"))
        print(verdict)
    """
    check_integer("n_planted", n_planted, 0)
    check_integer("seed", seed, 0)
    published = LabelledImages(*_check_arrays(images, labels, "images", "labels"))
    size = published.images.shape[1]
    real = RealTiles(
        train=_check_part("train", train, size),
        validation=_check_part("validation", validation, size),
        held_out=None if held_out is None else _check_part("held_out", held_out, size),
    )
    if n_planted and not has_content(real.train.images).any():
        raise ValueError("images of train show nothing: there must be a tile that is not of one grey level")
    figures = audit(
        published,
        published if pool is None else _check_part("pool", pool, size),
        real,
        _check_embeddings(embeddings or {}),
        n_planted=n_planted,
        seed=seed,
    )
    findings = tuple(judge_set(figures))
    return Verdict(all(finding.passed for finding in findings), findings, figures)


def _check_part(name: str, part: HasLabelledImages | tuple[Any, Any], size: int) -> LabelledImages:
    """A set of images of that size with their labels, or ValueError that calls it `name`."""
    if isinstance(part, (tuple, list)) and len(part) == 2:
        images, labels = part
    elif hasattr(part, "images") and hasattr(part, "labels"):
        images, labels = part.images, part.labels
    else:
        raise ValueError(f"{name} is a {type(part).__name__}: it must be a pair of images and labels")
    images, labels = _check_arrays(images, labels, f"images of {name}", f"labels of {name}")
    if images.shape[1] != size:
        raise ValueError(
            f"images of {name} are {images.shape[1]} px wide and images {size} px: they must have the same size"
        )
    fewest = _FEWEST_TILES.get(name, 1)
    if len(images) < fewest:
        raise ValueError(f"{name} has {len(images)} tiles: it must be at least {fewest}")
    return LabelledImages(images, labels)


def _check_arrays(images: Any, labels: Any, images_name: str, labels_name: str) -> tuple[np.ndarray, np.ndarray]:
    images = check_images(images, images_name)
    return images, check_labels(labels, len(images), labels_name, of="images")


def _check_embeddings(embeddings: Mapping[str, Embed]) -> dict[str, Embed]:
    """The same functions, which raise ValueError with one sentence for what is no embedding of their images."""

    def checked(name: str, embed: Embed) -> Embed:
        def embed_and_check(images: np.ndarray) -> np.ndarray:
            points = check_embeddings(embed(images), f"what embeddings[{name!r}] returned")
            if len(points) != len(images):
                raise ValueError(f"embeddings[{name!r}] returned {len(points)} rows for {len(images)} images")
            return points

        return embed_and_check

    for name in _OWN_SCORES:
        if name in embeddings:
            raise ValueError(f"embeddings has the name {name!r}, which the audit uses itself: give it another name")
    return {name: checked(name, embed) for name, embed in embeddings.items()}


def audit(
    published: LabelledImages,
    pool: LabelledImages,
    real: RealTiles,
    embeddings: Mapping[str, Embed],
    *,
    n_planted: int = 100,
    weight_losses: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
) -> AuditResult:
    """Audits a set to be published, and the pool that it was chosen from.

    Args:
        published, pool: Synthetic images with the classes that they were made as.
        real: The real tiles; validation needs 4 or more.
        embeddings: name → function, as for `CopyIndex`. None should have been trained on the training tiles with
            labels: it would know them, whatever the images say.
        n_planted: Copies of each kind that are planted, to see whether they are found; 0 plants none.
        weight_losses: Losses of members and of non-members under the model, from one who holds its weights.
        seed: Seed of all that is random.
    """
    index = CopyIndex(real.all_images, embeddings)
    limits = find_limits(real, index, seed)
    rows = _split_validation(real, seed)
    roles = {role: real.at(part) for role, part in rows.items()}
    points = {name: {role: at[part] for role, part in rows.items()} for name, at in index.points.items()}
    roles["control"] = roles["control"][np.arange(min(len(roles["control"]), len(published)))]
    controls = {name: views_of(roles["control"].images, embed) for name, embed in index.spaces.items()}
    attackable = _Attackable(index, limits, real, rows, roles, points, controls, seed)
    planted = {}
    if n_planted:
        copies = plant(real.train.images, n_planted, seed, has_content(real.train.images))
        found = limits.is_copy(index.search(copies.images))
        planted = {kind: binomial_interval(int(found[copies.kinds == kind].sum()), n_planted) for kind in MUST_FIND}
    weights = None
    if weight_losses is not None:
        members, non_members = weight_losses
        weights = measure_attack(-members, -non_members, 1 - FAILS_BY_CHANCE, seed)
    others = real.held_out or real.validation
    return AuditResult(
        limits=limits,
        is_random=real.held_out is not None,
        published=_audit_set(published, attackable, by_class=True),
        pool=_audit_set(pool, attackable, by_class=False),
        planted=planted,
        num_planted=n_planted,
        weights=weights,
        num_weight_tiles=min(map(len, weight_losses)) if weight_losses is not None else 0,
        least_weight_tiles=min(FEWEST_WEIGHT_TILES, len(real.train), len(others)),
    )


def judge_set(result: AuditResult) -> list[Finding]:
    """The points on which a set of images passes: all must hold."""
    return [*_judge_audit(result), *_judge_images(result)]


def judge_weights(result: AuditResult) -> list[Finding]:
    """The points on which the model passes: those of its set, no memorising, and no membership told by its weights."""
    copies = result.pool.copies
    passed = copies.p_value >= FAILS_BY_CHANCE and copies.share.low <= MAX_FALSE_ALARMS
    sentence = (
        f"{copies.of_training} of {copies.num_images:,} generated images are copies of training tiles, where "
        f"{copies.control * copies.num_images:.1f} are expected of a model that has not seen them"
    )
    rule = f"at most {100 * MAX_FALSE_ALARMS:.0f}% may be"
    sentence += f"; that is consistent with chance, and {rule}" if passed else f" and {rule}"
    findings = [*judge_set(result), Finding("pool", passed, sentence)]
    if result.weights is None:
        findings.append(Finding("weights", False, "the attack of one who holds the weights was not made"))
    else:
        enough = result.num_weight_tiles >= result.least_weight_tiles
        sentence = _told("one who holds the weights", result.weights)
        if not enough:
            few = f"{result.num_weight_tiles} tiles say little: it must be at least {result.least_weight_tiles}"
            sentence += f"; {few}"
        findings.append(Finding("weights", enough and _is_guessing(result.weights), sentence))
    return findings


def _judge_audit(result: AuditResult) -> list[Finding]:
    """Whether the audit finds what it must, and no more."""
    limits, findings = result.limits, []
    if result.num_planted < FEWEST_PLANTED:
        sentence = f"{result.num_planted} copies of each kind were planted; it must be at least {FEWEST_PLANTED}"
        findings.append(Finding("planted", False, f"{sentence}, or else nobody knows what the audit would find"))
    for kind, least in MUST_FIND.items():
        if kind in result.planted:
            value = result.planted[kind].value
            sentence = (
                f"{100 * value:.0f}% of the planted {kind} copies are found; at least {100 * least:.0f}% must be"
            )
            findings.append(Finding(f"planted {kind}", value >= least, sentence))
    alarms = binomial_interval(round(limits.false_alarms * limits.num_held_out), limits.num_held_out)
    # With few tiles the limit is the lowest of their scores; a further tile falls below that with this probability.
    allowed = max(MAX_FALSE_ALARMS, 1 / (limits.num_held_out + 1))
    passed = alarms.low <= allowed
    sentence = (
        f"{100 * alarms.value:.1f}% [{100 * alarms.low:.1f}, {100 * alarms.high:.1f}] of {limits.num_held_out:,} "
        f"independent real tiles are taken for copies, {{}} {100 * allowed:.0f}%"
    )
    how = "consistent with at most" if passed else "which is more than the allowed"
    findings.append(Finding("false alarms", passed, sentence.format(how)))
    return findings


def _judge_images(result: AuditResult) -> list[Finding]:
    """Whether the images give nothing away."""
    published, findings = result.published, []
    num_copies = published.copies.of_training + published.copies.of_others
    findings.append(
        Finding(
            "copies",
            num_copies == 0,
            f"{num_copies} of {published.copies.num_images:,} images are copies of real tiles",
        )
    )
    worst = max(published.overfitting.items(), key=lambda item: item[1].share.low)
    passed = worst[1].share.low <= 0.5
    how = "consistent with the 0.5 of chance" if passed else "more than the 0.5 of chance"
    findings.append(
        Finding(
            "overfitting",
            passed,
            f"a share of {_text(worst[1].share)} of the images is nearer to a training tile than to any of as many "
            f"held-out ones ({worst[0]}), {how}",
        )
    )
    attacks = [
        (f"{name.replace('_', ' ')}, {space}", attack.main)
        for space, by_name in published.membership.items()
        for name, attack in by_name.items()
    ]
    bad = [item for item in attacks if not _is_guessing(item[1])]
    name, attack = max(bad or attacks, key=lambda item: abs(item[1].auc.value - 0.5))
    sentence = _told("one who has the images alone", attack) + f" ({name}; the best of {len(attacks)} attacks)"
    if bad and not result.is_random:
        sentence += "; no tiles were held out at random, so this may be how training and validation tiles differ"
    findings.append(Finding("membership", not bad, sentence))
    return findings


def _is_guessing(attack: Attack) -> bool:
    """AUC within the tolerance of 0.5 or not to be told from it, and no tiles that are told for sure."""
    surely = attack.true_positives[FALSE_POSITIVE_RATES[0]]
    is_half = abs(attack.auc.value - 0.5) <= AUC_TOLERANCE or attack.auc.covers(0.5)
    return is_half and (surely is None or surely.low <= MAX_TRUE_POSITIVES)


def _told(who: str, attack: Attack) -> str:
    """How well an attacker tells members, as a sentence that says whether it is more than guessing."""
    surely = attack.true_positives[FALSE_POSITIVE_RATES[0]]
    few = "" if surely is None else f", and {100 * surely.value:.1f}% of them at 1% false alarms"
    if not _is_guessing(attack):
        return f"{who} tells training tiles with an AUC of {_text(attack.auc)}{few}"
    near = "consistent with" if attack.auc.covers(0.5) else f"within {AUC_TOLERANCE} of"
    return f"{who} can only guess at training tiles: an AUC of {_text(attack.auc)}, {near} the 0.5 of guessing{few}"


def _text(interval: Interval) -> str:
    """An estimate with its interval, to three digits."""
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _split_validation(real: RealTiles, seed: int) -> dict[str, np.ndarray]:
    """Rows of all tiles by part in the attacks: train, others (non-members), reference (the attacker's own), control.

    Validation tiles, in random order, are the attacker's own and the control's, and where nothing was held out,
    non-members too.
    """
    start = len(real) - len(real.validation)
    order = start + stream("roles of validation tiles in attacks", seed).permutation(len(real.validation))
    if real.held_out is not None:
        reference, control = np.array_split(order, 2)
        others = np.arange(len(real.train), start)
    else:
        others, reference, control = np.array_split(order, [len(order) // 2, 3 * len(order) // 4])
    return {"train": np.arange(len(real.train)), "others": others, "reference": reference, "control": control}


@dataclass(frozen=True)
class _Attackable:
    """All that is the same for every set of synthetic images: the real tiles, and what is known of them.

    Attributes:
        index: The index of all real tiles.
        limits: Where copying begins.
        real: The real tiles.
        rows: Role in the attacks, see `_split_validation` → rows of `real.all_images`.
        roles: Role → its tiles; of the control, no more than there are images to be published.
        points: Space → role → embeddings N×D.
        controls: Space → the control tiles in all symmetries, embedded: 8×N×D.
        seed: Seed of all that is random.
    """

    index: CopyIndex
    limits: CopyLimits
    real: RealTiles
    rows: dict[str, np.ndarray]
    roles: dict[str, LabelledImages]
    points: dict[str, dict[str, np.ndarray]]
    controls: dict[str, np.ndarray]
    seed: int


def _audit_set(synthetic: LabelledImages, known: _Attackable, by_class: bool) -> SetAudit:
    """The audit of one set of images; `by_class` also measures overfitting and membership within each class."""
    views = {name: views_of(synthetic.images, embed) for name, embed in known.index.spaces.items()}
    scores = known.index.search(synthetic.images, views)
    train, others = known.roles["train"], known.roles["others"]
    is_other = np.repeat([False, True], [len(train), len(others)])
    # For each real tile, its row among train and others together, or −1 for a tile of another role.
    place = np.full(len(known.real), -1)
    place[np.concatenate([known.rows["train"], known.rows["others"]])] = np.arange(len(is_other))
    labels = np.concatenate([train.labels, others.labels])
    confidence = 1 - FAILS_BY_CHANCE / len(views)
    overfitting, per_class, membership = {}, {}, {}
    for name, at in known.points.items():
        both = np.concatenate([at["train"], at["others"]])
        nearest = place[scores.nearest[name]]
        # Where the nearest of all tiles has another role, the nearest of these two roles is searched for.
        elsewhere = nearest < 0
        nearest[elsewhere] = nearest_under_views(views[name][:, elsewhere], both, 1)[0][:, 0]
        overfitting[name] = measure_overfitting(nearest, is_other, labels, confidence, known.seed)
        if by_class:
            per_class[name] = {
                int(label): measure_overfitting(nearest[synthetic.labels == label], is_other, labels, seed=known.seed)
                for label in np.unique(synthetic.labels)
            }
        membership[name] = {attack: _attack(attack, name, views[name], known, by_class) for attack in ATTACKS}
    combined = known.limits.score(scores)
    closest = np.argsort(combined, kind="stable")[: min(10, int(np.isfinite(combined).sum()))]
    return SetAudit(
        copies=_count_copies(synthetic, known.limits, scores, known.real),
        overfitting=overfitting,
        overfitting_per_class=per_class,
        membership=membership,
        closest=np.stack([closest, known.limits.nearest(scores)[closest]], axis=1),
        closest_scores=combined[closest],
    )


def _attack(attack: str, space: str, views: np.ndarray, known: _Attackable, by_class: bool) -> MembershipAttack:
    """One of `ATTACKS` in one space, by images in all symmetries, embedded: `views` 8×G×D."""
    at, train, others = known.points[space], known.roles["train"], known.roles["others"]
    both = np.concatenate([at["train"], at["others"]])
    rng = stream("images whose density is measured", known.seed)
    scores = []
    for synthetic in (views, known.controls[space]):
        if attack == "distance":
            scores.append(distance_scores(synthetic, both))
        else:
            images = synthetic.reshape(-1, synthetic.shape[2])
            drawn = np.sort(rng.permutation(len(images))[:_MOST_FOR_DENSITY])
            scores.append(density_ratio_scores(images[drawn], at["reference"], both))
    count = len(train)
    confidence = 1 - FAILS_BY_CHANCE / (len(known.points) * len(ATTACKS))
    main, control = (measure_attack(s[:count], s[count:], confidence, known.seed) for s in scores)
    per_class = {}
    if by_class:
        for label in np.unique(train.labels):
            members = scores[0][:count][train.labels == label]
            non_members = scores[0][count:][others.labels == label]
            if min(len(members), len(non_members)) >= 2:
                per_class[int(label)] = measure_attack(members, non_members, seed=known.seed).auc
    told, told_of_control = (found.true_positives[FALSE_POSITIVE_RATES[0]] for found in (main, control))
    gained = None if told is None or told_of_control is None else advantage(told.value, told_of_control.value)
    return MembershipAttack(main, control, gained, per_class=per_class)


def _count_copies(synthetic: LabelledImages, limits: CopyLimits, scores: CopyScores, real: RealTiles) -> Copies:
    """Counts the copies of training tiles and of others."""
    is_copy, nearest = limits.is_copy(scores), limits.nearest(scores)
    num_training, num_all = len(real.train), len(real)
    of_training = is_copy & (nearest < num_training)
    of_others = is_copy & (nearest >= num_training)
    count, num_others = len(synthetic), num_all - num_training
    tiles = [len(np.unique(nearest[rows])) for rows in (of_training, of_others)]
    p_value = 1.0
    if sum(tiles):
        p_value = float(binomtest(tiles[0], sum(tiles), num_training / num_all, alternative="greater").pvalue)
    return Copies(
        num_images=count,
        of_training=int(of_training.sum()),
        of_others=int(of_others.sum()),
        num_training=num_training,
        num_others=num_others,
        share=binomial_interval(int(of_training.sum()), count),
        control=int(of_others.sum()) * num_training / max(1, num_others) / max(1, count),
        naive=limits.false_alarms,
        p_value=p_value,
        per_class={int(c): int(of_training[synthetic.labels == c].sum()) for c in np.unique(synthetic.labels)},
    )
