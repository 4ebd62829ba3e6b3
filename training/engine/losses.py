"""Losses for classifiers: cross-entropy on hard and soft labels, the boundary-guided contrastive term, and sums."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from histodistill.training.data.pixels import to_device
from histodistill.training.engine.classifier_config import ClassifierConfig
from histodistill.training.running.options import require


def batch_loss(
    config: ClassifierConfig, logits: torch.Tensor, labels: torch.Tensor, soft_labels: torch.Tensor | None
) -> torch.Tensor:
    """The loss of a batch that a config asks for.

    Args:
        config: Its loss and the numbers that go with it count.
        logits: float N×C.
        labels: int64 N, or float N×C where tiles were mixed.
        soft_labels: float N×C at the config's temperature, or None where the config gives them no weight.

    Returns:
        A float32 scalar.
    """
    if config.loss != "ce":
        contrastive = boundary_contrastive_loss(logits, labels, config.position, config.margin)
        if config.loss == "contrastive":
            return contrastive
    if soft_labels is None:
        cross_entropy = F.cross_entropy(logits.float(), labels)
    else:
        weight = config.soft_label_weight
        cross_entropy = soft_cross_entropy(logits, labels, soft_labels, weight, config.temperature)
    return cross_entropy + config.alpha * contrastive if config.loss == "joint" else cross_entropy


def boundary_contrastive_loss(
    logits: torch.Tensor, labels: torch.Tensor, position: float = 0.9, margin: float = 0.3
) -> torch.Tensor:
    """Boundary-guided push and pull on class probabilities.

    For each class c of the batch, with p_c the softmax probability of c and n_c the number of its samples:

    - the boundary b_c is the k-th largest p_c among the samples of c, k = ⌈position·n_c⌉: the share `position` of
      the class lies on or above it. It is a statistic of the batch: no gradient flows through it;
    - pull: the samples of c below b_c are drawn up to it, by the mean over them of b_c − p_c;
    - push: the samples of other classes above t_c = max(b_c − margin, 0) are driven down to it, by the mean over
      them of p_c − t_c. (A probability cannot go below 0, so the bound on t_c changes no gradient; it only makes 0
      the smallest loss.)

    The result is the sum over the classes present of pull + push. The means are over the violators alone, so one
    straggler is pulled as hard as ten; with no violator the part is 0. A class with no sample in the batch has no
    boundary and adds nothing, not even a push. A class with a single sample has no pull, that sample being its
    boundary. When the batch is split over processes, each works with the boundaries of its own part.

    This is the semi-push-pull loss of BGAD (Yao et al., CVPR 2023, equations 6–8: boundary at a fixed position of the
    sorted likelihoods of the normal samples, Σ|min(p − b, 0)| + Σ|max(p − b + τ, 0)|) carried from log-likelihoods
    to class probabilities, one class after the other against the rest, as InfoDist does (Li & Kainz, MICCAI 2024;
    position β = 0.9, margin τ = 0.3). The softmax is taken once, here: give logits.

    Args:
        logits: float N×C.
        labels: int64 N in [0, C). Soft labels are not supported.
        position: β in (0, 1].
        margin: τ in [0, 1).

    Returns:
        A float32 scalar, at least 0.

    Raises:
        InputError: For `position` or `margin` out of range.
        ValueError: For logits or labels of another shape or type.
    """
    require(0 < position <= 1, "position", position, "it must be above 0 and at most 1")
    require(0 <= margin < 1, "margin", margin, "it must be at least 0 and below 1")
    if logits.ndim != 2 or labels.ndim != 1 or len(logits) != len(labels):
        shapes = f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}"
        raise ValueError(f"{shapes}: there must be N rows of C logits, and N labels")
    if labels.is_floating_point():
        raise ValueError("labels must be class indices: the boundary-guided term has no meaning for soft labels")
    probabilities = logits.float().softmax(dim=1)
    total = probabilities.new_zeros(())
    # How many there are of a class decides the shape of tensors: asked of the CPU, it is waited for once.
    labels = labels.cpu()
    for label in labels.unique().tolist():
        is_class = labels == label
        own, other = (
            probabilities[to_device(rows.nonzero().squeeze(1), probabilities.device), label]
            for rows in (is_class, ~is_class)
        )
        # The small number keeps 0.9 · 10, which is a hair off 9 in some roundings, from becoming rank 10.
        rank = max(1, math.ceil(position * len(own) - 1e-9))
        boundary = own.detach().sort(descending=True).values[rank - 1]
        threshold = (boundary - margin).clamp(min=0)
        total = total + _mean_of_positive(boundary - own) + _mean_of_positive(other - threshold)
    return total


def _mean_of_positive(excess: torch.Tensor) -> torch.Tensor:
    violators = excess > 0
    # Divided by at least one, so that no violator gives 0 (with a gradient of 0) and not nan.
    return (excess * violators).sum() / violators.sum().clamp(min=1)


def soft_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, soft_labels: torch.Tensor, weight: float, temperature: float
) -> torch.Tensor:
    """Cross-entropy on hard and on a teacher's soft labels: (1 − w)·CE(labels) + w·T²·CE(soft labels at T).

    Knowledge distillation of Hinton, Vinyals & Dean (2015, arXiv:1503.02531, section 2): logits are divided by the
    temperature T, and T² keeps the size of the gradient.

    Args:
        logits: float N×C.
        labels: int64 N, or float N×C that sum to one where tiles were mixed.
        soft_labels: float N×C that sum to one, already at temperature T: see `at_temperature`.
        weight: w in [0, 1].
        temperature: T, above 0.

    Returns:
        A float32 scalar, at least 0.
    """
    logits = logits.float()
    loss = weight * temperature**2 * F.cross_entropy(logits / temperature, soft_labels)
    return loss + (1 - weight) * F.cross_entropy(logits, labels) if weight < 1 else loss


def at_temperature(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    """What class probabilities would be, had their logits been divided by `temperature` before the softmax.

    Args:
        probabilities: float N×C that sum to one.
        temperature: Above 0; above 1 evens them out.

    Returns:
        float N×C that sum to one.
    """
    powers = probabilities ** (1 / temperature)
    return powers / powers.sum(dim=1, keepdim=True)
