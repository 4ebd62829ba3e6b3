"""results.json by its schema: the scores of classifiers that `compare` leaves, and cards tell of."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from histodistill.hub_cards.audit_record import Count, Share
from histodistill.hub_cards.documents import ClassName, Exact, Seed, only_if, read_document
from histodistill.training.evaluation.cells import spread
from histodistill.training.evaluation.compare import RECOVERY_ROW, ROWS
from histodistill.training.models.encoder_names import is_architecture_label


# Rounding of means and standard deviations.
_TOLERANCE = 1e-9

#: What a classifier was trained on: a key of `ROWS`.
RowName = Annotated[str, only_if(ROWS.__contains__, f"should be one of {', '.join(ROWS)}")]
#: The network of a classifier, without a path: see `architecture_label`.
Architecture = Annotated[str, only_if(is_architecture_label, "should be the label of an architecture")]


class Score(Exact):
    """A score over seeds, as `spread` sums it up."""

    mean: Share | None
    std: Share | None
    values: Annotated[tuple[Share | None, ...], Field(max_length=1000)]

    @model_validator(mode="after")
    def _sums_up(self) -> Self:
        sums = spread(list(self.values))
        for name, found in (("mean", self.mean), ("std", self.std)):
            right = sums[name]
            if (found is None) != (right is None) or not math.isclose(found or 0, right or 0, abs_tol=_TOLERANCE):
                raise ValueError(f"{name} is not that of the values")
        return self


class SeedsRecord(Exact):
    """What trainings that differ in their seed alone have in common."""

    num_train: Annotated[Count, Field(ge=1)]
    steps: Annotated[Count, Field(ge=1)] | None
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1000)]


class ResultsRow(SeedsRecord):
    """Scores of one architecture trained on one kind of tiles."""

    row: RowName
    title: str
    architecture: Architecture
    accuracy: Score
    auc: Score
    f1: Score

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.title != ROWS[self.row]:
            raise ValueError("title is not that of the row")
        if {len(score.values) for score in (self.accuracy, self.auc, self.f1)} != {len(self.seeds)}:
            raise ValueError("there must be a value for each seed")
        return self

    def for_card(self) -> dict[str, Any]:
        """What a card tells of it."""
        return self.model_dump(exclude={"accuracy": {"values"}, "auc": {"values"}, "f1": {"values"}})


class Results(Exact):
    """What `results.json` holds: see `compare.summarise`. Source and notes stay here."""

    format: Literal[1] = 1
    data: Annotated[str, Field(max_length=1000)]
    class_names: Annotated[tuple[ClassName, ...], Field(min_length=1)]
    n_per_class: Annotated[Count, Field(ge=1)]
    rows: Annotated[tuple[ResultsRow, ...], Field(max_length=1000)]
    recovery: dict[Architecture, Annotated[float, Field(ge=0)]]
    recovery_row: RowName = RECOVERY_ROW
    notes: Annotated[tuple[Annotated[str, Field(max_length=5000)], ...], Field(max_length=100)] = ()

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if len({(row.architecture, row.row) for row in self.rows}) < len(self.rows):
            raise ValueError("a row is there twice")
        return self


def parse_results(data: bytes) -> Results:
    """The content of a results.json.

    Raises:
        ContentError: For a row, a key or a number that it cannot have.
    """
    return read_document(data, Results)
