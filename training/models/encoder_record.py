"""What a record says of an encoder from elsewhere, with nothing in it but names and words that are known."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator

from histodistill.hub_cards.documents import Known
from histodistill.hub_cards.names import is_license_id
from histodistill.training.models.encoder_names import is_encoder_label


def _license_id(text: str) -> str:
    if not is_license_id(text):
        raise ValueError("is no identifier of a licence")
    return text


def _encoder_name(name: str) -> str:
    """Lets the name of an encoder through, which holds no path."""
    if not is_encoder_label(name):
        raise ValueError("should be the name of an encoder")
    return name


#: An identifier of a licence as the Hub writes them.
LicenseId = Annotated[str, AfterValidator(_license_id)]


class EncoderRecord(Known):
    """A model from elsewhere that a stage used: see `encoder_licences.encoder_records`."""

    use: Literal["selection", "copies", "soft_labels"]
    name: Annotated[str, AfterValidator(_encoder_name)]
    license: LicenseId | None
