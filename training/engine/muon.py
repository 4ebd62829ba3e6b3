"""Muon: steps of momentum whose matrices are made orthogonal (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

torch's own `Muon` takes no kernels of convolutions, and works in bfloat16, in which a CPU that has no such arithmetic
takes some forty times as long as here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch


# The polynomial a x + b x³ + c x⁵ that brings singular values between 0 and 1 near to 1 in a few turns, and how many.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_TURNS = 5
# Beside AdamW's learning rate, that of matrices is so many times as large in trainings of up to so many steps, and in
# longer ones less; found by trying, see docs/trainings.md.
_MOST_RATIO, _SHORT = 25.0, 1600
# Weight decay of what AdamW trains, at most: its steps shrink with the gradients, so nothing there has to be bounded.
# With that of matrices, embeddings of classes and gains of norms went down to a third.
_MOST_DECAY_OF_OTHERS = 0.01
# Parts of a name of what reads the input or the time, or makes the output.
_OUTER = frozenset({"conv_in", "conv_out", "class_embedding", "time_embedding", "time_emb_proj", "projection"})


def matrix_ratio(num_steps: int) -> float:
    """How many times as large as AdamW's learning rate that of matrices is, in a training of so many steps.

    Its steps are as long however small a gradient is, so matrices go to and fro by as much as they are long until the
    learning rate falls. What suits 1,000 steps keeps 10,000 from learning more.
    """
    return _MOST_RATIO * min(1.0, math.sqrt(_SHORT / num_steps))


class Muon(torch.optim.Optimizer):
    """Takes orthogonal steps with weights that are matrices, and AdamW's with all others.

    Kernels of convolutions are matrices of one row for each output channel. Biases, norms, embeddings, and what reads
    the input and makes the output are left to AdamW, as by the authors.

    Args:
        matrices: Weights of two or more dimensions.
        others: All that AdamW trains.
        lr: AdamW's learning rate.
        ratio: How many times as much that of matrices is: see `matrix_ratio`.
        weight_decay: Share of a matrix that is taken off in a step, times its learning rate. A step is as large
            however small the gradient, so this alone bounds matrices: to singular values of some 1 / weight_decay. Of
            what AdamW trains it is 0.01 at most.
        betas: Of AdamW.
        momentum: Of matrices, in the manner of Nesterov.
    """

    def __init__(
        self,
        matrices: Iterable[torch.nn.Parameter],
        others: Iterable[torch.nn.Parameter],
        *,
        lr: float,
        ratio: float,
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.95,
    ):
        groups: list[dict[str, Any]] = [{"params": list(matrices)}, {"params": list(others)}]
        decay_of_others = min(weight_decay, _MOST_DECAY_OF_OTHERS)
        self._adamw = torch.optim.AdamW(
            groups[1]["params"], lr=lr, weight_decay=decay_of_others, betas=betas, fused=True
        )
        # The second group has all that AdamW's own group has, since it is handed over to it.
        groups[1] = self._adamw.param_groups[0]
        self._ratio = ratio
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Changes the weights by their gradients.

        Args:
            closure: None; torch's optimizers have this argument.
        """
        matrices, others = self.param_groups
        learning_rate = self._ratio * matrices["lr"]
        for weight in matrices["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            state["momentum"].lerp_(weight.grad, 1 - matrices["momentum"])
            direction = weight.grad.lerp(state["momentum"], matrices["momentum"]).flatten(1)
            rows, columns = direction.shape
            weight.mul_(1 - learning_rate * matrices["weight_decay"])
            change = orthogonalised(direction).view_as(weight)
            weight.add_(change, alpha=-learning_rate * max(1.0, rows / columns) ** 0.5)
        # Loading a checkpoint replaces both.
        self._adamw.state, self._adamw.param_groups = self.state, [others]
        self._adamw.step()


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix with singular values of about one (.7 to 1.2), but for those that are next to nothing.

    Newton-Schulz iterations, but on the smaller Gram matrix alone: for the kernel of a convolution, with nine times as
    many columns as rows, that costs a third.

    Args:
        matrix: float32 R×C.

    Returns:
        float32 R×C.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalised(matrix.T).T
    a, b, c = _COEFFICIENTS
    matrix = matrix / (matrix.norm() + 1e-7)
    gram = matrix @ matrix.T
    identity = torch.eye(len(gram), device=gram.device)
    product = factor = a * identity + b * gram + c * gram @ gram
    for _ in range(_TURNS - 1):
        gram = factor @ gram @ factor
        factor = a * identity + b * gram + c * gram @ gram
        product = factor @ product
    return product @ matrix


def is_matrix(name: str, weight: torch.nn.Parameter) -> bool:
    """Whether a weight of a U-Net or an autoencoder of diffusers is for Muon: a linear or convolutional one within.

    Those that read the time are not: they are the largest matrices, at which half of the time would go.

    Args:
        name: Of the weight in the network, or in an `AlignedDenoiser`.
        weight: It.
    """
    return weight.ndim >= 2 and _OUTER.isdisjoint(name.split("."))
