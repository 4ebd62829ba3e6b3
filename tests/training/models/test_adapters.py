"""Low-rank adapters: what they add to a denoiser, what is trained, and that nothing of them is left in the end."""

from __future__ import annotations

import sys

import pytest
import torch
from diffusers import UNet2DModel
from trainings import needs_peft

from histodistill.training.engine.privacy import clipped_gradient_sum
from histodistill.training.models.adapters import add_adapters, has_adapters, merge_adapters
from histodistill.training.models.denoiser import build_denoiser, use_plain_attention
from histodistill.training.running.errors import InputError


CLASSES = "class_embedding.weight"


def is_wide(weight: torch.Tensor) -> bool:
    """Whether two matrices of rank 8 have fewer numbers than a weight."""
    return weight.ndim > 1 and 8 * sum(weight.flatten(1).shape) < weight.numel()


def small_denoiser() -> UNet2DModel:
    """A denoiser with attention, whose class embeddings alone are trained."""
    torch.manual_seed(0)
    denoiser = build_denoiser(4, 2, 3, [8, 16], 1, 1)
    use_plain_attention(denoiser)
    denoiser.requires_grad_(False)
    denoiser.class_embedding.requires_grad_(True)
    return denoiser


def predictions(denoiser: UNet2DModel) -> torch.Tensor:
    noisy = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return denoiser(noisy, torch.tensor([1.0, 400.0, 900.0]), class_labels=torch.tensor([0, 3, 1])).sample


def disturbed(denoiser: UNet2DModel) -> UNet2DModel:
    """The same after some training, as it were."""
    for weight in denoiser.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn_like(weight)
    return denoiser


@needs_peft
def test_a_denoiser_gives_what_it_gave_until_adapters_are_trained():
    denoiser = small_denoiser()
    before, plain = predictions(denoiser), dict(denoiser.named_parameters())
    said = add_adapters(denoiser)
    assert torch.equal(predictions(denoiser), before) and has_adapters(denoiser)
    trained = {name: weight for name, weight in denoiser.named_parameters() if weight.requires_grad}
    adapters = {name: weight for name, weight in trained.items() if ".lora_" in name}
    assert trained.keys() - adapters.keys() == {CLASSES}
    assert f" {sum(map(torch.numel, adapters.values())):,} numbers" in said
    assert f" {len(adapters) // 2} of the others " in said
    # Beside each weight that is larger: of convolutions, and of linear layers.
    names = [name for name, _ in denoiser.named_parameters() if name.endswith(".base_layer.weight")]
    found = {name.replace(".base_layer.", ".") for name in names}
    assert found == {name for name, weight in plain.items() if name != CLASSES and is_wide(weight)}
    assert {plain[name].ndim for name in found} == {2, 4}
    assert not torch.equal(predictions(disturbed(denoiser)), before)


@needs_peft
def test_merged_it_is_a_plain_denoiser_that_gives_the_same():
    denoiser = small_denoiser()
    plain = {name: value.clone() for name, value in denoiser.state_dict().items()}
    wide = {name for name, value in plain.items() if name != CLASSES and is_wide(value)}
    add_adapters(denoiser)
    with_adapters = predictions(disturbed(denoiser))
    merged = merge_adapters(denoiser)
    torch.testing.assert_close(predictions(merged), with_adapters, rtol=1e-4, atol=1e-5)
    assert merged.state_dict().keys() == plain.keys() and not has_adapters(merged)
    assert merged.config == small_denoiser().config and type(merged) is UNet2DModel
    # It is a copy: the training goes on.
    assert torch.equal(predictions(denoiser), with_adapters) and has_adapters(denoiser)
    changed = {name for name, value in merged.state_dict().items() if not torch.equal(value, plain[name])}
    assert changed == {*wide, CLASSES}
    assert merge_adapters(merged) is merged


@needs_peft
def test_gradients_of_adapters_are_clipped_tile_by_tile():
    denoiser = small_denoiser()
    add_adapters(denoiser)
    disturbed(denoiser)
    torch.manual_seed(1)
    # Tiles of gradients of all sizes, two views each.
    scale = torch.tensor([1e-3, 1.0, 10.0, 100.0]).view(-1, 1, 1, 1, 1)
    tiles = [scale * torch.randn(4, 2, 2, 4, 4), 1000 * torch.rand(4, 2), torch.randint(0, 4, (4, 2))]

    def loss(call, noisy, timesteps, class_ids):
        return (call(noisy, timesteps, class_labels=class_ids).sample * noisy).mean()

    def sum_of(rows, bound):
        return clipped_gradient_sum(denoiser, loss, [[values[rows] for values in tiles]], bound)

    # By an ordinary backward pass, one after the other.
    alone = []
    for row in range(4):
        denoiser.zero_grad()
        loss(denoiser, *(values[row] for values in tiles)).backward()
        alone.append({name: w.grad.clone() for name, w in denoiser.named_parameters() if w.grad is not None})
    norms = torch.tensor([sum(float(value.square().sum()) for value in each.values()) ** 0.5 for each in alone])
    bound = float(norms.median())
    assert norms.min() < bound < norms.max()
    found = sum_of(slice(None), bound)
    assert found.keys() == {name for name, weight in denoiser.named_parameters() if weight.requires_grad}
    for name, value in found.items():
        expected = sum(each[name] * min(1.0, bound / float(norm)) for each, norm in zip(alone, norms, strict=True))
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-5 * bound)
    for row in range(4):
        others = sum_of([other for other in range(4) if other != row], bound)
        change = sum((found[name] - others[name]).double().square().sum() for name in found) ** 0.5
        assert float(change) <= bound * (1 + 1e-5)


@needs_peft
def test_a_denoiser_that_is_too_narrow_is_refused():
    with pytest.raises(InputError, match="is of no use, since no layer is wide enough for rank 8: give"):
        add_adapters(build_denoiser(4, 2, 3, [4], 1))


def test_missing_peft_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    message = r"^trained_weights=adapters needs peft, which is not installed: pip install 'histodistill\[adapters\]'"
    with pytest.raises(InputError, match=message):
        add_adapters(small_denoiser())
    denoiser = small_denoiser()
    assert merge_adapters(denoiser) is denoiser
