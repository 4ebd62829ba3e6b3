"""What the page of `histodistill review` saves, for tests of what goes by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from histodistill.hub_cards.site_verdict import image_hash
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.running.files import write_json
from histodistill.training.running.stages import content_of


def review_document(
    distilled: Path, rows: Sequence[int], reviewer: str = "", notes: Mapping[int, str] | None = None
) -> dict[str, Any]:
    """What is saved where these rows of a set are left out."""
    images, columns, _ = read_image_dataset(distilled)
    seeds = columns["seed"].tolist()
    return {
        "format": 1,
        "kind": "review",
        "reviewer": reviewer,
        "set": content_of(distilled),
        "seeds": seeds,
        "left_out": [{"row": row, "seed": seeds[row], "image": image_hash(images[row])} for row in rows],
        "notes": [{"row": row, "note": note} for row, note in (notes or {}).items()],
    }


def write_review(path: Path, distilled: Path, rows: Sequence[int], reviewer: str = "", **more: Any) -> Path:
    """The same as a file."""
    write_json(path, review_document(distilled, rows, reviewer, **more))
    return path
