"""Trains the autoencoder of the latent diffusion model: diffusers' `AutoencoderKL` on real tiles.

    accelerate launch -m histodistill.training.train_autoencoder --data phantom --output runs/phantom/autoencoder

The output folder loads with `AutoencoderKL.from_pretrained`. Its config carries the scale of the latents, measured on
the training tiles: normalised latent = (latent - shift_factor) * scaling_factor has mean 0 and variance 1.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from tqdm.auto import tqdm

from histodistill.training.accelerator import make_accelerator
from histodistill.training.augment import random_symmetry
from histodistill.training.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from histodistill.training.data import load_tiles, to_model_input
from histodistill.training.errors import InputError
from histodistill.training.files import write_json
from histodistill.training.images import save_grid
from histodistill.training.loop import (
    batch_indices,
    class_weights,
    cosine_learning_rate,
    process_slice,
    set_learning_rate,
    spread_indices,
    step_generator,
)
from histodistill.training.options import (
    add_training_options,
    check_option,
    check_training_options,
    result_settings,
    run_script,
)
from histodistill.training.stages import Stage


INITIAL_LOG_VARIANCE = -6.0


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads and checks the command line; ends with code 2 and one sentence where it is wrong."""
    parser = argparse.ArgumentParser(prog="train_autoencoder", description=__doc__, allow_abbrev=False)
    add_training_options(parser, max_train_steps=2500, batch_size=32, learning_rate=1e-3, weight_decay=0.0)
    model = parser.add_argument_group("model")
    model.add_argument(
        "--channels",
        type=int,
        nargs="+",
        default=[32, 64],
        help="width of each resolution level; every level after the first halves the size",
    )
    model.add_argument("--latent-channels", type=int, default=4, help="channels of a latent")
    model.add_argument("--layers-per-block", type=int, default=1, help="residual blocks per level")
    loss = parser.add_argument_group("loss")
    loss.add_argument(
        "--kl-weight",
        type=float,
        default=1e-4,
        help="weight of the mean KL divergence per latent value from N(0, 1), in nats",
    )
    loss.add_argument(
        "--frequency-weight",
        type=float,
        default=0.1,
        help="weight of the L1 distance between Fourier transforms, which keeps fine texture",
    )
    loss.add_argument("--perceptual-weight", type=float, default=0.0)
    loss.add_argument("--teacher", default=None, help="classifier whose features the perceptual term compares")
    loss.add_argument("--adversarial-weight", type=float, default=0.0)
    args = parser.parse_args(argv)
    check_training_options(args)
    check_option(args, "channels", min(args.channels) >= 1, "every width must be at least 1")
    for name in ("latent_channels", "layers_per_block"):
        check_option(args, name, getattr(args, name) >= 1, "it must be at least 1")
    for name in ("kl_weight", "frequency_weight"):
        check_option(args, name, getattr(args, name) >= 0, "it must be at least 0")
    return args


def build_autoencoder(image_size: int, channels: list[int], latent_channels: int, layers_per_block: int):
    """A new `AutoencoderKL` that maps image_size to image_size / 2^(levels - 1).

    Raises:
        InputError: If image_size cannot be halved that often.
    """
    factor = 2 ** (len(channels) - 1)
    if image_size % factor:
        raise InputError(
            f"image size {image_size} is not divisible by {factor}: "
            f"give --image-size {max(factor, round(image_size / factor) * factor)}, or fewer --channels"
        )
    autoencoder = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=layers_per_block,
        latent_channels=latent_channels,
        norm_num_groups=math.gcd(8, *channels),
        sample_size=image_size,
        # Attention over so few pixels costs more than it gives.
        mid_block_add_attention=False,
    )
    # The second half of these outputs is the posterior's log variance. Left near 0 it would drown the latents in noise
    # of standard deviation 1, and thousands of steps would go into learning to turn that down.
    with torch.no_grad():
        autoencoder.quant_conv.bias[latent_channels:] = INITIAL_LOG_VARIANCE
    return autoencoder


