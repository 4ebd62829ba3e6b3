from __future__ import annotations

import functools
import itertools
import json
import math
import sys

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC
from safetensors.torch import load_file
from scipy import stats
from scipy.optimize import brentq
from sentences import without_notes
from small_sources import patients_npz
from trainings import Killed, needs_opacus, needs_peft, opacus_may_warn

from histodistill.training import train_autoencoder, train_diffusion
from histodistill.training.data.tiles import Tiles, TileSource
from histodistill.training.engine import loop, privacy
from histodistill.training.engine.flow import draw_step
from histodistill.training.engine.privacy import (
    KEY_FILE,
    PrivacyPlan,
    autoencoder_privacy,
    clipped_gradient_sum,
    compose,
    epsilon_spent,
    forget_key,
    gaussian,
    in_chunks,
    noise_multiplier,
    plan_privacy,
    poisson_indices,
    privacy_record,
    secret_key,
    set_private_gradients,
    tile_generators,
)
from histodistill.training.models.autoencoder import VariationalAutoencoder, build_autoencoder, reconstruction_loss
from histodistill.training.models.denoiser import NUM_TRAIN_TIMESTEPS, build_denoiser, use_plain_attention
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json
from histodistill.training.running.options import run_script
from histodistill.training.running.training_options import PrivateTrainingConfig


pytestmark = opacus_may_warn

KEY = bytes(range(32))


def denoiser_case(count: int, views: int = 2):
    """A small denoiser in double precision, its loss, and tiles."""
    torch.manual_seed(0)
    module = build_denoiser(4, 2, 3, [8, 16], 1, 1).double()
    use_plain_attention(module)
    tiles = [
        torch.randn(count, views, 2, 4, 4).double(),
        torch.randint(0, 4, (count, views)),
        torch.randn(count, views, 2, 4, 4).double(),
        torch.rand(count, views).double(),
    ]

    def loss(call, latents, class_ids, noise, levels):
        # The script's loss in double precision, which its own casts away.
        noisy = (1 - levels.view(-1, 1, 1, 1)) * latents + levels.view(-1, 1, 1, 1) * noise
        output = call(noisy, levels * NUM_TRAIN_TIMESTEPS, class_labels=class_ids).sample
        return (output - (noise - latents)).square().mean()

    return module, loss, tiles


def autoencoder_case(count: int, views: int = 2):
    """A small autoencoder with another norm, its loss, and tiles."""
    torch.manual_seed(0)
    module = VariationalAutoencoder(build_autoencoder(8, [12, 12], 2, 1), 0.05)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # blocks begin as the identity, without gradients within
    tiles = [torch.rand(count, views, 3, 8, 8) * 2 - 1, torch.randn(count, views, 2, 4, 4)]

    def loss(call, images, noise):
        reconstruction, kl = call(images, noise)
        return reconstruction_loss(reconstruction, images, 0.1) + 2e-4 * kl

    return module, loss, tiles


CASES = {"denoiser": denoiser_case, "autoencoder": autoencoder_case}


def flat(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)]).double()


def one_by_one(module, loss, tiles) -> list[torch.Tensor]:
    """The gradient of each tile by an ordinary backward pass: the oracle."""
    found = []
    for index in range(len(tiles[0])):
        module.zero_grad()
        loss(module, *(values[index] for values in tiles)).backward()
        found.append(flat({name: value.grad.clone() for name, value in module.named_parameters()}))
    module.zero_grad()
    return found


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_tiles_one_by_one(case):
    module, loss, tiles = CASES[case](4)
    gradients = one_by_one(module, loss, tiles)
    norms = torch.stack([gradient.norm() for gradient in gradients])
    assert norms.min() > 1e-3
    bound = float(norms.median())  # clips some tiles and not others
    assert norms.min() < bound <= norms.max()
    expected = sum(gradient * min(1, bound / float(gradient.norm())) for gradient in gradients)
    found = flat(clipped_gradient_sum(module, loss, [tiles], bound))
    assert (found - expected).norm() < 1e-5 * expected.norm()
    whole = flat(clipped_gradient_sum(module, loss, [tiles], 1e9))
    assert (whole - sum(gradients)).norm() < 1e-5 * whole.norm()


