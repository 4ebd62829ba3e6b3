"""What reviewers say of a distilled set: files that the page of `review` saves, and what a selection makes of them.

A selection goes by all reviews together: the images that any of them left out are not chosen. Its record keeps which
these were and how many people looked, but no sign of a person and no note.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
from pydantic import BaseModel, Field, model_validator

from histodistill.hub_cards.audit_record import Count
from histodistill.hub_cards.documents import Exact, Seed, Sha256, check_document, only_if, read_document
from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.part_files import read_file
from histodistill.hub_cards.review_facts import ReviewFacts
from histodistill.hub_cards.site_verdict import image_hash
from histodistill.selection.image_rows import Images
from histodistill.selection.summaries import counted
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.stages import Stage, content_of


_Document = TypeVar("_Document", bound=BaseModel)
#: Characters of a reviewer's sign and of a note, at most; the pages take no more.
LONGEST_SIGN, LONGEST_NOTE = 40, 1000
#: The name of a selection's setting that says what reviews left out.
SETTING = "review"
# What holds a tag or a comment of HTML. Notes are plain text; a page that shows them need not be asked how.
_HTML = re.compile(r"<[A-Za-z/!?]")
# What of a run is made of its set, and must be made anew with it.
_MADE_OF_SET = ("audit", "comparison", "results.json")

#: A reviewer's initials or number, which may stay empty.
Sign = Annotated[str, Field(max_length=LONGEST_SIGN)]


class _LeftOut(Exact):
    """An image that a reviewer left out."""

    row: Count
    seed: Seed
    image: Sha256


class _Note(Exact):
    """What a reviewer wrote beside an image."""

    row: Count
    note: Annotated[
        str, Field(max_length=LONGEST_NOTE), only_if(lambda text: not _HTML.search(text), "should be without HTML")
    ]


class ReviewFile(Exact):
    """What the page of a set saves.

    Attributes:
        set: Which set it is: see `content_of`.
        reviewer: The reviewer's sign.
        seeds: Of the images of the set, row by row.
        left_out: Images that are to go, told by their row, their seed and `image_hash`.
        notes: Free text, which stays in this file.
    """

    format: Literal[1]
    kind: Literal["review"]
    set: Sha256
    reviewer: Sign
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    left_out: tuple[_LeftOut, ...]
    notes: tuple[_Note, ...]

    @model_validator(mode="after")
    def _is_of_its_rows(self) -> Self:
        last = max([gone.row for gone in self.left_out] + [beside.row for beside in self.notes], default=0)
        if last >= len(self.seeds):
            raise ValueError(f"the set has no row {last}")
        for gone in self.left_out:
            if self.seeds[gone.row] != gone.seed:
                raise ValueError(f"row {gone.row} has another seed")
        return self


class Review(Exact):
    """What all reviews of a selection come to, as its settings hold it.

    Attributes:
        sets: The sets that somebody looked at, one after the other.
        seen: Seeds of the images of these, sorted.
        left_out: Seeds of those of them that must not be chosen, sorted.
        num_people: Who looked at them: see `ReviewFacts`.
    """

    sets: tuple[Sha256, ...]
    seen: tuple[Seed, ...]
    left_out: tuple[Seed, ...]
    num_people: Annotated[Count, Field(ge=1)]

    def mask(self, seeds: np.ndarray) -> np.ndarray:
        """bool N, which images of a pool with seeds int64 N were left out."""
        return np.isin(seeds, self.left_out)

    def facts(self, chosen: np.ndarray) -> ReviewFacts:
        """What may be told.

        Args:
            chosen: int64 K, the seeds of the images of the set.
        """
        unseen = ~np.isin(chosen, self.seen)
        return ReviewFacts(
            num_images=len(self.seen),
            num_people=self.num_people,
            num_left_out=len(self.left_out),
            num_unseen=int(unseen.sum()),
        )


def read_saved(path: Path, schema: type[_Document]) -> _Document:
    """What a page of `review` saved.

    Args:
        path: The file.
        schema: What it must hold.

    Raises:
        InputError: If it cannot be read, or holds anything else.
    """
    if path.suffix != ".json":
        raise InputError(f"{path} is no .json file: give what the page of histodistill review saved")
    try:
        data = read_file(path)
    except ContentError as error:
        raise InputError(str(error)) from error
    try:
        return read_document(data, schema)
    except ContentError as error:
        raise InputError(f"{path} {error}: save it anew from the page of histodistill review") from error


def kept_review(settings: Mapping[str, Any]) -> Review | None:
    """What the settings of a selection say of reviews; None where there were none.

    Raises:
        InputError: If they hold something else.
    """
    if SETTING not in settings:
        return None
    try:
        return check_document(settings[SETTING], Review)
    except ContentError as error:
        raise InputError(f"the record of the selection {error}: give a new output folder") from error


def take_reviews(files: Sequence[Path], stage: Stage, seeds: np.ndarray, images: Images) -> None:
    """Makes a finished selection one that is to be made anew, without what reviewers left out.

    Nothing changes where the selection was made by these files already.

    Args:
        files: Of all reviews so far.
        stage: The selection, with what was known of reviews in its settings.
        seeds, images: Of the pool, int64 N and uint8 N×S×S×3.

    Raises:
        InputError: For a file that is not about this selection, where that of an earlier review is missing, or where
            there is what was made of the set that was reviewed.
    """
    before = kept_review(stage.settings)
    now, shown = None, ()
    if stage.complete:
        now, shown = content_of(stage.folder), tuple(read_image_dataset(stage.folder)[1]["seed"].tolist())
    known = [*(before.sets if before else ()), *([now] if now else ())]
    found = [read_saved(path, ReviewFile) for path in files]
    rows = {int(seed): row for row, seed in enumerate(seeds)}
    for path, said in zip(files, found, strict=True):
        # Of an earlier set it is known which images it had, and no longer in which order.
        are_its = said.seeds == shown if said.set == now else before and {*said.seeds} <= {*before.seen}
        if said.set not in known or not are_its or not rows.keys() >= {*said.seeds}:
            raise InputError(f"{path} is about another set than {stage.folder}: give files of its own review")
        for gone in said.left_out:
            if image_hash(images[[rows[gone.seed]]][0]) != gone.image:
                raise InputError(f"{path} is about another image in row {gone.row}: give files of this set's review")
    review = Review(
        sets=tuple(name for name in known if any(name == each.set for each in found)),
        seen=tuple(sorted({seed for each in found for seed in each.seeds})),
        left_out=tuple(sorted({gone.seed for each in found for gone in each.left_out})),
        num_people=len({each.reviewer.strip() for each in found}),
    )
    if review == before:
        return
    if before and (missing := {*before.left_out} - {*review.left_out}):
        raise InputError(
            f"{counted(len(missing), 'image')} that earlier reviews left out of {stage.folder} would come back: give "
            f"{param('exclude')} the files of all reviews so far"
        )
    run = stage.folder.parent
    if there := [name for name in _MADE_OF_SET if (run / name).exists()]:
        raise InputError(
            f"{run} holds what was made of the set that was reviewed ({', '.join(there)}): move that away, to be made "
            "anew of the next one"
        )
    stage.change_settings({**stage.settings, SETTING: review.model_dump(mode="json")})
