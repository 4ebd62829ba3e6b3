"""Trains the class-conditional denoiser in the latent space of an autoencoder, and writes the pipeline.

    accelerate launch -m histodistill.training.train_diffusion \
        --data phantom --autoencoder runs/phantom/autoencoder --output runs/phantom/pipeline

The denoiser learns rectified flow (Liu et al. 2023, arXiv:2209.03003; Lipman et al. 2023, arXiv:2210.02747): between
data x and noise e it sees z = (1 - s) x + s e and predicts the velocity e - x. Noise levels s are logit-normal
(Esser et al. 2024, arXiv:2403.03206). The output folder loads as a `HistologyPipeline`.

With `--dp-epsilon` it trains with differential privacy: see `privacy.py`.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC, UNet2DModel
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from histodistill.pipelines import HistologyPipeline
from histodistill.training.data.images import save_grid
from histodistill.training.data.pixels import to_model_input
from histodistill.training.data.sources import load_tiles
from histodistill.training.engine.accelerator import make_accelerator
from histodistill.training.engine.augment import random_symmetry
from histodistill.training.engine.checkpoints import check_finite, find_checkpoint, load_checkpoint, save_checkpoint
from histodistill.training.engine.flow import draw_step, flow_loss
from histodistill.training.engine.privacy import (
    add_privacy_options,
    autoencoder_privacy,
    check_privacy_options,
    compose,
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
from histodistill.training.models.denoiser import (
    build_denoiser,
    make_scheduler,
    normalised_latents,
    use_plain_attention,
)
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import write_json
from histodistill.training.running.options import (
    add_training_options,
    check_option,
    check_training_options,
    result_settings,
    run_script,
)
from histodistill.training.running.stages import Stage, require_complete


NUM_TRAIN_TIMESTEPS = 1000


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads and checks the command line; ends with code 2 and one sentence where it is wrong."""
    parser = argparse.ArgumentParser(prog="train_diffusion", description=__doc__, allow_abbrev=False)
    add_training_options(
        parser, max_train_steps=5000, batch_size=64, learning_rate=8e-4, weight_decay=0.01, class_balance=None
    )
    model = parser.add_argument_group("model")
    model.add_argument("--autoencoder", type=Path, required=True, help="folder that train_autoencoder left")
    model.add_argument(
        "--channels",
        type=int,
        nargs="+",
        default=[64, 128],
        help="width of each resolution level of the U-Net; each level after the first halves the size",
    )
    model.add_argument("--layers-per-block", type=int, default=2, help="residual blocks per level")
    model.add_argument(
        "--attention-levels",
        type=int,
        default=0,
        help="how many of the lowest levels have attention; the middle always has it",
    )
    model.add_argument("--dropout", type=float, default=0.0, help="dropout in the residual blocks")
    loss = parser.add_argument_group("loss and averaging")
    loss.add_argument(
        "--class-dropout",
        type=float,
        default=0.1,
        help="share of tiles shown with the null class, for classifier-free guidance",
    )
    loss.add_argument(
        "--symmetries",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show each tile in the square's eight symmetries; without them few tiles are soon learned by heart",
    )
    loss.add_argument("--ema-decay", type=float, default=0.998, help="decay of the moving average of the weights")
    add_privacy_options(parser)
    parser.add_argument(
        "--dp-public-autoencoder",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="states that the autoencoder was trained on public tiles, so that it costs nothing of the budget",
    )
    args = parser.parse_args(argv)
    check_training_options(args)
    check_option(args, "channels", min(args.channels) >= 1, "every width must be at least 1")
    check_option(args, "layers_per_block", args.layers_per_block >= 1, "it must be at least 1")
    check_option(args, "attention_levels", args.attention_levels >= 0, "it must be at least 0")
    for name in ("dropout", "class_dropout", "ema_decay"):
        check_option(args, name, 0 <= getattr(args, name) < 1, "it must be at least 0 and below 1")
    check_privacy_options(args)
    return args


def overfitting_warning(history: list[dict[str, Any]]) -> str | None:
    """What to tell the user where the validation loss rose again by more than a tenth: tiles are learned by heart.

    `selection/AUDIT.md` shows how copies and membership come with it.
    """
    best, last = min(history, key=lambda record: record["validation_loss"]), history[-1]
    if last["validation_loss"] <= 1.1 * best["validation_loss"]:
        return None
    return (
        f"the validation loss rose from {best['validation_loss']:.4f} at step {best['step']} to "
        f"{last['validation_loss']:.4f}, so the model learns its tiles by heart: train fewer steps, or on more tiles"
    )


