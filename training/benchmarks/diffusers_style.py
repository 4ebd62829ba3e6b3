"""Training and sampling as diffusers' users mostly do them, which histodistill is measured against.

Training follows the structure of diffusers' example for unconditional images: a `datasets.Dataset` of PNG files that
are decoded, flipped and turned into tensors one by one, a shuffled `DataLoader`, `accelerator.prepare`, AdamW,
clipped gradients, and a moving average after each step. Latents, class labels and the flow loss are added, since the
denoiser needs them. Sampling is diffusers' own `DiTPipeline` around the modules of a `HistologyPipeline`.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image
from diffusers import AutoencoderDC, DiTPipeline, UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.optimization import get_scheduler
from diffusers.schedulers import SchedulerMixin
from diffusers.training_utils import EMAModel
from PIL import Image as PILImage

from histodistill.pipelines import HistologyPipeline, add_what_was_seen
from histodistill.training.data.images import png_bytes
from histodistill.training.data.tiles import Tiles
from histodistill.training.engine.accelerator import make_accelerator
from histodistill.training.engine.flow import flow_loss
from histodistill.training.models.denoiser import NUM_TRAIN_TIMESTEPS
from histodistill.training.models.denoiser_output import DATA, DenoiserOutput
from histodistill.training.models.latents import normalised_latents


def make_dataset(tiles: Tiles, class_names: list[str]) -> Dataset:
    """Tiles as a dataset of PNG files.

    Args:
        tiles: uint8 N×H×W×3 and their labels.
        class_names: Names of the labels.

    Returns:
        N rows of `label` and, decoded when a row is taken, `pixel_values`, float32 3×H×W in [-1, 1].
    """
    encoded = [{"bytes": png_bytes(PILImage.fromarray(image)), "path": None} for image in tiles.images]
    features = Features({"image": Image(), "label": ClassLabel(names=class_names)})
    dataset = Dataset.from_dict({"image": encoded, "label": tiles.labels.tolist()}, features=features)
    dataset.set_transform(_transform_rows)
    return dataset


def _transform_rows(rows: dict[str, list]) -> dict[str, list]:
    return {"pixel_values": [_transform_image(image) for image in rows["image"]], "label": rows["label"]}


def _transform_image(image: PILImage.Image) -> torch.Tensor:
    image = image.convert("RGB")
    if random.random() < 0.5:
        image = image.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(127.5).sub(1)


def train_peer(
    denoiser: UNet2DModel,
    autoencoder: AutoencoderDC,
    dataset: Dataset,
    *,
    batch_size: int,
    steps: int,
    warmup_steps: int = 0,
    mixed_precision: str = "no",
    num_workers: int = 0,
    class_dropout: float = 0.1,
) -> dict[str, Any]:
    """Trains a denoiser in place, and times it.

    Args:
        denoiser: With the null class as its last class embedding.
        autoencoder: Its config holds the scale of the latents.
        dataset: From `make_dataset`.
        batch_size: Tiles per step; the last step of an epoch has what is left.
        steps: Steps that are timed.
        warmup_steps: Steps before them that are not.
        mixed_precision: "no" or "bf16". The autoencoder, of which no gradient is taken, is cast as a whole.
        num_workers: Processes of the `DataLoader`.
        class_dropout: Share of tiles shown with the null class.

    Returns:
        Values that JSON can hold: `num_images` and `seconds` of the timed steps, `images_per_second` of them and
        `images_per_second_with_warmup` of all steps, the `loss` of each step, and `num_parameters`.
    """
    accelerator = make_accelerator(mixed_precision)
    half = torch.bfloat16 if mixed_precision == "bf16" else torch.float32
    autoencoder = autoencoder.to(accelerator.device, half).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch_size, shuffle=True, num_workers=num_workers)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=warmup_steps + steps)
    model, optimizer, loader, schedule = accelerator.prepare(denoiser, optimizer, loader, schedule)
    average = EMAModel(denoiser.parameters(), decay=0.9999, use_ema_warmup=True, power=0.75)
    average.to(accelerator.device)
    null_class = denoiser.config.num_class_embeds - 1

    model.train()
    losses, counts = [], []
    first = started = read_clock()
    for batch in itertools.islice(_endless(loader), warmup_steps + steps):
        images, labels = batch["pixel_values"], batch["label"]
        count, device = len(images), images.device
        with accelerator.accumulate(model):
            with torch.no_grad():
                latents = normalised_latents(autoencoder, images.to(half))
            noise = torch.randn_like(latents)
            noise_levels = torch.sigmoid(torch.randn(count, device=device))
            class_ids = torch.where(torch.rand(count, device=device) < class_dropout, null_class, labels)
            loss = flow_loss(model, latents, class_ids, noise, noise_levels, DenoiserOutput())
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        average.step(denoiser.parameters())
        losses.append(loss.detach().item())
        counts.append(count)
        if len(losses) == warmup_steps:
            started = read_clock()
    ended = read_clock()
    num_images = sum(counts[warmup_steps:])
    return {
        "num_images": num_images,
        "seconds": ended - started,
        "images_per_second": num_images / (ended - started),
        "images_per_second_with_warmup": sum(counts) / (ended - first),
        "loss": losses,
        "num_parameters": denoiser.num_parameters(),
    }


def _endless(loader: torch.utils.data.DataLoader) -> Iterator[dict[str, torch.Tensor]]:
    while True:
        yield from loader


def read_clock() -> float:
    """Seconds, read when the device has done all that was asked of it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class DiTDenoiser(torch.nn.Module):
    """A class-conditional `UNet2DModel` with the interface of the transformer that `DiTPipeline` calls.

    That pipeline takes class 1000 for the null class, whatever the model: any id above the last is the null class. And
    it takes what the model gives for the velocity.

    Args:
        unet: The U-Net.
        output: What that gives.
    """

    def __init__(self, unet: UNet2DModel, output: DenoiserOutput):
        super().__init__()
        self.unet, self.output = unet, output
        self.config = unet.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.unet.dtype

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor):
        """The velocity."""
        null_class = self.config.num_class_embeds - 1
        given = self.unet(sample, timestep, class_labels=class_labels.clamp(max=null_class))
        if self.output.prediction_type != DATA:
            return given
        level = (timestep / NUM_TRAIN_TIMESTEPS).view(-1, 1, 1, 1)
        data = add_what_was_seen(given.sample, sample, level, self.output.skip_noise)
        return UNet2DOutput(sample=(sample - data) / level)


def make_dit_pipeline(pipeline: HistologyPipeline, scheduler: SchedulerMixin) -> DiTPipeline:
    """A pipeline of diffusers' around our models.

    Args:
        pipeline: Whose weights it shares.
        scheduler: Of its own, which takes the velocity.

    Returns:
        The pipeline, which guides only where `guidance_scale` is above 1.
    """
    if not hasattr(scheduler, "scale_model_input"):
        # The flow-matching schedulers have no such method, which DiTPipeline always calls.
        scheduler.scale_model_input = lambda sample, timestep: sample
    return DiTPipeline(DiTDenoiser(pipeline.unet, DenoiserOutput.of(pipeline)), pipeline.vae, scheduler)
