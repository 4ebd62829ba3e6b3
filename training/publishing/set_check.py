"""What a published set shows of itself without the run that it is of: whether files, table, card and record agree."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from html import unescape
from typing import Any

import numpy as np
import yaml
from huggingface_hub import RepoCard

from histodistill.hub_cards.card_facts import PRECISIONS
from histodistill.hub_cards.dataset_card import set_structure
from histodistill.hub_cards.part_files import shown
from histodistill.hub_cards.rendering import escape_markdown
from histodistill.hub_cards.set_record import SET_RECORD, SetRecord
from histodistill.hub_cards.tables import ImageTable
from histodistill.hub_cards.uploading import is_allowed
from histodistill.training.data.image_dataset import dataset_features


#: The place of a set's card.
CARD = "README.md"
# How the first sentence of a card begins.
_COUNTS = re.compile(
    r"^([\d,]+) synthetic (\d+)×(\d+) images, ([\d,]+)(?: to ([\d,]+))? of each of (\d+) classes", re.MULTILINE
)
# What stands above the options of a pipeline on a card.
_PRECISION = re.compile(r"The pipeline makes an image again from its seed with these options, in (.+):\n")
# Words of a card → whether the audit passed, by what it says; None where none was made.
_VERDICTS = {
    "**The privacy audit passed**": True,
    "**The privacy audit passed, at each site**": True,
    "**The privacy audit did not pass.**": False,
    "no privacy audit has been made": None,
}
_VERDICT_WORDS = {True: "that the audit passed", False: "that the audit did not pass", None: "of no audit"}
# Digits of a SHA-256 in a sentence.
_SHOWN_DIGITS = 12


def check_files(record: SetRecord, hashes: Mapping[str, str]) -> Iterator[str]:
    """What differs between the files that a record lists and those that are there, one sentence each.

    Args:
        record: Of the set.
        hashes: Every file that is there → SHA-256; none for what was not read.
    """
    for name in sorted((record.files.keys() | hashes.keys() | {CARD}) - {SET_RECORD}):
        listed, found = record.files.get(name), hashes.get(name)
        if found is None:
            yield f"{name} is missing: {f'{SET_RECORD} lists it' if listed else 'each set has one'}"
        elif listed is None:
            yield f"{shown(name)} was added: {SET_RECORD} does not list it"
        elif not is_allowed("dataset", name):
            yield f"{name} is no file of a set, and {SET_RECORD} lists it"
        elif not found:
            yield f"{name} is a link, or no ordinary file: give the files themselves, or the id of the set on the Hub"
        elif listed != found:
            yield (
                f"{name} is not the file that was published: its SHA-256 begins with {found[:_SHOWN_DIGITS]}, and "
                f"that in {SET_RECORD} with {listed[:_SHOWN_DIGITS]}"
            )


def check_card(text: str, table: ImageTable) -> Iterator[str]:
    """What a card says otherwise of files, columns, classes and numbers than the table has them, one sentence each.

    Args:
        text: Of the card.
        table: The set.
    """
    try:
        header = RepoCard(text, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, TypeError, yaml.YAMLError):
        header = {}
    for name, value in set_structure(dataset_features(table)).items():
        if header.get(name) != value:
            yield f"{CARD} has other columns, classes or files in its header ({name}) than the set"
    counts = np.bincount(table.columns["label"], minlength=len(table.class_names)).tolist()
    side = table.images.shape[1]
    found = _COUNTS.search(text)
    told = [int(number.replace(",", "")) for number in found.groups(found[4])] if found else []
    if told != [len(table), side, side, min(counts), max(counts), len(counts)]:
        yield (
            f"{CARD} tells in its first sentence of other numbers than the set has: {len(table)} images of "
            f"{side}×{side} pixels, {min(counts)} to {max(counts)} of each of {len(counts)} classes"
        )
    # The table of classes of a merged set has their numbers of images, too.
    rows = _rows(text, "label | class")
    for label, (name, count) in enumerate(zip(table.class_names, counts, strict=True)):
        if [str(label), escape_markdown(name), *([f"{count:,}"] if table.site_names else [])] not in rows:
            images = f" with {count} images" if table.site_names else ""
            yield f"{CARD} does not list the class {label}, {name}, in its table{images}"
    if len(rows) != len(table.class_names):
        yield f"{CARD} lists {len(rows)} classes in its table, and the set has {len(table.class_names)}"
    sites = [row[:2] for row in _rows(text, "site | images")]
    for number, name in enumerate(table.site_names):
        count = int((table.columns["site"] == number).sum())
        if [escape_markdown(name), f"{count:,}"] not in sites:
            yield f"{CARD} does not list the site {name} in its table with {count} images"
    if len(sites) != len(table.site_names):
        yield f"{CARD} lists {len(sites)} sites in its table, and the set has {len(table.site_names)}"


def check_generation(text: str, record: SetRecord) -> Iterator[str]:
    """What a card says otherwise than the record of how images are made again, one sentence.

    Args:
        text: Of the card.
        record: Of the set.
    """
    precision = _PRECISION.search(text)
    told = {row[0]: _number(row[-1]) for row in _rows(text, "option of the pipeline")}
    recorded: dict[str, Any] = {}
    if record.generation is not None:
        options = record.generation.model_dump(mode="json", exclude={"chunk_size", "pipeline"})
        recorded = {**options, "mixed_precision": PRECISIONS[record.generation.mixed_precision]}
    if told | ({"mixed_precision": precision[1]} if precision else {}) != recorded:
        yield f"{CARD} has other options of the pipeline than {SET_RECORD}, by which images are made again"


def check_verdict(text: str, record: SetRecord) -> Iterator[str]:
    """What a card says otherwise of the audit than the record, one sentence each.

    Args:
        text: Of the card.
        record: Of the set.
    """
    section = text.partition("\n## Privacy\n")[2].partition("\n## ")[0]
    told = [verdict for words, verdict in _VERDICTS.items() if words in section]
    passed = record.audit.passed if record.audit else None
    if told != [passed]:
        said = " and ".join(_VERDICT_WORDS[verdict] for verdict in told) or "nothing of an audit"
        yield f"{CARD} tells {said}, and {SET_RECORD} {_VERDICT_WORDS[passed]}"
        return
    on_card = [unescape(line[2:]) for line in section.splitlines() if line.startswith(("- ✓ ", "- ✗ "))]
    recorded = list(record.audit.sentences) if record.audit else []
    for here, sentences, there, others in (
        (CARD, on_card, SET_RECORD, recorded),
        (SET_RECORD, recorded, CARD, on_card),
    ):
        for sentence in sentences:
            if sentence not in others:
                yield f"{here} says of the audit what {there} does not: {shown(sentence)}"


def _rows(text: str, head: str) -> list[list[str]]:
    """The cells of the rows of a card's table whose first row begins so; none without such a table."""
    found = re.search(rf"^\| {re.escape(head)} \|.*\n\|.*\n((?:\|.*\n)*)", text, re.MULTILINE)
    return [line[2:-2].split(" | ") for line in found[1].splitlines()] if found else []


def _number(text: str) -> Any:
    """A number or a list of numbers on a card; the text itself where it is something else."""
    try:
        return json.loads(unescape(text))
    except (ValueError, RecursionError):
        return text
