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

from pathlib import Path
from typing import TYPE_CHECKING

from histodistill.selection.streams import torch_seed
from histodistill.training.running.notes import suggest
from histodistill.training.running.options import StepParser, config, like, option, run_script
from histodistill.training.running.training_options import PrivateTrainingConfig


if TYPE_CHECKING:
    from accelerate import Accelerator

    from histodistill.training.data.tiles import TileSource
    from histodistill.training.engine.autoencoder_training import AutoencoderTraining
    from histodistill.training.engine.privacy import PrivacyPlan
    from histodistill.training.running.stages import Stage


@config
class TrainAutoencoderConfig(PrivateTrainingConfig):
    """Options of `train_autoencoder`."""

    max_train_steps: int = like(PrivateTrainingConfig, "max_train_steps", default=2000)
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
    stage = Stage(config.output, {"stage": "autoencoder", "data": source.fingerprint(), **config.settings()})

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
    )


def save(training: AutoencoderTraining, stage: Stage, image_size: int) -> None:
    """Writes the trained autoencoder with the measured scale of its latents, and finishes the stage.

    Args:
        training: Whose last step is done.
        stage: The stage that it makes.
        image_size: Side of the tiles in pixels.
    """
    from histodistill.training.engine.accelerator import device_record
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
        **device_record(training.accelerator),
        **({"privacy": privacy_record(training.plan)} if training.plan else {}),
        **training.validate(),
    )
    if training.plan:
        forget_key(stage.folder)


if __name__ == "__main__":
    run_script(make_parser, run)
