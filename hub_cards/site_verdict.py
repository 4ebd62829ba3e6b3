"""`audit.json` in the folder of a set: what goes with a set where it leaves its run, and what a merged set has.

The record of a run stays with the run. A site sends its set alone, so the verdict on it lies in the set's own folder,
with a hash of each image: by these it is seen in a merged set, whose files are others, that an image is one which the
audit of its site was about.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from histodistill.hub_cards.audit_record import AuditRecord, VerdictRecord
from histodistill.hub_cards.documents import Exact, Sha256


#: Name of the file in the folder of a set.
SET_AUDIT = "audit.json"
#: Version of the layout of these files.
VERDICT_FORMAT: Final = 1


class SiteVerdict(Exact):
    """What goes with a distilled set.

    Attributes:
        format: `VERDICT_FORMAT`.
        audit: The audit of its run, of the set alone: without the name of the real tiles and of any other file.
        images: SHA-256 of each image by `image_hashes`, in the order of the rows.
    """

    format: Literal[1]
    audit: AuditRecord
    images: Annotated[list[Sha256], Field(min_length=1)]

    @model_validator(mode="after")
    def _is_of_a_set(self) -> Self:
        if list(self.audit.parts) != ["distilled"] or self.audit.records:
            raise ValueError("it is about more than a distilled set, or less")
        return self


class MergedRecord(Exact):
    """What a merged set has: a verdict made of those of its sites.

    Attributes:
        format: `VERDICT_FORMAT`.
        parts: The one part, and its verdict: a finding for each site, and one on images that sites have in common.
    """

    format: Literal[1]
    parts: Annotated[dict[Literal["distilled"], VerdictRecord], Field(min_length=1)]


def image_hash(image: np.ndarray) -> str:
    """SHA-256 of the pixels of an image, uint8 S×S×3, as 64 hex digits; a file's encoding and place change nothing."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def image_hashes(images: np.ndarray) -> list[str]:
    """`image_hash` of each image, uint8 N×S×S×3."""
    return [image_hash(image) for image in images]
