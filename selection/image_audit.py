"""The privacy audit: what synthetic images give away about the real tiles that a model was trained on.

Arrays in, plain dataclasses out. Three questions, each asked in pixels and in every embedding: are there copies, are
the images nearer to training tiles than chance allows, and can an attacker tell who was in the training set? Each has
a main attack, a control where nothing can have been learned, and a naive baseline, as anonymeter has (Giomi et al.,
PoPETs 2023). `docs/privacy-audit.md` gives the reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from histodistill.selection.attacked import Attacked, find_attacked
from histodistill.selection.audit_figures import AuditResult, ClassCopies, Copies, MembershipAttack, SetAudit
from histodistill.selection.audit_verdict import (
    FAILS_BY_CHANCE,
    MAX_FALSE_ALARMS,
    Verdict,
    few_groups,
    judge_set,
)
from histodistill.selection.checks import (
    check_choice,
    check_embeddings,
    check_groups,
    check_images,
    check_integer,
    check_labels,
)
from histodistill.selection.class_test import class_p_value
from histodistill.selection.copies import (
    CopyIndex,
    CopyLimits,
    CopyScores,
    Embed,
    calibrate,
    nearest_under_views,
    views_of,
)
from histodistill.selection.disguises import DISGUISES, disguise_tiles
from histodistill.selection.group_attacks import unit_means
from histodistill.selection.group_audit import LOOKS, GroupAudit
from histodistill.selection.image_rows import Images, rows_of
from histodistill.selection.membership import (
    FALSE_POSITIVE_RATES,
    Attack,
    Interval,
    advantage,
    binomial_interval,
    density_ratio_scores,
    distance_scores,
    measure_attack,
    measure_overfitting,
)
from histodistill.selection.names import GROUP_KINDS
from histodistill.selection.near_copies import in_order
from histodistill.selection.permutation import redraw_within
from histodistill.selection.planting import MUST_FIND, plant
from histodistill.selection.real_tiles import HasLabelledImages, LabelledImages, RealTiles
from histodistill.selection.streams import stream
from histodistill.selection.units import evenly_cut, find_units
from histodistill.selection.views import has_content


#: Members, and as many non-members, whose losses the attack on the weights must have where there are so many tiles: an
#: attack on fewer says little.
FEWEST_WEIGHT_TILES = 200
#: The attacks of one who has the images alone: see `distance_scores` and `density_ratio_scores`.
ATTACKS = ("distance", "density_ratio")
#: Validation tiles that an audit takes at least. Where no tile was held out for it, a quarter of
# them is the attacker's own reference, whose density is estimated, and that takes two tiles.
FEWEST_VALIDATION_TILES = 8
# Tiles of each part that `audit_images` takes at least: of those that are attacked there must be two for an interval.
_FEWEST_TILES = {"train": 2, "validation": FEWEST_VALIDATION_TILES, "held_out": 2}
# What the audit itself calls its spaces and scores, so that no embedding can have these names.
OWN_SCORES = ("pixels", "structure", "parts", LOOKS)
# Validation tiles that the limits of copying are set by: more would say little more, and take their time.
_MOST_CALIBRATING = 2000
# Draws of who was held out by which overfitting is measured, and those by which classes are judged.
_OVERFITTING_DRAWS, _CLASS_DRAWS = 1_000, 1_999
#: Copies of each kind that must be found for each that is disguised in a further way.
PLANTED_FOR_EACH_DISGUISED = 5
# Views of synthetic images by which their density is estimated, for the same reason.
_MOST_FOR_DENSITY = 4000


#: What `audit_images` takes as a set of tiles.
TileSet = HasLabelledImages | tuple[Any, Any] | tuple[Any, Any, Any]


@dataclass(frozen=True)
class WeightLosses:
    """Losses of tiles under a model, from one who holds its weights: lower for a likelier member.

    Attributes:
        members: float64 N, of training tiles.
        non_members: float64 M, of tiles that the model has not seen.
        member_rows: int64 N, which of the training tiles they are; the first ones by default.
        non_member_rows: int64 M, which of the held-out tiles, or validation tiles where nothing was held out.
    """

    members: np.ndarray
    non_members: np.ndarray
    member_rows: np.ndarray | None = None
    non_member_rows: np.ndarray | None = None


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
    scores = index.search(rows_of(real.validation.images, np.sort(rows)), num_tiles=others, decoys=True)
    return calibrate(scores, MAX_FALSE_ALARMS, seed)


def find_copies(
    images: Images, real: RealTiles, embeddings: Mapping[str, Embed], seed: int = 0
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
    train: TileSet,
    validation: TileSet,
    held_out: TileSet | None = None,
    pool: TileSet | None = None,
    embeddings: Mapping[str, Embed] | None = None,
    group_kind: str = "group",
    n_planted: int = 100,
    seed: int = 0,
) -> Verdict:
    """Whether synthetic images give anything away about the real tiles that their model was trained on.

    Sets of real tiles are pairs of images and labels, or triples with groups beside them, or anything with `images`,
    `labels` and, where they are known, `groups`. All images are uint8 N×S×S×3 of the same side, labels N whole numbers
    ≥ 0, the same number for the same class, and groups N names or numbers, the same for tiles of one patient. With
    groups the verdict is about groups; without, about single tiles, and it says so.

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
            the labels of these tiles. It is given a part of the images at a time, and must embed each of them whatever
            the others are.
        group_kind: what a group is: patient, case, specimen, block, slide, site or group.
        n_planted: copies of training tiles, of each kind, that are planted to see whether they are found; with fewer
            than 20 nothing passes.
        seed: of all that is random, from 0 on.

    Returns:
        The verdict on the images. On the weights of their model nothing is said.

    Raises:
        ValueError: for arrays of another shape, type or size, too few tiles, an embedding that returns something
            else, tiles that have nothing on them, or a group that is in train and in held_out.

    Examples:
        verdict = audit_images(images, labels, train=(tiles, classes), validation=source.split("validation"))
        print(verdict)
    """
    check_integer("n_planted", n_planted, 0)
    check_integer("seed", seed, 0)
    check_choice("group_kind", group_kind, GROUP_KINDS)
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
        group_kind=group_kind,
        n_planted=n_planted,
        seed=seed,
    )
    findings = tuple(judge_set(figures))
    return Verdict(all(finding.passed for finding in findings), findings, figures, few_groups(figures.units))


def _check_part(name: str, part: TileSet, size: int) -> LabelledImages:
    """A set of images of that size with their labels and groups, or ValueError that calls it `name`."""
    groups: Any = None
    attributes: Mapping[str, np.ndarray] = {}
    if isinstance(part, (tuple, list)):
        if len(part) not in (2, 3):
            raise ValueError(f"{name} has {len(part)} parts: it must be a pair of images and labels")
        images, labels, *rest = part
        groups = rest[0] if rest else None
    elif hasattr(part, "images") and hasattr(part, "labels"):
        images, labels, groups = part.images, part.labels, getattr(part, "groups", None)
        attributes = getattr(part, "attributes", {})
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
    if groups is not None:
        groups = check_groups(groups, len(images), f"groups of {name}", of="images")
    return LabelledImages(images, labels, groups, attributes)


def _check_arrays(images: Any, labels: Any, images_name: str, labels_name: str) -> tuple[Images, np.ndarray]:
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

    for name in OWN_SCORES:
        if name in embeddings:
            raise ValueError(f"embeddings has the name {name!r}, which the audit uses itself: give it another name")
    return {name: checked(name, embed) for name, embed in embeddings.items()}


def audit(
    published: LabelledImages,
    pool: LabelledImages,
    real: RealTiles,
    embeddings: Mapping[str, Embed],
    *,
    group_kind: str = "group",
    n_planted: int = 100,
    weight_losses: WeightLosses | None = None,
    seed: int = 0,
) -> AuditResult:
    """Audits a set to be published, and the pool that it was chosen from; by group, where the real tiles have groups.

    Args:
        published, pool: Synthetic images with the classes that they were made as.
        real: The real tiles; validation needs 4 or more.
        embeddings: name → function, as for `CopyIndex`. None should have been trained on the training tiles with
            labels: it would know them, whatever the images say.
        group_kind: What a group is, one of `GROUP_KINDS`.
        n_planted: Copies of each kind that are planted, to see whether they are found; 0 plants none.
        weight_losses: Losses of members and of non-members under the model, from one who holds its weights.
        seed: Seed of all that is random.

    Raises:
        ValueError: If the tiles are not fit for an audit: see `find_attacked` and `find_limits`.
    """
    attacked = find_attacked(real, seed)
    index = CopyIndex(real.all_images, embeddings)
    limits = find_limits(real, index, seed)
    control = attacked.control[: len(published)]
    controls = {name: views_of(rows_of(real.all_images, control), embed) for name, embed in index.spaces.items()}
    by_group = GroupAudit(real, attacked, index, group_kind, seed) if attacked.by_group else None
    known = _Attackable(index, limits, real, attacked, controls, by_group, seed)
    planted, disguised = _try_search(real, index, limits, n_planted, seed)
    weights, weights_test, num_weight_tiles = None, None, 0
    if weight_losses is not None:
        num_weight_tiles = min(len(weight_losses.members), len(weight_losses.non_members))
        if by_group is None:
            weights = _attack_weights(weight_losses, real, seed)
        else:
            weights, weights_test = by_group.test_weights(*_losses_of_attacked(weight_losses, real, attacked, seed))
    others = real.held_out or real.validation
    of_published = _audit_set(published, known, by_class=True)
    return AuditResult(
        limits=limits,
        is_random=real.held_out is not None,
        published=of_published,
        pool=of_published if pool is published else _audit_set(pool, known, by_class=False),
        planted=planted,
        num_planted=n_planted,
        disguised=disguised,
        num_disguised=n_planted // PLANTED_FOR_EACH_DISGUISED,
        weights=weights,
        num_weight_tiles=num_weight_tiles,
        least_weight_tiles=min(FEWEST_WEIGHT_TILES, len(real.train), len(others)),
        num_left_out=attacked.num_left_out,
        num_repeated=len(real.train) - real.num_different,
        units=None if by_group is None else by_group.units,
        weights_test=weights_test,
    )


def _try_search(
    real: RealTiles, index: CopyIndex, limits: CopyLimits, n_planted: int, seed: int
) -> tuple[dict[str, Interval], dict[str, Interval]]:
    """Shares found of planted copies of each kind, and of tiles in each disguise; empty where there are none of it."""
    planted: dict[str, Interval] = {}
    disguised: dict[str, Interval] = {}
    if n_planted:
        usable = has_content(real.train.images)
        copies = plant(real.train.images, n_planted, seed, usable)
        found = limits.is_copy(index.search(copies.images))
        planted = {kind: binomial_interval(int(found[copies.kinds == kind].sum()), n_planted) for kind in MUST_FIND}
    if n_disguised := n_planted // PLANTED_FOR_EACH_DISGUISED:
        images = disguise_tiles(real.train.images, real.validation.images, n_disguised, seed, usable)
        found = limits.is_copy(index.search(images.reshape(-1, *images.shape[2:]))).reshape(len(images), -1)
        disguised = {
            kind: binomial_interval(int(row.sum()), n_disguised) for kind, row in zip(DISGUISES, found, strict=True)
        }
    return planted, disguised


def _rows_of_losses(losses: WeightLosses) -> tuple[np.ndarray, np.ndarray]:
    return tuple(
        np.arange(len(values)) if rows is None else rows
        for values, rows in ((losses.members, losses.member_rows), (losses.non_members, losses.non_member_rows))
    )  # type: ignore[return-value]


def _attack_weights(losses: WeightLosses, real: RealTiles, seed: int) -> Attack:
    """The attack on the weights tile by tile, a tile with its near copies as one."""
    rows, other_rows = _rows_of_losses(losses)
    images = rows_of(real.train.images, rows), rows_of((real.held_out or real.validation).images, other_rows)
    units, count = find_units(images), len(rows)
    members = -unit_means(losses.members, in_order(units[:count]))
    kept = ~np.isin(units[count:], units[:count])
    non_members = -unit_means(losses.non_members[kept], in_order(units[count:][kept]))
    return measure_attack(members, non_members, 1 - FAILS_BY_CHANCE, seed)


def _losses_of_attacked(
    losses: WeightLosses, real: RealTiles, attacked: Attacked, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The losses of tiles that are attacked, and which of them they are.

    Of each group there are as many as of another, if it has as many: tiles of a group are alike, so the highest loss
    of many would else lie otherwise than that of few, and tell who was held out where nothing else does.
    """
    rows, other_rows = _rows_of_losses(losses)
    asked = np.concatenate([rows, len(real.train) + other_rows])
    names = [np.asarray(part.groups).astype(str) for part in (real.train, real.held_out or real.validation)]
    groups = in_order(np.concatenate(names))
    kept = evenly_cut(groups[asked], np.bincount(groups), stream("tiles of groups in the attack on weights", seed))
    places = _places(attacked, len(real))[asked]
    kept &= places >= 0
    return np.concatenate([losses.members, losses.non_members])[kept], places[kept]


