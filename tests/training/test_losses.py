from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from histodistill.training.errors import InputError
from histodistill.training.losses import JointLoss, boundary_contrastive_loss


def logits_of(probabilities: list[list[float]]) -> torch.Tensor:
    """Logits whose softmax is exactly these rows."""
    return torch.tensor(probabilities, dtype=torch.float64).log()


def two_class_batch(first: list[float], second: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples given by their probability of class 0; `first` are of class 0, `second` of class 1."""
    rows = [[p, 1 - p] for p in first + second]
    return logits_of(rows), torch.tensor([0] * len(first) + [1] * len(second))


def test_value_worked_out_by_hand():
    logits, labels = two_class_batch([0.9, 0.8, 0.7, 0.2], [0.6, 0.1])
    # position 0.5: class 0 has its boundary at its 2nd largest, 0.8, and its push threshold at 0.8 - 0.3 = 0.5.
    #   pull: 0.7 and 0.2 are below, mean(0.1, 0.6) = 0.35; push: of 0.6 and 0.1 only 0.6 is above, 0.1.
    # Class 1 has probabilities 0.4 and 0.9: boundary at its 1st largest, 0.9, threshold 0.6.
    #   pull: 0.4 is below by 0.5; push: class 0's samples have 0.1, 0.2, 0.3, 0.8, of which 0.8 is above by 0.2.
    expected = (0.35 + 0.1) + (0.5 + 0.2)
    found = boundary_contrastive_loss(logits, labels, position=0.5, margin=0.3)
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_boundary_is_counted_from_the_top():
    # Nine of ten samples lie on or above the boundary at position 0.9, so only the weakest is pulled.
    own = [0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.93, 0.92, 0.91, 0.5]
    logits, labels = two_class_batch(own, [])
    # Class 1 is absent: it has no boundary and adds nothing, and class 0 has nobody to push.
    assert boundary_contrastive_loss(logits, labels, position=0.9).item() == pytest.approx(0.91 - 0.5, abs=1e-6)


def test_threshold_below_zero_counts_as_zero():
    logits, labels = two_class_batch([0.2], [0.1])
    # Class 0: boundary 0.2, threshold max(0.2 - 0.3, 0) = 0, push 0.1. Class 1: boundary 0.9, threshold 0.6, push 0.2.
    assert boundary_contrastive_loss(logits, labels, margin=0.3).item() == pytest.approx(0.1 + 0.2, abs=1e-6)


def test_separated_classes_cost_nothing():
    logits, labels = two_class_batch([0.95, 0.95], [0.05, 0.05])
    assert boundary_contrastive_loss(logits, labels).item() == 0


def test_a_batch_of_one_has_a_loss_of_zero_and_finite_gradients():
    logits = torch.tensor([[0.3, -0.2, 0.1]], requires_grad=True)
    loss = boundary_contrastive_loss(logits, torch.tensor([1]))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(1, 3))


def test_softmax_is_taken_once():
    # Twice-softmaxed probabilities of two classes lie in [0.27, 0.73]; a pull of 0.98 shows that these don't.
    logits = torch.tensor([[9.0, -9.0], [-4.0, 4.0]])
    loss = boundary_contrastive_loss(logits, torch.tensor([0, 0]), position=0.5)
    assert loss.item() == pytest.approx(1.0, abs=1e-3)


def test_gradient_pulls_the_weak_up_and_pushes_the_intruders_down():
    logits, labels = two_class_batch([0.9, 0.8, 0.3], [0.7, 0.02])
    logits = logits.requires_grad_()
    boundary_contrastive_loss(logits, labels, position=0.5, margin=0.3).backward()
    descent = -logits.grad
    assert descent[2, 0] > 0 > descent[2, 1]  # below the boundary of its class: up
    assert descent[3, 1] > 0 > descent[3, 0]  # of class 1, but likely of class 0: down in 0
    assert torch.equal(descent[0], torch.zeros(2, dtype=descent.dtype))  # well inside: left alone
    assert torch.equal(descent[1], torch.zeros(2, dtype=descent.dtype))  # is the boundary: no gradient through it


def test_joint_loss_is_the_weighted_sum():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(32, 5, generator=generator), torch.arange(32) % 5
    term = boundary_contrastive_loss(logits, labels, 0.8, 0.2)
    assert term > 0
    expected = F.cross_entropy(logits, labels) + 0.25 * term
    torch.testing.assert_close(JointLoss(alpha=0.25, position=0.8, margin=0.2)(logits, labels), expected)


def test_joint_loss_reaches_zero():
    # With a softmax before the cross-entropy it couldn't fall below ln(1 + 8/e) = 1.37 for nine classes.
    labels = torch.arange(18) % 9
    logits = torch.zeros(18, 9, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.5)
    loss_function = JointLoss()
    for _ in range(100):
        optimizer.zero_grad()
        loss = loss_function(logits, labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3 < math.log(1 + 8 / math.e)


def test_the_term_alone_lowers_itself():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(60, 4, generator=generator).requires_grad_()
    labels = torch.arange(60) % 4
    optimizer = torch.optim.Adam([logits], lr=0.1)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = boundary_contrastive_loss(logits, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_low_precision_logits_give_a_float32_loss():
    logits = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert JointLoss()(logits, torch.arange(16) % 3).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": 0.0}, "position=0.0 is out of range"),
        ({"position": 1.1}, "position=1.1 is out of range"),
        ({"margin": -0.1}, "margin=-0.1 is out of range"),
        ({"margin": 1.0}, "margin=1.0 is out of range"),
        ({"alpha": -1.0}, "alpha=-1.0 is out of range"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        JointLoss(**options)


def test_soft_labels_and_odd_shapes_are_refused():
    with pytest.raises(ValueError, match="soft labels"):
        boundary_contrastive_loss(torch.zeros(4, 2), torch.zeros(4))
    with pytest.raises(ValueError, match="there must be N rows of C logits"):
        boundary_contrastive_loss(torch.zeros(4, 2), torch.zeros(3, dtype=torch.int64))
