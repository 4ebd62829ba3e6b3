"""Images that are guided while the run's pipeline samples them, so that a few of them stand for many: to compare with.

The pipeline's own loop goes as it did for the pool. In each of its first steps the image that it predicts is decoded
and seen by the ConvNet with random weights that selections go by (`untrained`), and the prediction takes a step down
the gradient of what is to be small: the distance to a mode of the pool, or how alike the images of a class are. The
gradient is that by the predicted latents; nothing goes back through the denoiser. No real tile is looked at. Each
image is one sample, and none is selected afterwards.

Two methods of the literature are the models of it, of which neither is repeated here in all it does. Modes are those
of MGD3 (Chan-Santiago et al., ICML 2025, arXiv:2505.18963), whose three stages are finding modes of a class, guiding
each sample to its mode, and stopping to guide it before the end; here they are centroids of the pool's features and
not of latents of real images. Repulsion is by a determinant, as in DiverseFlow (Morshed and Boddeti, CVPR 2025,
arXiv:2504.07894), which moves the samples of a batch up the gradient of a determinantal likelihood of what they are
predicted to become; the guided sampling of "Mitigating the Distribution Shift of Diffusion-based Dataset Distillation"
(CVPR 2026) joins such a repulsion of images that are denoised together to a matching of distributions, which is not
made here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DPMSolverMultistepScheduler
from torch.utils.checkpoint import checkpoint

from histodistill.hub_cards.tables import ImageTable
from histodistill.pipelines.histology_pipeline import HistologyPipeline
from histodistill.selection.baselines import fit_kmeans
from histodistill.selection.distances import median_squared_distance
from histodistill.selection.streams import stream
from histodistill.training.data.image_dataset import open_image_table
from histodistill.training.data.kept_arrays import read_arrays, read_kept_arrays, write_arrays
from histodistill.training.data.tiles import Tiles
from histodistill.training.distillation.guided_options import GUIDED, GuidedConfig, ModesConfig
from histodistill.training.distillation.made_sets import write_picture
from histodistill.training.engine.accelerator import make_accelerator
from histodistill.training.engine.pool import generate_images
from histodistill.training.generate import CALL_OPTIONS
from histodistill.training.models.batch_sizes import usual_batch_size
from histodistill.training.models.classifiers import Classifier
from histodistill.training.models.embedders import classifier_on, embed_images
from histodistill.training.models.encoder_names import UNTRAINED, UNTRAINED_SIDE
from histodistill.training.models.latents import LatentModel, compression_of, decode_latents
from histodistill.training.models.loading import load_classifier, load_pipeline
from histodistill.training.models.prediction import predict_proba
from histodistill.training.running.errors import InputError
from histodistill.training.running.notes import tell
from histodistill.training.running.progress import Progress
from histodistill.training.running.stages import require_parts


#: The folder in a table's that keeps guided sets.
GUIDED_FOLDER = "guided"
# The arrays of its file.
_KEPT = ("images", "labels", "soft_labels")
# What is added to the diagonal of a kernel, so that its determinant is no zero where two images are equal.
_RIDGE = 0.01

#: What is to be small: of the features of images that are sampled together, float N×D, a number.
Loss = Callable[[torch.Tensor], torch.Tensor]


def distance_to_modes(features: torch.Tensor, modes: torch.Tensor) -> torch.Tensor:
    """The squared distances of images to their modes, summed: of features and modes, float N×D each, row by row."""
    return (features - modes).square().sum()


def likeness(features: torch.Tensor, scale: float) -> torch.Tensor:
    """How alike images are: minus the log of the determinant of their kernel matrix.

    The kernel is exp(−‖x − y‖² / scale), with 0.01 added to its diagonal. By a determinantal point process with this
    kernel, a set that is half as likely has ln 2 more.

    Args:
        features: float N×D.
        scale: Above 0.
    """
    centred = features - features.mean(dim=0)
    norms = centred.square().sum(dim=1)
    squared = (norms[:, None] + norms - 2 * centred @ centred.T).clamp_min(0)
    ridge = _RIDGE * torch.eye(len(features), device=features.device)
    return -torch.logdet(torch.exp(-squared / scale) + ridge)


@dataclass(frozen=True)
class Guidance:
    """What moves predictions of latents, so that the features of what they decode to have a smaller loss.

    Attributes:
        autoencoder: Decodes them.
        network: Sees the images, of its own size; larger ones are brought to it, the mean over areas.
        loss: Of the features of all images.
        strength, stop: See `GuidedConfig`.
    """

    autoencoder: LatentModel
    network: Classifier
    loss: Loss
    strength: float
    stop: float

    def features(self, latents: torch.Tensor) -> torch.Tensor:
        """Features float N×D of the images that normalised latents N×C×h×w decode to, clipped as files have them."""
        images = decode_latents(self.autoencoder, latents).clamp(-1, 1)
        if images.shape[-1] > self.network.image_size:
            images = F.interpolate(images, size=self.network.image_size, mode="area")
        return self.network.backbone(images)

    def moved(self, latents: torch.Tensor, level: float) -> torch.Tensor:
        """Predicted latents, float N×C×h×w, after a step down the gradient.

        Whatever the loss, the root mean square of the step over all latents is the strength times the noise level:
        where much is still open, images can become others, and later on what is settled stays. Images whose gradient
        is larger than that of others move farther than these.

        Args:
            latents: Of images that are sampled together.
            level: Of noise, in [0, 1].
        """
        with torch.enable_grad(), torch.autocast(latents.device.type, enabled=False):
            predicted = latents.detach().float().requires_grad_()
            parts = predicted.split(usual_batch_size(latents.shape[-1] * compression_of(self.autoencoder)))
            # Of many images the gradient of some is computed at a time.
            whole = len(parts) == 1
            seen = [self.features(x) if whole else checkpoint(self.features, x, use_reentrant=False) for x in parts]
            (gradient,) = torch.autograd.grad(self.loss(torch.cat(seen)), predicted)
        size = gradient.square().mean().sqrt().clamp_min(torch.finfo(gradient.dtype).tiny)
        return latents - self.strength * level / size * gradient


class GuidedScheduler(DPMSolverMultistepScheduler):
    """The scheduler of a pipeline, which has what the denoiser predicts moved in its first steps.

    The solver (DPM-Solver++) takes what is predicted of the data, whatever the denoiser gives. So this is where to
    move it, and the loop of the pipeline stays as it is.

    Attributes:
        guidance: Moves it; None leaves the solver as it is.
    """

    guidance: Guidance | None = None

    def convert_model_output(self, model_output: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The data that a step goes by: see the base class."""
        data = super().convert_model_output(model_output, *args, **kwargs)
        guidance, step, steps = self.guidance, self.step_index, len(self.timesteps)
        if guidance is None or guidance.strength == 0 or step >= guidance.stop * steps:
            return data
        return guidance.moved(data, float(self.timesteps[step]) / self.config.num_train_timesteps)


