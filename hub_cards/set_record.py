"""set.json: what a published set says of itself, so that whoever receives it can check it without the run.

It holds the SHA-256 of the files beside it, the verdict as it stands on the card, and with what a pipeline makes the
images again from their seeds, with the SHA-256 of that pipeline: nothing else that the card does not tell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from histodistill.hub_cards.audit_record import FileName, Share
from histodistill.hub_cards.card_facts import AuditFacts
from histodistill.hub_cards.documents import Exact, Sha256, read_document, write_document
from histodistill.hub_cards.part_files import hash_contents


#: The place of the record in a set's repository.
SET_RECORD = "set.json"
# Hexadecimal digits of a fingerprint: nobody finds other files that have the same.
_FINGERPRINT_DIGITS = 32

# As long as the longest finding of an audit, with its mark and full stop.
_Sentence = Annotated[str, Field(pattern="^[✓✗] ", max_length=2010)]


class Generation(Exact):
    """With what a pipeline makes the images of a set again from their seeds.

    Attributes:
        num_inference_steps, guidance_scale, guidance_interval: What it is called with.
        chunk_size: Images that were made together.
        mixed_precision: A key of `card_facts.PRECISIONS`.
        pipeline: SHA-256 of what the pipeline is, its weights and configurations; None where that is not known.
    """

    num_inference_steps: Annotated[int, Field(ge=1)]
    guidance_scale: Annotated[float, Field(ge=0)]
    guidance_interval: tuple[Share, Share]
    chunk_size: Annotated[int, Field(ge=1)]
    mixed_precision: Literal["no", "bf16", "fp16"]
    pipeline: Sha256 | None


class SetVerdict(Exact):
    """What the audit found, in the words of the card: see `AuditFacts`."""

    passed: bool
    findings: tuple[_Sentence, ...]
    controls: tuple[_Sentence, ...]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.passed != all(sentence.startswith("✓") for sentence in self.sentences):
            raise ValueError("passed does not agree with the findings")
        return self

    @property
    def sentences(self) -> tuple[str, ...]:
        """All that was found, in the order of the card."""
        return (*self.findings, *self.controls)


class SetRecord(Exact):
    """What set.json holds.

    Attributes:
        format: Version of this layout.
        files: Every other file of the repository → SHA-256.
        audit: The verdict; None where no audit was made.
        generation: How the images were made; None where a set is of several pipelines.
    """

    format: Literal[1]
    files: dict[FileName, Sha256]
    audit: SetVerdict | None
    generation: Generation | None

    @model_validator(mode="after")
    def _is_of_others(self) -> Self:
        if SET_RECORD in self.files:
            raise ValueError("it lists itself")
        return self


def write_set_record(files: Mapping[str, bytes], audit: AuditFacts | None, generation: Generation | None) -> bytes:
    """The record of a set that is to be published.

    Args:
        files: All other files of its repository, path → content.
        audit: What its card says of the audit.
        generation: How its images were made.

    Raises:
        ValueError: For findings that no card has.
    """
    verdict = None
    if audit is not None:
        verdict = SetVerdict(passed=audit.passed, findings=tuple(audit.findings), controls=tuple(audit.controls))
    record = SetRecord(format=1, files=hash_contents(files), audit=verdict, generation=generation)
    return write_document(record.model_dump(mode="json"))


def read_set_record(data: bytes) -> SetRecord:
    """A set's record.

    Raises:
        ContentError: If it is none, or contradicts itself.
    """
    return read_document(data, SetRecord)


def set_fingerprint(hashes: Mapping[str, str]) -> str:
    """One short text for all files of a set: the beginning of the SHA-256 of their sorted names and hashes.

    Args:
        hashes: Every file, the record as well → SHA-256.
    """
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()[:_FINGERPRINT_DIGITS]
