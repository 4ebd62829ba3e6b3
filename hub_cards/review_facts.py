"""What may be told of the people who looked through a distilled set: numbers, and neither who they are nor a word."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from histodistill.hub_cards.audit_record import Count
from histodistill.hub_cards.documents import Exact


class ReviewFacts(Exact):
    """The reviews of a distilled set.

    Attributes:
        num_images: Images that somebody looked at, those that went included.
        num_people: Who looked at them, at least: those who gave no sign count as one.
        num_left_out: Images of these that were left out.
        num_unseen: Images of the set that nobody looked at, since they came in place of others.
    """

    num_images: Annotated[Count, Field(ge=1)]
    num_people: Annotated[Count, Field(ge=1)]
    num_left_out: Count
    num_unseen: Count

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.num_left_out > self.num_images:
            raise ValueError("more images were left out than were reviewed")
        return self

    def sentence(self) -> str:
        """What the card says."""
        people = "1 person" if self.num_people == 1 else f"{self.num_people:,} people"
        were, them = ("was", "it") if self.num_left_out == 1 else ("were", "them")
        went = f"{self.num_left_out:,} {were} left out, and the selection was made again without {them}"
        if not self.num_left_out:
            went = "none was left out"
        unseen = f"{self.num_unseen:,} of the images here" if self.num_unseen else "none of the images here"
        return f"{self.num_images:,} generated images were reviewed by {people}: {went}. Not reviewed: {unseen}."
