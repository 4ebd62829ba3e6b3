from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from scipy import stats

from histodistill.training.engine.flow import UNTAUGHT_LOSS, draw_step, flow_loss
from histodistill.training.engine.steps import step_generator
from histodistill.training.models.denoiser_output import DATA, PREDICTION_TYPES, VELOCITY, DenoiserOutput


def test_flow_loss_is_zero_for_the_true_velocity():
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 3, 2, 4, 4, generator=generator)
    levels = torch.tensor([0.1, 0.5, 0.9])
    seen = {}

    class Denoiser(torch.nn.Module):
        def forward(self, noisy, timesteps, class_labels):
            seen.update(noisy=noisy, timesteps=timesteps, class_labels=class_labels)
            return type("Output", (), {"sample": noise - latents + error})

    class_ids = torch.tensor([0, 1, 5])
    error = 0.0
    assert flow_loss(Denoiser(), latents, class_ids, noise, levels, DenoiserOutput()) == 0
    torch.testing.assert_close(seen["noisy"][1], (latents[1] + noise[1]) / 2)
    torch.testing.assert_close(seen["timesteps"], torch.tensor([100.0, 500.0, 900.0]))
    assert seen["class_labels"] is class_ids
    error = 0.5
    assert flow_loss(Denoiser(), latents, class_ids, noise, levels, DenoiserOutput()).item() == pytest.approx(0.25)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_same_error_counts_alike_whatever_is_predicted(prediction_type):
    generator = torch.Generator().manual_seed(0)
    latents, noise, wrong = torch.randn(3, 3, 2, 4, 4, generator=generator)
    levels = torch.tensor([0.1, 0.5, 0.9])

    def denoiser(noisy, timesteps, class_labels):
        # A velocity that errs by `wrong`, and the data that would follow from it.
        velocity = noise - latents + wrong
        data = noisy - levels.view(-1, 1, 1, 1) * velocity
        return SimpleNamespace(sample=velocity if prediction_type == VELOCITY else data)

    loss = flow_loss(denoiser, latents, torch.tensor([0, 1, 2]), noise, levels, DenoiserOutput(prediction_type))
    assert loss.item() == pytest.approx(wrong.square().mean().item(), rel=1e-4)


def test_a_perfect_output_that_goes_with_what_was_seen_has_no_loss_and_unit_variance():
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 3, 8, 64, 64, generator=generator)
    levels, skip = torch.tensor([0.05, 0.2, 0.9]), 0.25
    # Karras et al. 2022, table 1, of a ratio of noise to data that is sigma.
    sigma = (levels / (1 - levels)).view(-1, 1, 1, 1)
    kept = skip**2 / (sigma**2 + skip**2)
    target = latents - kept * (latents + sigma * noise)
    target = target / target.std(dim=(1, 2, 3), keepdim=True)

    def denoiser(noisy, timesteps, class_labels):
        return SimpleNamespace(sample=target)

    loss = flow_loss(denoiser, latents, torch.tensor([0, 1, 2]), noise, levels, DenoiserOutput(DATA, skip))
    assert loss.item() < 1e-3


def test_errors_next_to_no_noise_are_not_divided_by_next_to_nothing():
    latents = torch.zeros(1, 2, 4, 4)
    denoiser = lambda *_, **__: SimpleNamespace(sample=latents + 0.1)  # noqa: E731
    noise, levels = torch.ones_like(latents), torch.tensor([1e-6])
    loss = flow_loss(denoiser, latents, torch.tensor([0]), noise, levels, DenoiserOutput(DATA))
    assert loss.item() == pytest.approx((0.1 / 0.05) ** 2, rel=1e-4)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_what_a_model_that_knows_nothing_loses(prediction_type):
    """It gives the mean of the data, or of the velocity, given what it sees, where both data and noise are normal."""
    class_ids = torch.zeros(40_000, dtype=torch.int64)
    latents = torch.randn(len(class_ids), 2, 2, 2, generator=torch.Generator().manual_seed(0))
    noise, drawn, _ = draw_step(step_generator("noise", 0, 0), class_ids, (2, 2, 2), 1, 0.0)

    def denoiser(noisy, timesteps, class_labels):
        levels = drawn.view(-1, 1, 1, 1)
        data = (1 - levels) * noisy / ((1 - levels) ** 2 + levels**2)
        return SimpleNamespace(sample=data if prediction_type == DATA else (noisy - data) / levels)

    loss = flow_loss(denoiser, latents, class_ids, noise, drawn, DenoiserOutput(prediction_type))
    assert loss.item() == pytest.approx(UNTAUGHT_LOSS, abs=0.01)


def test_draw_step():
    count = 4000
    class_ids = torch.arange(count) % 3
    noise, levels, shown = draw_step(step_generator("noise", 0, 0), class_ids, (2, 4, 4), 3, 0.25)
    assert noise.shape == (count, 2, 4, 4)
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert levels.shape == (count,)
    assert 0 < levels.min() < levels.max() < 1
    assert torch.logit(levels).std().item() == pytest.approx(1, abs=0.05)  # logit-normal
    _, higher, _ = draw_step(step_generator("noise", 0, 0), class_ids, (2, 4, 4), 3, 0.25, level_mean=0.5)
    torch.testing.assert_close(torch.logit(higher), torch.logit(levels) + 0.5, rtol=0, atol=1e-3)
    dropped = shown == 3
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(shown[~dropped], class_ids[~dropped])
    again = draw_step(step_generator("noise", 0, 0), class_ids, (2, 4, 4), 3, 0.25)
    assert all(torch.equal(a, b) for a, b in zip(again, (noise, levels, shown), strict=True))
    assert torch.equal(draw_step(step_generator("noise", 0, 0), class_ids, (2, 4, 4), 3, 0.0)[2], class_ids)


@pytest.mark.parametrize(("mean", "low", "high"), [(0.0, 0.3, 0.8), (1.0, 0.0, 0.5), (-0.5, 0.6, 1.0)])
def test_levels_in_a_range_are_what_is_left_of_all(mean, low, high):
    class_ids = torch.zeros(20000, dtype=torch.int64)
    drawn = [
        draw_step(step_generator("noise", 0, 0), class_ids, (1, 1, 1), 1, 0.5, mean, limits)
        for limits in ((0.0, 1.0), (low, high))
    ]
    (noise, whole, shown), (noise_again, levels, shown_again) = drawn
    assert torch.equal(noise, noise_again) and torch.equal(shown, shown_again)
    left = whole[(whole >= low) & (whole <= high)]
    assert low - 1e-6 < levels.min() < left.min() + 0.01 and left.max() - 0.01 < levels.max() < high + 1e-6
    assert stats.ks_2samp(left, levels).pvalue > 0.01


def test_levels_that_are_next_to_never_drawn_stay_in_their_range():
    for limits in ((0.0, 1e-12), (0.999999, 1.0)):
        _, levels, _ = draw_step(step_generator("noise", 0, 0), torch.zeros(9), (1, 1, 1), 1, 0.0, 20.0, limits)
        assert ((levels >= limits[0]) & (levels <= torch.tensor(limits[1]))).all()