def test_gradients_of_chunks_add_up_and_leave_nothing_behind():
    module, loss, tiles = denoiser_case(5)
    chunks = [[values[:3] for values in tiles], [values[3:] for values in tiles]]
    whole = flat(clipped_gradient_sum(module, loss, [tiles], 0.5))
    assert torch.allclose(flat(clipped_gradient_sum(module, loss, chunks, 0.5)), whole, rtol=1e-6, atol=1e-12)
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("autocast", [False, True])
def test_no_tile_weighs_more_than_the_bound(case, autocast):
    module, loss, tiles = CASES[case](3)
    module, tiles = module.float(), [t.float() if t.is_floating_point() else t for t in tiles]

    def half(call, *tile):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return loss(call, *tile).float()

    for index in range(3):
        tile = [values[index : index + 1] for values in tiles]
        assert float(flat(clipped_gradient_sum(module, half, [tile], 1e9)).norm()) > 1e-2
        assert 0.0099 < float(flat(clipped_gradient_sum(module, half, [tile], 0.01)).norm()) <= 0.01


def test_a_gradient_that_is_not_finite_counts_as_none():
    module = torch.nn.Linear(2, 1)
    tiles = torch.tensor([[1.0, 2.0], [math.inf, 0.0], [3.0, math.nan]])
    found = clipped_gradient_sum(module, lambda call, x: call(x).sum(), [[tiles]], 10.0)
    assert torch.allclose(found["weight"], torch.tensor([[1.0, 2.0]]), rtol=1e-5)
    assert torch.allclose(found["bias"], torch.ones(1), rtol=1e-5)


def make_plan(**changes) -> PrivacyPlan:
    values = {
        "epsilon": 1.0, "delta": 1e-5, "max_grad_norm": 0.5, "noise_multiplier": 0.0, "units_per_step": 20,
        "num_units": 40, "steps": 3, "views": 2,
    }  # fmt: skip
    return PrivacyPlan(**(values | changes))


def test_one_tile_changes_a_step_by_the_bound_at_most(monkeypatch):
    module, loss, _ = denoiser_case(1)

    def make_tiles(indices):
        tiles = []
        for index, generator in zip(indices, tile_generators("net", 3, 7, indices), strict=True):
            # A tile of its own size, so that gradients are of all sizes; its views are drawn as the scripts do.
            latents = 10.0 ** (index % 3) * torch.ones(2, 2, 4, 4).double()
            noise, levels, ids = draw_step(generator, torch.full((2,), index % 3), (2, 4, 4), 3, 0.5)
            tiles.append((latents, ids, noise.double(), levels.double()))
        return [torch.stack(values) for values in zip(*tiles, strict=True)]

    plan = make_plan()

    def step_gradient():
        set_private_gradients(module, loss, make_tiles, plan, KEY, 7)
        return flat({name: value.grad for name, value in module.named_parameters()})

    drawn = poisson_indices(plan.num_units, plan.sample_rate, KEY, 7)
    with_it, changes = step_gradient(), []
    for removed in drawn[:6]:
        monkeypatch.setattr(privacy, "poisson_indices", lambda *_, gone=removed: drawn[drawn != gone])
        changes.append(float((step_gradient() - with_it).norm()) * plan.units_per_step)
    assert 0.99 * plan.max_grad_norm < max(changes) <= plan.max_grad_norm


def groups_of(sizes) -> list[np.ndarray]:
    """Tiles of groups of these sizes, shuffled."""
    tiles = np.random.default_rng(1).permutation(sum(sizes))
    return [np.sort(part) for part in np.split(tiles, np.cumsum(sizes)[:-1])]