def _places(attacked: Attacked, count: int) -> np.ndarray:
    """Of each of `count` real tiles, its place among those attacked, or −1."""
    places = np.full(count, -1)
    places[attacked.rows] = np.arange(len(attacked.rows))
    return places


@dataclass(frozen=True)
class _Attackable:
    """All that is the same for every set of synthetic images: the real tiles, and what is known of them.

    Attributes:
        index: The index of all real tiles.
        limits: Where copying begins.
        real: The real tiles.
        attacked: Who of them is attacked.
        controls: Space → control tiles, no more than there are images to be published, in all symmetries, embedded:
            8×N×D.
        by_group: The audit by group; None where units are tiles.
        seed: Seed of all that is random.
    """

    index: CopyIndex
    limits: CopyLimits
    real: RealTiles
    attacked: Attacked
    controls: dict[str, np.ndarray]
    by_group: GroupAudit | None
    seed: int


def _audit_set(synthetic: LabelledImages, known: _Attackable, by_class: bool) -> SetAudit:
    """The audit of one set of images; `by_class` also measures overfitting and membership within each class."""
    views = {name: views_of(synthetic.images, embed) for name, embed in known.index.spaces.items()}
    scores = known.index.search(synthetic.images, views)
    nearest = _nearest_units(scores, views, known)
    copies, copied_units = _count_copies(synthetic, known, scores)
    if known.by_group is None:
        told = _tell_tiles(synthetic, views, nearest, known, by_class)
    else:
        told = _tell_groups(synthetic, views, nearest, copied_units, known, known.by_group, by_class)
    combined = known.limits.score(scores)
    closest = np.argsort(combined, kind="stable")[: min(10, int(np.isfinite(combined).sum()))]
    return SetAudit(
        copies=copies,
        **told,
        closest=np.stack([closest, known.limits.nearest(scores)[closest]], axis=1),
        closest_scores=combined[closest],
    )


