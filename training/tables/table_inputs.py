"""What the rows of the results table select by and learn from, computed once: embeddings and soft labels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from histodistill.selection.image_rows import Images
from histodistill.training.data.kept_arrays import read_arrays, read_kept_arrays, write_arrays
from histodistill.training.distillation.pool_selection import SelectionInputs
from histodistill.training.models.devices import best_device
from histodistill.training.models.embedders import embed_pool, resolve_embedder
from histodistill.training.models.loading import load_classifier
from histodistill.training.models.prediction import predict_proba
from histodistill.training.tables.planned_cells import Line


def inputs_file(folder: Path, number: int = 0) -> Path:
    """The file in the table's folder that keeps them for one of its distillations, which are numbered from 0."""
    return folder / ("inputs.npz" if number == 0 else f"inputs-{number}.npz")


def needed_inputs(lines: Iterable[Line]) -> set[str]:
    """Names of the arrays that the lines of a table need.

    All need `embeddings` and `probabilities` of the pool; `real_embeddings` come where a row goes by the real tiles,
    and `real_probabilities` where a row of tiles that are not selected has soft labels. Guided images bring their own.
    """
    needed = {"embeddings", "probabilities"}
    for cell in (line.first for line in lines):
        options = cell.row.options
        if options is not None and options.typical_share is not None:
            needed.add("real_embeddings")
        if options is None and cell.row.guided is None and cell.config.soft_label_weight > 0:
            needed.add("real_probabilities")
    return needed


def write_inputs(
    file: Path, needed: set[str], embedder: str | Path, teacher: Path, pool: Images, real: Images
) -> None:
    """Computes those of the needed arrays that a file does not hold yet.

    Args:
        file: See `inputs_file`.
        needed: Names of arrays: see `needed_inputs`.
        embedder: As for `histodistill select`.
        teacher: Folder of the teacher.
        pool: uint8 N×S×S×3, the images of the pool.
        real: uint8 M×S×S×3, the real training tiles.
    """
    arrays = read_kept_arrays(file)
    if needed <= set(arrays):
        return
    embed_with = resolve_embedder(embedder, teacher)
    classifier = load_classifier(teacher).to(best_device())
    missing = needed - set(arrays)
    if missing & {"embeddings", "real_embeddings"}:
        own, other = embed_pool(embed_with, pool, real if "real_embeddings" in needed else None)
        arrays |= {"embeddings": own} if other is None else {"embeddings": own, "real_embeddings": other}
    for name, images in (("probabilities", pool), ("real_probabilities", real)):
        if name in missing:
            arrays[name] = predict_proba(classifier, images)
    write_arrays(file, **arrays)


def read_inputs(file: Path, labels: np.ndarray, real_labels: np.ndarray) -> tuple[SelectionInputs, np.ndarray | None]:
    """What `write_inputs` kept.

    Args:
        file: See `inputs_file`.
        labels: int64 N, of the pool.
        real_labels: int64 M, of the real training tiles.

    Returns:
        What selections go by, and float32 M×C, what the teacher says of the real training tiles; None where no row
        needed it.
    """
    kept = read_arrays(file)
    inputs = SelectionInputs(
        kept["embeddings"], labels, kept["probabilities"], kept.get("real_embeddings"), real_labels
    )
    return inputs, kept.get("real_probabilities")