@pytest.mark.parametrize("seed", range(5))
def test_one_patient_changes_a_step_by_the_bound_at_most(monkeypatch, seed):
    """Whatever the number and the size of its tiles' gradients, also of tiles that all point the same way."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice([1, 2, 5, 40, 300], size=12)
    plan = make_plan(
        num_units=12,
        units_per_step=9,
        unit="patient",
        groups=groups_of(sizes),
        tiles_per_group=int(rng.choice([1, 3, 16])),
    )
    module = torch.nn.Linear(6, 1, bias=False)
    scale = 10.0 ** rng.integers(-3, 4, size=len(sizes))
    owner = np.empty(sum(sizes), dtype=int)
    for group, members in enumerate(plan.groups):
        owner[members] = group
    inputs = np.where(owner % 2, 1.0, 0.0)[:, None] + rng.normal(size=(len(owner), 6))
    inputs = torch.from_numpy(scale[owner][:, None] * inputs).float()

    def step_gradient():
        set_private_gradients(module, lambda call, x: call(x).sum(), lambda tiles: [inputs[tiles]], plan, KEY, 3)
        return module.weight.grad.double().flatten()

    drawn = poisson_indices(plan.num_units, plan.sample_rate, KEY, 3)
    with_it, changes = step_gradient(), []
    for removed in drawn:
        monkeypatch.setattr(privacy, "poisson_indices", lambda *_, gone=removed: drawn[drawn != gone])
        changes.append(float((step_gradient() - with_it).norm()) * plan.units_per_step)
    assert max(changes) <= plan.max_grad_norm * (1 + 1e-5)  # of single precision
    clipped = [scale[group] >= 10 for group in drawn]
    assert np.allclose(np.array(changes)[clipped], plan.max_grad_norm, rtol=1e-3)


def test_gradient_of_a_group_is_the_mean_of_its_tiles():
    module, loss, tiles = denoiser_case(7)
    gradients = one_by_one(module, loss, tiles)
    groups = [[0, 1, 2], [3], [4, 5, 6]]
    means = [sum(gradients[tile] for tile in group) / len(group) for group in groups]
    bound = float(torch.stack([mean.norm() for mean in means]).median())
    expected = sum(mean * min(1, bound / float(mean.norm())) for mean in means)
    chunks = [[values[:4] for values in tiles], [values[4:] for values in tiles]]
    found = flat(clipped_gradient_sum(module, loss, chunks, bound, [[3, 1], [3]]))
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_groups_are_drawn_each_with_the_same_probability_and_some_of_its_tiles():
    sizes = [1, 3, 8, 20, 50, 2, 2, 2, 2, 10]
    plan = make_plan(num_units=10, units_per_step=3, unit="patient", groups=groups_of(sizes), tiles_per_group=4)
    steps = [plan.draw(KEY, step) for step in range(3000)]
    owner = {int(tile): group for group, members in enumerate(plan.groups) for tile in members}
    took_part = np.zeros((len(steps), 10), dtype=bool)
    tiles = np.zeros((len(steps), sum(sizes)), dtype=bool)
    for step, units in enumerate(steps):
        for unit in units:
            (group,) = {owner[int(tile)] for tile in unit}  # all tiles of a unit are of one group
            assert len(unit) == len(set(unit)) == min(sizes[group], 4) and not took_part[step, group]
            took_part[step, group] = True
            tiles[step, unit] = True
    # Each group as often as any other, whatever its size: binomial of 3,000 with 0.3. The number in a step, too.
    counts = took_part.sum(axis=0)
    assert stats.chisquare(counts, np.full(10, counts.mean())).pvalue > 1e-3 and abs(counts.mean() - 900) < 32
    in_step = np.bincount(took_part.sum(axis=1), minlength=11)
    expected = 3000 * stats.binom.pmf(np.arange(11), 10, 0.3)
    few = expected < 5
    observed, expected = np.append(in_step[~few], in_step[few].sum()), np.append(expected[~few], expected[few].sum())
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    # Independently of each other, and the tiles of a group alike.
    correlations = np.corrcoef(took_part.T)[~np.eye(10, dtype=bool)]
    assert np.abs(correlations).max() < 5 / math.sqrt(3000)
    of_largest = tiles[:, plan.groups[4]].sum(axis=0)
    assert of_largest.sum() == 4 * counts[4]
    assert stats.chisquare(of_largest).pvalue > 1e-3


def test_chunks_hold_whole_units():
    units = groups_of([16, 1, 15, 1, 9, 8])
    chunks = list(in_chunks(units))
    assert [[len(unit) for unit in chunk] for chunk in chunks] == [[16], [1, 15], [1, 9], [8]]
    assert all(a is b for a, b in zip(itertools.chain(*chunks), units, strict=True)) and not list(in_chunks([]))


def make_source(num_tiles: int, groups: list[str] | None = None) -> TileSource:
    """A source of which only the labels and groups of training tiles count."""
    images = np.zeros((num_tiles, 8, 8, 3), dtype=np.uint8)
    tiles = Tiles(images, np.zeros(num_tiles, dtype=np.int64), groups=None if groups is None else np.array(groups))
    return TileSource("toy", ["a", "b"], {"train": tiles}, 8, group_kind=None if groups is None else "patient")


def private_config(**changes) -> PrivateTrainingConfig:
    options = {"data": "x", "output": "y", "dp_epsilon": 8.0, "batch_size": 4, "max_train_steps": 5} | changes
    return PrivateTrainingConfig(**options)


GROUPS = ["b", "a", "b", "c", "b", "b", "d", "a", "b", "b"]


@needs_opacus
def test_plan_of_groups(monkeypatch, capsys):
    monkeypatch.setattr(privacy, "noise_multiplier", lambda *_: 3.0)
    config = private_config(dp_epsilon=1.0, dp_tiles_per_group=2, batch_size=2, max_train_steps=20)
    plan = plan_privacy(config, make_source(10, GROUPS))
    assert [list(group) for group in plan.groups] == [[0, 2, 4, 5, 8, 9], [1, 7], [3], [6]]
    assert (plan.unit, plan.num_units, plan.units_per_step, plan.sample_rate) == ("patient", 4, 1, 0.25)
    assert plan.delta == 0.1 / 4 and plan.accountant == "prv"
    spent = privacy_record(plan)
    assert spent["unit"] == "patient" and spent["num_units"] == 4 and spent["tiles_per_group"] == 2
    assert spent["neighbours"] == "with or without one training patient"
    assert spent["epsilon"] == epsilon_spent(3.0, 0.1 / 4, 0.25, 20, "prv")
    assert spent["accountant"].startswith("prv, opacus ")
    assert "for each of 4 training patients; each takes part" in capsys.readouterr().err


@needs_opacus
@pytest.mark.parametrize(
    ("groups", "asked", "said"), [(None, None, "tiles, since nothing is known of groups;"), (GROUPS, "tile", "tiles;")]
)
def test_plan_of_tiles(groups, asked, said, monkeypatch, capsys):
    monkeypatch.setattr(privacy, "noise_multiplier", lambda *_: 2.0)
    plan = plan_privacy(private_config(dp_unit=asked), make_source(10, groups))
    assert plan.groups is None and (plan.unit, plan.num_units, plan.accountant) == ("tile", 10, "rdp")
    assert f"for each of 10 training {said}" in capsys.readouterr().err


@needs_opacus
def test_where_the_numbers_of_one_accountant_fail_the_other_is_taken(monkeypatch):
    def fails(*args):
        if "prv" in args:
            raise InputError("no")
        return 2.0

    monkeypatch.setattr(privacy, "noise_multiplier", fails)
    plan = plan_privacy(private_config(), make_source(10, GROUPS))
    assert (plan.accountant, plan.noise_multiplier) == ("rdp", 2.0)


@pytest.mark.parametrize(
    ("options", "groups", "message"),
    [
        ({"dp_unit": "group"}, None, "dp_unit=group needs groups, and these tiles have none: say which"),
        ({"batch_size": 17}, GROUPS, "at most 16, the number of training patients times dp_tiles_per_group"),
        ({"dp_delta": 0.25}, GROUPS, "must be below 1 / number of training patients, 0.25"),
    ],
)
def test_groups_that_cannot_be_protected_so(options, groups, message):
    with pytest.raises(InputError, match=message):
        plan_privacy(private_config(**options), make_source(10, groups))


def test_a_step_without_tiles_is_noise_alone(monkeypatch):
    module = torch.nn.Linear(50, 100)
    monkeypatch.setattr(privacy, "poisson_indices", lambda *_: np.empty(0, dtype=np.int64))
    set_private_gradients(module, None, None, make_plan(noise_multiplier=3.0), KEY, 0)
    # Standard deviation σC over the expected size of the batch, whatever its real size.
    assert float(module.weight.grad.std()) == pytest.approx(3 * 0.5 / 20, rel=0.05)


def test_noise_is_standard_normal_and_of_its_own_in_each_step_and_part():
    numbers = gaussian((20_001,), KEY, 0, 0).numpy()
    assert numbers.dtype == np.float64 and numbers.shape == (20_001,)
    assert stats.kstest(numbers, "norm").pvalue > 1e-3
    for other in (
        gaussian((20_001,), KEY, 1, 0),
        gaussian((20_001,), KEY, 0, 1),
        gaussian((20_001,), KEY[::-1], 0, 0),
    ):
        assert abs(np.corrcoef(numbers, other.numpy())[0, 1]) < 4 / math.sqrt(20_001)
    # Both halves are made of the same uniform numbers.
    assert abs(np.corrcoef(numbers[:10_000], numbers[10_001:])[0, 1]) < 0.04
    assert torch.equal(gaussian((3, 5), KEY, 2, 4), gaussian((3, 5), KEY, 2, 4))
    assert gaussian((), KEY, 0, 0).shape == ()


def test_poisson_batches():
    batches = [poisson_indices(1000, 0.05, KEY, step) for step in range(400)]
    sizes = np.array([len(batch) for batch in batches])
    # Binomial with mean 50 and variance 47.5.
    assert abs(sizes.mean() - 50) < 4 * math.sqrt(47.5 / 400)
    assert 0.7 < sizes.var() / 47.5 < 1.35
    counts = np.bincount(np.concatenate(batches), minlength=1000)  # of each tile: mean 20, variance 19
    assert abs(counts.mean() - 20) < 0.6 and 0.85 < counts.var() / 19 < 1.15
    # Two tiles take part independently of each other.
    took_part = np.array([np.isin(np.arange(2), batch) for batch in batches])
    assert abs(np.corrcoef(took_part.T)[0, 1]) < 0.2
    assert all(np.array_equal(batch, poisson_indices(1000, 0.05, KEY, step)) for step, batch in enumerate(batches))
    assert not np.array_equal(batches[0], poisson_indices(1000, 0.05, KEY[::-1], 0))
    assert len(poisson_indices(10, 1.0, KEY, 0)) == 10


def test_views_of_a_tile_do_not_depend_on_the_other_tiles():
    alone = torch.randn(4, generator=tile_generators("net", 1, 2, [5])[0])
    among = torch.randn(4, generator=tile_generators("net", 1, 2, [0, 3, 5])[2])
    assert torch.equal(alone, among)
    others = [
        torch.randn(4, generator=tile_generators(*which)[0])
        for which in (("net", 1, 2, [6]), ("net", 1, 3, [5]), ("net", 2, 2, [5]), ("other", 1, 2, [5]))
    ]
    assert all(not torch.equal(alone, other) for other in others)


def test_key_is_random_private_and_kept_until_it_is_forgotten(tmp_path):
    first = secret_key(tmp_path / "a")
    assert len(first) == 32 and first == secret_key(tmp_path / "a") != secret_key(tmp_path / "b")
    assert (tmp_path / "a" / KEY_FILE).stat().st_mode & 0o077 == 0
    forget_key(tmp_path / "a")
    forget_key(tmp_path / "a")
    assert not any((tmp_path / "a").iterdir())
    assert secret_key(tmp_path / "a") != first
    (tmp_path / "b" / KEY_FILE).write_bytes(b"short")
    with pytest.raises(InputError, match="is damaged"):
        secret_key(tmp_path / "b")


@needs_opacus
@pytest.mark.parametrize(("epsilon", "rate", "steps"), [(1.0, 0.02, 500), (8.0, 0.01, 100)])
def test_noise_and_epsilon_are_those_of_the_accountant(epsilon, rate, steps):
    from opacus.accountants import RDPAccountant

    sigma = noise_multiplier(epsilon, 1e-5, rate, steps)
    accountant = RDPAccountant()
    for _ in range(steps):
        accountant.step(noise_multiplier=sigma, sample_rate=rate)
    spent = epsilon_spent(sigma, 1e-5, rate, steps)
    assert spent == pytest.approx(accountant.get_epsilon(delta=1e-5), rel=1e-9)
    assert 0.98 * epsilon < spent <= epsilon
    assert epsilon_spent(sigma / 1.1, 1e-5, rate, steps) > epsilon


@needs_opacus
@pytest.mark.parametrize(("sigma", "steps"), [(4.0, 1), (1.0, 1), (6.0, 9)])
def test_epsilon_of_groups_is_that_of_the_gaussian_mechanism(sigma, steps):
    """With every group in each step, by hand: Balle and Wang 2018 (arXiv:1805.06530), theorem 8."""
    sensitivity, delta = math.sqrt(steps) / sigma, 1e-5

    def delta_of(epsilon):
        a, b = sensitivity / 2, epsilon / sensitivity
        return stats.norm.cdf(a - b) - math.exp(epsilon) * stats.norm.cdf(-a - b)

    exact = brentq(lambda epsilon: delta_of(epsilon) - delta, 1e-3, 50)
    found = epsilon_spent(sigma, delta, 1.0, steps, "prv")
    assert exact <= found <= exact + 0.03
    assert epsilon_spent(sigma, delta, 1.0, steps) > found  # the bound of the other accountant


@needs_opacus
def test_epsilon_of_groups_is_that_of_the_accountant():
    from opacus.accountants import PRVAccountant

    sigma = noise_multiplier(1.0, 1e-3, 0.1, 50, "prv")
    accountant = PRVAccountant()
    for _ in range(50):
        accountant.step(noise_multiplier=sigma, sample_rate=0.1)
    assert epsilon_spent(sigma, 1e-3, 0.1, 50, "prv") == accountant.get_epsilon(delta=1e-3) <= 1
    assert sigma < noise_multiplier(1.0, 1e-3, 0.1, 50)


@needs_opacus
def test_epsilon_without_sampling_is_that_of_the_gaussian_mechanism():
    # With every tile in the one step: Rényi divergence α / 2σ², converted as Balle et al. 2020 (theorem 21) do.
    sigma, delta = 4.0, 1e-5
    alphas = np.linspace(1.1, 200, 200_000)
    bound = alphas / (2 * sigma**2) + np.log((alphas - 1) / alphas) - (math.log(delta) + np.log(alphas)) / (alphas - 1)
    assert epsilon_spent(sigma, delta, 1.0, 1) == pytest.approx(bound.min(), rel=0.01)


def test_budgets_of_stages_add_up():
    assert compose({"epsilon": 1.5, "delta": 1e-5, "steps": 3}, {"epsilon": 0.5, "delta": 2e-5}) == {
        "epsilon": 2.0,
        "delta": pytest.approx(3e-5),
    }


def test_missing_opacus_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(InputError, match="dp_epsilon needs opacus, which is not installed"):
        noise_multiplier(1.0, 1e-5, 0.1, 10)


def test_plan_without_epsilon_needs_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus", None)
    assert plan_privacy(PrivateTrainingConfig(data="phantom", output="x"), make_source(4)) is None


@pytest.mark.parametrize(
    ("record", "is_public", "message"),
    [
        ({"settings": {"data": "a"}, "privacy": {"unit": "patient"}}, False, "its budget on each patient, and the"),
        ({"settings": {"data": "a"}}, False, "trained without differential privacy: train it with dp_epsilon"),
        ({"settings": {"data": "a"}}, True, "contradicts the autoencoder's record"),
        ({"settings": {"data": "b"}, "privacy": {"epsilon": 1}}, False, "was trained on other tiles"),
        ({"settings": {"data": "b"}}, True, None),
        ({"settings": {"data": "a"}, "privacy": {"epsilon": 1}}, False, {"epsilon": 1}),
    ],
)
def test_autoencoder_must_be_private_or_public(record, is_public, message):
    if isinstance(message, str):
        with pytest.raises(InputError, match=message):
            autoencoder_privacy(record, "a", is_public)
    else:
        assert autoencoder_privacy(record, "a", is_public) == message


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dp-epsilon", "0"], "--dp-epsilon=0.0 is out of range: it must be above 0"),
        (["--dp-epsilon", "1", "--dp-delta", "1"], "--dp-delta=1.0 is out of range: it must be above 0 and below 1"),
        (["--dp-epsilon", "1", "--dp-max-grad-norm", "0"], "--dp-max-grad-norm=0.0 is out of range"),
        (["--dp-epsilon", "1", "--dp-views", "0"], "--dp-views=0 is out of range: it must be at least 1"),
        (["--dp-delta", "1e-5"], "--dp-delta says nothing without --dp-epsilon: give both or neither"),
        (["--dp-epsilon", "1", "--class-balance", "0.5"], "--class-balance=0.5 is out of range: with --dp-epsilon"),
        (["--dp-epsilon", "1", "--gradient-accumulation-steps", "2"], "--gradient-accumulation-steps=2 is out of"),
        (["--dp-epsilon", "1", "--mixed-precision", "fp16"], "--mixed-precision=fp16 is out of range"),
        (["--dp-epsilon", "1", "--dp-delta", "0.1"], "--dp-delta=0.1 is out of range: it must be below 1 / number"),
        (["--dp-epsilon", "1", "--batch-size", "121"], "--batch-size=121 is out of range: with --dp-epsilon it must"),
    ],
)
def test_bad_options_end_with_one_sentence(tmp_path, autoencoder_argv, argv, message, capsys, fresh_accelerate):
    output = tmp_path / "output"
    with pytest.raises(SystemExit) as error:
        run_script(
            train_autoencoder.make_parser, train_autoencoder.run, [*autoencoder_argv, "--output", str(output), *argv]
        )
    assert error.value.code == 2
    captured = without_notes(capsys.readouterr().err)
    assert captured.startswith(f"error: {message}") and captured.count("\n") == 1
    assert not output.exists()


def test_dropout_does_not_go_with_it(diffusion_argv, capsys):
    with pytest.raises(SystemExit):
        train_diffusion.make_parser().read([*diffusion_argv, "--output", "x", "--dp-epsilon", "1", "--dropout", "0.1"])
    assert "--dropout=0.1 is out of range: with --dp-epsilon it must be 0" in capsys.readouterr().err


def test_without_epsilon_nothing_of_it_is_recorded(tiny_pipeline, tiny_autoencoder):
    for folder in (tiny_pipeline, tiny_autoencoder):
        record = read_json(folder / "stage.json")
        assert not [name for name in record["settings"] if name.startswith("dp_")]
        assert record["settings"]["class_balance"] == 0.5
        assert "privacy" not in record and not (folder / KEY_FILE).exists()


@pytest.fixture(scope="module", autouse=True)
def noise_is_searched_once():
    """The trainings here share their budget, and to search its noise takes longer than the training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(privacy, "noise_multiplier", functools.cache(noise_multiplier))
        patch.setattr(privacy, "epsilon_spent", functools.cache(epsilon_spent))
        yield