def _nearest_units(scores: CopyScores, views: dict[str, np.ndarray], known: _Attackable) -> dict[str, np.ndarray]:
    """Space, `structure` and `parts` → the unit that has the nearest attacked tile to each image: int64 G.

    For the last two it is −1 where the nearest tile of all is not attacked, or nothing is like the image: then chance
    alone decides whether the others are near to training tiles.
    """
    attacked = known.attacked
    places, found = _places(attacked, len(known.real)), {}
    for name in known.index.spaces:
        nearest = places[scores.nearest[name]]
        # Where the nearest of all tiles is not attacked, the nearest of those that are is searched for.
        elsewhere = nearest < 0
        points = known.index.points_at(name, attacked.rows)
        nearest[elsewhere] = nearest_under_views(views[name][:, elsewhere], points, 1)[0][:, 0]
        found[name] = attacked.units[nearest]
    kinds = known.real.kinds
    first = np.unique(kinds, return_index=True)[1]  # of each kind, which alone is attacked
    for name in ("structure", "parts"):
        nearest = places[first[kinds[scores.nearest[name]]]]
        nearest[~np.isfinite(scores.values[name])] = -1
        found[name] = np.where(nearest >= 0, attacked.units[nearest], -1)
    return found


def _tell_tiles(
    synthetic: LabelledImages,
    views: dict[str, np.ndarray],
    nearest: dict[str, np.ndarray],
    known: _Attackable,
    by_class: bool,
) -> dict[str, Any]:
    """Overfitting and membership where a unit is a tile with its near copies."""
    attacked, seed = known.attacked, known.seed
    held, classes = attacked.is_held_out, attacked.classes
    confidence = 1 - FAILS_BY_CHANCE / len(nearest)
    tiles = np.ones(len(held), np.int64)
    draws = redraw_within(held, classes, _OVERFITTING_DRAWS, stream("shuffled membership", seed))
    overfitting, per_class, within = {}, {}, []
    membership: dict[str, dict[str, MembershipAttack]] = {}
    for name, units in nearest.items():
        overfitting[name] = measure_overfitting(units, tiles, draws, confidence)
        if by_class:
            per_class[name] = {
                int(label): measure_overfitting(units[synthetic.labels == label], tiles, draws)
                for label in np.unique(synthetic.labels)
            }
    for name in views:
        membership[name] = {}
        for attack in ATTACKS:
            membership[name][attack], scores = _attack_tiles(attack, name, views[name], known, by_class)
            of_each = [np.flatnonzero(classes == label) for label in np.unique(classes)]
            within += [(rows, scores[rows]) for rows in of_each]
    p_value = None
    if by_class:
        draws = redraw_within(held, classes, _CLASS_DRAWS, stream("redrawn membership within classes", seed))
        p_value = class_p_value(nearest, synthetic.labels, dict.fromkeys(nearest, tiles), within, draws)
    return {
        "overfitting": overfitting,
        "overfitting_per_class": per_class,
        "membership": membership,
        "class_p_value": p_value,
    }


