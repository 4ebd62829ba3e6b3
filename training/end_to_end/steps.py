"""The steps of a distillation: their sections in a preset, what they are given, and how each is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from histodistill.training import generate, train_autoencoder, train_classifier, train_diffusion
from histodistill.training.distillation import select
from histodistill.training.evaluation import audit, compare
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.options import Kind, StepConfig, check_values, to_argv
from histodistill.training.running.source_options import SOURCE_DEFAULTS
from histodistill.training.running.suggestions import did_you_mean


# The steps by the name of their section in a preset, in order.
STEPS: dict[str, type[StepConfig]] = {
    "autoencoder": train_autoencoder.TrainAutoencoderConfig,
    "diffusion": train_diffusion.TrainDiffusionConfig,
    "teacher": train_classifier.TrainClassifierConfig,
    "generate": generate.GenerateConfig,
    "select": select.SelectConfig,
    "compare": compare.CompareConfig,
    "audit": audit.AuditConfig,
}


@dataclass(frozen=True)
class Budget:
    """What a distillation may spend of differential privacy.

    Attributes:
        epsilon, delta: Of each unit, by all steps together; None for the δ that is usual for so many units.
        public_data: Source of the public tiles that the autoencoder is made of.
    """

    epsilon: float
    delta: float | None
    public_data: str | Path


@dataclass(frozen=True)
class Common:
    """What `distill` itself says to all steps: where things lie, and what they must agree on.

    Attributes:
        data: Source of the real tiles.
        output: Folder of the run.
        audit_share: Share of the training tiles that no model sees.
        seed: Seed of every step.
        mixed_precision: Of the trainings.
        num_processes: Processes that share the work of a step.
        source: What is said of groups and files of the tiles, see `SourceOptions.source_options`.
        budget: What may be spent; None where real tiles may be looked at without.
        exclude: Files of reviewers of the set that is there: see `SelectConfig`.
    """

    data: str | Path
    output: Path
    audit_share: float
    seed: int
    mixed_precision: str
    num_processes: int = 1
    source: Mapping[str, Any] = field(default_factory=dict)
    budget: Budget | None = None
    exclude: tuple[Path, ...] = ()

    def given(self, image_size: int | None = None) -> dict[str, dict[str, Any]]:
        """The options of each step that are decided by it.

        Args:
            image_size: Side of the tiles in pixels, where it is known already.
        """
        out = self.output
        tiles = {"data": self.data, **SOURCE_DEFAULTS, **self.source}
        data = {**tiles, "image_size": image_size}
        training = {
            **data,
            "audit_share": self.audit_share,
            "seed": self.seed,
            "mixed_precision": self.mixed_precision,
            "resume": "latest",
        }
        given = {
            "autoencoder": {**training, "output": out / "autoencoder"},
            "diffusion": {**training, "output": out / "pipeline", "autoencoder": out / "autoencoder", "align": None},
            # It is the first that can say what the autoencoder loses.
            "teacher": {**training, "output": out / "teacher", "autoencoder": out / "autoencoder"},
            "generate": {"pipeline": out / "pipeline", "output": out / "pool", "seed": self.seed},
            "select": {
                "pool": out / "pool",
                "teacher": out / "teacher",
                **tiles,
                "output": out,
                "seed": self.seed,
                "exclude": self.exclude,
            },
            "audit": {"run": out, **tiles, "audit_share": self.audit_share, "seed": self.seed},
            "compare": {"run": out, **data, "seeds": [self.seed], "mixed_precision": self.mixed_precision},
        }
        return given if self.budget is None else self._within(self.budget, given)

    def _within(self, budget: Budget, given: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The same under differential privacy: no step but the denoiser is shown the real tiles.

        Comparison and audit look at them, and what they find stays here.
        """
        not_these: dict[str, Any] = {**SOURCE_DEFAULTS, "cache_dir": self.source.get("cache_dir"), "audit_share": 0.0}
        changes: dict[str, dict[str, Any]] = {
            "autoencoder": {**not_these, "data": budget.public_data},
            "diffusion": {"dp_epsilon": budget.epsilon, "dp_delta": budget.delta, "dp_public_autoencoder": True},
            "teacher": {
                **not_these,
                "data": self.output / "pool",
                "eval_data": None,
                "image_size": None,
                "autoencoder": None,
            },
            "select": {**SOURCE_DEFAULTS, "data": None, "drop_copies": False, "typical_share": None},
        }
        return {step: {**options, **changes.get(step, {})} for step, options in given.items()}


