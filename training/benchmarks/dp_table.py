"""The tables of the study of differential privacy, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from histodistill.hub_cards.rendering import format_score
from histodistill.training.tables.results_summary import SPLITS


def study_text(
    real: dict[str, Any],
    public: dict[str, Any] | None,
    arms: Sequence[dict[str, Any]],
    sizes: Sequence[int],
    named: Mapping[str, str],
) -> str:
    """What each denoiser is worth on validation and on test tiles, and then what it cost and what it gives away.

    Args:
        real: Scores of real tiles, see `dp_arms.score_real`.
        public: Of what the public denoiser makes, see `dp_arms.score_public`; None for no such row.
        arms: See `dp_arms.make_arm`.
        sizes: Images of each class in the sets.
        named: What each arm is called.
    """
    rows = [
        f"| {named[arm['arm']]} | {'∞' if arm['epsilon'] is None else format(arm['epsilon'], 'g')}" for arm in arms
    ]
    made = [(row, arm["scores"]) for row, arm in zip(rows, arms, strict=True)]
    if public is not None:
        made.insert(0, ("| public tiles alone | 0", public))
    blocks = [_score_table(split, real, made, sizes) for split in SPLITS]
    return "\n".join([*blocks, _cost_table(arms, rows)])


def _score_table(
    split: str, real: dict[str, Any], made: Sequence[tuple[str, dict[str, Any]]], sizes: Sequence[int]
) -> str:
    """Accuracies of a ConvNet on one split; of what was `made`, how its row begins, and its scores."""
    lines = [
        f"| ACC on {split} tiles, trained on | ε | pool | {' | '.join(f'{size} of each class' for size in sizes)} |",
        "|" + "---|" * (3 + len(sizes)),
        f"| real tiles | | {_cells(split, real, ['real', *(f'real-{size}' for size in sizes)])} |",
    ]
    rows = ["pool", *(f"set-{size}" for size in sizes)]
    lines += [f"{row} | {_cells(split, scores, rows)} |" for row, scores in made]
    return "\n".join(lines) + "\n"


def _cells(split: str, scores: dict[str, Any], rows: Sequence[str]) -> str:
    return " | ".join(format_score(scores[row][split]["accuracy"]) for row in rows)


def _cost_table(arms: Sequence[dict[str, Any]], begun: Sequence[str]) -> str:
    """Noise, time and loss of each denoiser, and how well one who holds it tells who was trained on."""
    lines = [
        "| denoiser | ε | δ | unit | σ | seconds | validation loss | AUC of one who holds the weights | p |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row, arm in zip(begun, arms, strict=True):
        privacy, attack = arm["privacy"], arm["attack"]
        spent = ("", "", "")
        if privacy is not None:
            spent = (f"{privacy['delta']:.2g}", privacy["unit"], f"{privacy['noise_multiplier']:.3g}")
        auc, p_value = attack["auc"], attack["p_value"]
        attacked = f"{auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}], by {attack['unit']}"
        lines.append(
            f"{row} | {' | '.join(spent)} | {arm['seconds']:.0f} | "
            f"{arm['validation_loss']:.3f} | {attacked} | {'' if p_value is None else f'{p_value:.2g}'} |"
        )
    return "\n".join(lines) + "\n"
