"""The verdict: the points that must hold, each in a sentence, made of the figures alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from histodistill.selection.audit_figures import AuditResult, Copies, Units, UnitTests
from histodistill.selection.group_audit import (
    DOMINANCE_FAILS_BY_CHANCE,
    POOL_FAILS_BY_CHANCE,
    SINGLE_TEST_LEVEL,
    UNITS_FAIL_BY_CHANCE,
    WEIGHTS_FAIL_BY_CHANCE,
)
from histodistill.selection.membership import FALSE_POSITIVE_RATES, Attack, Interval, binomial_interval
from histodistill.selection.permutation import detectable_auc
from histodistill.selection.planting import MUST_FIND
from histodistill.selection.summaries import counted


#: Share of independent real tiles that may be taken for copies.
MAX_FALSE_ALARMS = 0.01
#: Copies of each kind that must be planted: fewer could not tell that the audit finds what it must.
FEWEST_PLANTED = 20
#: An attack whose AUC is at most this far from 0.5 is as good as guessing.
AUC_TOLERANCE = 0.02
#: An attack that surely tells more than this share of the training tiles, at 1 % false positives, tells some.
MAX_TRUE_POSITIVES = 0.03
#: Probability that a verdict of a kind fails by chance alone, over all spaces and attacks of that kind; of an audit
#: without groups.
FAILS_BY_CHANCE = 0.05
#: What of it is for single classes, in audits with groups as well, beyond what is for all images.
CLASSES_FAIL_BY_CHANCE = 0.01
#: A disguise of which a smaller share is found is told as one that was not looked for.
LEAST_SEEN = 0.9
#: A class with tiles of fewer groups than this may point to them.
FEWEST_GROUPS = 5
#: What every verdict says where the tiles have no groups.
SINGLE_TILES_ONLY = "single tiles only: nothing is known about patients"


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
        warnings: what else one should know, in a sentence each; nothing fails by it.
    """

    passed: bool
    findings: tuple[Finding, ...]
    figures: AuditResult
    warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        failed = "".join(f", {finding.name}" for finding in self.findings if not finding.passed)
        return f"Verdict(passed={self.passed}{failed and f', failed: {failed[2:]}'})"

    def __str__(self) -> str:
        lines = ["passed" if self.passed else "NOT PASSED: the images should not be published"]
        lines += [f"{'✓' if f.passed else '✗'} {f.sentence}" for f in self.findings]
        return "\n".join(lines + [f"! {warning}" for warning in self.warnings])


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
    tests = result.pool.tests
    if tests is not None and result.units is not None and tests.membership < POOL_FAILS_BY_CHANCE:
        passed = False
        sentence += (
            f"; one who has them all tells which {_plural(result.units)} were trained on ({_p(tests.membership)})"
        )
    return [*judge_set(result), Finding("pool", passed, sentence), _judge_weights(result)]


