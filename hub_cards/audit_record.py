"""audit.json by its schema: verdicts on the parts of a run, the figures behind them, and the files they are about."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from histodistill.hub_cards.documents import ClassName, Exact, Sha256, check_document
from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.part_files import shown


#: Version of the layout of `audit.json`. An audit of any other is of another version of histodistill.
AUDIT_FORMAT = 6
#: What an audit of images looks at, in order: nothing else is a finding, and none of them may be missing.
SET_FINDINGS = (
    "planted exact",
    "planted symmetric",
    "planted jpeg",
    "planted stain",
    "planted crop",
    "planted shift",
    "planted blend",
    "disguises",
    "false alarms",
    "copies",
    "overfitting",
    "membership",
    "classes",
)
#: What it looks at beyond that of a model.
MODEL_FINDINGS = (*SET_FINDINGS, "pool", "weights")
#: Part of a run → the findings that its verdict rests on.
PART_FINDINGS = {"distilled": SET_FINDINGS, "selector": SET_FINDINGS, "pipeline": MODEL_FINDINGS}
#: What it looks at beyond that where the tiles have groups.
GROUP_FINDINGS = ("dominance", "attributes")
#: The finding that there were too few planted copies to know anything; with it the others of that kind may be missing.
TOO_FEW_PLANTED = "planted"

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
#: Where copies and attacks are looked for: pixels, the structure of an image, and embeddings by name.
Space = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(/[A-Za-z0-9][A-Za-z0-9._-]{0,63})?$")]
_Number = Annotated[float, Field(ge=0)]
_Attack = Literal[
    "distance", "density_ratio", "distance_extreme", "density_ratio_extreme", "unit_density_ratio", "mixture"
]
#: What a group of tiles can be; never its name.
GroupKind = Literal["patient", "case", "specimen", "block", "slide", "site", "group"]
# What is known of tiles beside their label, by names that are nobody's own.
_Attribute = Annotated[
    str,
    Field(
        pattern=r"^(age|batch|centre|center|ethnicity|grade|hospital|organ|race|scanner|sex|site|stage|stain|year"
        r"|attribute [1-9][0-9]{0,2})$"
    ),
]
_Planted = Literal["exact", "symmetric", "jpeg", "stain", "crop", "shift", "blend"]
_Disguise = Literal[
    "turned by 10 to 45 degrees",
    "80 % of the side",
    "70 % of the side",
    "60 % of the side",
    "50 % of the side",
    "zoomed out to 80 %",
    "moved by a tenth",
    "moved by a tenth both ways",
    "moved by a quarter",
    "moved by a half",
    "moved by a half both ways",
    "half of it beside half of an innocent image",
    "a quadrant of each of four tiles",
    "four whole tiles, each half as large",
    "75 % of the side in an innocent image",
    "50 % of the side in an innocent image",
    "contrast of 7 grey levels",
    "negative",
    "channels swapped",
    "blurred by 2 px",
    "noise of 40 grey levels",
    "60 % of it over 40 % of an innocent image",
    "half of it over half of an innocent image",
]
# A sentence of a finding: `read_run_audit` of the training sees that it is one of ours. The longest one names all
# disguises.
_Sentence = Annotated[str, Field(min_length=1, max_length=2000)]
#: A file of a folder that is published or audited, by its place in it.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*){0,2}$")]


class IntervalFigure(Exact):
    """A share or an AUC with its interval."""

    value: Share
    low: Share
    high: Share


class AttackFigures(Exact):
    """How well an attack tells members: see `selection.membership.Attack`."""

    auc: IntervalFigure
    # Both of them.
    true_positives: Annotated[dict[Literal["0.01", "0.001"], IntervalFigure | None], Field(min_length=2)]


class OverfittingFigures(Exact):
    """See `selection.membership.Overfitting`."""

    share: IntervalFigure
    p_value: Share


class ClassCopiesFigures(Exact):
    """See `selection.audit_figures.ClassCopies`."""

    num_images: Count
    of_training: Count
    of_others: Count


class CopiesFigures(Exact):
    """See `selection.audit_figures.Copies`."""

    num_images: Count
    of_training: Count
    of_others: Count
    num_training: Count
    num_others: Count
    share: IntervalFigure
    control: _Number
    naive: Share
    p_value: Share
    per_class: dict[ClassName, ClassCopiesFigures]


class MembershipFigures(Exact):
    """See `selection.audit_figures.MembershipAttack`."""

    main: AttackFigures
    control: AttackFigures
    advantage: Annotated[float, Field(ge=-1, le=1)] | None
    naive: Share
    per_class: dict[ClassName, IntervalFigure]
    p_value: Share | None


class DominanceFigures(Exact):
    """See `selection.audit_figures.Dominance`."""

    share: Share
    usual: Share
    p_value: Share


class AttributeFigures(Exact):
    """See `selection.audit_figures.AttributeAttack`: never a value of it."""

    num_values: Count
    auc: IntervalFigure
    p_value: Share


class UnitTestsFigures(Exact):
    """See `selection.audit_figures.UnitTests`."""

    membership: Share
    overfitting: Share
    level: Share
    num_statistics: Count
    detectable_auc: Share | None
    dominance: DominanceFigures
    copied_units: Count
    attributes: dict[_Attribute, AttributeFigures]
    disclosure: Share


class SetFigures(Exact):
    """See `selection.audit_figures.SetAudit`; without the closest pairs, which are of single tiles."""

    copies: CopiesFigures
    overfitting: Annotated[dict[Space, OverfittingFigures], Field(min_length=1)]
    overfitting_per_class: dict[Space, dict[ClassName, OverfittingFigures]]
    membership: Annotated[
        dict[Space, Annotated[dict[_Attack, MembershipFigures], Field(min_length=1)]], Field(min_length=1)
    ]
    tests: UnitTestsFigures | None
    class_p_value: Share | None


class LimitsFigures(Exact):
    """See `selection.copies.CopyLimits`."""

    scale: dict[Space, _Number]
    power: dict[Space, _Number]
    limit: _Number
    false_alarms: Share
    num_held_out: Count
    num_same: Count
    guaranteed: bool


class UnitsFigures(Exact):
    """See `selection.audit_figures.Units`: how many there are, and never what they are called."""

    kind: GroupKind
    num_training: Count
    num_held_out: Count
    least_tiles: Count
    median_tiles: _Number
    most_tiles: Count
    per_class: dict[ClassName, Count]


class WeightsTestFigures(Exact):
    """See `selection.audit_figures.WeightsTest`."""

    p_value: Share
    num_training: Count
    num_held_out: Count
    detectable_auc: Share | None


class Figures(Exact):
    """See `selection.audit_figures.AuditResult`."""

    limits: LimitsFigures
    is_random: bool
    published: SetFigures
    pool: SetFigures
    planted: dict[_Planted, IntervalFigure]
    num_planted: Count
    disguised: dict[_Disguise, IntervalFigure]
    num_disguised: Count
    weights: AttackFigures | None
    num_weight_tiles: Count
    least_weight_tiles: Count
    num_left_out: Count
    units: UnitsFigures | None
    weights_test: WeightsTestFigures | None
    num_repeated: Count

    @model_validator(mode="after")
    def _is_by_one_unit(self) -> Self:
        by_group = self.units is not None
        if any((found.tests is not None) != by_group for found in (self.published, self.pool)):
            raise ValueError("the tests by group do not agree with the units")
        if (self.weights_test is not None) != (by_group and self.weights is not None):
            raise ValueError("the test of the weights does not agree with the units")
        attacks = [
            attack
            for found in (self.published, self.pool)
            for by_name in found.membership.values()
            for attack in by_name.values()
        ]
        if any((attack.p_value is not None) != by_group for attack in attacks):
            raise ValueError("the attacks do not agree with the units")
        return self


class FindingRecord(Exact):
    """One point of a verdict: its name, whether it holds, and the figures in a sentence."""

    name: str
    passed: bool
    sentence: _Sentence

    @property
    def is_control(self) -> bool:
        """Whether it is about the audit itself: what it would find, not what it found."""
        return self.name.startswith("planted") or self.name in ("disguises", "false alarms")


class VerdictRecord(Exact):
    """What was found of one part.

    Attributes:
        passed: Whether all points hold.
        findings: The points.
        files: File of the part → SHA-256.
    """

    passed: bool
    findings: tuple[FindingRecord, ...]
    files: dict[FileName, Sha256]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.passed != all(finding.passed for finding in self.findings) or not self.findings:
            raise ValueError("passed does not agree with the findings")
        return self


class AuditRecord(Exact):
    """What `audit.json` holds.

    Attributes:
        format: `AUDIT_FORMAT`.
        data: What the real tiles are called; it stays here.
        num_tiles: Real tiles of each split.
        held_out_at_random: Whether tiles were held out at random as the control.
        copies_dropped: Images of each class that were dropped as copies; None where none were looked for.
        parts: Part → its verdict.
        records: File of the run that cards tell of, such as `results.json` → SHA-256 as it was.
        warnings: What else one should know, such as a class of few patients; no verdict rests on it.
        figures: What the verdicts rest on.
    """

    format: Literal[6]
    data: Annotated[str, Field(max_length=1000)]
    num_tiles: dict[Literal["train", "validation", "test", "held_out"], Count]
    held_out_at_random: bool
    copies_dropped: dict[ClassName, Count] | None
    parts: dict[Literal["distilled", "selector", "pipeline"], VerdictRecord]
    records: dict[FileName, Sha256]
    warnings: tuple[_Sentence, ...]
    figures: Figures

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.held_out_at_random != self.figures.is_random:
            raise ValueError("held_out_at_random does not agree with the figures")
        for part, verdict in self.parts.items():
            names, expected = [finding.name for finding in verdict.findings], list(PART_FINDINGS[part])
            if self.figures.units is not None:
                expected[len(SET_FINDINGS) : len(SET_FINDINGS)] = GROUP_FINDINGS
            if TOO_FEW_PLANTED in names:  # a point that never holds
                names = [name for name in names if not name.startswith(TOO_FEW_PLANTED)]
                expected = [name for name in expected if not name.startswith(TOO_FEW_PLANTED)]
            if names != expected:
                raise ValueError(f"the findings on {part} are not those of an audit")
        return self


def is_of_this_format(document: object) -> bool:
    """Whether a document says that it is of this version; `read_audit` sees whether it is."""
    return isinstance(document, dict) and type(document.get("format")) is int and document["format"] == AUDIT_FORMAT


def read_audit(document: object) -> AuditRecord:
    """An audit of this version.

    Raises:
        ContentError: If it holds anything else, or contradicts itself.
    """
    return check_document(document, AuditRecord)


def check_space(name: str) -> None:
    """Sees that the name of an embedding can stand in an audit, and so on a card.

    Raises:
        ContentError: If it cannot.
    """
    try:
        TypeAdapter(Space).validate_python(name, strict=True)
    except ValidationError as error:
        raise ContentError(
            f"the embedder {shown(name)} has a name that cannot stand in an audit: save it to a folder, and give that"
        ) from error
