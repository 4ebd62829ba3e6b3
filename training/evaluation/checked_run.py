"""A run whose files were read once and hold nothing but what they may, as the cards of its parts tell of it.

Every file is read once, into memory. Those bytes are compared with the audit, checked, and taken apart; what goes up,
pictures and cards as well, is made of what was found in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from histodistill.hub_cards import ContentError, RunFacts
from histodistill.hub_cards.contents import PipelineContent, SelectorContent, SetContent, about
from histodistill.hub_cards.documents import check_document
from histodistill.hub_cards.pictures import encode_png
from histodistill.hub_cards.review_facts import ReviewFacts
from histodistill.hub_cards.set_record import Generation
from histodistill.training.data.images import make_grid
from histodistill.training.distillation.community_discs import community_discs
from histodistill.training.evaluation.run_contents import RunContents, RunFiles
from histodistill.training.evaluation.run_facts import RunRecords, read_run_facts
from histodistill.training.evaluation.run_records import StageRecord, by_class, check_setting
from histodistill.training.generate import CALL_OPTIONS
from histodistill.training.models.embedders import OF_AUTOENCODER, OF_CLASSIFIER, OF_TEACHER, describe_embedder
from histodistill.training.models.encoder_licences import for_cards
from histodistill.training.models.encoder_names import is_encoder_label
from histodistill.training.running.stages import require_parts


# Images of a class in the picture of the distilled set, which fit side by side on a card.
GRID_COLUMNS = 10
# In pixels: to about this small images are enlarged in that picture.
_GRID_SIDE = 64
# Settings of `select` that say what an image of the pool had to pass.
_FILTERS = ("min_probability", "typical_share")


@dataclass(frozen=True, repr=False)
class CheckedRun:
    """A run whose files were read once, and hold nothing but what they may.

    Attributes:
        files: The files as they were read.
        pipeline, selector: What of these parts goes up; None for one that is not to be published.
        distilled: What of the distilled set goes up.
        records: What the stages say, as far as cards tell of it.
    """

    files: RunFiles
    pipeline: PipelineContent | None
    selector: SelectorContent
    distilled: SetContent
    records: RunRecords

    @classmethod
    def of(cls, files: RunFiles, contents: RunContents) -> CheckedRun:
        """A run whose files were checked already.

        Args:
            files: The files as they were read.
            contents: What of them goes up.

        Raises:
            ContentError: For a record that says something else than it can, and without one of the pool.
        """
        # The records of the two parts that have one are read with these, and the others beside them.
        stages = {
            f"{part}/stage.json": found["stage.json"] for part, found in files.parts.items() if "stage.json" in found
        }
        records = RunRecords.read(files.folder, files.records | stages)
        return cls(files, contents.pipeline, contents.selector, contents.distilled, records)

    def facts(
        self, repos: Mapping[str, str], name: str, license: str | None = None, attribution: str | None = None
    ) -> RunFacts:
        """What the cards of the run say alike; see `read_run_facts`."""
        images = self.distilled.table.images
        return read_run_facts(
            self.records, repos, name, self.class_names, images.shape[1], len(images), license, attribution
        )

    @property
    def class_names(self) -> list[str]:
        """Names of the labels."""
        return self.distilled.table.class_names

    @property
    def labels(self) -> np.ndarray:
        """int64 N, of the distilled set."""
        return self.distilled.table.columns["label"]

    @property
    def selection(self) -> StageRecord:
        """The record of the selection."""
        return self.records.stages["distilled"]

    @property
    def pool(self) -> StageRecord:
        """The record of the pool."""
        return self.records.stages["pool"]

    @cached_property
    def grid(self) -> bytes:
        """PNG file of the first images of each class."""
        return encode_png(np.asarray(distilled_grid(self.distilled.table.images, self.labels)))

    @cached_property
    def community_sizes(self) -> dict[str, list[int]]:
        """Images of each community of a class, the largest first; empty where none were looked for."""
        with about(self.files.folder, "distilled/stage.json"):
            sizes = by_class(self.selection.community_sizes, self.class_names)
            if sum(map(sum, sizes.values())) > (self.pool.num_images or 0):
                raise ContentError("holds communities of more images than the pool has")
            return {name: list(counts) for name, counts in sizes.items()}

    @cached_property
    def map(self) -> bytes | None:
        """PNG file of the pool's communities, drawn from their sizes; None where these are not known."""
        with about(self.files.folder, "distilled/stage.json"):
            chosen = by_class(self.selection.community_chosen, self.class_names)
            if not self.community_sizes or not chosen:
                return None
            try:
                return community_discs(self.community_sizes, chosen)
            except ValueError as error:
                raise ContentError(f"contradicts itself ({error})") from error

    @cached_property
    def generation(self) -> dict[str, Any]:
        """What the pipeline was called with to make the pool: option → value."""
        with about(self.files.folder, "pool/stage.json"):
            return {name: check_setting(self.pool, "pool", name) for name in CALL_OPTIONS}

    @cached_property
    def precision(self) -> str:
        """The precision in which it made the pool, one of `PRECISIONS`."""
        with about(self.files.folder, "pool/stage.json"):
            return check_setting(self.pool, "pool", "mixed_precision")

    @cached_property
    def made_with(self) -> Generation:
        """With what the images are made again from their seeds."""
        with about(self.files.folder, "pool/stage.json"):
            made = {"chunk_size": check_setting(self.pool, "pool", "chunk_size"), "mixed_precision": self.precision}
            return check_document(
                {**self.generation, **made, "pipeline": self.pool.inputs.get("pipeline")}, Generation
            )

    @cached_property
    def filters(self) -> dict[str, Any]:
        """What an image of the pool had to pass before the selector saw it."""
        with about(self.files.folder, "distilled/stage.json"):
            found = {name: check_setting(self.selection, "distilled", name) for name in _FILTERS}
            filters = {name: value for name, value in found.items() if value}
            if self.selection.copies_dropped is not None:
                dropped = sum(by_class(self.selection.copies_dropped, self.class_names).values())
                filters["copies of real tiles"] = f"{dropped} image{'' if dropped == 1 else 's'} dropped"
        return filters

    @cached_property
    def review(self) -> ReviewFacts | None:
        """What became of the images that people looked at; None where nobody did."""
        found = self.selection.reviewed
        if found is not None:
            with about(self.files.folder, "distilled/stage.json"):
                if found.num_images > (self.pool.num_images or 0) or found.num_unseen > len(self.labels):
                    raise ContentError("tells of reviews of more images than there are")
        return found

    @cached_property
    def encoders(self) -> list[dict[str, Any]]:
        """The models from elsewhere that the set was made with, as its card takes them."""
        found = [
            encoder for stage in ("teacher", "distilled") if stage in self.records.stages
            for encoder in self.records.stages[stage].encoders
        ]  # fmt: skip
        return for_cards(encoder.model_dump() for encoder in found)

    @cached_property
    def embedder(self) -> str | None:
        """What embedded the pool in words, without the name of a folder or a file."""
        setting = self.selection.settings.get("embedder")
        if not isinstance(setting, str):
            return None
        name, _, digest = setting.partition(", sha256 ")
        if name in (OF_TEACHER, OF_CLASSIFIER, OF_AUTOENCODER):
            return name
        return describe_embedder(name) if not digest and is_encoder_label(name) else "a model that is not published"


def read_checked_run(run: Path, with_pipeline: bool) -> CheckedRun:
    """Reads what is published of a run, and sees that it holds nothing but what it may.

    Args:
        run: Folder of the run.
        with_pipeline: Whether the pipeline is to be published.

    Raises:
        InputError: If a stage is missing.
        ContentError: If a file holds what it may not.
    """
    pipeline = ["pipeline"] if with_pipeline else []
    require_parts(run, "distilled", "pool", *pipeline)
    parts = ["distilled", "selector", *pipeline]
    files = RunFiles.read(run, parts)
    return CheckedRun.of(files, files.check())


def distilled_grid(images: np.ndarray, labels: np.ndarray) -> Image.Image:
    """The first images of each class, uint8 N×H×W×3 with labels int N, one row for each class."""
    classes = np.unique(labels)
    columns = min(GRID_COLUMNS, *(int((labels == label).sum()) for label in classes))
    shown = np.concatenate([np.flatnonzero(labels == label)[:columns] for label in classes])
    return make_grid(images[shown], columns, scale=max(1, _GRID_SIDE // images.shape[1]))
