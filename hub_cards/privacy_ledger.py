"""The ledger of a run under differential privacy: what each of its steps has spent, in numbers and names of a list."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from histodistill.hub_cards.audit_record import Count, GroupKind
from histodistill.hub_cards.documents import Exact


#: The steps whose results are published, in their order, and what cards call them.
LEDGER_STEPS = {
    "autoencoder": "autoencoder",
    "denoiser": "denoiser",
    "pool": "pool of generated images",
    "teacher": "classifier that gave the soft labels",
    "selection": "selection",
}
#: What looks at real tiles outside any budget, and so is off or stays with whoever made a run: name → in words.
OFF = {
    "autoencoder_of_real_tiles": "an autoencoder that is trained on the real tiles; it was made of public ones",
    "alignment": "drawing the denoiser to the features of a classifier of real tiles",
    "teacher_of_real_tiles": "soft labels and filters by a classifier of real tiles; it was trained on generated images",
    "drop_copies": "dropping images that are copies of a real tile",
    "typical_share": "dropping images that are far from real tiles",
    "scores": "scores, losses and counts that are of real tiles: they are not on the cards",
    "audit_figures": "the figures of the privacy audit: of each repository its verdict alone is told",
}
#: What a step sees.
PUBLIC, TRAINING, GENERATED = "public tiles", "training tiles", "generated images"

_Spent = Annotated[float, Field(ge=0, lt=1e6)]


class LedgerStep(Exact):
    """What a step has spent.

    Attributes:
        step: One of `LEDGER_STEPS`.
        sees: What it was made from.
        mechanism, accountant: By what the training tiles were protected, and by what ε was reckoned; None where it saw
            none.
        epsilon, delta: What it spent on each unit.
    """

    step: Literal["autoencoder", "denoiser", "pool", "teacher", "selection"]
    sees: Literal["public tiles", "training tiles", "generated images"]
    mechanism: Literal["DP-SGD"] | None = None
    accountant: Literal["prv", "rdp"] | None = None
    epsilon: _Spent = 0.0
    delta: _Spent = 0.0

    @model_validator(mode="after")
    def _is_protected(self) -> LedgerStep:
        is_private = self.mechanism is not None and self.accountant is not None and self.epsilon > 0 and self.delta > 0
        is_free = (self.mechanism, self.accountant, self.epsilon, self.delta) == (None, None, 0, 0)
        if not (is_private if self.sees == TRAINING else is_free):
            raise ValueError("spends what it does not, or does not spend what it does")
        return self

    def sentence(self) -> str:
        """What cards say of it."""
        title = LEDGER_STEPS[self.step]
        if self.mechanism is None:
            return f"{title}: of {self.sees}, which spends nothing"
        by = {"prv": "privacy loss distributions", "rdp": "Rényi divergences"}[self.accountant or ""]
        spent = f"ε = {self.epsilon:.3g}, δ = {self.delta:.2g}"
        return f"{title}: of {self.sees} by {self.mechanism}, {spent} (reckoned by Opacus, by {by})"


class Ledger(Exact):
    """What all steps of a run have spent on each unit, up to what is published.

    Attributes:
        unit: What a unit is: a single tile, or a group.
        num_units: Units that the training tiles are of; known to everybody.
        epsilon, delta: The budget.
        composition: How what steps spend is added up: "basic", by the sums of ε and δ.
        steps: All of `LEDGER_STEPS` in order.
        off: What is off, of `OFF`.
    """

    unit: Literal["tile"] | GroupKind
    num_units: Count
    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    composition: Literal["basic"]
    steps: list[LedgerStep]
    off: list[
        Literal[
            "autoencoder_of_real_tiles",
            "alignment",
            "teacher_of_real_tiles",
            "drop_copies",
            "typical_share",
            "scores",
            "audit_figures",
        ]
    ]

    @model_validator(mode="after")
    def _is_within_budget(self) -> Ledger:
        if [step.step for step in self.steps] != list(LEDGER_STEPS):
            raise ValueError("does not tell of each step once")
        for name in ("epsilon", "delta"):
            spent = math.fsum(getattr(step, name) for step in self.steps)
            if spent > getattr(self, name) * (1 + 1e-9):
                raise ValueError(f"spends more {name} than there is")
        return self

    def sentences(self) -> list[str]:
        """What cards say of the steps, a sentence each."""
        return [f"{sentence[0].upper()}{sentence[1:]}." for sentence in (step.sentence() for step in self.steps)]

    def off_words(self) -> list[str]:
        """What is off, in words."""
        return [OFF[name] for name in self.off]
