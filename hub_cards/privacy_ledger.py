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
    "pool": "pool of images",
    "teacher": "classifier that gave the soft labels",
    "selection": "selection",
}
#: What looks at real tiles outside any budget, and so is off or stays with whoever made a run: name → in words.
OFF = {
    "autoencoder_of_real_tiles": "training the autoencoder on the real tiles without noise",
    "alignment": "drawing the denoiser to the features of a classifier of real tiles",
    "teacher_of_real_tiles": "soft labels and filters by a classifier of real tiles",
    "drop_copies": "dropping images that are copies of a real tile",
    "typical_share": "dropping images that are far from real tiles",
    "scores": "telling scores, losses and counts that are of real tiles",
    "audit_figures": "telling more of the privacy audit than its verdict",
}
#: What a step is made of.
PUBLIC, TRAINING, WEIGHTS, GENERATED = "public tiles", "training tiles", "weights of the denoiser", "generated images"

_Spent = Annotated[float, Field(ge=0, lt=1e6)]


class LedgerStep(Exact):
    """What a step has spent.

    Attributes:
        step: One of `LEDGER_STEPS`.
        made_of: What it is made of.
        mechanism, accountant: By what the training tiles were protected, and by what ε was reckoned; None where it saw
            none.
        epsilon, delta: What it spent on each unit.
    """

    step: Literal["autoencoder", "denoiser", "pool", "teacher", "selection"]
    made_of: Literal["public tiles", "training tiles", "weights of the denoiser", "generated images"]
    mechanism: Literal["DP-SGD", "DP-SGD after central images"] | None = None
    accountant: Literal["prv", "rdp"] | None = None
    epsilon: _Spent = 0.0
    delta: _Spent = 0.0

    @model_validator(mode="after")
    def _is_protected(self) -> LedgerStep:
        is_private = self.mechanism is not None and self.accountant is not None and self.epsilon > 0 and self.delta > 0
        is_free = (self.mechanism, self.accountant, self.epsilon, self.delta) == (None, None, 0, 0)
        if not (is_private if self.made_of == TRAINING else is_free):
            raise ValueError("spends what it does not, or does not spend what it does")
        return self

    def sentence(self) -> str:
        """What cards say of it."""
        title = LEDGER_STEPS[self.step]
        if self.mechanism is None:
            return f"{title}: made of {self.made_of}, which spends nothing"
        by = {"prv": "privacy loss distributions", "rdp": "Rényi divergences"}[self.accountant or ""]
        spent = f"ε = {self.epsilon:.3g}, δ = {self.delta:.2g}"
        return f"{title}: made of {self.made_of} by {self.mechanism}, {spent} (reckoned by Opacus, by {by})"


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
