"""Sums up the study of leaks, and shows it as text and as a figure."""

from __future__ import annotations

from collections import Counter
from typing import Any

from matplotlib.figure import Figure

from histodistill.selection.group_audit import GROUP_FAILS_BY_CHANCE
from histodistill.selection.membership import binomial_interval
from histodistill.training.benchmarks.leak_trials import POINTS
from histodistill.training.data.images import figure_png


# What the leaks are called.
_TITLES = {"looks": "looks of training patients", "neighbours": "places next to training tiles"}
# Colours of the leaks, and dashes of the audits.
_COLOURS = {"looks": "#8e3b73", "neighbours": "#1f77b4"}
_AUDITS = {"by_patient": ("audit by patient", "-", "o"), "by_tile": ("audit by tile", ":", "s")}
# What a leak should be found with.
_WANTED = 0.95


def summarise_leaks(records: list[dict[str, Any]], models: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums up trials and models.

    Args:
        records: As `leak_trials.run_trial` returns them.
        models: As `leak_models.attack_model` returns them, with `model` and `number`.

    Returns:
        `calibration`, a record for each share of near copies: how many honest trials fail, by which point, and by
        which attack or share on its own at the nominal rate of an audit. `detection`, a record for each leak and
        share, none among them: how many trials each audit fails. And `models`, as they are.
    """
    honest = [record for record in records if record["leak"] == "none"]
    calibration = []
    for duplicated in dict.fromkeys(record["duplicated"] for record in honest):
        mine = [record["by_patient"] for record in honest if record["duplicated"] == duplicated]
        alone: Counter[str] = Counter()
        for audit in mine:
            p_values = {**audit["p_values"]}
            p_values |= {f"nearest, {space}": found["p_value"] for space, found in audit["overfitting"].items()}
            p_values |= {f"attribute, {name}": told["p_value"] for name, told in audit["tests"]["attributes"].items()}
            p_values["dominance"] = audit["tests"]["dominance"]["p_value"]
            alone.update({name: int(p_value <= GROUP_FAILS_BY_CHANCE) for name, p_value in p_values.items()})
        calibration.append(
            {
                "duplicated": duplicated,
                "trials": len(mine),
                "failed": sum(not audit["passed"] for audit in mine),
                "points": dict(Counter(point for audit in mine for point in audit["failed"])),
                "alone": dict(alone),
            }
        )
    plain = [record for record in records if not record["duplicated"]]
    detection = []
    for leak, share in dict.fromkeys((record["leak"], record["share"]) for record in plain):
        mine = [record for record in plain if (record["leak"], record["share"]) == (leak, share)]
        found: dict[str, Any] = {"leak": leak, "share": share}
        for audit in _AUDITS:
            made = [record[audit] for record in mine if record[audit]]
            found[audit] = {"trials": len(made), "failed": sum(not record["passed"] for record in made)}
        detection.append(found)
    return {"calibration": calibration, "detection": detection, "models": models}


def leak_text(results: dict[str, Any]) -> str:
    """The study as Markdown: three tables.

    Args:
        results: As `summarise_leaks` returns them.
    """
    calibration = results["calibration"]
    heads = [f"{100 * column['duplicated']:.0f} % near copies" for column in calibration]
    lines = [f"| honest trials that fail | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    lines.append(f"| **the audit by patient** | {' | '.join(_count(c['failed'], c['trials']) for c in calibration)} |")
    for point in POINTS:
        counts = [_count(column["points"].get(point, 0), column["trials"]) for column in calibration]
        lines.append(f"| … by {point} | {' | '.join(counts)} |")
    for name in calibration[0]["alone"] if calibration else ():
        counts = [_count(column["alone"].get(name, 0), column["trials"]) for column in calibration]
        lines.append(f"| {name.replace('_', ' ')}, on its own | {' | '.join(counts)} |")
    lines += [
        "",
        "| planted | share of the images | audit by patient fails | audit by tile fails |",
        "|---|---|---|---|",
    ]
    for row in results["detection"]:
        counts = [_count(row[audit]["failed"], row[audit]["trials"]) for audit in _AUDITS]
        lines.append(f"| {_TITLES.get(row['leak'], 'nothing')} | {row['share']:g} | {' | '.join(counts)} |")
    if results["models"]:
        lines += ["", "| model | pair | AUC of one who holds the weights | p | verdict |", "|---|---|---|---|---|"]
    for row in results["models"]:
        verdict = "passed" if row["passed"] else "not passed"
        lines.append(f"| {row['model']} | {row['number'] + 1} | {row['auc']:.3f} | {row['p_value']:.4f} | {verdict} |")
    return "\n".join(lines) + "\n"


def draw_leaks(detection: list[dict[str, Any]]) -> bytes:
    """Share of trials that fail against the share of the images that leak, by leak and audit, as a PNG.

    Args:
        detection: See `summarise_leaks`.
    """
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    panel = figure.subplots()
    honest = [row for row in detection if row["leak"] == "none"]
    for leak in dict.fromkeys(row["leak"] for row in detection if row["leak"] != "none"):
        rows = sorted([*honest, *(row for row in detection if row["leak"] == leak)], key=lambda row: row["share"])
        for audit, (title, dashes, marker) in _AUDITS.items():
            made = [row for row in rows if row[audit]["trials"]]
            rates = [binomial_interval(row[audit]["failed"], row[audit]["trials"]) for row in made]
            values = [rate.value for rate in rates]
            errors = [[r.value - r.low for r in rates], [r.high - r.value for r in rates]]
            panel.errorbar(
                [row["share"] for row in made], values, errors, color=_COLOURS[leak], linestyle=dashes, marker=marker,
                markersize=5, linewidth=1.5, elinewidth=0.8, capsize=2, label=f"{_TITLES[leak]}, {title}",
            )  # fmt: skip
    panel.axhline(_WANTED, color="#b9bfc7", linewidth=0.8, zorder=0)
    panel.axhline(GROUP_FAILS_BY_CHANCE, color="#b9bfc7", linewidth=0.8, zorder=0)
    panel.set_xlabel("share of the images that leak")
    panel.set_ylabel("share of trials that fail")
    panel.set_ylim(-0.03, 1.03)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=2)
    return figure_png(figure)


def _count(failed: int, trials: int) -> str:
    """Such as `2 of 100`."""
    return f"{failed} of {trials}" if trials else "–"
