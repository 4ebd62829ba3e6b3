from __future__ import annotations

import pytest
import torch

from histodistill.training.models.denoiser import build_denoiser
from histodistill.training.models.warm_start import require_fit, take_denoiser, take_weights
from histodistill.training.running.errors import InputError


EMBEDDINGS = "class_embedding.weight"


def denoiser(seed: int, classes: int, channels=(8, 16), latent_channels: int = 2):
    torch.manual_seed(seed)
    return build_denoiser(8, latent_channels, classes, list(channels), layers_per_block=1).eval()


def predictions(model, labels, latent_channels: int = 2) -> torch.Tensor:
    latents = torch.randn(len(labels), latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(latents, torch.full((len(labels),), 300.0), class_labels=torch.tensor(labels)).sample


def test_what_fits_is_taken_and_the_rest_stays():
    torch.manual_seed(0)
    old, new = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)), torch.nn.Linear(3, 4)
    model = torch.nn.Sequential(new, torch.nn.Linear(4, 5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    taken = take_weights(model, {**old.state_dict(), "2.weight": torch.zeros(1)})
    assert taken.taken == ("0.weight", "0.bias") and taken.new == ("1.weight", "1.bias")
    assert taken.left == ("1.weight", "1.bias", "2.weight")
    assert (taken.values_taken, taken.values) == (16, 16 + 25)
    after = model.state_dict()
    assert all(torch.equal(after[name], old.state_dict()[name]) for name in taken.taken)
    assert all(torch.equal(after[name], before[name]) for name in taken.new)
    assert taken.sentence("head", "there") == (
        "warm start: the head takes 2 of 4 tensors (39 % of its weights) from there; makes 1.weight, 1.bias anew; "
        "leaves 3 that it has no place for"
    )


def test_all_that_is_taken_is_a_copy_in_the_models_own_type():
    model, weights = torch.nn.Linear(2, 2), {"weight": torch.full((2, 2), 0.5).half(), "bias": torch.zeros(2).half()}
    taken = take_weights(model, weights)
    assert taken.share == 1
    assert taken.sentence("head", "there").endswith("takes all of 2 tensors (100 % of its weights) from there")
    assert model.weight.dtype == torch.float32 and model.weight[0, 0] == 0.5
    model.weight.data.zero_()
    assert weights["weight"][0, 0] == 0.5


def test_weights_that_are_not_finite_are_refused():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match="weight are not finite: begin from others"):
        take_weights(model, {"weight": torch.tensor([[0.0, torch.nan], [0.0, 0.0]])})
    # What does not fit is not looked at.
    assert take_weights(model, {"weight": torch.full((3, 3), torch.nan)}).taken == ()


def test_classes_of_both_are_taken_by_their_names():
    old, model = denoiser(0, 3), denoiser(1, 3)
    taken = take_denoiser(model, old.state_dict(), ["fat", "mucus", "stroma"], ["mucus", "tumour", "fat"])
    expected = predictions(old, [1, 0, 3, 3])
    torch.testing.assert_close(predictions(model, [0, 2, 3, 1]), expected, rtol=0, atol=0)
    assert not torch.equal(expected[0], expected[1])
    assert taken.new == (EMBEDDINGS,) and taken.new_classes == ("tumour",)
    assert taken.values - taken.values_taken == model.class_embedding.weight.shape[1]
    sentence = taken.sentence("denoiser", "there")
    assert sentence.endswith("from there; begins with the null class for classes it has not seen (tumour)")
    assert "anew" not in sentence and "100 %" not in sentence


def test_the_number_of_classes_may_be_another():
    old, model = denoiser(0, 2), denoiser(1, 4)
    taken = take_denoiser(model, old.state_dict(), ["a", "b"], ["c", "b", "d", "a"])
    torch.testing.assert_close(predictions(model, [3, 1, 4]), predictions(old, [0, 1, 2]), rtol=0, atol=0)
    assert taken.new_classes == ("c", "d") and taken.left == ()
    same = take_denoiser(denoiser(2, 2), old.state_dict(), ["a", "b"], ["a", "b"])
    assert same.share == 1 and same.new_classes == ()


def test_classes_none_of_which_is_known_begin_as_different_ones():
    old, model = denoiser(0, 2), denoiser(1, 3)
    taken = take_denoiser(model, old.state_dict(), ["a", "b"], ["c", "d", "e"])
    torch.testing.assert_close(predictions(model, [0, 1, 2, 3]), predictions(old, [0, 1, 2, 2]), rtol=0, atol=0)
    assert taken.new_classes == ("c", "d", "e") and taken.share < 1
    assert taken.sentence("denoiser", "there").endswith(
        "begins with those of others for classes it has not seen (c, d, e)"
    )


def test_other_latents_make_only_the_ends_anew():
    old, model = denoiser(0, 2), denoiser(1, 2, latent_channels=5)
    taken = take_denoiser(model, old.state_dict(), ["a", "b"], ["a", "b"])
    assert taken.new == ("conv_in.weight", "conv_out.weight", "conv_out.bias")
    require_fit(taken, "that pipeline", "remedy")


def test_other_widths_are_no_warm_start():
    old, model = denoiser(0, 2, (8, 16)), denoiser(1, 2, (12, 20))
    before = model.class_embedding.weight.detach().clone()
    taken = take_denoiser(model, old.state_dict(), ["a", "b"], ["a", "b"])
    assert EMBEDDINGS in taken.new and taken.new_classes == ()
    torch.testing.assert_close(model.class_embedding.weight, before)
    with pytest.raises(InputError, match=r"^only 0 % of the weights of that pipeline fit this model: remedy$"):
        require_fit(taken, "that pipeline", "remedy")
