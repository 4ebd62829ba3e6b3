"""What an autoencoder loses: tiles beside what it makes of them, by their pixels and by what a classifier says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from histodistill.selection.image_rows import Images, batches
from histodistill.training.data.pixels import to_model_input, to_uint8
from histodistill.training.models.batch_sizes import usual_batch_size
from histodistill.training.models.latents import LatentModel, reconstruct


#: Points of a classifier's accuracy that tiles may lose in the autoencoder before a warning says so.
MOST_POINTS_LOST = 1.0
# Side of the window that SSIM looks through, in pixels: a Gaussian with a standard deviation of 1.5.
_WINDOW = 11
# A mean square error of 8-bit values, at least: tiles that are the same to the last bit have no finite PSNR.
_LEAST_ERROR = 1e-7


@dataclass(frozen=True)
class Lost:
    """What is lost of tiles that are encoded and decoded again.

    Attributes:
        num_tiles: Tiles that were looked at.
        psnr: Peak signal-to-noise ratio of 8-bit values in dB, of all tiles together.
        ssim: Mean structural similarity (Wang et al. 2004, doi:10.1109/TIP.2003.819861), at most 1; None for tiles
            that are smaller than its window of 11 pixels.
        agreement: Share of the tiles that the classifier takes for the same class before and after; None without one.
        accuracy, accuracy_reconstructed: Its accuracy on the tiles, and on what is left of them.
    """

    num_tiles: int
    psnr: float
    ssim: float | None
    agreement: float | None = None
    accuracy: float | None = None
    accuracy_reconstructed: float | None = None

    @property
    def points_lost(self) -> float | None:
        """Percentage points of accuracy that are lost; None without a classifier."""
        if self.accuracy is None or self.accuracy_reconstructed is None:
            return None
        return 100 * (self.accuracy - self.accuracy_reconstructed)

    def words(self) -> str:
        """The figures beside the PSNR, as they follow it in a sentence."""
        parts = [] if self.ssim is None else [f", SSIM {self.ssim:.3f}"]
        if self.agreement is not None:
            parts.append(
                f"; the teacher says the same of {self.agreement:.1%} of the tiles, and is right on "
                f"{self.accuracy:.1%} before and {self.accuracy_reconstructed:.1%} after"
            )
        return "".join(parts)

    def record(self) -> dict[str, float]:
        """The same by the names that the record of a stage has for them."""
        figures = {
            "validation_ssim": self.ssim,
            "teacher_agreement": self.agreement,
            "teacher_accuracy": self.accuracy,
            "teacher_accuracy_reconstructed": self.accuracy_reconstructed,
        }
        return {name: round(value, 6) for name, value in figures.items() if value is not None}

    def warning(self) -> str | None:
        """What to tell where a classifier loses more than `MOST_POINTS_LOST`; None where it does not."""
        lost = self.points_lost
        if lost is None or lost <= MOST_POINTS_LOST:
            return None
        return (
            f"the autoencoder loses {lost:.1f} points of the teacher's accuracy on {self.num_tiles:,} validation "
            "tiles, which nothing after it brings back: give it more latent channels or a longer training, or take "
            "another autoencoder"
        )


@torch.no_grad()
def reconstruct_tiles(autoencoder: LatentModel, images: Images, batch_size: int | None = None) -> Iterator[np.ndarray]:
    """What is left of tiles after encoding and decoding.

    Args:
        autoencoder: In evaluation mode; used where it is.
        images: uint8 N×H×W×3.
        batch_size: Tiles at a time, at least 1; by default `usual_batch_size`.

    Yields:
        uint8 M×H×W×3, the next of them in their order.
    """
    for batch in batches(images, batch_size or usual_batch_size(images.shape[1])):
        pixels = to_model_input(batch).to(autoencoder.device)
        yield to_uint8(reconstruct(autoencoder, pixels).float().cpu())


def what_is_lost(
    autoencoder: LatentModel,
    images: Images,
    labels: np.ndarray | None = None,
    predict: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Lost:
    """Compares tiles with their reconstructions; only a batch of them is in memory at a time.

    Args:
        autoencoder: In evaluation mode; used where it is.
        images: uint8 N×H×W×3, at least one.
        labels: int64 N; needed for `predict`.
        predict: A classifier: from images uint8 B×H×W×3 to the probabilities of the labels, float B×C.
    """
    size = usual_batch_size(images.shape[1])
    squares, similarity = 0.0, 0.0
    said: list[np.ndarray] = []
    originals = batches(images, size)
    for batch, left in zip(originals, reconstruct_tiles(autoencoder, images, size), strict=True):
        squares += float(np.square(batch.astype(np.float64) - left).sum())
        similarity += _similarity(batch, left) * len(batch)
        if predict is not None:
            said.append(np.stack([predict(batch).argmax(axis=1), predict(left).argmax(axis=1)]))
    count = len(images)
    psnr = 10 * math.log10(255**2 / max(squares / images.nbytes, _LEAST_ERROR))
    ssim = similarity / count if images.shape[1] >= _WINDOW else None
    if predict is None:
        return Lost(count, psnr, ssim)
    before, after = np.concatenate(said, axis=1)
    return Lost(
        count,
        psnr,
        ssim,
        agreement=float((before == after).mean()),
        accuracy=float((before == labels).mean()),
        accuracy_reconstructed=float((after == labels).mean()),
    )


def _similarity(first: np.ndarray, second: np.ndarray) -> float:
    """The mean SSIM of pairs of images uint8 N×H×W×3; 0 for images that are smaller than the window."""
    if first.shape[1] < _WINDOW:
        return 0.0
    from torchmetrics.functional.image import structural_similarity_index_measure

    # In float64, for whose convolutions PyTorch has nothing quick, it would take 70 times as long, and gigabytes.
    pair = (torch.from_numpy(images).permute(0, 3, 1, 2).float() for images in (second, np.ascontiguousarray(first)))
    _, everywhere = structural_similarity_index_measure(*pair, data_range=255.0, return_full_image=True)
    edge = _WINDOW // 2  # where the window would reach beyond the image
    return float(everywhere[..., edge:-edge, edge:-edge].double().mean())
