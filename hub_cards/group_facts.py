"""What may be told of the groups of the real tiles, such as patients: what they are, and numbers, but never a name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from histodistill.hub_cards.audit_record import Count, GroupKind
from histodistill.hub_cards.documents import ClassName, Exact


# A class of fewer groups may point to persons.
_FEW_GROUPS = 5


class GroupFacts(Exact):
    """The groups of the training tiles of a run.

    Attributes:
        kind: What a group is.
        train: Groups of the training tiles.
        held_out: Groups that were held out whole for the privacy audit.
        per_class: Groups with training tiles of each class.
        least_tiles, median_tiles: Training tiles of a group.
        shared: Groups in several of the splits that the tiles came with, where this was allowed.
        made: Splits that were made of training tiles, by group.
    """

    kind: GroupKind
    train: Count
    held_out: Count
    per_class: dict[ClassName, Count]
    least_tiles: Count
    median_tiles: Annotated[float, Field(ge=0, lt=2**53)]
    shared: Count
    made: list[Literal["validation", "test"]]

    def count(self, number: int) -> str:
        """A number of groups in words: `1 patient`, `12 patients`."""
        return f"{number:,} {self.kind}{'' if number == 1 else 's'}"

    def sentences(self) -> list[str]:
        """What cards, report and page say, a sentence each."""
        held = f", and {self.count(self.held_out)} more were held out whole for the privacy audit"
        found = [
            f"The training tiles are of {self.count(self.train)}, with {self.least_tiles:,} tiles at least and "
            f"{self.median_tiles:,g} in the median{held if self.held_out else ''}."
        ]
        few = [name for name, number in self.per_class.items() if number < _FEW_GROUPS]
        if few:
            rests = "; ".join(f"{name}: {self.count(self.per_class[name])}" for name in few)
            found.append(f"Classes of so few {self.kind}s may point to persons ({rests}).")
        if self.made:
            found.append(f"The tiles came without {' and '.join(self.made)}, which were made of whole {self.kind}s.")
        if self.shared:
            found.append(
                f"{self.count(self.shared)[:1].upper()}{self.count(self.shared)[1:]} stand in several of the splits "
                "that the tiles came with: scores look better than they are, and the audit says less."
            )
        return found
