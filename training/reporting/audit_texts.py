"""What `audit.json` of a run says, numbers as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from histodistill.hub_cards.audit_record import AttackFigures, AuditRecord, IntervalFigure, VerdictRecord
from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.part_files import hash_part


def audit_texts(run: Path, audit: AuditRecord | None) -> dict[str, Any] | None:
    """The verdicts on the parts of a run, and the attacks behind them.

    Args:
        run: Folder of the run.
        audit: Its audit, None where there is none or one of another version of histodistill.

    Returns:
        `verdicts`, pairs of a part and its `audit_outcome`; `passed`, whether all did; `findings`, those of the part
        that has most; `attacks`, each with `name`, `main`, `control` and `rates` as text; and `held_out_at_random`.
        None without an audit.
    """
    if audit is None:
        return None
    figures, verdicts = audit.figures, audit.parts
    attacks = [
        _attack(f"{name.replace('_', ' ')}, {space}", attack.main, attack.control)
        for space, by_name in figures.published.membership.items()
        for name, attack in by_name.items()
    ]
    if figures.weights:
        attacks.append(_attack("with the weights of the model", figures.weights, control=None))
    outcomes = {part: audit_outcome(run / part, verdict) for part, verdict in verdicts.items()}
    return {
        "verdicts": list(outcomes.items()),
        "passed": set(outcomes.values()) == {"passed"},
        "findings": max((verdict.findings for verdict in verdicts.values()), key=len),
        "attacks": attacks,
        "held_out_at_random": audit.held_out_at_random,
    }


def audit_outcome(folder: Path, verdict: VerdictRecord) -> str:
    """What a verdict of `audit.json` is worth: "passed", "failed", or "outdated" for files that it is not about.

    Args:
        folder: The audited part of a run, which may be gone by now.
        verdict: Of that part: whether it passed, and the SHA-256 of its files.
    """
    try:
        is_same = hash_part(folder) == verdict.files
    except ContentError:  # a file that the part may not hold, or none at all
        is_same = False
    return "outdated" if not is_same else "passed" if verdict.passed else "failed"


def _attack(name: str, main: AttackFigures, control: AttackFigures | None) -> dict[str, Any]:
    """A row of the table of attacks; a dash where no control tells what chance alone gives."""
    return {
        "name": name,
        "main": _interval(main.auc),
        "control": _interval(control.auc) if control else "–",
        "rates": [_interval(main.true_positives["0.01"]), _interval(main.true_positives["0.001"])],
    }


def _interval(interval: IntervalFigure | None) -> str:
    """A figure with its confidence interval."""
    if interval is None:
        return "too few tiles"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
