"""The training of the denoiser: rectified flow on the latents of a frozen autoencoder, with averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel

from histodistill.pipelines import HistologyPipeline
from histodistill.selection.names import SYMMETRIES
from histodistill.selection.streams import torch_seed
from histodistill.training.data.images import save_grid
from histodistill.training.data.pixels import to_device
from histodistill.training.data.tile_cache import TileCache
from histodistill.training.data.tiles import TileSource
from histodistill.training.engine.alignment import AlignedDenoiser, Alignment, KeptOutput, misalignment
from histodistill.training.engine.augment import draw_symmetries
from histodistill.training.engine.central_images import ask_for_latents, warm_up
from histodistill.training.engine.checkpoints import content_of
from histodistill.training.engine.flow import UNTAUGHT_LOSS, draw_step, flow_loss
from histodistill.training.engine.kept_latents import Encoding, KeptLatents, keep_latents, plan_latents
from histodistill.training.engine.looks import SHOWN_PER_CLASS, SHOWN_STEPS
from histodistill.training.engine.loop import GenerativeTraining
from histodistill.training.engine.optimizers import make_optimizer
from histodistill.training.engine.privacy import PrivacyPlan
from histodistill.training.engine.steps import spread_indices, step_generator
from histodistill.training.models.adapters import add_adapters, has_adapters, merge_adapters
from histodistill.training.models.batch_sizes import usual_batch_size
from histodistill.training.models.denoiser import make_scheduler, use_plain_attention
from histodistill.training.models.denoiser_output import DenoiserOutput
from histodistill.training.models.latents import LatentModel, normalised_latents, scale_of_latents, shape_of_latent
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import format_size
from histodistill.training.running.notes import tell, told_by_distill
from histodistill.training.running.training_options import PrivateTrainingConfig


# Of AdamW.
_BETAS = (0.9, 0.99)


class DiffusionTraining(GenerativeTraining):
    """Learns to take noise out of latents, class by class.

    Args:
        config, accelerator, plan: See `GenerativeTraining`.
        source: The tiles; the denoiser is trained on its training tiles and judged by its validation tiles.
        autoencoder: Makes the latents; it stays as it is.
        denoiser: What is trained, with adapters or without; its last class is the null class.
        ema_decay: Decay of the moving average of the weights, which is what is validated and saved.
        class_dropout: Share of tiles that are shown with the null class.
        symmetries: Whether tiles are shown in the eight symmetries of the square.
        latent_cache: What latents of training tiles are kept as, one of `kept_latents.DTYPES`, or "off".
        alignment: What the denoiser's middle is drawn to; None leaves it alone.
        output: What the denoiser gives.
        noise_level_mean, noise_level_range: See `flow.draw_step`; validation tiles have as much noise whatever they
            are.

    Attributes:
        denoiser: What is trained.
        average: The denoiser with the averaged weights, and adapters where it has them.
        latents: What became of `latent_cache`, for the stage's record.
    """

    name = "diffusion"
    model: UNet2DModel | AlignedDenoiser

    def __init__(
        self,
        config: PrivateTrainingConfig,
        source: TileSource,
        accelerator: Accelerator,
        plan: PrivacyPlan | None,
        autoencoder: LatentModel,
        denoiser: UNet2DModel,
        *,
        ema_decay: float,
        class_dropout: float,
        symmetries: bool,
        latent_cache: str,
        alignment: Alignment | None = None,
        output: DenoiserOutput,
        noise_level_mean: float = 0.0,
        noise_level_range: tuple[float, float] = (0.0, 1.0),
    ):
        super().__init__(config, source.split("train"), accelerator, plan)
        self.source_name, self.latent_cache = source.name, latent_cache
        self.latents: dict[str, Any] = {"kept_as": "off"}
        self._kept: KeptLatents | None = None
        self._kept_before: str | None = None  # by the training that is resumed
        self._validation_latents: dict[int, torch.Tensor] = {}  # by the first tile of a batch
        self.autoencoder_weights = content_of(autoencoder)
        self.autoencoder = autoencoder.to(accelerator.device)
        self.class_dropout, self.symmetries = class_dropout, symmetries
        self.output, self.noise_levels = output, (noise_level_mean, noise_level_range)
        self.num_classes = len(source.class_names)
        self.null_class = denoiser.config.num_class_embeds - 1
        self.has_dropout = denoiser.config.dropout > 0
        self.latent_shape = shape_of_latent(autoencoder, source.image_size)
        if accelerator.device.type == "cpu" or plan:  # the fused kernel gives no gradients tile by tile
            use_plain_attention(denoiser)
        # Tensor cores prefer this layout; on a CPU it makes group norm four times as slow.
        self.layout = torch.channels_last if accelerator.device.type == "cuda" else torch.contiguous_format
        self.denoiser = denoiser.to(memory_format=self.layout)
        self.alignment = alignment
        self.model = denoiser
        if alignment:
            torch.manual_seed(torch_seed("weights of the projection", config.seed))
            self.model = AlignedDenoiser(denoiser, alignment.num_features)
        average = UNet2DModel.from_config(denoiser.config)
        if has_adapters(denoiser):
            add_adapters(average)
        self.average = average.to(accelerator.device, memory_format=self.layout)
        self.average.load_state_dict(denoiser.state_dict())
        self.average.eval()
        # All weights at once spares a GPU hundreds of small kernels. On a CPU it is no faster, and rounds otherwise.
        self.ema = EMAModel(
            denoiser.parameters(),
            decay=ema_decay,
            use_ema_warmup=True,
            power=0.75,
            foreach=accelerator.device.type == "cuda",
        )
        self.ema.to(accelerator.device)
        validation = source.split("validation")
        self.validation = validation.subset(spread_indices(len(validation), config.validation_tiles))
        self.optimizer = make_optimizer(config, self.model, _BETAS)

    def draw_batch(self, indices: np.ndarray, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Symmetries, noise, noise levels, and class ids of which some are the null class."""
        if self.symmetries:
            symmetries = draw_symmetries(len(indices), generator)
        else:
            symmetries = torch.zeros(len(indices), dtype=torch.int64)  # as they are
        class_ids = torch.from_numpy(self.train.labels[indices])
        drawn = draw_step(
            generator, class_ids, self.latent_shape, self.null_class, self.class_dropout, *self.noise_levels
        )
        return symmetries, *drawn, *([self.alignment.targets(indices, symmetries)] if self.alignment else [])

    def given(self) -> dict[str, str]:
        """The weights of other models, of which the stage's settings know only how they were trained."""
        aligned = {"aligned_with": self.alignment.weights} if self.alignment else {}
        return {"autoencoder_weights": self.autoencoder_weights, **aligned}

    def prepare(self) -> None:
        """Takes features of the training tiles, where they are needed, and keeps latents of them.

        Neither is kept where that is not wanted or cannot be; nor are latents where that is not worth it, nor where
        the training that goes on had none.
        """
        cache, is_shown = TileCache(self.config.cache_dir), self.accelerator.is_local_main_process
        if self.alignment:
            kept_in = None if self.latent_cache == "off" else cache
            self.alignment.prepare(self.train, self.source_name, self.accelerator.device, kept_in, is_shown)
        if "off" in (self.latent_cache, self._kept_before):
            return
        encoding = Encoding(
            self._encode_views,
            [self.autoencoder_weights, *scale_of_latents(self.autoencoder), self.config.mixed_precision],
            self.latent_shape,
            SYMMETRIES if self.symmetries else 1,
            self.accelerator.device,
        )
        plan = plan_latents(encoding, self.train, self.source_name, self.latent_cache)
        # Latents that some other training left do not count: whether the disk has them must not change the result.
        if self.views_shown < plan.num_views:
            with told_by_distill():  # which has a line for each step, and this is nothing to act upon
                tell(
                    f"diffusion: tiles are encoded as they are shown, since these steps show {self.views_shown:,} "
                    f"views of them, and there are {plan.num_views:,}"
                )
            return
        try:
            beside = self.alignment.kept_in if self.alignment else []
            stored = keep_latents(cache, encoding, plan, self.train, is_shown, beside)
        except InputError as error:
            changed = "" if self._kept_before is None else ", no longer rounded as they were"
            tell(f"diffusion: tiles are encoded anew in each step{changed}: {error.for_command_line()}")
            self.latents = {"kept_as": "off"}
            return
        self._kept = KeptLatents(stored, plan.dtype)
        self.latents["kept_as"] = plan.dtype
        line = f"diffusion: latents of {plan.num_views:,} views are kept as {plan.dtype}, {format_size(plan.nbytes)}"
        if self.plan is None:  # the error is a figure of training tiles, which differential privacy may not tell
            self.latents |= {"largest_error": stored.largest_error, "rms_error": stored.rms_error}
            line += f": rounding errs by {stored.rms_error:.1e} (RMS), at most by {stored.largest_error:.1e}"
        with told_by_distill():
            tell(line)

    @property
    def views_shown(self) -> int:
        """Views of tiles that all steps show."""
        config = self.config
        views = config.dp_views if self.plan else 1
        return config.max_train_steps * config.gradient_accumulation_steps * config.batch_size * views

    @torch.no_grad()
    def _encode_views(self, tiles: torch.Tensor, symmetries: torch.Tensor) -> torch.Tensor:
        """Latents float32 N×C×h×w of tiles uint8 N×H×W×3 in their symmetries, on the device."""
        with self.accelerator.autocast():
            return self._encode(super().make_inputs(tiles, symmetries))

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        return normalised_latents(self.autoencoder, images)

    def read_inputs(self, indices: np.ndarray, symmetries: torch.Tensor) -> torch.Tensor:
        """The kept latents, 16-bit floats N×C×h×w; or pixels where none are kept."""
        if self._kept is None:
            return super().read_inputs(indices, symmetries)
        return self._kept.read(indices, symmetries, self.accelerator.device)

    def make_inputs(self, read: torch.Tensor, symmetries: torch.Tensor) -> torch.Tensor:
        """Latents, float32 N×C×h×w on the device."""
        if self._kept is None:
            latents = self._encode(super().make_inputs(read, symmetries))
        else:
            latents = to_device(read, self.accelerator.device).float()
        return latents.contiguous(memory_format=self.layout)

    def before_private_steps(self, key: bytes) -> None:
        """Learns central images, where the plan has a part of the budget for them."""
        if self.plan is None or self.plan.queries is None:
            return

        def latents_of(indices: np.ndarray) -> torch.Tensor:
            as_they_are = torch.zeros(len(indices), dtype=torch.int64)
            with torch.no_grad(), self.accelerator.autocast():
                return self.make_inputs(self.read_inputs(indices, as_they_are), as_they_are)

        labels = self.train.labels
        latents = ask_for_latents(latents_of, labels, self.num_classes, self.latent_shape, self.plan, key)
        warm_up(self, latents, make_optimizer(self.config, self.model, _BETAS))

    def loss(self, call: Callable[..., Any], inputs: torch.Tensor, *drawn: torch.Tensor) -> torch.Tensor:
        """The error of the predicted velocity, and what an alignment adds to it."""
        noise, noise_levels, class_ids, *targets = drawn
        call = KeptOutput(call)
        with self.accelerator.autocast():
            loss = flow_loss(call, inputs, class_ids, noise, noise_levels, self.output)
        if self.alignment:
            (features,) = targets
            loss = loss + self.alignment.weight * misalignment(call.output.projected, features)
        return loss

    def validate(self) -> dict[str, float]:
        """Flow loss of the averaged weights on validation tiles, with the same noise every time."""
        losses = []
        device, size = self.accelerator.device, self.config.batch_size
        for number, first in enumerate(range(0, len(self.validation), size)):
            batch = slice(first, first + size)
            class_ids = torch.from_numpy(self.validation.labels[batch])
            generator = step_generator("noise of the validation of the denoiser", 0, number)
            drawn = draw_step(generator, class_ids, self.latent_shape, self.null_class, 0.0)
            noise, levels, class_ids = (part.to(device) for part in drawn)
            if first not in self._validation_latents:
                images = torch.from_numpy(self.validation.images[batch])
                as_they_are = torch.zeros(len(images), dtype=torch.int64)
                self._validation_latents[first] = self._encode_views(images, as_they_are).cpu()
            latents = self._validation_latents[first].to(device)
            with torch.no_grad(), self.accelerator.autocast():
                loss = flow_loss(self.average, latents, class_ids, noise, levels, self.output)
            losses.append(loss.item() * len(latents))
        return {"validation_loss": sum(losses) / len(self.validation)}

    def draw_progress(self, path: Path) -> None:
        """Tiles of each class, one class per row, from the averaged weights and always the same noise."""
        # What it returns depends on how it is called, which its types do not tell.
        pipeline: Any = self._pipeline_of_average()
        pipeline.set_progress_bar_config(disable=True)
        rows = [label for label in range(self.num_classes) for _ in range(SHOWN_PER_CLASS)]
        # The noise of the first images of a pool, whose seeds are these numbers.
        generators = [torch.Generator().manual_seed(i) for i in range(len(rows))]
        size, shown = usual_batch_size(self.train.images.shape[1]), []
        with self.accelerator.autocast():
            for first in range(0, len(rows), size):
                part = slice(first, first + size)
                options = {"num_inference_steps": SHOWN_STEPS, "generator": generators[part], "output_type": "pt"}
                shown.append(pipeline(rows[part], **options).images.float())
        save_grid(torch.cat(shown) * 2 - 1, path, columns=SHOWN_PER_CLASS)

    def before_batch(self, position: int) -> None:
        """Makes dropout, which draws from the global generator, a function of (seed, step) alone, too."""
        if self.has_dropout:
            process = self.accelerator.process_index
            torch.manual_seed(torch_seed("dropout of the denoiser", self.config.seed, position, process))

    def after_step(self) -> None:
        """Updates the moving average."""
        self.ema.step(self.denoiser.parameters())

    def before_look(self) -> None:
        """Puts the averaged weights into `average`."""
        self.ema.copy_to(self.average.parameters())

    def saved_modules(self) -> dict[str, torch.nn.Module]:
        """The denoiser and its average, and what projects its middle where that is aligned."""
        projection = {"projection": self.model.projection} if isinstance(self.model, AlignedDenoiser) else {}
        return {"unet": self.denoiser, "ema": self.average, **projection}

    def saved_state(self) -> dict[str, Any]:
        """How many steps the average has seen, which decides its decay, and what became of the latents."""
        return {"ema_step": self.ema.optimization_step, "latents": self.latents}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on with the average of the checkpoint, and with latents that are kept, or not, as they were."""
        self.ema.optimization_step = state["ema_step"]
        if "latents" in state:  # not of a checkpoint of earlier versions
            self.latents = state["latents"]
            self._kept_before = self.latents["kept_as"]
        self.ema.shadow_params = [parameter.detach().clone() for parameter in self.average.parameters()]

    def pipeline(self, class_names: list[str]) -> HistologyPipeline:
        """The pipeline of the averaged weights, to which adapters are added, on the CPU."""
        id2label = {str(label): name for label, name in enumerate(class_names)}
        self.autoencoder.cpu()
        self.average.cpu().to(memory_format=torch.contiguous_format)
        return self._pipeline_of_average(id2label)

    def _pipeline_of_average(self, id2label: dict[str, str] | None = None) -> HistologyPipeline:
        denoiser, scheduler = merge_adapters(self.average), make_scheduler(self.output.prediction_type)
        return HistologyPipeline(self.autoencoder, denoiser, scheduler, id2label, self.output.skip_noise)


def training_warning(history: list[dict[str, Any]]) -> str | None:
    """What to tell the user of a training whose validation losses say that something went wrong.

    Either the model is worse in the end than one that knows nothing of tiles, also by what training tiles lose: it
    fell apart, or was hardly trained. Or the loss rose again by more than a tenth: tiles are learned by heart, and
    `docs/privacy-audit.md` shows how copies and membership come with it.

    Args:
        history: One dict for each validation, with `step`, `validation_loss` and, but of a private training,
            `train_loss`.
    """
    best, last = min(history, key=lambda record: record["validation_loss"]), history[-1]
    has_risen = last["validation_loss"] > 1.1 * best["validation_loss"]
    knows_training_tiles = has_risen and last.get("train_loss", math.inf) < UNTAUGHT_LOSS
    if last["validation_loss"] > UNTAUGHT_LOSS and not knows_training_tiles:
        remedy = "train with a smaller learning rate, or more weight decay" if has_risen else "train longer"
        return (
            f"the validation loss is {last['validation_loss']:.4f} in the end, and a model that knows nothing of tiles"
            f" has {UNTAUGHT_LOSS}: its tiles are worth nothing; {remedy}"
        )
    if not has_risen:
        return None
    return (
        f"the validation loss rose from {best['validation_loss']:.4f} at step {best['step']} to "
        f"{last['validation_loss']:.4f}, so the model learns its tiles by heart: train fewer steps, or on more tiles"
    )