def few_groups(units: Units | None, class_names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Warnings that a class rests on so few groups that it may point to persons.

    Args:
        units: Of an audit by group.
        class_names: The name of each class; by default its number.
    """
    if units is None:
        return ()
    return tuple(
        f"class {class_names[label] if class_names else label} rests on {_counted(count, units.kind)}: "
        "it may point to persons"
        for label, count in units.per_class.items()
        if count < FEWEST_GROUPS
    )


def _judge_weights(result: AuditResult) -> Finding:
    if result.weights is None:
        return Finding("weights", False, "the attack of one who holds the weights was not made")
    enough = result.num_weight_tiles >= result.least_weight_tiles
    few = f"; {result.num_weight_tiles} tiles say little: it must be at least {result.least_weight_tiles}"
    who = "one who holds the weights"
    if result.weights_test is None or result.units is None:
        sentence, passed = _told(who, result.weights), _is_guessing(result.weights)
    else:
        test = result.weights_test
        told = test.p_value < WEIGHTS_FAIL_BY_CHANCE
        sentence = _told_of_units(who, result.weights, test.p_value, told, result.units)
        power = _power(result.units, test.num_training, test.num_held_out, test.detectable_auc)
        sentence, passed = f"{sentence}; {power}", not told and test.detectable_auc is not None
    return Finding("weights", enough and passed, sentence if enough else sentence + few)


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
    findings.append(_tell_disguises(result))
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


def _tell_disguises(result: AuditResult) -> Finding:
    """How far the search for copies sees. It decides nothing: what no search sees, nobody can look for."""
    if not result.num_disguised:
        return Finding("disguises", True, "no further disguises of training tiles were tried")
    shares = {name: found.value for name, found in result.disguised.items()}
    hidden = sorted((share, name) for name, share in shares.items() if share < LEAST_SEEN)
    sentence = (
        f"of training tiles in {len(shares)} further disguises, {result.num_disguised} in each, "
        f"{100 * sum(shares.values()) / len(shares):.0f}% are found: this is a screen for copies, not a proof"
    )
    if hidden:
        sentence += f"; not looked for, as fewer than {100 * LEAST_SEEN:.0f}% are found: "
        sentence += ", ".join(f"{name} ({100 * share:.0f}%)" for share, name in hidden)
    return Finding("disguises", True, sentence)


def _judge_images(result: AuditResult) -> list[Finding]:
    """Whether the images give nothing away."""
    findings = [_judge_copies(result)]
    if result.units is not None and result.published.tests is not None:
        findings += _judge_units(result, result.published.tests, result.units)
    else:
        findings += _judge_tiles(result)
    # Single classes come before what is judged of groups alone.
    findings.insert(3, _judge_classes(result))
    return findings


def _judge_copies(result: AuditResult) -> Finding:
    """No image may be a copy, and what a model copies may not be so much that a screen must have missed some."""
    published, units, tests = result.published, result.units, result.published.tests
    num_copies = published.copies.of_training + published.copies.of_others
    sentence = f"{num_copies} of {published.copies.num_images:,} images are copies of real tiles"
    if num_copies:
        if units is not None and tests is not None:
            sentence += f", of {_counted(tests.copied_units, units.kind)} in training"
        return Finding("copies", False, sentence)
    worst = _most_copied(result.pool.copies)
    if worst is not None:
        sentence += (
            f"; but of the generated images{worst[2]} {worst[0]:,} of {worst[1]:,} are copies of training tiles, more "
            "than chance allows, and where so many were left out others must have been missed"
        )
    return Finding("copies", worst is None, sentence)


def _most_copied(copies: Copies) -> tuple[int, int, str] | None:
    """Where a model copies training tiles more than chance allows: copies, images, and of what; in all, or in a class.

    There must be more than false alarms make, and more of training tiles than of others, in each class or in all.
    """
    looks = [(copies.num_images, copies.of_training, copies.of_others, "")]
    looks += [(c.num_images, c.of_training, c.of_others, " of a class") for c in copies.per_class.values()]
    odds = copies.num_training / (copies.num_training + copies.num_others)
    worst, found = FAILS_BY_CHANCE / len(looks), None
    for images, of_training, of_others, of in looks:
        if of_training:
            p_value = max(
                binomtest(of_training, images, MAX_FALSE_ALARMS, alternative="greater").pvalue,
                binomtest(of_training, of_training + of_others, odds, alternative="greater").pvalue,
            )
            if p_value < worst:
                worst, found = p_value, (of_training, images, of)
    return found


def _judge_classes(result: AuditResult) -> Finding:
    """Whether a single class gives away what all images together hide."""
    p_value = result.published.class_p_value
    count = len(result.published.copies.per_class)
    if p_value is None:
        return Finding("classes", False, "single classes were not looked at")
    passed = p_value >= CLASSES_FAIL_BY_CHANCE
    how = "gives away no more" if passed else "gives away more"
    sentence = (
        f"the worst of {counted(count, 'class', 'classes')}, judged alone, {how} than chance allows ({_p(p_value)})"
    )
    return Finding("classes", passed, sentence)


def _judge_tiles(result: AuditResult) -> list[Finding]:
    """Overfitting and membership, by tile."""
    published = result.published
    worst = max(published.overfitting.items(), key=lambda item: item[1].share.low)
    passed = worst[1].share.low <= 0.5
    how = "consistent with the 0.5 of chance" if passed else "more than the 0.5 of chance"
    overfitting = (
        f"a share of {_text(worst[1].share)} of the images is nearer to a training tile than to any of as many "
        f"held-out ones ({worst[0]}), {how}"
    )
    attacks = [
        (f"{name.replace('_', ' ')}, {space}", attack.main)
        for space, by_name in published.membership.items()
        for name, attack in by_name.items()
    ]
    bad = [item for item in attacks if not _is_guessing(item[1])]
    name, attack = max(bad or attacks, key=lambda item: abs(item[1].auc.value - 0.5))
    sentence = _told("one who has the images alone", attack) + f" ({name}; the best of {len(attacks)} attacks)"
    sentence += f"{_drawn(result, bool(bad))}; attributes were not measured; {SINGLE_TILES_ONLY}"
    return [Finding("overfitting", passed, overfitting), Finding("membership", not bad, sentence)]


def _judge_units(result: AuditResult, tests: UnitTests, units: Units) -> list[Finding]:
    """Overfitting, membership and dominance, by group."""
    published = result.published
    space, worst = min(published.overfitting.items(), key=lambda item: (item[1].p_value, -item[1].share.value))
    nearer = tests.overfitting < UNITS_FAIL_BY_CHANCE
    how = "more than the 0.5 of chance" if nearer else "consistent with the 0.5 of chance"
    overfitting = (
        f"a share of {_text(worst.share)} of the images is nearer to {_plural(units)} in training than to held-out "
        f"ones ({space}), {how} ({_p(tests.overfitting)})"
    )
    attacks = [
        (f"{name.replace('_', ' ')}, {space}", attack)
        for space, by_name in published.membership.items()
        for name, attack in by_name.items()
    ]
    name, best = min(attacks, key=lambda item: (item[1].p_value or 0.0, -item[1].main.auc.value))
    told = tests.membership < UNITS_FAIL_BY_CHANCE
    sentence = _told_of_units("one who has the images alone", best.main, tests.membership, told, units)
    sentence += f" ({name}; the best of {len(attacks)} attacks){_drawn(result, told)}"
    power = _power(units, units.num_training, units.num_held_out, tests.detectable_auc)
    most = tests.dominance
    dominates = most.p_value < DOMINANCE_FAILS_BY_CHANCE
    dominance = (
        f"{100 * most.share:.1f}% of the images are nearest to a single {units.kind} in training, where independent "
        f"real tiles give {100 * most.usual:.1f}%, {'more than' if dominates else 'consistent with'} chance "
        f"({_p(most.p_value)})"
    )
    return [
        Finding("overfitting", not nearer, overfitting),
        Finding("membership", not told and tests.detectable_auc is not None, f"{sentence}; {power}"),
        Finding("dominance", not dominates, dominance),
        _judge_attributes(tests, units),
    ]


def _judge_attributes(tests: UnitTests, units: Units) -> Finding:
    """Whether the images tell more of units that were trained on than that they were."""
    if not tests.attributes:
        return Finding("attributes", True, "attributes: not measured, since none is known that is not the label")
    told = tests.disclosure < UNITS_FAIL_BY_CHANCE
    name, worst = min(tests.attributes.items(), key=lambda item: (item[1].p_value, -item[1].auc.value))
    how = "is told better of" if told else "is told no better of"
    than = "than of unseen ones by the images" + (", more than" if told else ", consistent with")
    sentence = (
        f"{name}, one of {worst.num_values} values, {how} {_plural(units)} in training {than} chance: an AUC of "
        f"{_text(worst.auc)} ({_p(tests.disclosure)}; {_counted(len(tests.attributes), 'attribute')} measured)"
    )
    return Finding("attributes", not told, sentence)


def _told_of_units(who: str, attack: Attack, p_value: float, told: bool, units: Units) -> str:
    """How well an attacker tells units, as a sentence that says whether it is more than guessing."""
    if told:
        return f"{who} tells {_plural(units)} in training with an AUC of {_text(attack.auc)} ({_p(p_value)})"
    return (
        f"{who} can only guess at {_plural(units)} in training: an AUC of {_text(attack.auc)}, consistent with chance "
        f"({_p(p_value)})"
    )


def _power(units: Units, num_training: int, num_held_out: int, auc: float | None) -> str:
    """By what unit was tested, and which leak would have been seen."""
    numbers = f"by {units.kind}: {num_training} in training, {num_held_out} held out"
    if auc is not None:
        return f"{numbers}; a leak with an AUC above {auc:.2f} would have been seen"
    least = fewest_held_out(num_training + num_held_out)
    remedy = "more are needed" if least is None else f"at least {least} must be held out"
    return f"{numbers}, too few to see any leak: {remedy}"


def fewest_held_out(total: int) -> int | None:
    """How many of so many units must be held out so that a leak could be seen; None where no number would do."""
    for held_out in range(2, total // 2 + 1):
        if detectable_auc(total - held_out, held_out, SINGLE_TEST_LEVEL) is not None:
            return held_out
    return None


def _drawn(result: AuditResult, bad: bool) -> str:
    """What makes less of an attack that tells something, where chance did not decide who was held out."""
    if result.is_random or not bad:
        return ""
    return "; no tiles were held out at random, so this may be how training and validation tiles differ"


def _plural(units: Units) -> str:
    return f"{units.kind}s"


def _counted(count: int, kind: str) -> str:
    return f"{count} {kind}{'' if count == 1 else 's'}"


def _p(p_value: float) -> str:
    return f"p = {p_value:.2g}" if p_value >= 0.001 else "p < 0.001"


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