@dataclass(frozen=True)
class StageCall:
    """How `distill` runs one step.

    Attributes:
        title: What the user is told.
        folder: Folder in the run that holds the step's record.
        step: The step's module.
        config: Its options.
        num_processes: Processes that share its work.
        also_leaves: What the step leaves outside its folder.
    """

    title: str
    folder: str
    step: ModuleType
    config: StepConfig
    num_processes: int
    also_leaves: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """The name of the step's module."""
        return self.step.__name__

    @property
    def argv(self) -> list[str]:
        """What the module is started with."""
        return to_argv(self.config)


def stage_calls(common: Common, run: Mapping[str, Any]) -> list[StageCall]:
    """Every step, in order.

    Args:
        common: What all steps are told.
        run: What run.json holds: the side of the tiles in pixels and the settings.

    Raises:
        InputError: For options that a step refuses.
    """
    many = common.num_processes
    embedders = ["untrained", str(common.output / "autoencoder")]
    # What distill would have and a preset may change.
    usual: dict[str, dict[str, Any]] = {
        "select": {"copy_embedders": embedders, "drop_copies": True},
        "audit": {"embedders": embedders},
    }
    given = common.given(run["image_size"])
    if _options_of(run["settings"], "diffusion").get("align_weight"):
        given["diffusion"]["align"] = common.output / "teacher"
    configs = {}
    for step, config_class in STEPS.items():
        options = {**usual.get(step, {}), **_options_of(run["settings"], step), **given[step]}
        try:
            configs[step] = config_class(**options)
        except InputError as error:
            raise InputError(f"step {step}: {error}") from error
    teacher = StageCall("teacher", "teacher", train_classifier, configs["teacher"], many)
    is_of_pool = common.budget is not None
    return [
        StageCall("autoencoder", "autoencoder", train_autoencoder, configs["autoencoder"], many),
        *([] if is_of_pool else [teacher]),
        StageCall("denoiser", "pipeline", train_diffusion, configs["diffusion"], many),
        StageCall("pool", "pool", generate, configs["generate"], many),
        *([teacher] if is_of_pool else []),
        StageCall("selection", "distilled", select, configs["select"], 1, ("selector/config.json",)),
        StageCall("comparison", "comparison", compare, configs["compare"], many, ("results.json",)),
        # The last: it seals what the steps before it have left.
        StageCall("privacy audit", "audit", audit, configs["audit"], 1, ("audit.json",)),
    ]


def _options_of(settings: Mapping[str, Any], step: str) -> dict[str, Any]:
    """The options of a step as run.json has them."""
    if step == "compare":
        return {"train": settings["compare"], **settings.get("compare_options", {})}
    return settings.get(step, {})


def read_change(text: str, given: Mapping[str, Mapping[str, Any]]) -> tuple[str, str, Any]:
    """Step, option and value of a text `STEP.OPTION=VALUE`.

    Raises:
        InputError: If it is none, or no option that may be set.
    """
    place, equals, value = text.partition("=")
    step, dot, name = place.partition(".")
    name = name.replace("-", "_")
    if not equals or not dot or not name or step not in STEPS:
        meant = did_you_mean(step, STEPS) if step not in STEPS else ""
        raise InputError(
            f"{param('set')} {text} is not STEP.OPTION=VALUE with one of the steps {', '.join(STEPS)}{meant}: write "
            "it as in diffusion.learning_rate=1e-4"
        )
    known = [known_field.name for known_field in fields(STEPS[step])]
    try:
        refuse_given({name: None}, given[step])
        if name not in known:
            meant = did_you_mean(name, known)
            raise InputError(f"{name} is no option of {step}{meant}: it must be one of {', '.join(known)}")
        read = Kind.of(STEPS[step], name).read_text(name, value)
        check_values(STEPS[step], {name: read})
    except InputError as error:
        raise InputError(f"{param('set')} {text}: {error}") from error
    return step, name, list(read) if isinstance(read, tuple) else read


def refuse_given(options: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuses options that are the same for all steps, say where things lie, or spend what there is no budget for."""
    for name in options:
        if name in given or name == "num_processes":
            raise InputError(f"{name} cannot be set for one step, since distill gives it to all: leave it out here")
        if name.startswith("dp_") and "dp_epsilon" not in given:
            raise InputError(
                f"{name} cannot be set here, since soft labels and the dropping of copies look at real tiles without "
                f"differential privacy: give {param('dp_epsilon')} to distill, under which options of diffusion can be"
            )