class GuidedSampler:
    """Samples images with a run's pipeline as its pool was sampled, but for their guidance.

    Nothing is loaded before it is needed.

    Args:
        run: Folder with pipeline/, pool/ and teacher/.

    Raises:
        InputError: Where one of these is missing, or the pool is of another pipeline.
    """

    def __init__(self, run: Path):
        records = require_parts(run, "pipeline", "pool", "teacher")
        settings = records["pool"]["settings"]
        if settings["pipeline"] != records["pipeline"]["fingerprint"]:
            raise InputError(
                f"{run / 'pool'} was not made from {run / 'pipeline'}, which has changed since: make it anew"
            )
        self.run = run
        self._options = {name: settings[name] for name in CALL_OPTIONS}
        self._precision = settings["mixed_precision"]

    @property
    def num_classes(self) -> int:
        """How many classes the pool has."""
        return len(self._pool.class_names)

    def sample(self, label: int, count: int, seed: int, options: GuidedConfig) -> np.ndarray:
        """Images of a class that are sampled together.

        Args:
            label: The class.
            count: How many.
            seed: Decides on their noise, which is the same for all options, and on modes.
            options: The method is that of their class.

        Returns:
            uint8 count×S×S×3.

        Raises:
            InputError: Where there are to be more modes than the pool has images of the class.
        """
        loss = self._to_modes(label, count, seed) if isinstance(options, ModesConfig) else self._repulsion(label)
        self._pipeline.scheduler.guidance = Guidance(
            self._pipeline.vae, self._network, loss, options.strength, options.stop
        )
        seeds = stream("noise of guided images", seed, label).integers(2**32, size=count)
        with self._accelerator.autocast():
            return generate_images(self._pipeline, np.full(count, label), seeds, **self._options)

    def soft_labels(self, images: np.ndarray) -> np.ndarray:
        """What the teacher says of images uint8 N×S×S×3: float32 N×C."""
        return predict_proba(self._teacher, images)

    def _to_modes(self, label: int, count: int, seed: int) -> Loss:
        members = self._features_of(label)
        if len(members) < count:
            raise InputError(
                f"{self.run / 'pool'}: class {label} has only {len(members)} images, so there are no {count} modes: "
                "take fewer per class, or make a larger pool"
            )
        kmeans = fit_kmeans(members, count, stream("modes of guided images", seed, label))
        modes = torch.from_numpy(kmeans.cluster_centers_).to(self._accelerator.device, torch.float32)
        return partial(distance_to_modes, modes=modes)

    def _repulsion(self, label: int) -> Loss:
        members = self._features_of(label)
        scale = median_squared_distance(members, stream("kernel of images that repel each other", label))
        return partial(likeness, scale=scale)

    @cached_property
    def _accelerator(self) -> Accelerator:
        return make_accelerator(self._precision)

    @cached_property
    def _pipeline(self) -> HistologyPipeline:
        pipeline = load_pipeline(self.run / "pipeline").to(self._accelerator.device)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.vae.requires_grad_(False)
        pipeline.scheduler = GuidedScheduler.from_config(pipeline.scheduler.config)
        return pipeline

    @cached_property
    def _network(self) -> Classifier:
        size = self._pipeline.unet.config.sample_size * compression_of(self._pipeline.vae)
        network = classifier_on(UNTRAINED, min(size, UNTRAINED_SIDE), ["0", "1"])
        return network.requires_grad_(False).to(self._accelerator.device)

    @cached_property
    def _teacher(self) -> Classifier:
        return load_classifier(self.run / "teacher").to(self._accelerator.device)

    @cached_property
    def _pool(self) -> ImageTable:
        return open_image_table(self.run / "pool")

    @cached_property
    def _embeddings(self) -> np.ndarray:
        return embed_images(UNTRAINED, self._pool.images)

    def _features_of(self, label: int) -> np.ndarray:
        return self._embeddings[self._pool.columns["label"] == label]


