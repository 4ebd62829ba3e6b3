"""What `histodistill distill` ends with: a run's scores as lines of plain text, its files, and what stays private."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from histodistill.training.evaluation.audit import AUDIT
from histodistill.training.evaluation.verdicts import read_run_audit
from histodistill.training.reporting.run_files import REPORT, read_results, read_run_record
from histodistill.training.reporting.scores import recoveries, score_tables


def summary_lines(run: str | Path) -> list[str]:
    """What a run ends with, as lines of plain text: ACC, AUC and F1 by row and architecture, recovery, where to look.

    Args:
        run: Folder of a run; without `results.json` the lines say how to make the scores.

    Raises:
        InputError: If results.json cannot be read or is of a later format.
    """
    run = Path(run)
    results = read_results(run)
    lines = []
    if results and results["rows"]:
        width = max(len(row["title"]) for row in results["rows"]) + 2
        for table in score_tables(results):
            lines.append(f"{table['architecture']:<{width + 2}}{'images':>8}{'ACC':>16}{'AUC':>16}{'F1':>16}")
            for row in table["rows"]:
                scores = "".join(f"{score!s:>16}" for score in row["scores"])
                lines.append(f"  {row['title']:<{width}}{row['num_train']:>8,}{scores}")
            lines.append("")
        lines += results.get("notes", [])
        lines += tile_lines(run, results)
        lines += [item["sentence"] for item in recoveries(results)]
    else:
        lines.append("No scores yet: histodistill compare makes them.")
    lines.append(f"Distilled set: {run / 'distilled'}")
    if (run / REPORT).is_file():
        lines.append(f"Report:        {run / REPORT}")
    return lines + refusal_lines(run)


def tile_lines(run: Path, results: dict[str, Any]) -> list[str]:
    """Why classifiers on all real tiles saw more of them than the models did; no line where they did not.

    Args:
        run: Folder of a run.
        results: What `read_results` returned.
    """
    record = read_run_record(run)
    counts = record.get("num_tiles") if record else None
    train, held_out = (counts or {}).get("train", 0), (counts or {}).get("held_out", 0)
    if not held_out or not any(row["num_train"] == train + held_out for row in results["rows"]):
        return []
    return [
        f"All {train + held_out:,} real training tiles are the {train:,} that the models learned from and the "
        f"{held_out:,} that were held out for the privacy audit."
    ]


def refusal_lines(run: Path) -> list[str]:
    """What of a run may not be published, why, and where to look; no line where all that was audited passes.

    Args:
        run: Folder of a run.

    Raises:
        InputError: If audit.json cannot be read, or contradicts itself.
    """
    audit = read_run_audit(run / AUDIT)
    if audit is None:
        return []
    parts_of: dict[str, list[str]] = {}
    for part, verdict in audit.parts.items():
        if not verdict.passed:
            reasons = "; ".join(finding.sentence for finding in verdict.findings if not finding.passed)
            parts_of.setdefault(reasons, []).append(str(run / part))
    lines = [
        f"Must not be published: {', '.join(parts)}, which did not pass the privacy audit ({reasons})"
        for reasons, parts in parts_of.items()
    ]
    if lines:
        shown = [str(run / name) for name in (REPORT, AUDIT) if (run / name).is_file()]
        lines.append(f"What was found:        {', '.join(shown)}")
    return lines
