"""What a published set shows of itself without the run that it is of: whether files, table, card and record agree."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from html import unescape

import numpy as np
import yaml
from huggingface_hub import RepoCard

from histodistill.hub_cards.dataset_card import set_structure
from histodistill.hub_cards.part_files import shown
from histodistill.hub_cards.rendering import escape_markdown
from histodistill.hub_cards.set_record import SET_RECORD, SetRecord
from histodistill.hub_cards.tables import ImageTable
from histodistill.training.data.image_dataset import dataset_features


#: The place of a set's card.
CARD = "README.md"
# How the first sentence of a card begins.
_COUNTS = re.compile(
    r"^([\d,]+) synthetic (\d+)×(\d+) images, ([\d,]+)(?: to ([\d,]+))? of each of (\d+) classes", re.MULTILINE
)
# A row of a card's table of classes: label and name, and the number of images of a merged set.
_CLASS = re.compile(r"^\| (\d+) \| (.+?) \|(?: [\d,]+ \|)?$", re.MULTILINE)
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
        hashes: Every file that is there → SHA-256.
    """
    for name in sorted((record.files.keys() | hashes.keys()) - {SET_RECORD}):
        listed, found = record.files.get(name), hashes.get(name)
        if found is None:
            yield f"{name} is missing: {SET_RECORD} lists it"
        elif listed is None:
            yield f"{shown(name)} was added: {SET_RECORD} does not list it"
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
    rows = _CLASS.findall(text)
    for label, name in enumerate(table.class_names):
        if (str(label), escape_markdown(name)) not in rows:
            yield f"{CARD} does not list the class {label}, {name}, in its table"
    if len(rows) != len(table.class_names):
        yield f"{CARD} lists {len(rows)} classes in its table, and the set has {len(table.class_names)}"


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