def make_guided(file: Path, sampler: GuidedSampler, n_per_class: int, seed: int, options: GuidedConfig) -> None:
    """Samples a guided set where a file does not hold it yet, and makes a picture of it beside the file.

    Args:
        file: Of the images; where a call was killed, the classes that it had are in it, and the others follow.
        sampler: Of the run.
        n_per_class: Images of each class.
        seed, options: See `GuidedSampler.sample`.

    Raises:
        InputError: See `GuidedSampler.sample`.
    """
    classes = _finished_classes(file, n_per_class)
    first, total = len(classes), sampler.num_classes
    if first == total:
        return
    name = f"{GUIDED}{options.method}, {n_per_class} per class"
    with Progress(total * n_per_class, name, "images", initial=first * n_per_class) as progress:
        for label in range(first, total):
            images = sampler.sample(label, n_per_class, seed, options)
            classes.append((images, sampler.soft_labels(images)))
            _keep(file, classes)
            progress.update(n_per_class)
    tell(f"{GUIDED}{options.method}: {n_per_class} images per class, seed {seed}")


def read_guided(file: Path) -> Tiles:
    """The set that `make_guided` has made, with the teacher's soft labels."""
    kept = read_arrays(file, _KEPT)
    return Tiles(kept["images"], kept["labels"], kept["soft_labels"])


def _keep(file: Path, classes: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Writes images and soft labels of the first classes, and first the picture, so that no whole set is without."""
    file.parent.mkdir(parents=True, exist_ok=True)
    n_per_class = len(classes[0][0])
    images, soft_labels = map(np.concatenate, zip(*classes, strict=True))
    write_picture(file, images, n_per_class)
    labels = np.repeat(np.arange(len(classes)), n_per_class)
    write_arrays(file, images=images, labels=labels, soft_labels=soft_labels)


def _finished_classes(file: Path, n_per_class: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and soft labels of the classes that a file has, where there is one that fits."""
    kept = read_kept_arrays(file, _KEPT)
    if not kept:
        return []
    count = len(kept["labels"]) // n_per_class
    return list(zip(np.split(kept["images"], count), np.split(kept["soft_labels"], count), strict=True))
