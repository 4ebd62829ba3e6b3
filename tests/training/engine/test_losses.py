from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from histodistill.training.engine.classifier_config import ClassifierConfig
from histodistill.training.engine.losses import (
    at_temperature,
    batch_loss,
    boundary_contrastive_loss,
    soft_cross_entropy,
)
from histodistill.training.running.errors import InputError


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


def joint(**options: float) -> ClassifierConfig:
    return ClassifierConfig(loss="joint", **options)


def random_batch(num: int = 32, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels and soft labels."""
    generator = torch.Generator().manual_seed(0)
    soft_labels = torch.randn(num, classes, generator=generator).softmax(dim=1)
    return torch.randn(num, classes, generator=generator), torch.arange(num) % classes, soft_labels


def test_joint_loss_is_the_weighted_sum():
    logits, labels, _ = random_batch()
    term = boundary_contrastive_loss(logits, labels, 0.8, 0.2)
    assert term > 0
    expected = F.cross_entropy(logits, labels) + 0.25 * term
    config = joint(alpha=0.25, position=0.8, margin=0.2)
    torch.testing.assert_close(batch_loss(config, logits, labels, None), expected)


def test_joint_loss_reaches_zero():
    # With a softmax before the cross-entropy it couldn't fall below ln(1 + 8/e) = 1.37 for nine classes.
    labels = torch.arange(18) % 9
    logits = torch.zeros(18, 9, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        loss = batch_loss(joint(), logits, labels, None)
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3 < math.log(1 + 8 / math.e)


def test_the_other_losses_are_the_parts_of_the_joint_one():
    logits, labels, soft_labels = random_batch()
    hard, term = F.cross_entropy(logits, labels), boundary_contrastive_loss(logits, labels, 0.8, 0.2)
    options = {"position": 0.8, "margin": 0.2}
    torch.testing.assert_close(batch_loss(ClassifierConfig(), logits, labels, None), hard)
    contrastive = ClassifierConfig(loss="contrastive", alpha=7.0, **options)
    torch.testing.assert_close(batch_loss(contrastive, logits, labels, None), term)
    soft = {"soft_label_weight": 0.3, "temperature": 2.0}
    expected = soft_cross_entropy(logits, labels, soft_labels, 0.3, 2.0)
    torch.testing.assert_close(batch_loss(ClassifierConfig(**soft), logits, labels, soft_labels), expected)
    both = batch_loss(joint(alpha=0.5, **options, **soft), logits, labels, soft_labels)
    torch.testing.assert_close(both, expected + 0.5 * term)


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
    labels, soft_labels = torch.arange(16) % 3, torch.full((16, 3), 1 / 3)
    assert batch_loss(joint(), logits, labels, None).dtype == torch.float32
    assert soft_cross_entropy(logits, labels, soft_labels, 0.5, 2.0).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": 0.0}, "position=0.0 is out of range"),
        ({"position": 1.1}, "position=1.1 is out of range"),
        ({"margin": -0.1}, "margin=-0.1 is out of range"),
        ({"margin": 1.0}, "margin=1.0 is out of range"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        boundary_contrastive_loss(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64), **options)


def test_soft_cross_entropy_worked_out_by_hand():
    # At temperature 2 the logits (ln 16, 0) are (ln 4, 0): probabilities 0.8 and 0.2; without it 16/17 and 1/17.
    logits, labels = torch.tensor([[math.log(16), 0.0]]), torch.tensor([1])
    soft_labels = torch.tensor([[0.7, 0.3]])
    soft = -(0.7 * math.log(0.8) + 0.3 * math.log(0.2))
    expected = 0.75 * -math.log(1 / 17) + 0.25 * 2**2 * soft
    found = soft_cross_entropy(logits, labels, soft_labels, weight=0.25, temperature=2.0)
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_weights_of_soft_labels_at_their_ends():
    logits, labels, soft_labels = random_batch()
    hard = soft_cross_entropy(logits, labels, soft_labels, weight=0.0, temperature=3.0)
    torch.testing.assert_close(hard, F.cross_entropy(logits, labels))
    soft = soft_cross_entropy(logits, labels, soft_labels, weight=1.0, temperature=1.0)
    torch.testing.assert_close(soft, -(soft_labels * logits.log_softmax(dim=1)).sum(dim=1).mean())
    # Labels that are one-hot rows are labels.
    rows = soft_cross_entropy(logits, F.one_hot(labels, 5).float(), soft_labels, weight=0.4, temperature=2.0)
    torch.testing.assert_close(rows, soft_cross_entropy(logits, labels, soft_labels, weight=0.4, temperature=2.0))


def test_a_high_temperature_keeps_the_size_of_the_gradient():
    # Where T is large, the gradient of the soft part is (logits - the teacher's logits) / C without T, both centred
    # (equation 4 of Hinton, Vinyals & Dean).
    logits, labels, _ = random_batch()
    teacher = torch.randn(32, 5, generator=torch.Generator().manual_seed(7))
    expected = (logits - logits.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    for temperature in (30.0, 100.0):
        given = logits.clone().requires_grad_()
        soft_labels = at_temperature(teacher.softmax(dim=1), temperature)
        soft_cross_entropy(given, labels, soft_labels, weight=1.0, temperature=temperature).backward()
        torch.testing.assert_close(given.grad * 32 * 5, expected, atol=0.15, rtol=0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 10.0])
def test_probabilities_at_a_temperature(temperature):
    logits = 4 * torch.randn(50, 6, generator=torch.Generator().manual_seed(3))
    found = at_temperature(logits.softmax(dim=1), temperature)
    torch.testing.assert_close(found, (logits / temperature).softmax(dim=1), atol=1e-5, rtol=0)


def test_a_certain_teacher_is_certain_at_every_temperature():
    certain = torch.tensor([[0.0, 1.0, 0.0]])
    assert torch.equal(at_temperature(certain, 4.0), certain)


def test_the_term_refuses_soft_labels_and_odd_shapes():
    with pytest.raises(ValueError, match="soft labels"):
        boundary_contrastive_loss(torch.zeros(4, 2), torch.zeros(4))
    with pytest.raises(ValueError, match="there must be N rows of C logits"):
        boundary_contrastive_loss(torch.zeros(4, 2), torch.zeros(3, dtype=torch.int64))
