"""Tests of `training/models/latents.py`."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny

from histodistill.training.data.pixels import to_model_input
from histodistill.training.data.sources import load_tiles
from histodistill.training.models import latents
from histodistill.training.models.autoencoder import build_autoencoder
from histodistill.training.models.latents import (
    compression_of,
    encode_images,
    normalised_latents,
    reconstruct,
    shape_of_latent,
)


def _kl():
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return AutoencoderKL(
        **blocks,
        block_out_channels=[8, 8],
        norm_num_groups=4,
        latent_channels=3,
        scaling_factor=0.5,
        shift_factor=0.25,
    )


def _tiny():
    return AutoencoderTiny(
        encoder_block_out_channels=[8, 8],
        decoder_block_out_channels=[8, 8],
        num_encoder_blocks=[1, 1],
        num_decoder_blocks=[1, 1],
        latent_channels=3,
        scaling_factor=0.5,
        shift_factor=0.25,
    )


@pytest.mark.parametrize("make", [_kl, _tiny])
def test_every_kind_of_autoencoder_has_latents_that_are_always_the_same(make):
    autoencoder = make().eval()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = encode_images(autoencoder, images)
        assert compression_of(autoencoder) == 2
        assert latents.shape[1:] == shape_of_latent(autoencoder, 16) == (3, 8, 8)
        assert torch.equal(latents, encode_images(autoencoder, images))
        assert torch.allclose(normalised_latents(autoencoder, images), (latents - 0.25) * 0.5)
        assert torch.equal(reconstruct(autoencoder, images), autoencoder.decode(latents).sample)
        assert reconstruct(autoencoder, images).shape == images.shape


def test_normalised_latents(tiny_autoencoder, tiny_npz):
    autoencoder = AutoencoderDC.from_pretrained(tiny_autoencoder)
    images = to_model_input(load_tiles(tiny_npz).split("train").images)
    with torch.no_grad():
        latents = normalised_latents(autoencoder, images)
        assert latents.shape == (len(images), 2, 8, 8)
        assert latents.square().mean().item() == pytest.approx(1, abs=1e-3)
        torch.testing.assert_close(latents / autoencoder.config.scaling_factor, autoencoder.encode(images).latent)
        half = normalised_latents(autoencoder.to(torch.bfloat16), images.to(torch.bfloat16))
    assert latents.dtype == half.dtype == torch.float32
    torch.testing.assert_close(half, latents, atol=0.1, rtol=0)


def test_what_overflows_in_half_precision_is_computed_in_single():
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    found = {}
    for upcast in (True, False):
        torch.manual_seed(0)
        autoencoder = _kl().eval()
        autoencoder.register_to_config(force_upcast=upcast)
        with torch.no_grad(), torch.autocast("cpu", torch.float16):
            found[upcast] = encode_images(autoencoder, images), reconstruct(autoencoder, images)
        if upcast:
            with torch.no_grad():
                expected = encode_images(autoencoder, images), reconstruct(autoencoder, images)
    assert {tensor.dtype for tensor in found[False]} == {torch.float16}
    assert all(torch.equal(one, other) for one, other in zip(found[True], expected, strict=True))


def test_many_tiles_are_encoded_in_parts(monkeypatch):
    autoencoder = build_autoencoder(16, (8, 8), 2, 1).eval()
    images, shown = torch.rand(7, 3, 16, 16) * 2 - 1, []
    with torch.no_grad():
        whole = normalised_latents(autoencoder, images)
        monkeypatch.setattr(latents, "usual_batch_size", lambda side: {16: 3}[side])
        monkeypatch.setattr(latents, "encode_images", lambda *args: shown.append(len(args[1])) or encode_images(*args))
        parts = normalised_latents(autoencoder, images)
    assert shown == [3, 3, 1]
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
