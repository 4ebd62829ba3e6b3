from __future__ import annotations

import re

import pytest
import torch
from diffusers import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_dc import ResBlock
from torch.distributions import Normal, kl_divergence

from histodistill.training.models.autoencoder import (
    VariationalAutoencoder,
    build_autoencoder,
    measure_latents,
    reconstruction_loss,
)
from histodistill.training.running.errors import InputError


@pytest.mark.parametrize("latent_channels", [2, 3, 16])
@pytest.mark.parametrize(("channels", "latent_size"), [([8], 16), ([8, 16], 8), ([4, 16, 8], 4), ([3, 12], 8)])
def test_build_autoencoder(channels, latent_size, latent_channels):
    autoencoder = build_autoencoder(16, channels, latent_channels, 1)
    images = torch.zeros(2, 3, 16, 16)
    with torch.no_grad():
        latents = autoencoder.encode(images).latent
        assert latents.shape == (2, latent_channels, latent_size, latent_size)
        assert autoencoder.decode(latents).sample.shape == images.shape
    # The shortcuts past the latents take means over as many channels each, so there are none where that does not go.
    has_shortcut = channels[-1] % latent_channels == 0
    assert autoencoder.encoder.out_shortcut == autoencoder.decoder.in_shortcut == has_shortcut


def test_build_autoencoder_refuses_odd_sizes():
    with pytest.raises(InputError, match="image size 30 is not divisible by 4: give image_size 32"):
        build_autoencoder(30, [8, 8, 8], 2, 1)


@pytest.mark.parametrize("channels", [[8, 10], [8, 24], [8, 64], [8, 8, 12], [6, 2], [5, 10]])
def test_widths_that_shortcuts_cannot_join(channels):
    with pytest.raises(InputError) as error:
        build_autoencoder(16, channels, 2, 1)
    message = str(error.value)
    assert message.startswith(f"channels {' '.join(map(str, channels))} cannot be joined by shortcuts: every width ")
    # What it says to give can be built.
    next_width, width = map(int, re.fullmatch(r".*; give (\d+) after (\d+)", message).groups())
    assert width == channels[-2]
    build_autoencoder(16, [*channels[:-1], next_width], 2, 1)


def test_the_finest_level_may_be_plain():
    autoencoder = build_autoencoder(16, [4, 8, 16], 4, 2, plain_finest=True)
    assert list(autoencoder.config.encoder_layers_per_block) == [0, 2, 2]
    assert list(autoencoder.config.decoder_layers_per_block) == [0, 4, 4]
    assert sum(isinstance(module, ResBlock) for module in autoencoder.modules()) == 12
    with torch.no_grad():
        latents = autoencoder.encode(torch.zeros(1, 3, 16, 16)).latent
        assert latents.shape == (1, 4, 4, 4) and autoencoder.decode(latents).sample.shape == (1, 3, 16, 16)


@pytest.mark.parametrize("layers_per_block", [1, 2])
def test_residual_blocks_begin_as_the_identity(layers_per_block):
    torch.manual_seed(0)
    autoencoder = build_autoencoder(16, [8, 16], 2, layers_per_block)
    blocks = {}
    for name in ("encoder", "decoder"):
        blocks[name] = [module for module in getattr(autoencoder, name).modules() if isinstance(module, ResBlock)]
        for block in blocks[name]:
            features = torch.randn(2, block.conv1.in_channels, 4, 4)
            assert torch.equal(block(features), features)
    assert (len(blocks["encoder"]), len(blocks["decoder"])) == (2 * layers_per_block, 4 * layers_per_block)
    # They can learn: where a norm's weight is 0, its gradient is not.
    autoencoder(torch.rand(2, 3, 16, 16)).sample.square().mean().backward()
    assert all(block.norm.weight.grad.abs().max() > 0 for block in blocks["encoder"] + blocks["decoder"])


