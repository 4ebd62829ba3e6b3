"""How long a distillation will still take: what its steps are estimated to cost, and what the finished ones took."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from histodistill.training.end_to_end.rough_cost import costs
from histodistill.training.end_to_end.steps import StageCall
from histodistill.training.running.stages import read_record


def seconds_left(
    folder: Path, plan: Sequence[StageCall], run: Mapping[str, Any], finished: Collection[str]
) -> float | None:
    """How long the steps that are not finished will take, by what the finished ones took beside what they cost.

    Args:
        folder: Of the run.
        plan: All steps.
        run: What run.json holds: its `estimate`, where it has one, says what each step costs.
        finished: The folders of the steps that are finished.

    Returns:
        Seconds; None where no step is finished and nothing was measured.
    """
    measured = run.get("estimate")
    if not finished and measured is None:
        return None
    cost = costs(plan, run) if measured is None else measured["seconds"]
    records = {stage.folder: read_record(folder / stage.folder) for stage in plan}
    spent = {name: float(record["seconds"]) if record else 0.0 for name, record in records.items()}
    speed = 1.0
    if finished:
        speed = sum(spent[name] for name in finished) / sum(cost[name] for name in finished)
    # A step that was killed has a part of its work behind it.
    return sum(max(0.0, speed * cost[name] - spent[name]) for name in cost.keys() - set(finished))