@pytest.fixture(scope="module")
def private_argv() -> list[str]:
    return ["--dp-epsilon", "4", "--dp-max-grad-norm", "0.5", "--dp-views", "2", "--max-train-steps", "6"]


@pytest.fixture(scope="module")
def private_autoencoder(tmp_path_factory, run_main, autoencoder_argv, private_argv):
    folder = tmp_path_factory.mktemp("private") / "autoencoder"
    run_main(train_autoencoder, *autoencoder_argv, *private_argv, "--validation-steps", 3, "--output", folder)
    return folder


def kill_at(patch, step: int) -> None:
    """The given step, from 0, is never taken."""

    def stopped(*args):
        if args[-1] == step:
            raise Killed
        set_private_gradients(*args)

    patch.setattr(loop, "set_private_gradients", stopped)


@needs_opacus
def test_autoencoder_records_what_it_spent(private_autoencoder, tiny_npz):
    from histodistill.training.data.pixels import to_model_input
    from histodistill.training.data.sources import load_tiles

    record = read_json(private_autoencoder / "stage.json")
    spent = record["privacy"]
    assert (spent["steps"], spent["sample_rate"], spent["max_grad_norm"]) == (6, pytest.approx(8 / 120), 0.5)
    assert spent["delta"] == pytest.approx(0.1 / 120)
    assert 3.9 < spent["epsilon"] <= 4
    assert spent["epsilon"] == epsilon_spent(spent["noise_multiplier"], spent["delta"], spent["sample_rate"], 6)
    assert record["settings"]["class_balance"] == 0 and record["settings"]["dp_epsilon"] == 4
    # Nothing else of the training tiles: no loss, and the scale is that of validation tiles.
    assert all("train_loss" not in entry for entry in read_json(private_autoencoder / "history.json"))
    autoencoder = AutoencoderDC.from_pretrained(private_autoencoder)
    with torch.no_grad():
        images = to_model_input(load_tiles(tiny_npz).split("validation").images)
        latents = autoencoder.encode(images).latent * record["scaling_factor"]
    assert latents.square().mean().item() == pytest.approx(1, abs=1e-3)