def _attack_tiles(
    attack: str, space: str, views: np.ndarray, known: _Attackable, by_class: bool
) -> tuple[MembershipAttack, np.ndarray]:
    """One of `ATTACKS` in one space, by images in all symmetries, embedded, 8×G×D; and the scores of units by it."""
    attacked, seed = known.attacked, known.seed
    held, classes = attacked.is_held_out, attacked.classes
    tiles, reference = (known.index.points_at(space, rows) for rows in (attacked.rows, attacked.reference))
    rng = _draw_of_images(seed)
    scores = [
        unit_means(_tile_scores(attack, of, tiles, reference, rng), attacked.units)
        for of in (views, known.controls[space])
    ]
    confidence = 1 - FAILS_BY_CHANCE / (len(known.index.spaces) * len(ATTACKS))
    main, control = (measure_attack(s[~held], s[held], confidence, seed) for s in scores)
    per_class = {}
    if by_class:
        for label in np.unique(classes[~held]):
            members, non_members = (scores[0][(classes == label) & part] for part in (~held, held))
            if min(len(members), len(non_members)) >= 2:
                per_class[int(label)] = measure_attack(members, non_members, seed=seed).auc
    told, told_of_control = (found.true_positives[FALSE_POSITIVE_RATES[0]] for found in (main, control))
    gained = None if told is None or told_of_control is None else advantage(told.value, told_of_control.value)
    return MembershipAttack(main, control, gained, per_class=per_class), scores[0]


