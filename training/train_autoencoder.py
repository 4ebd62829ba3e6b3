"""Trains the autoencoder of the latent diffusion model: diffusers' `AutoencoderDC` on real tiles.

    accelerate launch -m histodistill.training.train_autoencoder --data phantom --output runs/phantom/autoencoder

The network is that of the Deep Compression Autoencoder (Chen et al. 2024, arXiv:2410.10733): it halves and doubles
the size by moving pixels to channels and back, with shortcuts that lose nothing. It is trained as a variational
autoencoder whose posterior has a fixed standard deviation (Ghosh et al. 2020, arXiv:1903.12436): its mean is the
latent. The output folder loads with `AutoencoderDC.from_pretrained`. Its config carries the scale of the latents,
measured on the training tiles: latent * scaling_factor has a mean square of 1.

With `--dp-epsilon` it trains with differential privacy (see `privacy.py`), and measures the scale on validation tiles.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderDC
from tqdm.auto import tqdm

from histodistill.training.data.images import save_grid
from histodistill.training.data.pixels import to_model_input
from histodistill.training.data.sources import load_tiles
from histodistill.training.engine.accelerator import make_accelerator
from histodistill.training.engine.augment import random_symmetry
from histodistill.training.engine.checkpoints import check_finite, find_checkpoint, load_checkpoint, save_checkpoint
from histodistill.training.engine.privacy import (
    add_privacy_options,
    check_privacy_options,
    forget_key,
    plan_privacy,
    privacy_record,
    secret_key,
    set_private_gradients,
    tile_generators,
)
from histodistill.training.engine.steps import (
    batch_indices,
    class_weights,
    cosine_learning_rate,
    process_slice,
    set_learning_rate,
    spread_indices,
    step_generator,
)
from histodistill.training.models.autoencoder import (
    VariationalAutoencoder,
    build_autoencoder,
    measure_latent_scale,
    reconstruction_loss,
)
from histodistill.training.running.files import write_json
from histodistill.training.running.options import (
    add_training_options,
    check_option,
    check_training_options,
    result_settings,
    run_script,
)
from histodistill.training.running.stages import Stage


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads and checks the command line; ends with code 2 and one sentence where it is wrong."""
    parser = argparse.ArgumentParser(prog="train_autoencoder", description=__doc__, allow_abbrev=False)
    add_training_options(
        parser, max_train_steps=2000, batch_size=32, learning_rate=2e-3, weight_decay=0.0, class_balance=None
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--channels",
        type=int,
        nargs="+",
        default=[32, 64],
        help="width of each resolution level; every level after the first halves the size",
    )
    model.add_argument("--latent-channels", type=int, default=8, help="channels of a latent")
    model.add_argument(
        "--layers-per-block",
        type=int,
        default=1,
        help="residual blocks per level of the encoder; the decoder has twice as many",
    )
    loss = parser.add_argument_group("loss")
    loss.add_argument(
        "--kl-weight",
        type=float,
        default=2e-4,
        help="weight of the mean KL divergence per latent value from N(0, 1), in nats",
    )
    loss.add_argument(
        "--posterior-std", type=float, default=0.05, help="noise on the latents, which the decoder learns to bear"
    )
    loss.add_argument(
        "--frequency-weight",
        type=float,
        default=0.1,
        help="weight of the L1 distance between Fourier transforms, which keeps fine texture",
    )
    add_privacy_options(parser)
    args = parser.parse_args(argv)
    check_training_options(args)
    check_option(args, "channels", min(args.channels) >= 1, "every width must be at least 1")
    for name in ("latent_channels", "layers_per_block"):
        check_option(args, name, getattr(args, name) >= 1, "it must be at least 1")
    for name in ("kl_weight", "posterior_std", "frequency_weight"):
        check_option(args, name, getattr(args, name) >= 0, "it must be at least 0")
    check_privacy_options(args)
    return args


@torch.no_grad()
def validate(
    autoencoder: AutoencoderDC, images: torch.Tensor, batch_size: int, accelerator: Accelerator
) -> dict[str, float]:
    """PSNR in dB and L1 distance of reconstructions, without noise; images N×3×H×W in [-1, 1]."""
    autoencoder.eval()
    squared, absolute = 0.0, 0.0
    for batch in images.split(batch_size):
        batch = batch.to(accelerator.device)
        with accelerator.autocast():
            difference = autoencoder(batch).sample.float().clamp(-1, 1) - batch
        squared += difference.square().sum().item()
        absolute += difference.abs().sum().item()
    autoencoder.train()
    # The range of values is 2, so the peak signal is 2.
    psnr = 10 * math.log10(4 / max(squared / images.numel(), 1e-12))
    return {"validation_psnr": psnr, "validation_l1": absolute / images.numel()}


