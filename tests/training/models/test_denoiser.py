from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention

from histodistill.training.models.denoiser import (
    NUM_TRAIN_TIMESTEPS,
    build_denoiser,
    make_scheduler,
    use_plain_attention,
)
from histodistill.training.models.denoiser_output import PREDICTION_TYPES


@pytest.mark.parametrize(
    ("channels", "attention_levels", "kinds"),
    [
        ([8], 0, ["DownBlock2D"]),
        ([8], 2, ["AttnDownBlock2D"]),
        ([8, 16, 24], 1, ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"]),
    ],
)
def test_build_denoiser(channels, attention_levels, kinds):
    denoiser = build_denoiser(8, 3, 4, channels, 1, attention_levels)
    assert denoiser.config.num_class_embeds == 5
    assert list(denoiser.config.down_block_types) == kinds
    assert list(denoiser.config.up_block_types) == [kind.replace("Down", "Up") for kind in reversed(kinds)]
    latents = torch.zeros(2, 3, 8, 8)
    with torch.no_grad():
        assert denoiser(latents, 10, class_labels=torch.tensor([0, 4])).sample.shape == latents.shape


def test_class_scales_the_maps_and_does_not_only_shift_them():
    denoiser = build_denoiser(8, 2, 3, [12], layers_per_block=1, attention_levels=0)
    block = denoiser.down_blocks[0].resnets[0]
    assert block.time_emb_proj.out_features == 2 * 12


def test_plain_attention_is_the_fused_one(tmp_path):
    torch.manual_seed(0)
    denoiser = build_denoiser(8, 2, 3, [12, 24], layers_per_block=1, attention_levels=1)
    inputs = torch.randn(3, 2, 8, 8), torch.tensor([1.0, 500.0, 900.0]), torch.tensor([0, 1, 3])
    results = []
    for change in (lambda model: None, use_plain_attention):
        change(denoiser)
        denoiser.zero_grad()
        output = denoiser(inputs[0], inputs[1], class_labels=inputs[2]).sample
        output.square().sum().backward()
        attention = next(module for module in denoiser.modules() if isinstance(module, Attention))
        results.append((type(attention.processor).__name__, output.detach(), attention.to_q.weight.grad.clone()))
    (fused, output, gradient), (plain, plain_output, plain_gradient) = results
    assert (fused, plain) == ("AttnProcessor2_0", "AttnProcessor")
    torch.testing.assert_close(plain_output, output)
    torch.testing.assert_close(plain_gradient, gradient, atol=1e-5, rtol=1e-4)
    assert gradient.abs().max() > 1e-3
    # What is saved does not know of it.
    denoiser.save_pretrained(tmp_path)
    loaded = type(denoiser).from_pretrained(tmp_path)
    loaded_attention = next(module for module in loaded.modules() if isinstance(module, Attention))
    assert type(loaded_attention.processor).__name__ == "AttnProcessor2_0"


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_scheduler_follows_the_flow_back_to_the_data(prediction_type):
    """With the true velocity, which is constant along a straight path, the sampler arrives at the data exactly."""
    generator = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, 1, 2, 4, 4, generator=generator)
    scheduler = make_scheduler(prediction_type)
    scheduler.set_timesteps(8)
    latents = noise
    for t in scheduler.timesteps:
        prediction = data if prediction_type == "sample" else noise - data
        latents = scheduler.step(prediction, t, latents).prev_sample
    torch.testing.assert_close(latents, data, atol=2e-2, rtol=0)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_scheduler_and_training_agree_on_noise_levels(prediction_type):
    """At timestep t the sampler mixes data and noise as the training does, which calls t = 1000 s."""
    scheduler = make_scheduler(prediction_type)
    scheduler.set_timesteps(10)
    sigmas = scheduler.sigmas[:-1].numpy()
    np.testing.assert_allclose(scheduler.timesteps.numpy() / NUM_TRAIN_TIMESTEPS, sigmas, atol=2e-3)
