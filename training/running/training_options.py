"""Options that the training scripts share, with differential privacy and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from histodistill.training.running.errors import InputError, param
from histodistill.training.running.launch import NUM_PROCESSES_HELP
from histodistill.training.running.options import config, like, option, require
from histodistill.training.running.precision import PRECISION_CHOICES, PRECISION_HELP, resolve_precision
from histodistill.training.running.source_options import SourceOptions


#: Gradients of single tiles that are in memory at the same time under differential privacy, each as large as the
#: weights; a group's must all be.
MOST_TILES_PER_GROUP = 16
# Titles of the groups that `--help` shows the options in.
_DATA, _OPTIMISATION, _RUNNING, _PRIVACY = "data", "optimisation", "running", "differential privacy"
#: What differential privacy protects: all tiles of a group, such as a patient, or single ones.
UNITS = ("group", "tile")
#: What changes the weights of a generative model: see `engine/optimizers.py`.
OPTIMIZERS = ("adamw", "muon")
# What `--help` says of `audit_share`, wherever there is one.
AUDIT_SHARE_HELP = (
    "random share of the training tiles that no model sees, for the privacy audit; the same in all stages"
)


def precision_option(default: str = "auto", **about: Any) -> Any:
    """The option `mixed_precision` of a step."""
    return option(PRECISION_HELP, default=default, choices=PRECISION_CHOICES, resolve=resolve_precision, **about)


@config
class TrainingConfig(SourceOptions):
    """Options that every training has."""

    data: str | Path = option(
        "phantom, a MedMNIST name, .npz file, manifest, folder or Hub dataset id", group=_DATA, setting=False
    )
    image_size: int | None = option("side in pixels; default: the size tiles have", default=None, group=_DATA)
    class_balance: float | None = option(
        "0 draws classes as often as they occur, 1 equally often, between: n^(1 - value)",
        default=0.5,
        at_least=0,
        at_most=1,
        group=_DATA,
    )
    audit_share: float = option(
        AUDIT_SHARE_HELP,
        default=0.0,
        at_least=0,
        below=1,
        group=_DATA,
        setting=False,  # the fingerprint of the tiles tells it
    )
    output: Path = option("folder for the result", group=_DATA, setting=False, claimed=True)
    max_train_steps: int = option("optimizer steps", default=5000, at_least=1, group=_OPTIMISATION)
    batch_size: int = option("tiles per batch over all processes", default=64, at_least=1, group=_OPTIMISATION)
    gradient_accumulation_steps: int = option("batches per optimizer step", default=1, at_least=1, group=_OPTIMISATION)
    learning_rate: float | None = option("peak learning rate of AdamW", default=1e-3, above=0, group=_OPTIMISATION)
    weight_decay: float = option("weight decay", default=0.01, at_least=0, group=_OPTIMISATION)
    warmup: float = option(
        "share of the steps with rising learning rate", default=0.05, at_least=0, at_most=1, group=_OPTIMISATION
    )
    max_grad_norm: float = option("gradients are clipped to this norm", default=1.0, above=0, group=_OPTIMISATION)
    mixed_precision: str = precision_option(group=_OPTIMISATION)
    seed: int = option("seed of weights, order, augmentation and noise", default=0, at_least=0, group=_OPTIMISATION)
    validation_steps: int = option("steps between validations", default=250, at_least=1, group=_RUNNING)
    validation_tiles: int = option("validation tiles looked at, at most", default=512, at_least=1, group=_RUNNING)
    checkpointing_steps: int = option(
        "steps between checkpoints", default=250, at_least=1, group=_RUNNING, setting=False
    )
    resume: str | Path | None = option(
        "goes on from a checkpoint", default=None, metavar="latest|FOLDER", group=_RUNNING, setting=False
    )
    report_to: str | None = option(
        "optional tracker", default=None, choices=("tensorboard", "wandb", "all"), group=_RUNNING, setting=False
    )
    num_processes: int = option(NUM_PROCESSES_HELP, default=1, at_least=1, group=_RUNNING, setting=False)


def not_covered(option: str, what: str) -> InputError:
    """What to raise where a private training would begin from weights that are not said to be of public tiles.

    Args:
        option: That names them, without dashes.
        what: They are of, such as "pipeline".
    """
    return InputError(
        f"{param(option)} is not covered by {param('dp_epsilon')}: give {param('dp_public_init')} where that {what} "
        "was trained on public tiles, or begin without it"
    )


@config
class PrivateTrainingConfig(TrainingConfig):
    """Options of a training that can be private: see `histodistill.training.engine.privacy`.

    Without a `class_balance` it becomes 0 under differential privacy, where the counts of classes must not decide
    which tiles are drawn, and 0.5 otherwise.
    """

    learning_rate: float = like(TrainingConfig, "learning_rate")
    optimizer: str = option(
        "what changes the weights; muon learns as much in fewer steps, with a learning rate 25 times as large for "
        "matrices in trainings of up to 1,600 steps and less in longer ones, and takes a little more time for each",
        default=OPTIMIZERS[0],
        choices=OPTIMIZERS,
        group=_OPTIMISATION,
        later=True,
    )
    class_balance: float | None = option(
        "0 draws classes as often as they occur, 1 equally often, between: n^(1 - value); default: 0.5, and 0 with "
        "--dp-epsilon",
        default=None,
        at_least=0,
        at_most=1,
        group=_DATA,
    )
    gradient_checkpointing: bool = option(
        "computes parts of the forward pass again in the backward pass: a fraction of the memory, a third more time",
        default=False,
        group=_RUNNING,
        setting=False,  # the losses are the same
    )
    compile: bool = option(
        "compiles the model first, which takes minutes, and needs Triton on a GPU and a C++ compiler on a CPU",
        default=False,
        group=_RUNNING,
        later=True,  # compiled models round otherwise
    )
    dp_epsilon: float | None = option(
        "trains with differential privacy and spends this much on each unit, see --dp-unit; needs opacus",
        default=None,
        above=0,
        group=_PRIVACY,
    )
    dp_delta: float | None = option(
        "the δ that goes with it; default: a tenth of 1 / number of training units",
        default=None,
        above=0,
        below=1,
        group=_PRIVACY,
    )
    dp_unit: str | None = option(
        "what ε is of: group, all tiles of a patient or another group together, or tile, a single tile; default: "
        "group where the source has groups, and else tile",
        default=None,
        choices=UNITS,
        group=_PRIVACY,
        setting=False,  # what it comes to for the tiles is one: see `unit_settings`
    )
    dp_tiles_per_group: int = option(
        "with groups, tiles of each that take part in a step, at most, drawn anew in each step; so many groups take "
        "part that --batch-size tiles are expected where each has as many",
        default=4,
        at_least=1,
        at_most=MOST_TILES_PER_GROUP,
        group=_PRIVACY,
        setting=False,
    )
    dp_max_grad_norm: float = option(
        "the gradient of each unit is clipped to this norm; --max-grad-norm then has no effect",
        default=1.0,
        above=0,
        group=_PRIVACY,
    )
    dp_views: int = option(
        "augmented views of a tile whose mean gradient is the tile's: more cost time, and no privacy",
        default=4,
        at_least=1,
        group=_PRIVACY,
    )

    def check(self) -> None:
        """Chooses the class balance, and checks the options that do not go with differential privacy."""
        private = self.dp_epsilon is not None
        if self.class_balance is None:
            object.__setattr__(self, "class_balance", 0.0 if private else 0.5)
        if not private:
            for name in ("dp_delta", "dp_unit"):
                if getattr(self, name) is not None:
                    raise InputError(f"{param(name)} says nothing without {param('dp_epsilon')}: give both or neither")
            return
        rule = f"with {param('dp_epsilon')} it must be {{}}"
        require(
            self.class_balance == 0, "class_balance", self.class_balance, rule.format("0, which draws all tiles alike")
        )
        require(
            self.gradient_accumulation_steps == 1,
            "gradient_accumulation_steps",
            self.gradient_accumulation_steps,
            rule.format(f"1: give a larger {param('batch_size')}, which needs no more memory"),
        )
        require(self.mixed_precision != "fp16", "mixed_precision", self.mixed_precision, rule.format("bf16 or no"))
        for name in ("compile", "gradient_checkpointing"):  # gradients are taken tile by tile
            require(not getattr(self, name), name, getattr(self, name), rule.format("left out"))

    def unit_of(self, has_groups: bool) -> str:
        """What differential privacy protects, one of `UNITS`.

        Args:
            has_groups: Whether the training tiles have groups.

        Raises:
            InputError: If it is groups, and there are none.
        """
        if self.dp_unit == "group" and not has_groups:
            raise InputError(
                f"{param('dp_unit')}=group needs groups, and these tiles have none: say which tiles belong together "
                f"with {param('group_column')} or {param('group_pattern')}, or give {param('dp_unit')}=tile"
            )
        return self.dp_unit or ("group" if has_groups else "tile")

    def unit_settings(self, has_groups: bool) -> dict[str, Any]:
        """What beside `settings` decides the result, given the tiles: how groups are protected, where they are.

        Raises:
            InputError: As for `unit_of`.
        """
        if self.dp_epsilon is None or self.unit_of(has_groups) == "tile":
            return {}
        return {"dp_unit": "group", "dp_tiles_per_group": self.dp_tiles_per_group}

    def settings(self) -> dict[str, Any]:
        """The options that decide the result; those of differential privacy only where there is any."""
        settings = super().settings()
        if self.dp_epsilon is None:
            settings = {name: value for name, value in settings.items() if not name.startswith("dp_")}
        return settings