def main(args: argparse.Namespace) -> None:
    """Trains, validates, measures the latent scale, and saves."""
    source = load_tiles(args.data, image_size=args.image_size, audit_share=args.audit_share)
    train, validation = source.split("train"), source.split("validation")
    settings = {"stage": "autoencoder", "data": source.fingerprint(), **result_settings(args)}
    stage = Stage(args.output, settings)
    accelerator = make_accelerator(
        args.mixed_precision,
        batch_size=args.batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        report_to=args.report_to,
        project_dir=args.output,
    )
    if stage.complete:
        accelerator.print(f"autoencoder: {args.output} is already finished")
        if accelerator.is_main_process:
            forget_key(args.output)
        return
    plan = plan_privacy(args, len(train), accelerator.num_processes)
    torch.manual_seed(args.seed)
    autoencoder = build_autoencoder(source.image_size, args.channels, args.latent_channels, args.layers_per_block)
    latent_size = source.image_size // 2 ** (len(args.channels) - 1)
    checkpoint = find_checkpoint(args.output / "checkpoints", args.resume)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        stage.begin()
    if args.report_to:
        accelerator.init_trackers("histodistill-autoencoder", config={k: str(v) for k, v in settings.items()})

    optimizer = torch.optim.AdamW(
        autoencoder.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay, fused=True
    )
    model, optimizer = accelerator.prepare(VariationalAutoencoder(autoencoder, args.posterior_std), optimizer)
    start, history = 0, []
    if checkpoint:
        state = load_checkpoint(
            checkpoint, stage.settings, {"autoencoder": autoencoder}, optimizer, accelerator.scaler
        )
        start, history = state["step"], state["history"]

    def loss_of_tile(call, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        with accelerator.autocast():
            reconstruction, kl = call(images, noise)
        return reconstruction_loss(reconstruction, images, args.frequency_weight) + args.kl_weight * kl

    def private_step(step: int) -> None:
        """One step with differential privacy: gradients tile by tile."""

        def make_tiles(indices: np.ndarray) -> list[torch.Tensor]:
            tiles = []
            for index, generator in zip(indices, tile_generators(args.seed, step, indices), strict=True):
                images = random_symmetry(to_model_input(train.images[np.repeat(index, plan.views)]), generator)
                shape = (plan.views, args.latent_channels, latent_size, latent_size)
                tiles.append((images, torch.randn(shape, generator=generator)))
            return [torch.stack(values).to(accelerator.device) for values in zip(*tiles, strict=True)]

        set_private_gradients(model, loss_of_tile, make_tiles, plan, key, step)
        optimizer.step()
        optimizer.zero_grad()

    key = secret_key(args.output) if plan else b""
    weights = class_weights(train.labels, args.class_balance)
    warmup_steps = math.ceil(args.warmup * args.max_train_steps)
    validation_images = to_model_input(validation.images[spread_indices(len(validation), args.validation_tiles)])
    progress = tqdm(
        total=args.max_train_steps,
        initial=start,
        desc="autoencoder",
        unit="step",
        disable=not accelerator.is_local_main_process,
    )
    for step in range(start, args.max_train_steps):
        set_learning_rate(
            optimizer, cosine_learning_rate(step, args.max_train_steps, warmup_steps, args.learning_rate)
        )
        if plan:
            private_step(step)
        # One optimizer step takes gradient_accumulation_steps batches of batch_size tiles over all processes.
        for micro_step in range(0 if plan else args.gradient_accumulation_steps):
            position = step * args.gradient_accumulation_steps + micro_step
            indices = batch_indices(len(train), args.batch_size, position, args.seed, weights)
            generator = step_generator(args.seed, position)
            images = random_symmetry(to_model_input(train.images[indices]), generator)
            noise = torch.randn(len(images), args.latent_channels, latent_size, latent_size, generator=generator)
            images, noise = (
                process_slice(batch, accelerator.process_index, accelerator.num_processes).to(accelerator.device)
                for batch in (images, noise)
            )
            with accelerator.accumulate(model):
                with accelerator.autocast():
                    reconstruction, kl = model(images, noise)
                loss = reconstruction_loss(reconstruction, images, args.frequency_weight) + args.kl_weight * kl
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
        progress.update()

        done = step + 1
        if done % args.validation_steps == 0 or done == args.max_train_steps:
            record = {
                "step": done,
                # The loss of training tiles is nothing that differential privacy may tell.
                **({} if plan else {"train_loss": loss.item()}),
                **validate(autoencoder, validation_images, args.batch_size, accelerator),
            }
            check_finite(autoencoder, done, record)
            history.append(record)
            progress.set_postfix(psnr=f"{record['validation_psnr']:.2f}")
            if args.report_to:
                accelerator.log(record, step=done)
            if accelerator.is_main_process:
                originals = validation_images[spread_indices(len(validation_images), 16)].to(accelerator.device)
                with torch.no_grad():
                    pairs = torch.cat([originals, autoencoder(originals).sample])
                save_grid(pairs, args.output / "progress" / f"step-{done:07d}.png", columns=16)
        if (done % args.checkpointing_steps == 0 or done == args.max_train_steps) and accelerator.is_main_process:
            save_checkpoint(
                args.output / "checkpoints",
                done,
                stage.settings,
                {"autoencoder": autoencoder},
                optimizer,
                {"history": history},
                accelerator.scaler,
            )
            stage.save_progress()
    progress.close()

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        autoencoder.eval()
        # Under differential privacy training tiles may be looked at through noisy gradients alone.
        tiles = validation if plan else train
        measured = spread_indices(len(tiles), 10_000)
        batches = (
            to_model_input(tiles.images[measured[i : i + args.batch_size]]).to(accelerator.device)
            for i in range(0, len(measured), args.batch_size)
        )
        scale = measure_latent_scale(autoencoder, batches)
        autoencoder.register_to_config(scaling_factor=scale)
        autoencoder.save_pretrained(args.output)
        write_json(args.output / "history.json", history)
        facts = {
            "image_size": source.image_size,
            "scaling_factor": scale,
            "num_processes": accelerator.num_processes,
            **({"privacy": privacy_record(plan)} if plan else {}),
        }
        stage.finish(**facts, **validate(autoencoder, validation_images, args.batch_size, accelerator))
        if plan:
            forget_key(args.output)
        accelerator.print(
            f"autoencoder: validation PSNR {history[-1]['validation_psnr']:.2f} dB, saved to {args.output}"
        )
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    run_script(parse_args, main)
