"""What the cards of all repositories of one run say alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from huggingface_hub import EvalResult

from histodistill.hub_cards.audit_record import AuditRecord
from histodistill.hub_cards.gate import audit_sentences
from histodistill.hub_cards.group_facts import GroupFacts
from histodistill.hub_cards.privacy_ledger import Ledger
from histodistill.hub_cards.site_verdict import MergedRecord


#: What texts call the architectures of classifiers.
ARCHITECTURES = {"convnet": "ConvNet", "resnet18": "ResNet-18", "vit": "ViT"}
#: In what numbers images were generated, by the setting of a pool.
PRECISIONS = {
    "no": "float32",
    "bf16": "bfloat16 (torch.autocast)",
    "fp16": "float16 (torch.autocast)",
}
#: What stands in a model index for the id on the Hub of test tiles that nobody else has.
PRIVATE_TILES = "private-test-tiles"
# Rows of scores that cards show at once, beside that of the distilled set: what to compare it with. And the number of
# rows up to which they show all.
_COMPARED, _FEW_ROWS = ("real_all", "real_random"), 6
# What the model index of the Hub calls the scores.
_METRICS = {"accuracy": "Accuracy", "auc": "Macro one-vs-rest AUC", "f1": "Macro F1"}
# The identifiers of the same scores in that index, which are those of the library evaluate.
_METRIC_TYPES = {"accuracy": "accuracy", "auc": "roc_auc", "f1": "f1"}


def architecture_title(name: str) -> str:
    """What texts call an architecture.

    Args:
        name: A key of `ARCHITECTURES`; or the name of a model, alone, after `scratch:`, or, of an encoder, after
            `probe:`.
    """
    kind, _, model = name.partition(":")
    if kind == "probe":
        whose = {"autoencoder": "the run's own autoencoder", "teacher": "the teacher's features"}
        return f"probe of {whose.get(model, model)}"
    return f"{model}, from scratch" if kind == "scratch" else ARCHITECTURES.get(name, name)


def classifier_name(name: str) -> str:
    """What tables call an architecture: one of `ARCHITECTURES` as it is typed, and others by `architecture_title`."""
    return name if name in ARCHITECTURES else architecture_title(name)


@dataclass(kw_only=True)
class AuditFacts:
    """What the privacy audit of a repository found.

    Attributes:
        passed: Whether it passed.
        findings: What it found, in plain words, one sentence each.
        controls: Whether it would have found what it looked for, in the same way; those that hold.
    """

    passed: bool
    findings: Sequence[str] = ()
    controls: Sequence[str] = ()

    @classmethod
    def of(cls, audit: AuditRecord | MergedRecord, part: str) -> AuditFacts:
        """What an audit says of a part of a run that it is about, or of a merged set."""
        verdict = audit.parts[part]  # type: ignore[index]
        told = list(zip(verdict.findings, audit_sentences(audit, part), strict=True))
        controls = [sentence for finding, sentence in told if finding.passed and finding.is_control]
        findings = [sentence for _, sentence in told if sentence not in controls]
        return cls(passed=verdict.passed, findings=findings, controls=controls)


@dataclass(kw_only=True)
class PrivacyFacts:
    """Differential privacy of the weights of a pipeline, or of all that is published of a run.

    Attributes:
        epsilon, delta: Spent on each unit by the autoencoder and the denoiser together.
        unit: What a unit is: a training tile, or a group, such as a patient, of which it is all training tiles.
        ledger: What each step has spent, where all that is published is within the budget; None where that is so of
            the weights alone.
        public_autoencoder: Whether the autoencoder is said to be of public tiles, and so has spent nothing.
        public_init: Whether the denoiser began from weights that are said to be of public tiles.
        uncovered: What of the distilled set it does not cover, in plain words, one sentence each.

    Raises:
        ValueError: For a budget that bounds nothing.
    """

    epsilon: float
    delta: float
    unit: str = "tile"
    ledger: Ledger | None = None
    public_autoencoder: bool = False
    public_init: bool = False
    uncovered: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, number in (("epsilon", self.epsilon), ("delta", 1 - self.delta)):
            if not number > 0:
                raise ValueError(f"{name}={getattr(self, name)} is out of range: it bounds nothing")


@dataclass(kw_only=True)
class PretrainedFacts:
    """An autoencoder from elsewhere that a run's own is, or began from.

    Attributes:
        is_taken: Whether it was taken as it is, and not trained further.
        name: What it is called, as whoever made the run states it, or by its Hub id; None where that was not stated.
        license: Licence identifier of the Hub, as stated; None where it was not.
    """

    is_taken: bool
    name: str | None = None
    license: str | None = None


@dataclass(kw_only=True)
class RunFacts:
    """A run as its cards tell of it. What is None or empty was not measured, and the cards say so.

    Attributes:
        repos: Id on the Hub of the "pipeline", "selector" and "dataset" repository; those that are published.
        name: What the real tiles are called.
        is_phantom: Whether the "real" tiles were the built-in drawings, whatever they are called.
        class_names: Names of the labels; the index is the label.
        image_size: Side of the images in pixels.
        num_distilled: Distilled images of all classes together.
        num_tiles: Real tiles of each split.
        groups: The groups of the training tiles, such as patients; None where nothing is known of them.
        license: Licence identifier of the Hub.
        attribution: Whom to credit for the real tiles.
        results: Rows of `results.json`: `row`, `title`, `architecture`, `num_train`, `seeds`, and `accuracy`, `auc`
            and `f1`, each `{"mean": .., "std": ..}`.
        own_row: The `row` that stands for the distilled set.
        test_tiles: What the real test tiles of `results` are called in public.
        test_tiles_id: What stands for their id on the Hub.
        benchmark: Rows of the results table: `title`, `architecture`, `size` (None for all), `steps` as text, `seeds`,
            the same scores, and `margin`, the mean, low and high of the accuracy over random choice, or None.
        validation: What the training of the models ended with, name → text.
        settings: Options of each stage, stage → name → value.
        versions: Versions of the packages, name → text.
        privacy: Of the pipeline's training, where that was differentially private.
        warm_start: Whether the denoiser began from the weights of another pipeline.
        pretrained: The autoencoder from elsewhere, where there is one.
        audit: What the privacy audit of the repository found.
        risk: What the gate said, where it refused and was overridden.
    """

    repos: Mapping[str, str]
    name: str
    is_phantom: bool
    class_names: Sequence[str]
    image_size: int
    num_distilled: int
    num_tiles: Mapping[str, int] | None = None
    groups: GroupFacts | None = None
    license: str | None = None
    attribution: str | None = None
    results: Sequence[Mapping[str, Any]] = field(default_factory=list)
    own_row: str | None = None
    test_tiles: str = "private test tiles"
    test_tiles_id: str = PRIVATE_TILES
    benchmark: Sequence[Mapping[str, Any]] = field(default_factory=list)
    validation: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    privacy: PrivacyFacts | None = None
    warm_start: bool = False
    pretrained: PretrainedFacts | None = None
    audit: AuditFacts | None = None
    risk: str | None = None

    @property
    def is_within_budget(self) -> bool:
        """Whether all that is published is within a budget of differential privacy."""
        return self.privacy is not None and self.privacy.ledger is not None

    def audited(self, audit: AuditFacts | None, risk: str | None = None) -> RunFacts:
        """The same with what the audit found; its verdict alone where all that is published is within a budget.

        Args:
            audit, risk: See `RunFacts`.
        """
        if audit is not None and self.is_within_budget:
            audit = AuditFacts(passed=audit.passed)
        return replace(self, audit=audit, risk=risk)

    def subject_tags(self) -> list[str]:
        """Tags of a card that say what the images show."""
        return [] if self.is_phantom else ["histopathology", "medical"]

    def eval_results(self) -> list[EvalResult]:
        """The scores on real test tiles as the Hub's model index has them, with a link to the distilled set."""
        found = []
        for row in self.results:
            if row["row"] != self.own_row or "dataset" not in self.repos:
                continue
            classifier = architecture_title(row["architecture"])
            for metric, title in _METRICS.items():
                if row[metric]["mean"] is None:
                    continue
                found.append(
                    EvalResult(
                        task_type="image-classification",
                        task_name=f"{classifier} trained on images of this model ({row['title']})",
                        dataset_type=self.test_tiles_id,
                        dataset_name=self.test_tiles,
                        dataset_split="test",
                        metric_type=_METRIC_TYPES[metric],
                        metric_name=f"{title}, {classifier}, mean over {_count(len(row['seeds']), 'seed')}",
                        metric_value=round(row[metric]["mean"], 4),
                        source_name="the distilled set that it was trained on",
                        source_url=f"https://huggingface.co/datasets/{self.repos['dataset']}",
                    )
                )
        return found


def split_scores(
    rows: Sequence[Mapping[str, Any]], own_row: str | None
) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    """The rows of scores that a card shows at once, and those that it folds away; a few are all shown.

    Args:
        rows: Rows as `RunFacts.results` has them.
        own_row: The `row` that stands for the distilled set.
    """
    shown = [row for row in rows if row.get("row") in (*_COMPARED, own_row)]
    if len(rows) <= _FEW_ROWS or not shown:
        return rows, []
    return shown, [row for row in rows if row not in shown]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
