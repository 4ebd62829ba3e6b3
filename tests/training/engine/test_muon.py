from __future__ import annotations

import copy

import pytest
import torch

from histodistill.training.engine.muon import Muon, is_matrix, matrix_ratio, orthogonalised
from histodistill.training.engine.optimizers import make_optimizer
from histodistill.training.models.autoencoder import build_autoencoder
from histodistill.training.models.denoiser import build_denoiser
from histodistill.training.running.training_options import OPTIMIZERS, PrivateTrainingConfig


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (12, 12), (1, 9)])
def test_singular_values_are_brought_near_to_one(shape):
    found = orthogonalised(1e3 * normal(*shape))
    values = torch.linalg.svdvals(found)
    assert found.shape == shape
    assert values.min() > 0.6 and values.max() < 1.25


def test_directions_stay():
    """U S Vᵀ becomes U S' Vᵀ."""
    left, _, right = torch.linalg.svd(normal(6, 40), full_matrices=False)
    found = left.T @ orthogonalised(left @ torch.diag(torch.tensor([1.0, 0.9, 0.7, 0.5, 0.3, 0.1])) @ right) @ right.T
    assert (found - torch.diag(found.diagonal())).abs().max() < 1e-3


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("shape", [(8, 30), (30, 8)])
def test_matrices_change_as_by_torch(shape):
    """Its own Muon works in bfloat16: two or three digits."""
    ours, theirs = (torch.nn.Parameter(normal(*shape)) for _ in range(2))
    muon = Muon([ours], [torch.nn.Parameter(torch.zeros(1))], lr=1e-3, ratio=10, weight_decay=0.1)
    torchs = torch.optim.Muon([theirs], lr=10 * 1e-3, weight_decay=0.1, momentum=0.95)
    for step in range(4):
        gradient = normal(*shape, seed=step + 1)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        muon.step()
        torchs.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
    assert (ours - normal(*shape)).abs().max() > 1e-2


def test_a_kernel_is_a_matrix_of_a_row_for_each_output_channel():
    kernel, matrix = torch.nn.Parameter(normal(6, 4, 3, 3)), torch.nn.Parameter(normal(6, 36))
    others = [torch.nn.Parameter(torch.zeros(1))]
    for weight in (kernel, matrix):
        muon = Muon([weight], others, lr=1e-3, ratio=10, weight_decay=0.0)
        weight.grad = normal(6, 36, seed=1).view_as(weight)
        muon.step()
    assert torch.equal(kernel.flatten(1), matrix)


def test_weight_decay_bounds_a_matrix_that_is_always_pushed_the_same_way():
    """Steps are as large however small the gradient is, so that nothing else would."""
    largest = {}
    for weight_decay in (0.0, 0.5):
        weight = torch.nn.Parameter(normal(8, 12))
        muon = Muon([weight], [torch.nn.Parameter(torch.zeros(1))], lr=2e-3, ratio=10, weight_decay=weight_decay)
        for _ in range(400):
            weight.grad = 1e-4 * normal(8, 12, seed=1)
            muon.step()
        largest[weight_decay] = torch.linalg.svdvals(weight.detach()).max().item()
    assert largest[0.0] > 10
    assert 1 < largest[0.5] < 1.25 / 0.5


@pytest.mark.parametrize(("weight_decay", "of_others"), [(0.0, 0.0), (0.005, 0.005), (0.3, 0.01)])
def test_all_others_change_as_by_adamw(weight_decay, of_others):
    """With little decay: what AdamW trains needs no bound, and embeddings and norms would fade away."""
    ours, theirs = (torch.nn.Parameter(normal(5)) for _ in range(2))
    muon = Muon([torch.nn.Parameter(normal(2, 2))], [ours], lr=1e-2, ratio=10, weight_decay=weight_decay)
    adamw = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=of_others, betas=(0.9, 0.99), fused=True)
    for step in range(3):
        ours.grad = normal(5, seed=step + 1)
        theirs.grad = ours.grad.clone()
        muon.step()
        adamw.step()
    assert torch.equal(ours, theirs)


def test_a_copy_of_its_state_goes_on_alike():
    def make() -> tuple[list[torch.nn.Parameter], Muon]:
        weights = [torch.nn.Parameter(normal(4, 6)), torch.nn.Parameter(normal(3))]
        return weights, Muon(weights[:1], weights[1:], lr=1e-3, ratio=10, weight_decay=0.01)

    def step(weights: list[torch.nn.Parameter], muon: Muon, seed: int) -> None:
        for weight in weights:
            weight.grad = normal(*weight.shape, seed=seed)
        muon.step()

    weights, muon = make()
    step(weights, muon, 1)
    again, other = make()
    for weight, value in zip(again, weights, strict=True):
        weight.data.copy_(value.data)
    other.load_state_dict(copy.deepcopy(muon.state_dict()))
    for seed in (2, 3):
        step(weights, muon, seed)
        step(again, other, seed)
    assert all(torch.equal(one, two) for one, two in zip(weights, again, strict=True))


def test_which_weights_of_a_denoiser_are_matrices():
    torch.manual_seed(0)
    denoiser = build_denoiser(8, 2, 5, [8, 16], 1, 1, 0.0)
    matrices = {name for name, weight in denoiser.named_parameters() if is_matrix(name, weight)}
    assert {"mid_block.attentions.0.to_q.weight", "mid_block.resnets.0.conv1.weight"} <= matrices
    assert not matrices & {"conv_in.weight", "conv_out.weight", "class_embedding.weight", "conv_norm_out.weight"}
    assert not any("time_emb" in name for name in matrices)
    for name in OPTIMIZERS:
        config = PrivateTrainingConfig(data="phantom", output="out", optimizer=name)
        optimizer = make_optimizer(config, denoiser, (0.9, 0.99))
        trained = [weight for group in optimizer.param_groups for weight in group["params"]]
        assert {id(weight) for weight in trained} == {id(weight) for weight in denoiser.parameters()}
        assert len(trained) == len(list(denoiser.parameters()))


def test_which_weights_of_an_autoencoder_are_matrices():
    autoencoder = build_autoencoder(16, [8, 16], 4, 1)
    matrices = {name for name, weight in autoencoder.named_parameters() if is_matrix(name, weight)}
    assert any(name.startswith("encoder.down_blocks.1.") for name in matrices)
    assert any(name.startswith("decoder.up_blocks.0.") for name in matrices)
    assert not any("conv_in" in name or "conv_out" in name or name.endswith("bias") for name in matrices)


def test_longer_trainings_change_matrices_by_less():
    assert [matrix_ratio(steps) for steps in (4, 1600, 6400, 10_000)] == [25, 25, 12.5, 10]
    denoiser = build_denoiser(8, 2, 5, [8, 16], 1, 0, 0.0)
    before, changes = copy.deepcopy(denoiser.state_dict()), {}
    for steps in (1000, 6400):
        denoiser.load_state_dict(before)
        config = PrivateTrainingConfig(data="phantom", output="out", optimizer="muon", max_train_steps=steps)
        optimizer = make_optimizer(config, denoiser, (0.9, 0.99))
        for number, weight in enumerate(denoiser.parameters()):
            weight.grad = normal(*weight.shape, seed=number)
        optimizer.step()
        changes[steps] = {name: (value - before[name]).norm() for name, value in denoiser.state_dict().items()}
    name = "mid_block.resnets.0.conv1.weight"
    assert changes[1000][name] / changes[6400][name] == pytest.approx(2, rel=1e-2)
    assert changes[1000]["conv_in.weight"] == changes[6400]["conv_in.weight"]
