"""The records of a run as its cards take them: what is known is read by a schema, and the rest is not looked at.

A record of a stage stays here, and a later version may write more into it. But what a card tells of it is a number in
its range, a name from a list, or the card is not made.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from histodistill.hub_cards.audit_record import Count, GroupKind, Share
from histodistill.hub_cards.documents import ClassName, Known, Sha256, Version
from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.group_facts import GroupFacts
from histodistill.hub_cards.privacy_ledger import Ledger
from histodistill.hub_cards.review_facts import ReviewFacts
from histodistill.training.distillation.select import SelectConfig
from histodistill.training.engine.classifier_config import LOSSES
from histodistill.training.generate import GenerateConfig
from histodistill.training.models.encoder_names import is_architecture_label
from histodistill.training.models.encoder_record import EncoderRecord, LicenseId
from histodistill.training.running.errors import InputError
from histodistill.training.running.options import StepConfig, check_values
from histodistill.training.train_autoencoder import TrainAutoencoderConfig
from histodistill.training.train_classifier import TrainClassifierConfig
from histodistill.training.train_diffusion import TrainDiffusionConfig


#: Folder of a stage that cards tell of → its options.
STAGE_OPTIONS: dict[str, type[StepConfig]] = {
    "autoencoder": TrainAutoencoderConfig,
    "pipeline": TrainDiffusionConfig,
    "teacher": TrainClassifierConfig,
    "pool": GenerateConfig,
    "distilled": SelectConfig,
}
# What the texts must be that options take which name no choices.
_WORDS = {"architecture": is_architecture_label, "loss": LOSSES.__contains__}
# Characters of the value of a setting on a card, at most; of a number, as many as a float64 may have.
_LONGEST_SETTING, _LONGEST_NUMBER = 100, 24
_Package = Literal[
    "histodistill", "torch", "diffusers", "transformers", "datasets", "accelerate", "infomap", "faiss-cpu"
]


# Numbers of the communities of a class.
Counts = Annotated[tuple[Count, ...], Field(max_length=100_000)]


class Budget(Known):
    """A budget of differential privacy."""

    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]


class PrivacyRecord(Known):
    """What the record of a training with differential privacy says of it."""

    unit: Literal["tile"] | GroupKind = "tile"
    autoencoder: Literal["public"] | Budget
    init: Literal["public"] | None = None
    total: Budget


class PretrainedRecord(Known):
    """What the record of an autoencoder says of the one from elsewhere that it is, or began from."""

    is_taken: bool
    name: ClassName | None = None
    license: LicenseId | None = None


class StageRecord(Known):
    """stage.json of any stage."""

    complete: bool
    settings: dict[str, Any]
    inputs: dict[str, Sha256] = Field(default_factory=dict)
    versions: dict[_Package, Version] = Field(default_factory=dict)
    image_size: Count | None = None
    num_images: Count | None = None
    validation_psnr: Annotated[float, Field(ge=-200, le=200)] | None = None
    validation_ssim: Annotated[float, Field(ge=-1, le=1)] | None = None
    teacher_agreement: Share | None = None
    teacher_accuracy: Share | None = None
    teacher_accuracy_reconstructed: Share | None = None
    pretrained: PretrainedRecord | None = None
    validation_loss: Annotated[float, Field(ge=0, le=1e9)] | None = None
    test_accuracy: Share | None = None
    privacy: PrivacyRecord | None = None
    community_sizes: dict[str, Counts] = Field(default_factory=dict)
    community_chosen: dict[str, Counts] = Field(default_factory=dict)
    dropped: dict[str, Count] = Field(default_factory=dict)
    copies_dropped: dict[str, Count] | None = None
    reviewed: ReviewFacts | None = None
    encoders: Annotated[tuple[EncoderRecord, ...], Field(max_length=20)] = ()


class RunRecord(Known):
    """run.json."""

    format: Literal[1] = 1
    data: str
    num_tiles: dict[Literal["train", "validation", "test", "held_out"], Count] | None = None
    groups: GroupFacts | None = None
    privacy: Ledger | None = None


class TeacherResults(Known):
    """results.json of the teacher."""

    class Data(Known):
        """What it was trained on."""

        train: str

    data: Data


def stage_settings(record: StageRecord, stage: str) -> dict[str, str]:
    """The options of a stage that decided its result, as a card shows them: name → value.

    Args:
        record: Of the stage.
        stage: A key of `STAGE_OPTIONS`.

    Raises:
        ContentError: For a value that the option does not take.
    """
    shown = {}
    for field in dataclasses.fields(STAGE_OPTIONS[stage]):
        if field.metadata["option"].setting and field.name in record.settings:
            value = check_setting(record, stage, field.name)
            shown[field.name] = shown_value(field.name, value)
    return dict(sorted(shown.items()))


def check_setting(record: StageRecord, stage: str, name: str) -> Any:
    """The value of an option of a stage.

    Raises:
        ContentError: If the record has none, or the option does not take it.
    """
    if name not in record.settings:
        raise ContentError(f"has no setting {name}")
    try:
        check_values(STAGE_OPTIONS[stage], {name: record.settings[name]})
    except InputError as error:
        raise ContentError(f"holds a setting {name} that the option does not take") from error
    return record.settings[name]


def shown_value(name: str, value: Any) -> str:
    """A setting as text. Raises ContentError for a text that no option takes, and for what is very long."""
    if isinstance(value, str) and name in _WORDS and not _WORDS[name](value):
        raise ContentError(f"holds a setting {name} that the option does not take")
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) > (_LONGEST_NUMBER if isinstance(value, int | float) else _LONGEST_SETTING):
        raise ContentError(f"holds a setting {name} that is longer than a card shows")
    return text


def by_class(found: Mapping[str, Any], class_names: list[str]) -> dict[str, Any]:
    """Values by class, for all classes or none.

    Raises:
        ContentError: For names that are not those of the classes.
    """
    if found and sorted(found) != sorted(class_names):
        raise ContentError("holds numbers of other classes than those of the images")
    return {name: found[name] for name in class_names if name in found}
