from __future__ import annotations

import copy

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.autoencoders.autoencoder_dc import ResBlock

from histodistill.training.models.autoencoder import VariationalAutoencoder, build_autoencoder
from histodistill.training.models.recomputing import recompute_activations


@pytest.fixture
def dc():
    torch.manual_seed(0)
    return build_autoencoder(16, [12, 12], 2, 1)


def make_step(autoencoder) -> tuple[float, list[torch.Tensor], int]:
    """Loss, gradients, and numbers that the backward pass was kept."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        images = torch.linspace(-1, 1, 3 * 3 * 16 * 16).view(3, 3, 16, 16)
        reconstruction, kl = VariationalAutoencoder(autoencoder, 0.1)(images, torch.ones(3, 2, 8, 8))
        loss = (reconstruction - images).square().mean() + kl
    loss.backward()
    return loss.item(), [parameter.grad for parameter in autoencoder.parameters()], sum(kept)


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    widths = {f"{part}_block_out_channels": (12, 12) for part in ("encoder", "decoder")}
    return AutoencoderTiny(**widths, num_encoder_blocks=(3, 3), num_decoder_blocks=(3, 3), latent_channels=2)


@pytest.mark.parametrize("kind", ["dc", "tiny"])
def test_autoencoder_computes_the_same_with_less_memory(kind, request):
    dc = request.getfixturevalue(kind)
    again = copy.deepcopy(dc)
    recompute_activations(again)
    loss, gradients, kept = make_step(dc)
    same_loss, same_gradients, fewer = make_step(again)
    assert same_loss == loss
    assert all(torch.equal(one, other) for one, other in zip(gradients, same_gradients, strict=True))
    assert fewer < kept / 2
    assert again.state_dict().keys() == dc.state_dict().keys()
    # Where there is no backward pass, nothing is prepared for it.
    with torch.no_grad():
        assert torch.equal(again(torch.zeros(1, 3, 16, 16)).sample, dc(torch.zeros(1, 3, 16, 16)).sample)


def test_models_that_can_do_it_themselves_are_told_to():
    autoencoder = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    recompute_activations(autoencoder)
    assert autoencoder.is_gradient_checkpointing
    assert not any(isinstance(module, ResBlock) for module in autoencoder.modules())