def main(args: argparse.Namespace) -> None:
    """Trains, validates the averaged weights, draws sample grids, and saves the pipeline."""
    autoencoder_record = require_complete(args.autoencoder, "autoencoder", "run train_autoencoder on it first")
    if "image_size" not in autoencoder_record:
        raise InputError(
            f"{args.autoencoder} holds an autoencoder of an earlier version: train one anew, in another folder"
        )
    autoencoder = AutoencoderDC.from_pretrained(args.autoencoder).eval().requires_grad_(False)
    source = load_tiles(args.data, image_size=args.image_size, audit_share=args.audit_share)
    image_size = autoencoder_record["image_size"]
    if source.image_size != image_size:
        raise InputError(
            f"the tiles are {source.image_size} px, but the autoencoder is for {image_size} px: "
            f"give --image-size {image_size}"
        )
    train, validation = source.split("train"), source.split("validation")
    settings = {
        "stage": "diffusion",
        "data": source.fingerprint(),
        "autoencoder": autoencoder_record["fingerprint"],
        **result_settings(args),
    }
    stage = Stage(args.output, settings)
    accelerator = make_accelerator(
        args.mixed_precision,
        batch_size=args.batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        report_to=args.report_to,
        project_dir=args.output,
    )
    if stage.complete:
        accelerator.print(f"diffusion: {args.output} is already finished")
        if accelerator.is_main_process:
            forget_key(args.output)
        return
    plan = plan_privacy(args, len(train), accelerator.num_processes)
    autoencoder_spent = None
    if plan:
        autoencoder_spent = autoencoder_privacy(autoencoder_record, source.fingerprint(), args.dp_public_autoencoder)
    torch.manual_seed(args.seed)
    latent_size = source.image_size // autoencoder.spatial_compression_ratio
    latent_shape = (autoencoder.config.latent_channels, latent_size, latent_size)
    denoiser = build_denoiser(
        latent_size,
        latent_shape[0],
        len(source.class_names),
        args.channels,
        args.layers_per_block,
        args.attention_levels,
        args.dropout,
    )
    null_class = denoiser.config.num_class_embeds - 1
    if accelerator.device.type == "cpu" or plan:  # the fused kernel gives no gradients tile by tile
        use_plain_attention(denoiser)
    # Tensor cores prefer this layout; on a CPU it makes group norm four times as slow.
    layout = torch.channels_last if accelerator.device.type == "cuda" else torch.contiguous_format
    denoiser = denoiser.to(memory_format=layout)
    average = UNet2DModel.from_config(denoiser.config).to(accelerator.device, memory_format=layout)
    average.load_state_dict(denoiser.state_dict())
    average.eval()
    ema = EMAModel(denoiser.parameters(), decay=args.ema_decay, use_ema_warmup=True, power=0.75)
    ema.to(accelerator.device)
    checkpoint = find_checkpoint(args.output / "checkpoints", args.resume)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        stage.begin()
    if args.report_to:
        accelerator.init_trackers("histodistill-diffusion", config={k: str(v) for k, v in settings.items()})

    optimizer = torch.optim.AdamW(
        denoiser.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay, betas=(0.9, 0.99), fused=True
    )
    model, optimizer = accelerator.prepare(denoiser, optimizer)
    autoencoder.to(accelerator.device)
    start, history = 0, []
    if checkpoint:
        state = load_checkpoint(
            checkpoint, stage.settings, {"unet": denoiser, "ema": average}, optimizer, accelerator.scaler
        )
        start, history = state["step"], state["history"]
        ema.optimization_step = state["ema_step"]
        ema.shadow_params = [p.detach().clone() for p in average.parameters()]

    def validate() -> float:
        """Flow loss of the averaged weights on validation tiles, with the same noise every time."""
        losses = []
        for number, first in enumerate(range(0, len(validation), args.batch_size)):
            indices = slice(first, first + args.batch_size)
            class_ids = torch.from_numpy(validation.labels[indices])
            drawn = draw_step(step_generator(0, number, 1), class_ids, latent_shape, null_class, 0.0)
            noise, levels, class_ids = (x.to(accelerator.device) for x in drawn)
            images = to_model_input(validation.images[indices]).to(accelerator.device)
            with torch.no_grad(), accelerator.autocast():
                latents = normalised_latents(autoencoder, images)
                losses.append(flow_loss(average, latents, class_ids, noise, levels).item() * len(images))
        return sum(losses) / len(validation)

    def sample_grid(path: Path) -> None:
        """Eight tiles of each class, one class per row, from the averaged weights and always the same noise."""
        pipeline = HistologyPipeline(autoencoder, average, make_scheduler())
        pipeline.set_progress_bar_config(disable=True)
        rows = [label for label in range(len(source.class_names)) for _ in range(8)]
        generators = [torch.Generator().manual_seed(i) for i in range(len(rows))]
        with accelerator.autocast():
            images = pipeline(rows, generator=generators, output_type="pt").images
        save_grid(images.float() * 2 - 1, path, columns=8)

    def load_views(indices: np.ndarray, generator: torch.Generator) -> torch.Tensor:
        """Training tiles N×3×H×W in [-1, 1], each as a random view."""
        images = to_model_input(train.images[indices])
        return random_symmetry(images, generator) if args.symmetries else images

    def loss_of_tile(call, *views: torch.Tensor) -> torch.Tensor:
        with accelerator.autocast():
            return flow_loss(call, *views)

    def private_step(step: int) -> None:
        """One step with differential privacy: gradients tile by tile."""

        def make_tiles(indices: np.ndarray) -> list[torch.Tensor]:
            tiles = []
            for index, generator in zip(indices, tile_generators(args.seed, step, indices), strict=True):
                views = np.repeat(index, plan.views)
                images = load_views(views, generator)
                class_ids = torch.from_numpy(train.labels[views])
                drawn = draw_step(generator, class_ids, latent_shape, null_class, args.class_dropout)
                tiles.append((images, *drawn))
            images, noise, noise_levels, class_ids = (
                torch.stack(values).to(accelerator.device) for values in zip(*tiles, strict=True)
            )
            with torch.no_grad(), accelerator.autocast():
                latents = normalised_latents(autoencoder, images.flatten(0, 1)).unflatten(0, images.shape[:2])
            return [latents, class_ids, noise, noise_levels]

        set_private_gradients(denoiser, loss_of_tile, make_tiles, plan, key, step)
        optimizer.step()
        optimizer.zero_grad()

    key = secret_key(args.output) if plan else b""
    weights = class_weights(train.labels, args.class_balance)
    warmup_steps = math.ceil(args.warmup * args.max_train_steps)
    validation = validation.subset(spread_indices(len(validation), args.validation_tiles))
    progress = tqdm(
        total=args.max_train_steps,
        initial=start,
        desc="diffusion",
        unit="step",
        disable=not accelerator.is_local_main_process,
    )
    training_seconds, resumed = 0.0, time.perf_counter()
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
            images = load_views(indices, generator)
            class_ids = torch.from_numpy(train.labels[indices])
            drawn = draw_step(generator, class_ids, latent_shape, null_class, args.class_dropout)
            images, noise, noise_levels, class_ids = (
                process_slice(batch, accelerator.process_index, accelerator.num_processes).to(accelerator.device)
                for batch in (images, *drawn)
            )
            if args.dropout:
                # Dropout draws from the global generator: make that, too, a function of (seed, step) alone.
                torch.manual_seed(step_generator(args.seed, position, 2 + accelerator.process_index).initial_seed())
            with accelerator.accumulate(model):
                with accelerator.autocast():
                    with torch.no_grad():
                        latents = normalised_latents(autoencoder, images)
                    latents = latents.contiguous(memory_format=layout)
                    loss = flow_loss(model, latents, class_ids, noise, noise_levels)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
        ema.step(denoiser.parameters())
        progress.update()

        done = step + 1
        last = done == args.max_train_steps
        if done % args.validation_steps == 0 or last:
            ema.copy_to(average.parameters())
            # The loss of training tiles is nothing that differential privacy may tell.
            losses = {} if plan else {"train_loss": loss.item()}  # waits for the device, so the clock is right
            training_seconds += time.perf_counter() - resumed
            record = {"step": done, **losses, "validation_loss": validate()}
            check_finite(denoiser, done, record)
            history.append(record)
            progress.set_postfix(validation_loss=f"{record['validation_loss']:.4f}")
            if args.report_to:
                accelerator.log(record, step=done)
            if accelerator.is_main_process:
                sample_grid(args.output / "progress" / f"step-{done:07d}.png")
            resumed = time.perf_counter()
        if (done % args.checkpointing_steps == 0 or last) and accelerator.is_main_process:
            ema.copy_to(average.parameters())
            save_checkpoint(
                args.output / "checkpoints",
                done,
                stage.settings,
                {"unet": denoiser, "ema": average},
                optimizer,
                {"history": history, "ema_step": ema.optimization_step},
                accelerator.scaler,
            )
            stage.save_progress()
    progress.close()

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        id2label = {str(i): name for i, name in enumerate(source.class_names)}
        pipeline = HistologyPipeline(
            autoencoder.cpu(), average.cpu().to(memory_format=torch.contiguous_format), make_scheduler(), id2label
        )
        pipeline.save_pretrained(args.output)
        write_json(args.output / "history.json", history)
        spent = {}
        if plan:
            own = privacy_record(plan)
            total = compose(own, autoencoder_spent) if autoencoder_spent else compose(own)
            spent = {"privacy": {**own, "autoencoder": autoencoder_spent or "public", "total": total}}
        tiles_seen = (args.max_train_steps - start) * args.gradient_accumulation_steps * args.batch_size
        stage.finish(
            validation_loss=history[-1]["validation_loss"],
            # Since the last resumption, where any step was left; without the time of validations.
            images_per_second=round(tiles_seen / training_seconds, 1) if tiles_seen else None,
            num_processes=accelerator.num_processes,
            **spent,
        )
        if plan:
            forget_key(args.output)
        accelerator.print(f"diffusion: validation loss {history[-1]['validation_loss']:.4f}, saved to {args.output}")
        if warning := overfitting_warning(history):
            accelerator.print(f"diffusion: warning: {warning}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    run_script(parse_args, main)