def test_forward_draws_from_the_posterior():
    torch.manual_seed(0)
    autoencoder = build_autoencoder(16, [8, 8], 2, 1).eval()
    images, noise = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 2, 8, 8)
    prior = Normal(0.0, 1.0)
    with torch.no_grad():
        mean = autoencoder.encode(images).latent
        reconstruction, kl = VariationalAutoencoder(autoencoder, 0.3)(images, noise)
        torch.testing.assert_close(reconstruction, autoencoder.decode(mean + 0.3 * noise).sample)
        # Less what would be left if the posterior were N(0, 0.3²).
        expected = kl_divergence(Normal(mean, 0.3), prior).mean() - kl_divergence(Normal(0.0, 0.3), prior)
        torch.testing.assert_close(kl, expected)
        assert kl > 0

        without, same_kl = VariationalAutoencoder(autoencoder, 0.0)(images, noise)
        torch.testing.assert_close(without, autoencoder(images).sample)
        torch.testing.assert_close(same_kl, kl)
        assert (reconstruction - without).abs().max() > 0.01


def test_latents_of_half_the_size_are_decoded_too():
    torch.manual_seed(0)
    autoencoder = build_autoencoder(16, [8, 16], 4, 1)
    images, noise = torch.rand(64, 3, 16, 16) * 2 - 1, torch.randn(64, 4, 8, 8)
    with torch.no_grad():
        mean = autoencoder.encode(images).latent
        decoded, divergence = VariationalAutoencoder(autoencoder, 0.3)(images, noise)
        same, same_divergence, halved = VariationalAutoencoder(autoencoder, 0.3, halves=True)(images, noise)
        assert torch.equal(same, decoded) and torch.equal(same_divergence, divergence)
        assert halved.shape == (64, 3, 8, 8)
        _, _, exactly = VariationalAutoencoder(autoencoder, 0.0, halves=True)(images, noise)
        smaller = torch.nn.functional.avg_pool2d(mean, 2)
        torch.testing.assert_close(exactly, autoencoder.decode(smaller).sample)
    # The noise on them has the deviation that it has on all.
    seen = []
    autoencoder.decode = lambda latents: seen.append(latents) or AutoencoderDC.decode(autoencoder, latents)
    with torch.no_grad():
        VariationalAutoencoder(autoencoder, 0.3, halves=True)(images, noise)
    assert (seen[1] - smaller).std().item() == pytest.approx(0.3, rel=0.05)


def test_reconstruction_loss():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    assert reconstruction_loss(images, images, 0.5) == 0
    shifted = images + 0.25
    assert reconstruction_loss(shifted, images, 0.0).item() == pytest.approx(0.25)
    # A constant has one Fourier coefficient of 8 × 0.25 among the 8 × 5 that rfft2 keeps.
    expected = 0.25 + 0.5 * 8 * 0.25 / 40
    assert reconstruction_loss(shifted, images, 0.5).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("has_shift", [False, True])
def test_latents_are_measured_all_together(has_shift):
    # Of batches of other sizes, and with a mean, which is taken off where there is a shift, and only there.
    generator = torch.Generator().manual_seed(0)
    batches = [5 + torch.randn(count, 2, 4, 4, generator=generator) for count in (3, 1, 6)]

    class Identity:
        config = {"shift_factor": None} if has_shift else {}

        def encode(self, images):
            return type("Output", (), {"latent": images})

    measured = measure_latents(Identity(), iter(batches))
    latents = torch.cat(batches)
    assert measured.get("shift_factor", 0) == pytest.approx(latents.mean().item() if has_shift else 0, rel=1e-5)
    normalised = (latents - measured.get("shift_factor", 0)) * measured["scaling_factor"]
    assert normalised.square().mean().item() == pytest.approx(1, rel=1e-5)
    assert 0 < measure_latents(Identity(), [torch.zeros(1, 2, 4, 4)])["scaling_factor"] < float("inf")
