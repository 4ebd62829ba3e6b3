"""Trains the autoencoder of the latent diffusion model: diffusers' `AutoencoderDC` on real tiles.

    accelerate launch -m histodistill.training.train_autoencoder --data phantom --output runs/phantom/autoencoder

The network is that of the Deep Compression Autoencoder (Chen et al. 2024, arXiv:2410.10733): it halves and doubles
the size by moving pixels to channels and back, with shortcuts that lose nothing. It is trained as a variational
autoencoder whose posterior has a fixed standard deviation (Ghosh et al. 2020, arXiv:1903.12436): its mean is the
latent. The output folder loads with `AutoencoderDC.from_pretrained`. Its config carries the scale of the latents,
measured on the training tiles: latent * scaling_factor has a mean square of 1.

With `--dp-epsilon` it trains with differential privacy (see `engine/privacy.py`), and measures the scale on validation
tiles.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histodistill.selection.streams import torch_seed
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.notes import suggest
from histodistill.training.running.options import StepParser, config, like, option, require, run_script
from histodistill.training.running.training_options import PrivateTrainingConfig


if TYPE_CHECKING:
    from accelerate import Accelerator

    from histodistill.training.data.tiles import TileSource
    from histodistill.training.engine.autoencoder_training import AutoencoderTraining
    from histodistill.training.engine.privacy import PrivacyPlan
    from histodistill.training.running.stages import Stage


# Optimizer steps where neither they nor pixels are asked for.
_USUAL_STEPS = 2000
# Tiles are shown whole up to this side in pixels, or so many positions of their latents: what lies beyond a few of
# these tells a position little, and the more tiles a batch is of, the more it tells.
_WHOLE_SIDE, _WHOLE_POSITIONS = 64, 16


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
    )
    crop_size: int | None = option(
        f"side in pixels of the random part that is shown of a tile; default: the whole tile up to {_WHOLE_SIDE} px, "
        f"or {_WHOLE_POSITIONS} positions of its latent",
        default=None,
        at_least=1,
        metavar="PX",
        group="optimisation",
    )
    batch_size: int = like(PrivateTrainingConfig, "batch_size", default=32)
    learning_rate: float = like(PrivateTrainingConfig, "learning_rate", default=2e-3)
    weight_decay: float = like(PrivateTrainingConfig, "weight_decay", default=0.0)
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

    def check(self) -> None:
        """Sees that steps or pixels are given, not both, and checks differential privacy."""
        super().check()
        if self.train_pixels is None:
            if self.max_train_steps is None:
                object.__setattr__(self, "max_train_steps", _USUAL_STEPS)
        elif self.max_train_steps is not None:
            raise InputError(
                f"{param('train_pixels')} and {param('max_train_steps')} both say how long to train: give one of them"
            )

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
        """The options that decide the result; those of crops and pixels only where there are any."""
        settings = super().settings()
        return {
            name: value
            for name, value in settings.items()
            if value is not None or name not in ("crop_size", "train_pixels")
        }


def make_parser() -> StepParser[TrainAutoencoderConfig]:
    """The parser of the command line."""
    return StepParser(TrainAutoencoderConfig, prog="train_autoencoder", description=__doc__)


def run(config: TrainAutoencoderConfig) -> Path:
    """Trains, validates, measures the latent scale, and saves.

    Returns:
        The folder, which loads with `AutoencoderDC.from_pretrained`.

    Raises:
        InputError: For tiles or options that do not fit, an output folder of another training, a damaged checkpoint,
            or a training that diverges.
    """
    from histodistill.training.data.sources import load_tiles
    from histodistill.training.running.stages import Stage

    source = load_tiles(
        config.data, image_size=config.image_size, audit_share=config.audit_share, **config.source_options()
    )
    source.split("validation")  # tiles without any are refused before anything is written
    config = config.for_tiles(source.image_size, 2 ** (len(config.channels) - 1))
    settings = {"stage": "autoencoder", "data": source.fingerprint(), **config.settings()}
    if config.crop_size == source.image_size:
        del settings["crop_size"]  # whole tiles, as all once were
    stage = Stage(config.output, settings)

    from histodistill.training.engine.loop import fit, open_training
    from histodistill.training.engine.privacy import plan_privacy

    accelerator = open_training(config, stage, "autoencoder")
    if accelerator is None:
        return config.output

    plan = plan_privacy(config, len(source.split("train")), accelerator.num_processes)
    training = make_training(config, source, accelerator, plan)
    fit(training, stage)

    if accelerator.is_main_process:
        save(training, stage, source.image_size)
        psnr = training.history[-1]["validation_psnr"]
        accelerator.print(f"autoencoder: validation PSNR {psnr:.2f} dB, saved to {config.output}")
        options = ["--data", config.data, "--autoencoder", config.output, "--output", "FOLDER"]
        suggest("histodistill", "train", "diffusion", *options)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return config.output


def make_training(
    config: TrainAutoencoderConfig, source: TileSource, accelerator: Accelerator, plan: PrivacyPlan | None
) -> AutoencoderTraining:
    """A new autoencoder, and all that its training needs.

    Raises:
        InputError: For tiles whose size the autoencoder cannot halve that often, or widths that do not fit together.
    """
    import torch

    from histodistill.training.engine.autoencoder_training import AutoencoderTraining
    from histodistill.training.models.autoencoder import VariationalAutoencoder, build_autoencoder

    torch.manual_seed(torch_seed("weights of the autoencoder", config.seed))
    autoencoder = build_autoencoder(
        source.image_size, config.channels, config.latent_channels, config.layers_per_block
    )
    return AutoencoderTraining(
        config,
        source,
        accelerator,
        plan,
        VariationalAutoencoder(autoencoder, config.posterior_std),
        frequency_weight=config.frequency_weight,
        kl_weight=config.kl_weight,
        crop_size=config.crop_size,
    )


def save(training: AutoencoderTraining, stage: Stage, image_size: int) -> None:
    """Writes the trained autoencoder with the measured scale of its latents, and finishes the stage.

    Args:
        training: Whose last step is done.
        stage: The stage that it makes.
        image_size: Side of the tiles in pixels.
    """
    from histodistill.training.engine.privacy import forget_key, privacy_record
    from histodistill.training.running.files import new_files, write_json

    autoencoder = training.autoencoder.eval()
    scale = training.measure_scale()
    autoencoder.register_to_config(scaling_factor=scale)
    with new_files(stage.folder) as folder:
        autoencoder.save_pretrained(folder)
    write_json(stage.folder / "history.json", training.history)
    stage.finish(
        image_size=image_size,
        scaling_factor=scale,
        num_processes=training.accelerator.num_processes,
        **({"privacy": privacy_record(training.plan)} if training.plan else {}),
        **training.validate(),
    )
    if training.plan:
        forget_key(stage.folder)


if __name__ == "__main__":
    run_script(make_parser, run)
