"""The blinded sheet: generated images and real tiles in random order, and how well readers tell them apart.

The real tiles are those that no model was trained on, so it is for use inside the house only. Which image is what is
in a file of its own, and not on the page.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from histodistill.hub_cards.audit_record import Count
from histodistill.hub_cards.documents import Exact, Seed, Sha256
from histodistill.hub_cards.part_files import shown
from histodistill.hub_cards.site_verdict import image_hashes
from histodistill.selection.membership import Interval, binomial_interval
from histodistill.selection.streams import stream
from histodistill.selection.summaries import counted
from histodistill.training.data.image_dataset import read_image_table
from histodistill.training.data.images import base64_png
from histodistill.training.data.tiles import HELD_OUT, TileSource, sample_as_many
from histodistill.training.distillation.reviews import LONGEST_SIGN, Sign, read_saved
from histodistill.training.reporting.review_page import LARGEST_SIDE, REVIEW_FOLDER
from histodistill.training.reporting.templates import render_page, script_values
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import write_json, write_text
from histodistill.training.running.notes import warn


#: The sheet, what its images are, and how readers did: files of the review's folder.
SHEET, KEY, SCORES = "blinded.html", "blinded_key.json", "blinded_scores.json"
_Kind = Literal["real", "generated"]


class SheetKey(Exact):
    """What the images of a sheet are.

    Attributes:
        sheet: SHA-256 of the images in their order.
        seed: Of which images were drawn, and of their order.
        class_names: Of the labels.
        kinds: Of each image.
        labels: Class of each image.
    """

    format: Literal[1]
    sheet: Sha256
    seed: Seed
    class_names: tuple[str, ...]
    kinds: tuple[_Kind, ...]
    labels: tuple[Count, ...]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if len(self.labels) != len(self.kinds) or max(self.labels, default=0) >= len(self.class_names):
            raise ValueError("kinds, labels and names do not fit each other")
        return self


class AnswersFile(Exact):
    """What the sheet saves.

    Attributes:
        reviewer: The reader's sign, which may be empty.
        sheet: As in the key.
        answers: For each image; None where there is none.
    """

    format: Literal[1]
    kind: Literal["answers"]
    reviewer: Sign
    sheet: Sha256
    answers: Annotated[tuple[_Kind | None, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not any(self.answers):
            raise ValueError("there is no answer in it")
        return self


def write_sheet(run: Path, source: TileSource, per_class: int, seed: int | None) -> Path:
    """Writes `run/review/blinded.html` and its key.

    Of each class there are as many real tiles as generated images, the same at random for a seed.

    Args:
        run: A run with a finished selection.
        source: Its real tiles. Those of the split "held_out" are shown, or else those of "validation".
        per_class: Images of either kind that are drawn of each class, or as many as there are where these are fewer.
        seed: Of what is random; None for that of the sheet that is there, and for a new one a secret number, since
            with a known seed the order could be found again.

    Returns:
        The path of the page.

    Raises:
        InputError: If the set cannot be read, no class has a tile to show, or the sheet's key is damaged.
    """
    folder = run / REVIEW_FOLDER
    if seed is None:
        seed = read_saved(folder / KEY, SheetKey).seed if (folder / KEY).exists() else secrets.randbelow(2**31)
    table = read_image_table(run / "distilled")
    real = source.split(HELD_OUT if HELD_OUT in source.splits else "validation")
    labels, num_classes = table.columns["label"], len(table.class_names)
    counts = np.minimum(np.bincount(labels, minlength=num_classes), np.bincount(real.labels, minlength=num_classes))
    wanted = np.repeat(np.arange(num_classes), np.minimum(counts, per_class))
    if not len(wanted):
        raise InputError(f"{param('data')} has no tile that no model was trained on: hold some out with audit_share")
    if missing := [name for name, count in zip(table.class_names, counts, strict=True) if count < per_class]:
        warn(f"the blinded sheet has fewer than {2 * per_class} images of some classes: {', '.join(missing)}")
    generated, held_out = sample_as_many(labels, wanted, seed), sample_as_many(real.labels, wanted, seed)
    order = stream("order of a blinded sheet", seed).permutation(2 * len(wanted))
    images = np.concatenate([np.asarray(table.images[generated]), np.asarray(real.images[held_out])])[order]
    key = SheetKey(
        format=1,
        sheet=hashlib.sha256("".join(image_hashes(images)).encode()).hexdigest(),
        seed=seed,
        class_names=tuple(table.class_names),
        kinds=tuple("generated" if number < len(wanted) else "real" for number in order),
        labels=tuple(np.concatenate([labels[generated], real.labels[held_out]])[order].tolist()),
    )
    values = {
        "title": "Real or generated?",
        "kind": "answers",
        "about": key.sheet,
        "pngs": [base64_png(image, LARGEST_SIDE) for image in images],
        "longest_sign": LONGEST_SIGN,
    }
    # The key first: a sheet without its own would be answered in vain.
    write_json(folder / KEY, key.model_dump(mode="json"), private=True)
    page = render_page("blinded.html.jinja", values | script_values("saved_page.js"))
    write_text(folder / SHEET, page, private=True)
    return folder / SHEET


def score_answers(run: Path, files: Sequence[Path]) -> dict[str, Any]:
    """How often readers were right, with 95 % intervals after Wilson: all together, by class, and each of them.

    Images without an answer are left out. Intervals take answers for independent; those of several readers to the
    same images are not quite, so where there are several, the intervals over all of them are too narrow.

    Args:
        run: A run with a sheet.
        files: What readers saved, one for each.

    Returns:
        `num_answers`, and `all`, `classes` and `readers`: `value`, `low` and `high`, by name; the same is written to
        `run/review/blinded_scores.json`.

    Raises:
        InputError: If there is no sheet, or for a file that is about another one or of the same reader as another.
    """
    folder = run / REVIEW_FOLDER
    if not (folder / KEY).is_file():
        raise InputError(f"{run} has no blinded sheet: make one with {param('data')} first")
    key = read_saved(folder / KEY, SheetKey)
    right: dict[str, list[bool]] = {}
    by_class: list[list[bool]] = [[] for _ in key.class_names]
    for path in files:
        found = read_saved(path, AnswersFile)
        if found.sheet != key.sheet or len(found.answers) != len(key.kinds):
            raise InputError(f"{path} is about another sheet than {folder / SHEET}: give answers to this one")
        reader = found.reviewer.strip() or path.stem
        if reader in right:
            raise InputError(
                f"{path} is of the same reader as another file ({shown(reader)}): give one file of each reader"
            )
        right[reader] = []
        for label, kind, answer in zip(key.labels, key.kinds, found.answers, strict=True):
            if answer is not None:
                right[reader].append(answer == kind)
                by_class[label].append(answer == kind)
    every = [answer for answers in right.values() for answer in answers]
    scores = {
        "format": 1,
        "num_answers": len(every),
        "all": _share(every),
        "classes": {name: _share(found) for name, found in zip(key.class_names, by_class, strict=True) if found},
        "readers": {reader: _share(found) for reader, found in right.items()},
    }
    write_json(folder / SCORES, scores, private=True)
    return scores


def score_lines(scores: dict[str, Any]) -> list[str]:
    """What `score_answers` found, in lines."""
    num_readers = len(scores["readers"])
    lines = [
        f"right: {_text(scores['all'])} of {counted(scores['num_answers'], 'answer')} by "
        f"{counted(num_readers, 'reader')}; guessing gives 50 %"
    ]
    lines += [f"  {name}: {_text(found)}" for name, found in scores["classes"].items()]
    lines += [f"  reader {shown(name)}: {_text(found)}" for name, found in scores["readers"].items()]
    if num_readers > 1:
        lines.append("readers saw the same images, so intervals over all of them are too narrow")
    return lines


def _share(answers: Sequence[bool]) -> dict[str, float]:
    found = binomial_interval(sum(answers), len(answers))
    return {"value": found.value, "low": found.low, "high": found.high}


def _text(found: dict[str, float]) -> str:
    share = Interval(**found)
    return f"{share.value:.0%} (95 % interval {share.low:.0%} to {share.high:.0%})"