@needs_opacus
def test_the_key_is_gone_and_told_nowhere(tmp_path, run_main, autoencoder_argv, private_argv, monkeypatch):
    keys = []
    monkeypatch.setattr(loop, "secret_key", lambda folder: keys.append(secret_key(folder)) or keys[-1])
    run_main(train_autoencoder, *autoencoder_argv, *private_argv, "--output", tmp_path)
    assert len(keys) == 1 and not (tmp_path / KEY_FILE).exists()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert keys[0] not in content and keys[0].hex().encode() not in content, path.name


@needs_opacus
def test_denoiser_composes_with_the_autoencoder(
    tmp_path, run_main, diffusion_argv, private_argv, private_autoencoder, tiny_autoencoder, capsys
):
    argv = [*diffusion_argv, *private_argv, "--output", tmp_path / "pipeline"]
    with pytest.raises(InputError, match="the autoencoder was trained without differential privacy"):
        run_main(train_diffusion, *argv)
    # So many views that latents are kept; how far they are rounded is a figure of training tiles, and told nowhere.
    run_main(train_diffusion, *argv, "--autoencoder", private_autoencoder, "--no-symmetries", "--dp-views", 3)
    record = read_json(tmp_path / "pipeline" / "stage.json")
    assert record["latents"] == {"kept_as": "float16"} and "rounding errs" not in capsys.readouterr().err
    privacy_of = record["privacy"]
    first = read_json(private_autoencoder / "stage.json")["privacy"]
    assert privacy_of["autoencoder"] == first
    assert privacy_of["total"] == {
        "epsilon": pytest.approx(first["epsilon"] + privacy_of["epsilon"]),
        "delta": pytest.approx(first["delta"] + privacy_of["delta"]),
    }
    assert json.dumps(privacy_of)  # plain values


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    """Tiles of patients, none of them among the tiny tiles."""
    return patients_npz(tmp_path_factory.mktemp("patients") / "patients.npz", seed=1)


