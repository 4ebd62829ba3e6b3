"""Trains the autoencoder of the latent diffusion model: diffusers' `AutoencoderDC` on real tiles.

    accelerate launch -m histodistill.training.train_autoencoder --data phantom --output runs/phantom/autoencoder

The network is that of the Deep Compression Autoencoder (Chen et al. 2024, arXiv:2410.10733): it halves and doubles
the size by moving pixels to channels and back, with shortcuts that lose nothing. It is trained as a variational
autoencoder whose posterior has a fixed standard deviation (Ghosh et al. 2020, arXiv:1903.12436): its mean is the
latent. Large tiles are shown in random crops, since all of it is convolutions. The output folder loads with
`from_pretrained` of its class. Its config carries the scale of the latents, measured on the training tiles:
latent * scaling_factor has a mean square of 1.

`--autoencoder` takes one from elsewhere as it is, an `AutoencoderKL`, `AutoencoderDC` or `AutoencoderTiny` of
diffusers by folder or Hub id, and measures what brings its latents to a mean of 0, where its class has a shift, and a
mean square of 1. With `--finetune-autoencoder` it is trained further. `--init-from` begins a new one with all weights
that fit.

With `--dp-epsilon` it trains with differential privacy (see `engine/privacy.py`), and measures the scale on validation
tiles.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histodistill.selection.streams import torch_seed
from histodistill.training.running.claims import claiming
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.notes import suggest, tell, warn
from histodistill.training.running.options import StepParser, config, like, option, require, run_script
from histodistill.training.running.training_options import PrivateTrainingConfig, not_covered


if TYPE_CHECKING:
    from accelerate import Accelerator

    from histodistill.training.data.tiles import TileSource
    from histodistill.training.engine.autoencoder_training import AutoencoderTraining
    from histodistill.training.engine.privacy import PrivacyPlan
    from histodistill.training.models.classifiers import Classifier
    from histodistill.training.models.latents import LatentModel
    from histodistill.training.running.stages import Stage


# Title of the options of autoencoders from elsewhere.
_PRETRAINED = "autoencoders from elsewhere"
# Optimizer steps where neither they nor pixels are asked for.
_USUAL_STEPS = 2000
# Tiles are shown whole up to this side in pixels, or so many positions of their latents: what lies beyond a few of
# these tells a position little, and the more tiles a batch is of, the more it tells.
_WHOLE_SIDE, _WHOLE_POSITIONS = 64, 16
# Peak learning rates: of a new autoencoder, and of a trained one, whose weights a larger one would undo.
_LEARNING_RATE, _FINE_LEARNING_RATE = 2e-3, 1e-4
# The options of a new model.
_OF_NEW_MODEL = ("channels", "latent_channels", "layers_per_block", "plain_finest")
# The options that say something of an autoencoder from elsewhere that is taken as it is.
_OF_TAKEN = ("image_size", "mixed_precision", "validation_tiles")


@config
class TrainAutoencoderConfig(PrivateTrainingConfig):
    """Options of `train_autoencoder`."""

    # None where `train_pixels` is given: `for_tiles` then says how many they are.
    max_train_steps: int | None = like(  # type: ignore[assignment]
        PrivateTrainingConfig,
        "max_train_steps",
        help=f"optimizer steps; default: {_USUAL_STEPS}, or what --train-pixels asks for",
        default=None,
    )
    train_pixels: int | None = option(
        "pixels shown in all, tiles × height × width, in place of --max-train-steps",
        default=None,
        at_least=1,
        group="optimisation",
        later=True,
    )
    crop_size: int | None = option(
        f"side in pixels of the random part that is shown of a tile; default: the whole tile up to {_WHOLE_SIDE} px, "
        f"or {_WHOLE_POSITIONS} positions of its latent",
        default=None,
        at_least=1,
        metavar="PX",
        group="optimisation",
        later=True,
    )
    batch_size: int = like(PrivateTrainingConfig, "batch_size", default=32)
    learning_rate: float | None = like(  # type: ignore[assignment]  # `check` chooses
        PrivateTrainingConfig,
        "learning_rate",
        help=f"peak learning rate of AdamW; default: {_LEARNING_RATE:g}, and {_FINE_LEARNING_RATE:g} with "
        "--finetune-autoencoder",
        default=None,
    )
    weight_decay: float = like(PrivateTrainingConfig, "weight_decay", default=0.0)
    autoencoder: str | Path | None = option(
        "folder or Hub id of an AutoencoderKL, AutoencoderDC or AutoencoderTiny of diffusers, or of a pipeline with "
        "one: it is taken as it is, and the options of the model do not count",
        default=None,
        metavar="NAME_OR_FOLDER",
        group=_PRETRAINED,
        setting=False,  # the record holds a hash of its weights
    )
    finetune_autoencoder: bool = option(
        "train all weights of --autoencoder further on these tiles", default=False, group=_PRETRAINED, later=True
    )
    init_from: str | Path | None = option(
        "autoencoder to begin from, a folder or Hub id: a new one with the options of the model takes all weights "
        "that fit",
        default=None,
        metavar="AUTOENCODER",
        group=_PRETRAINED,
        setting=False,  # the record holds a hash of its weights
    )
    autoencoder_name: str | None = option(
        "what cards call the autoencoder that this one comes from; default: its Hub id, where it has one",
        default=None,
        group=_PRETRAINED,
        setting=False,
    )
    autoencoder_license: str | None = option(
        "licence identifier of the Hub of the autoencoder that this one comes from, such as mit, for the cards",
        default=None,
        group=_PRETRAINED,
        setting=False,
    )
    teacher: Path | None = option(
        "folder that train_classifier left: what it says of validation tiles and of their reconstructions is compared",
        default=None,
        group="running",
        setting=False,
    )
    dp_public_init: bool = option(
        "states that the autoencoder of --init-from, or of --finetune-autoencoder, was trained on public tiles, so "
        "that it costs nothing of the budget",
        default=False,
        group="differential privacy",
        later=True,
    )
    channels: tuple[int, ...] = option(
        "width of each resolution level; every level after the first halves the size",
        default=(32, 64),
        at_least=1,
        group="model",
    )
    latent_channels: int = option("channels of a latent", default=8, at_least=1, group="model")
    layers_per_block: int = option(
        "residual blocks per level of the encoder; the decoder has twice as many",
        default=1,
        at_least=1,
        group="model",
    )
    plain_finest: bool = option(
        "no residual blocks at the finest level, where most of the time goes and little is learned",
        default=False,
        group="model",
        later=True,
    )
    kl_weight: float = option(
        "weight of the mean KL divergence per latent value from N(0, 1), in nats",
        default=2e-4,
        at_least=0,
        group="loss",
    )
    posterior_std: float = option(
        "noise on the latents, which the decoder learns to bear", default=0.05, at_least=0, group="loss"
    )
    frequency_weight: float = option(
        "weight of the L1 distance between Fourier transforms, which keeps fine texture",
        default=0.1,
        at_least=0,
        group="loss",
    )
    equivariance_weight: float = option(
        "weight of what makes latents that are halved in size decode into tiles halved in size: a denoiser learns "
        "such latents sooner (Skorokhodov et al. 2025, arXiv:2502.14831)",
        default=0.0,
        at_least=0,
        group="loss",
        later=True,
    )

    @property
    def is_taken(self) -> bool:
        """Whether an autoencoder from elsewhere is taken as it is, and nothing is trained."""
        return self.autoencoder is not None and not self.finetune_autoencoder

    @property
    def origin(self) -> str | Path | None:
        """The autoencoder from elsewhere that this one is, or begins from."""
        return self.init_from if self.autoencoder is None else self.autoencoder

    @property
    def origin_option(self) -> str:
        """The option that names it."""
        return "init_from" if self.autoencoder is None else "autoencoder"

    def check(self) -> None:
        """Chooses the learning rate, and checks what does not go together."""
        if self.learning_rate is None:
            chosen = _FINE_LEARNING_RATE if self.finetune_autoencoder else _LEARNING_RATE
            object.__setattr__(self, "learning_rate", chosen)
        super().check()
        if self.dp_epsilon is not None:
            rule = f"with {param('dp_epsilon')} it must be 0"
            require(self.equivariance_weight == 0, "equivariance_weight", self.equivariance_weight, rule)
        if self.plain_finest and len(self.channels) < 2:
            raise InputError(f"{param('plain_finest')} leaves nothing of one level: give {param('channels')} of two")
        if self.train_pixels is None:
            if self.max_train_steps is None:
                object.__setattr__(self, "max_train_steps", _USUAL_STEPS)
        elif self.max_train_steps is not None:
            raise InputError(
                f"{param('train_pixels')} and {param('max_train_steps')} both say how long to train: give one of them"
            )
        self._check_origin()

    def _check_origin(self) -> None:
        if self.autoencoder is not None and self.init_from is not None:
            raise InputError(
                f"{param('autoencoder')} and {param('init_from')} are two autoencoders to come from: give one of them"
            )
        if self.finetune_autoencoder and self.autoencoder is None:
            raise InputError(
                f"{param('finetune_autoencoder')} needs {param('autoencoder')}: give one to train further"
            )
        self._check_stated()
        begun = self.origin is not None and not self.is_taken
        if self.dp_epsilon is not None and begun and not self.dp_public_init:
            raise not_covered("init_from" if self.init_from else "finetune_autoencoder", "autoencoder")

    def _check_stated(self) -> None:
        stated = {"autoencoder_name": self.autoencoder_name, "autoencoder_license": self.autoencoder_license}
        for name, value in stated.items():
            if value is not None and self.origin is None:
                raise InputError(f"{param(name)} says nothing without {param('autoencoder')}: leave it out")
        if not any(stated.values()):
            return
        from histodistill.hub_cards.names import fault_of_published_name
        from histodistill.training.models.encoder_licences import check_licence

        if self.autoencoder_name is not None and (fault := fault_of_published_name(self.autoencoder_name)):
            raise InputError(f"{param('autoencoder_name')} has {fault}: give a plain name, such as sd-vae-ft-mse")
        check_licence("autoencoder_license", self.autoencoder_license)

    def for_tiles(self, image_size: int, reduction: int) -> TrainAutoencoderConfig:
        """The same with the side of what is shown of tiles of this size, and the steps that it takes.

        Args:
            image_size: Side of the tiles in pixels.
            reduction: Pixels of a tile's side for each position of a latent's side.

        Raises:
            InputError: For a crop that is larger than the tiles, or that the reduction does not divide.
        """
        crop = self.crop_size
        if crop is None:
            crop = min(image_size, max(-(-_WHOLE_SIDE // reduction), _WHOLE_POSITIONS) * reduction)
        require(crop <= image_size, "crop_size", crop, f"it must be at most {image_size}, the side of the tiles")
        rule = f"it must be divisible by {reduction}: give {max(1, crop // reduction) * reduction}"
        require(crop == image_size or crop % reduction == 0, "crop_size", crop, rule)
        fitted = copy.copy(self)
        object.__setattr__(fitted, "crop_size", crop)
        if self.train_pixels is not None:
            per_step = self.batch_size * self.gradient_accumulation_steps * crop**2
            object.__setattr__(fitted, "max_train_steps", -(-self.train_pixels // per_step))
        return fitted

    def settings(self) -> dict[str, Any]:
        """The options that decide the result, of what is trained or taken."""
        settings = super().settings()
        if self.is_taken:
            measured_on = {} if self.dp_epsilon is None else {"measured_on": "validation"}
            return {name: settings[name] for name in _OF_TAKEN} | measured_on
        left_out = () if self.autoencoder is None else _OF_NEW_MODEL
        return {name: value for name, value in settings.items() if name not in left_out}


def make_parser() -> StepParser[TrainAutoencoderConfig]:
    """The parser of the command line."""
    return StepParser(TrainAutoencoderConfig, prog="train_autoencoder", description=__doc__)


@claiming
def run(config: TrainAutoencoderConfig) -> Path:
    """Trains or takes one from elsewhere, validates, measures its latents, and saves.

    Returns:
        The folder, which loads with `from_pretrained` of the autoencoder's class.

    Raises:
        InputError: For tiles, an autoencoder or options that do not fit, an output folder of another training, a
            damaged checkpoint, or a training that diverges.
    """
    from histodistill.training.data.sources import load_tiles
    from histodistill.training.running.stages import Stage

    source = load_tiles(
        config.data, image_size=config.image_size, audit_share=config.audit_share, **config.source_options()
    )
    source.split("validation")  # tiles without any are refused before anything is written
    origin = find_origin(config, source)
    config = config.for_tiles(source.image_size, _reduction(config, origin))
    trains, train = not config.is_taken, source.split("train")
    settings = {"stage": "autoencoder", "data": source.fingerprint(), **config.settings(), **origin.settings(config)}
    if trains:
        settings |= config.unit_settings(train.groups is not None)
    if config.crop_size == source.image_size:
        settings.pop("crop_size", None)  # whole tiles, as all once were
    stage = Stage(config.output, settings)

    from histodistill.training.engine.loop import fit, open_training
    from histodistill.training.engine.privacy import plan_privacy

    accelerator = open_training(config, stage, "autoencoder")
    if accelerator is None:
        return config.output

    teacher = load_teacher(config, source)
    plan = plan_privacy(config, source, accelerator.num_processes) if trains else None
    training = make_training(config, source, accelerator, plan, origin)
    if trains:
        fit(training, stage)
    elif accelerator.is_main_process:
        stage.begin()
        training.autoencoder.to(accelerator.device)

    if accelerator.is_main_process:
        save(training, stage, source.image_size, origin.facts(config), teacher)
        options = ["--data", config.data, "--autoencoder", config.output, "--output", "FOLDER"]
        suggest("histodistill", "train", "diffusion", *options)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return config.output


@dataclass(frozen=True)
class Origin:
    """Where an autoencoder comes from.

    Attributes:
        model: The one from elsewhere; None where a new one is trained from the beginning.
        name: What the user calls it.
    """

    model: LatentModel | None = None
    name: str = ""

    def settings(self, config: TrainAutoencoderConfig) -> dict[str, str]:
        """What stands for it among the settings of the stage: a hash of its weights, and never where they lie."""
        if self.model is None:
            return {}
        from histodistill.training.engine.checkpoints import content_of

        return {config.origin_option: content_of(self.model)}

    def facts(self, config: TrainAutoencoderConfig) -> dict[str, Any]:
        """What the record of the stage tells of it for the cards; of a folder no name but the one that was stated."""
        if self.model is None:
            return {}
        from histodistill.hub_cards.names import fault_of_published_name

        name = config.autoencoder_name
        if name is None and not Path(self.name).exists() and not fault_of_published_name(self.name):
            name = self.name  # an id of the Hub
        stated = {"name": name, "license": config.autoencoder_license}
        return {
            "pretrained": {
                "class_name": type(self.model).__name__,
                "is_taken": config.is_taken,
                **{key: value for key, value in stated.items() if value is not None},
            }
        }


def find_origin(config: TrainAutoencoderConfig, source: TileSource) -> Origin:
    """The autoencoder from elsewhere, if there is one.

    Warns where the tiles that are held out for the audit may be known to it.

    Raises:
        InputError: If there is none of that name, or it does not take the tiles.
    """
    if config.origin is None:
        return Origin()
    from histodistill.training.models.named_autoencoders import check_fits, load_pretrained
    from histodistill.training.models.warm_start import knows_tiles, warn_of_held_out

    model = load_pretrained(config.origin, config.origin_option)
    if config.autoencoder is not None:
        check_fits(model, source.image_size)
    name = str(config.origin)
    knows_these = knows_tiles(name, config.origin, source, said_public=config.dp_public_init)
    if config.audit_share and not knows_these:
        warn_of_held_out(name)
    return Origin(model, name)


def _reduction(config: TrainAutoencoderConfig, origin: Origin) -> int:
    """Pixels of a tile's side for each position of a latent's side."""
    if config.autoencoder is None or origin.model is None:
        return int(2 ** (len(config.channels) - 1))
    from histodistill.training.models.latents import compression_of

    return compression_of(origin.model)


def load_teacher(config: TrainAutoencoderConfig, source: TileSource) -> Classifier | None:
    """The classifier that tells what is lost, if one is named.

    Raises:
        InputError: If it is none of these tiles.
    """
    if config.teacher is None:
        return None
    from histodistill.training.models.loading import load_classifier

    teacher = load_classifier(config.teacher)
    if teacher.image_size != source.image_size or teacher.class_names != source.class_names:
        raise InputError(
            f"{param('teacher')} {config.teacher} is a classifier of other tiles: give one of these, or none"
        )
    return teacher


def make_training(
    config: TrainAutoencoderConfig,
    source: TileSource,
    accelerator: Accelerator,
    plan: PrivacyPlan | None,
    origin: Origin | None = None,
) -> AutoencoderTraining:
    """An autoencoder, and all that its training needs.

    Raises:
        InputError: For tiles whose size the autoencoder cannot halve that often, widths that do not fit together, or
            one to begin from of which nothing fits.
    """
    import torch

    from histodistill.training.engine.autoencoder_training import AutoencoderTraining
    from histodistill.training.models.autoencoder import VariationalAutoencoder, build_autoencoder, has_batch_norms

    autoencoder: LatentModel
    if config.autoencoder is not None and origin and origin.model:
        autoencoder = origin.model
        if plan and has_batch_norms(autoencoder):
            raise InputError(
                f"{param('autoencoder')} has batch norms, which mix the tiles of a batch, and {param('dp_epsilon')} "
                "goes tile by tile: give one without"
            )
    else:
        torch.manual_seed(torch_seed("weights of the autoencoder", config.seed))
        autoencoder = build_autoencoder(
            source.image_size,
            config.channels,
            config.latent_channels,
            config.layers_per_block,
            config.plain_finest,
        )
    if config.init_from is not None and origin and origin.model:
        begin_from(autoencoder, origin)
    if not config.is_taken:
        _check_halves(config, autoencoder, source.image_size)
    return AutoencoderTraining(
        config,
        source,
        accelerator,
        plan,
        VariationalAutoencoder(autoencoder, config.posterior_std, halves=config.equivariance_weight > 0),
        frequency_weight=config.frequency_weight,
        kl_weight=config.kl_weight,
        equivariance_weight=config.equivariance_weight,
        crop_size=config.crop_size,
    )


def _check_halves(config: TrainAutoencoderConfig, autoencoder: LatentModel, image_size: int) -> None:
    """Sees that latents of what is shown can be halved, where they are to be."""
    from histodistill.training.models.latents import shape_of_latent

    side = shape_of_latent(autoencoder, config.crop_size or image_size)[1]
    rule = f"latents of what is shown must have an even side to be halved, and have {side}: give 0"
    require(config.equivariance_weight == 0 or side % 2 == 0, "equivariance_weight", config.equivariance_weight, rule)


def begin_from(autoencoder: LatentModel, origin: Origin) -> None:
    """Fills a new autoencoder, in place, with all weights of another one that fit, and tells what that was.

    Raises:
        InputError: If it is of another class, or next to nothing fits.
    """
    from histodistill.training.data.names import shown
    from histodistill.training.models.warm_start import require_fit, take_weights

    assert origin.model is not None
    if type(origin.model) is not type(autoencoder):
        raise InputError(
            f"{param('init_from')} {shown(origin.name)} is an {type(origin.model).__name__}, and new ones are "
            f"{type(autoencoder).__name__}: give it as {param('autoencoder')} with {param('finetune_autoencoder')}"
        )
    other = origin.model.config
    plain = "" if other.encoder_layers_per_block[0] else f" and {param('plain_finest')}"
    taken = take_weights(autoencoder, origin.model.state_dict())
    require_fit(
        taken,
        shown(origin.name),
        f"give {param('channels')} {' '.join(map(str, other.encoder_block_out_channels))}, {param('latent_channels')} "
        f"{other.latent_channels}, {param('layers_per_block')} {other.encoder_layers_per_block[-1]}{plain}, as it "
        f"has, or begin without {param('init_from')}",
    )
    tell(taken.sentence("autoencoder", shown(origin.name)))


def save(
    training: AutoencoderTraining, stage: Stage, image_size: int, facts: dict[str, Any], teacher: Classifier | None
) -> None:
    """Writes the autoencoder with the measured scale of its latents, tells what it loses, and finishes the stage.

    Args:
        training: Whose last step is done.
        stage: The stage that it makes.
        image_size: Side of the tiles in pixels.
        facts: What the record says beside what is measured.
        teacher: See `load_teacher`.
    """
    from histodistill.training.engine.accelerator import device_record
    from histodistill.training.engine.privacy import forget_key, privacy_record
    from histodistill.training.running.files import new_files, write_json

    autoencoder = training.autoencoder.eval()
    measured = training.measure_latents()
    # Other means and deviations that its config may hold are those of other images.
    others = {name: None for name in ("latents_mean", "latents_std") if name in autoencoder.config}
    autoencoder.register_to_config(**measured, **others)
    with new_files(stage.folder) as folder:
        autoencoder.save_pretrained(folder)
    write_json(stage.folder / "history.json", training.history)
    figures = training.validate()
    autoencoder.eval()
    lost = training.what_is_lost(teacher)
    training.accelerator.print(
        f"autoencoder: validation PSNR {figures['validation_psnr']:.2f} dB{lost.words()}, saved to {stage.folder}"
    )
    if warning := lost.warning():
        warn(warning)
    stage.finish(
        image_size=image_size,
        **measured,
        num_processes=training.accelerator.num_processes,
        **device_record(training.accelerator),
        **({"privacy": privacy_record(training.plan)} if training.plan else {}),
        **figures,
        **lost.record(),
        **facts,
    )
    if training.plan:
        forget_key(stage.folder)


if __name__ == "__main__":
    run_script(make_parser, run)