def _draw_of_images(seed: int) -> np.random.Generator:
    """The stream by which views of images are drawn whose density is measured."""
    return stream("images whose density is measured", seed)


def _tile_scores(
    attack: str, views: np.ndarray, tiles: np.ndarray, reference: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Scores of tiles N×D by one of `ATTACKS`, from images in all symmetries V×G×D: float64 N."""
    if attack == "distance":
        return distance_scores(views, tiles)
    images = views.reshape(-1, views.shape[2])
    drawn = np.sort(rng.permutation(len(images))[:_MOST_FOR_DENSITY])
    return density_ratio_scores(images[drawn], reference, tiles)


def _tell_groups(
    synthetic: LabelledImages,
    views: dict[str, np.ndarray],
    nearest: dict[str, np.ndarray],
    copied_units: int,
    known: _Attackable,
    by_group: GroupAudit,
    by_class: bool,
) -> dict[str, Any]:
    """Overfitting, membership and the joint test where units are groups."""
    attacked, seed = known.attacked, known.seed
    looks, as_they_are = by_group.looks_of(synthetic, views)
    nearest = {**nearest, LOOKS: by_group.nearest_by_look(looks)}
    confidence = 1 - FAILS_BY_CHANCE / len(nearest)
    overfitting, per_class, all_scores = {}, {}, []
    all_within: list[tuple[np.ndarray, np.ndarray]] = []
    membership: dict[str, dict[str, MembershipAttack]] = {}
    for name, units in nearest.items():
        overfitting[name] = by_group.overfitting(name, units, confidence)
        if by_class:
            per_class[name] = {
                int(label): by_group.overfitting(name, units[synthetic.labels == label], 1 - FAILS_BY_CHANCE)
                for label in np.unique(synthetic.labels)
            }
    for name in (*views, LOOKS):
        by_look = name == LOOKS
        if by_look:
            of = looks[None], by_group.control_looks[None], by_group.looks, by_group.reference_looks
        else:
            points, reference = (known.index.points_at(name, rows) for rows in (attacked.rows, attacked.reference))
            of = views[name], known.controls[name], points, reference
        membership[name] = {}
        scores: dict[str, tuple[np.ndarray, dict[int, tuple[np.ndarray, np.ndarray]]]] = {}
        controls: dict[str, np.ndarray] = {}
        for attack in ATTACKS:
            rng = _draw_of_images(seed)
            main, control = (_tile_scores(attack, images, of[2], of[3], rng) for images in of[:2])
            within = by_group.within_classes(main) if by_class else {}
            all_within += within.values()
            for kind, values in by_group.unit_scores(main).items():
                scores[attack + kind] = values, {} if kind else within
            controls |= {attack + kind: values for kind, values in by_group.unit_scores(control).items()}
        if by_look:
            scores |= {attack: (values, {}) for attack, values in by_group.look_scores(looks).items()}
            controls |= by_group.look_scores(by_group.control_looks)
        for attack, (values, within) in scores.items():
            membership[name][attack] = by_group.attack(values, controls[attack], within)
            all_scores.append(values)
    return {
        "overfitting": overfitting,
        "overfitting_per_class": per_class,
        "membership": membership,
        "tests": by_group.test(all_scores, nearest, synthetic, (looks, as_they_are), copied_units),
        "class_p_value": by_group.class_p_value(nearest, synthetic.labels, all_within) if by_class else None,
    }


def _count_copies(synthetic: LabelledImages, known: _Attackable, scores: CopyScores) -> tuple[Copies, int]:
    """Counts the copies of training tiles and of others, and the units that training tiles were copied of."""
    limits, real = known.limits, known.real
    is_copy, nearest = limits.is_copy(scores), limits.nearest(scores)
    of_training = is_copy & (nearest < len(real.train))
    of_others = is_copy & (nearest >= len(real.train))
    count, kinds, p_value = len(synthetic), real.kinds, 1.0
    # What is there several times is as likely to be like an innocent image as what is there once.
    num_all, num_training = len(np.unique(kinds)), real.num_different
    num_others = num_all - num_training
    tiles = [len(np.unique(kinds[nearest[rows]])) for rows in (of_training, of_others)]
    if sum(tiles):
        p_value = float(binomtest(tiles[0], sum(tiles), num_training / num_all, alternative="greater").pvalue)
    copies = Copies(
        num_images=count,
        of_training=int(of_training.sum()),
        of_others=int(of_others.sum()),
        num_training=num_training,
        num_others=num_others,
        share=binomial_interval(int(of_training.sum()), count),
        control=int(of_others.sum()) * num_training / max(1, num_others) / max(1, count),
        naive=limits.false_alarms,
        p_value=p_value,
        per_class={
            int(label): ClassCopies(int(rows.sum()), int(of_training[rows].sum()), int(of_others[rows].sum()))
            for label in np.unique(synthetic.labels)
            for rows in [synthetic.labels == label]
        },
    )
    return copies, len(np.unique(known.attacked.units_of_training[nearest[of_training]]))