@needs_opacus
@pytest.mark.parametrize(
    "case",
    ["autoencoder", "denoiser", "denoiser by patient", pytest.param("adapters by patient", marks=needs_peft)],
)
def test_resumed_run_equals_an_uninterrupted_one(
    tmp_path, run_main, autoencoder_argv, diffusion_argv, private_argv, private_autoencoder, tiny_pipeline, patients,
    monkeypatch, case,
):  # fmt: skip
    if case == "autoencoder":
        script, argv, weights = train_autoencoder, autoencoder_argv, "diffusion_pytorch_model.safetensors"
    else:
        script, weights = train_diffusion, "unet/diffusion_pytorch_model.safetensors"
        argv = [*diffusion_argv, "--autoencoder", private_autoencoder]
    if "by patient" in case:
        argv = [*diffusion_argv, "--data", patients, "--dp-public-autoencoder", "--dp-unit", "group"]
    if case == "adapters by patient":
        argv += ["--init-from", tiny_pipeline, "--dp-public-init", "--trained-weights", "adapters"]
    argv = [*argv, *private_argv, "--validation-steps", 2, "--checkpointing-steps", 3]
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    # The same key, as nobody's two trainings have it.
    (tmp_path / "whole" / KEY_FILE).write_bytes(KEY)
    (tmp_path / "killed" / KEY_FILE).write_bytes(KEY)
    run_main(script, *argv, "--output", tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 5)
        run_main(script, *argv, "--output", tmp_path / "killed")
    with monkeypatch.context() as patch:
        kill_at(patch, 2)  # only steps 3 to 5 are left, so this is never reached
        run_main(script, *argv, "--output", tmp_path / "killed", "--resume", "latest")
    whole, killed = (load_file(tmp_path / name / weights) for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert read_json(tmp_path / "whole" / "history.json") == read_json(tmp_path / "killed" / "history.json")
    if "by patient" in case:
        assert read_json(tmp_path / "killed" / "stage.json")["privacy"]["unit"] == "group"
        return
    # The seed, which is published, does not decide the result.
    run_main(script, *argv, "--output", tmp_path / "other")
    other = load_file(tmp_path / "other" / weights)
    assert not all(torch.equal(whole[name], other[name]) for name in whole)