class VariationalAutoencoder(torch.nn.Module):
    """Encoder, posterior sample and decoder as one forward pass, which is what DistributedDataParallel wraps.

    `AutoencoderKL.forward` would draw its noise itself and hide the posterior that the KL term needs.
    """

    def __init__(self, autoencoder: AutoencoderKL):
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstructs images N×3×H×W in [-1, 1] from latents drawn with standard normal `noise` N×C×h×w.

        Returns:
            Reconstruction N×3×H×W, and the mean KL divergence per latent value from N(0, 1), in nats.
        """
        posterior = self.autoencoder.encode(images).latent_dist
        mean, variance, log_variance = posterior.mean.float(), posterior.var.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + variance - 1 - log_variance).mean()
        latents = mean + variance.sqrt() * noise
        return self.autoencoder.decode(latents.to(images.dtype)).sample, kl


def reconstruction_loss(reconstruction, images, frequency_weight: float):
    """L1 distance of pixels plus `frequency_weight` times the L1 distance of orthonormal 2-D Fourier transforms.

    Args:
        reconstruction, images: float N×3×H×W in [-1, 1].
        frequency_weight: Weight of the second term, at least 0.

    Returns:
        Scalar tensor.
    """
    difference = reconstruction.float() - images.float()
    loss = difference.abs().mean()
    if frequency_weight:
        loss = loss + frequency_weight * torch.fft.rfft2(difference, norm="ortho").abs().mean()
    return loss


def perceptual_loss(layers, reconstruction, images):
    """L1 distance of the normalised maps after each ReLU of a ConvNet."""
    loss, a, b = 0.0, reconstruction, images
    for layer in layers:
        a, b = layer(a), layer(b)
        if isinstance(layer, torch.nn.ReLU):
            scale = b.float().square().mean(dim=1, keepdim=True).sqrt() + 1e-2
            loss = loss + ((a.float() - b.float()) / scale).abs().mean()
    return loss


def build_discriminator():
    """Patches of 14 px."""
    def block(i, o, stride):
        return torch.nn.Sequential(
            torch.nn.Conv2d(i, o, 4 if stride == 2 else 3, stride, 1), torch.nn.GroupNorm(4, o), torch.nn.LeakyReLU(0.2)
        )

    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 4, 2, 1), torch.nn.LeakyReLU(0.2), block(32, 64, 2), block(64, 64, 1),
        torch.nn.Conv2d(64, 1, 3, padding=1),
    )


def measure_latent_scale(autoencoder, batches) -> tuple[float, float]:
    """Mean and 1 / standard deviation of all latent values over batches of images in [-1, 1].

    Latents are drawn from the posterior, as they are when the denoiser is trained.
    """
    count, total, squares = 0, 0.0, 0.0
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for images in batches:
            posterior = autoencoder.encode(images).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
            latents = (posterior.mean + posterior.std * noise).double()
            count += latents.numel()
            total += latents.sum().item()
            squares += latents.square().sum().item()
    mean = total / count
    return mean, 1 / math.sqrt(max(squares / count - mean**2, 1e-12))


@torch.no_grad()
def validate(autoencoder: AutoencoderKL, images: torch.Tensor, accelerator: Accelerator) -> dict[str, float]:
    """PSNR in dB and L1 distance of reconstructions from the posterior mean; images N×3×H×W in [-1, 1]."""
    autoencoder.eval()
    squared, absolute = 0.0, 0.0
    for batch in images.split(256):
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
    source = load_tiles(args.data, image_size=args.image_size)
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
        return
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
    model, optimizer = accelerator.prepare(VariationalAutoencoder(autoencoder), optimizer)
    start, history = 0, []
    if checkpoint:
        state = load_checkpoint(checkpoint, {"autoencoder": autoencoder}, optimizer, accelerator.scaler)
        start, history = state["step"], state["history"]

    layers = None
    if args.perceptual_weight:
        from histodistill.training.classifiers import Classifier

        layers = Classifier.from_pretrained(args.teacher).eval().requires_grad_(False).backbone.layers
    discriminator = build_discriminator()
    critic = torch.optim.AdamW(discriminator.parameters(), 4e-4, betas=(0.5, 0.9), fused=True)
    adversarial_start = args.max_train_steps * 2 // 5
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
        # One optimizer step takes gradient_accumulation_steps batches of batch_size tiles over all processes.
        for micro_step in range(args.gradient_accumulation_steps):
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
                if layers is not None:
                    with accelerator.autocast():
                        loss = loss + args.perceptual_weight * perceptual_loss(layers, reconstruction, images)
                if args.adversarial_weight and step >= adversarial_start:
                    discriminator.requires_grad_(True)
                    with accelerator.autocast():
                        real, fake = discriminator(images), discriminator(reconstruction.detach())
                    critic_loss = (1 - real.float()).relu().mean() + (1 + fake.float()).relu().mean()
                    critic_loss.backward()
                    critic.step()
                    critic.zero_grad()
                    discriminator.requires_grad_(False)
                    with accelerator.autocast():
                        loss = loss - args.adversarial_weight * discriminator(reconstruction).float().mean()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
        progress.update()

        done = step + 1
        if done % args.validation_steps == 0 or done == args.max_train_steps:
            record = {"step": done, "train_loss": loss.item(), **validate(autoencoder, validation_images, accelerator)}
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
        measured = np.array_split(spread_indices(len(train), 10_000), math.ceil(min(len(train), 10_000) / 256))
        batches = (to_model_input(train.images[i]).to(accelerator.device) for i in measured)
        shift, scale = measure_latent_scale(autoencoder, batches)
        autoencoder.register_to_config(shift_factor=shift, scaling_factor=scale)
        autoencoder.save_pretrained(args.output)
        write_json(args.output / "history.json", history)
        facts = {"shift_factor": shift, "scaling_factor": scale, "num_processes": accelerator.num_processes}
        stage.finish(**facts, **validate(autoencoder, validation_images, accelerator))
        accelerator.print(
            f"autoencoder: validation PSNR {history[-1]['validation_psnr']:.2f} dB, saved to {args.output}"
        )
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    run_script(parse_args, main)
