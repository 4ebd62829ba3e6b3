"""What a record says of an encoder from elsewhere, with nothing in it but names and words that are known."""

from __future__ import annotations

from typing import Annotated, Literal

from histodistill.hub_cards.documents import Known, only_if
from histodistill.hub_cards.names import is_license_id
from histodistill.training.models.encoder_names import is_encoder_label


#: An identifier of a licence as the Hub writes them.
LicenseId = Annotated[str, only_if(is_license_id, "is no identifier of a licence")]


class EncoderRecord(Known):
    """A model from elsewhere that a stage used: see `encoder_licences.encoder_records`."""

    use: Literal["selection", "copies", "soft_labels"]
    # Without a path.
    name: Annotated[str, only_if(is_encoder_label, "should be the name of an encoder")]
    license: LicenseId | None
