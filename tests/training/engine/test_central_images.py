"""Central images: what is asked of the tiles, what it costs, and what a training makes of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from sentences import without_notes
from small_sources import patients_npz
from trainings import Killed, needs_opacus, opacus_may_warn

from histodistill.training import train_diffusion
from histodistill.training.engine import diffusion_training, loop, privacy
from histodistill.training.engine.central_images import (
    MAX_NORM,
    ask_for_latents,
    central_latents,
    noisy_means,
    plan_of_queries,
    warm_up,
)
from histodistill.training.engine.privacy import (
    KEY_FILE,
    PrivacyPlan,
    Queries,
    epsilon_spent,
    key_of_queries,
    noise_multiplier,
    plan_privacy,
    privacy_record,
    set_private_gradients,
)
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json


pytestmark = opacus_may_warn

KEY, SHAPE = bytes(range(32)), (2, 3, 3)


def make_plan(num_units: int, sigma: float = 0.0, rate: float = 0.5, count: int = 3, **changes) -> PrivacyPlan:
    return PrivacyPlan(
        epsilon=1.0, delta=1e-5, max_grad_norm=0.5, noise_multiplier=7.0, units_per_step=1, num_units=num_units,
        steps=5, views=2, queries=Queries(sigma, rate, count), **changes,
    )  # fmt: skip


def answers_of(latents: torch.Tensor, labels: np.ndarray, plan: PrivacyPlan, num_classes: int = 3) -> torch.Tensor:
    """The noisy means, float64, without being divided by the expected number of units."""
    of_queries = plan_of_queries(plan)
    found = noisy_means(lambda indices: latents[indices], labels, num_classes, SHAPE, of_queries, KEY)
    return found.double() * of_queries.units_per_step


def test_central_images_that_are_noise_are_told_of(capsys):
    """4 · MAX_NORM / 12 on each of 18 numbers of a class of three, over three queries."""
    latents, labels = torch.randn(24, *SHAPE), np.arange(24) % 3
    for sigma, told in ((0.72, None), (0.74, "0.5 times"), (4.0, "2.7 times")):
        central = ask_for_latents(lambda indices: latents[indices], labels, 3, SHAPE, make_plan(24, sigma), KEY)
        assert central.shape == (3, 3, *SHAPE)
        said = f"warning: the central images of 24 training tiles have noise that is {told} as large as a latent"
        err = capsys.readouterr().err
        assert err.startswith(said) if told else err == ""


@pytest.mark.parametrize("by_patient", [False, True])
def test_one_unit_changes_an_answer_by_the_bound_at_most(monkeypatch, by_patient):
    """Whatever the size of its latents, also where its tiles are all alike, of one class or of several."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 24)
    scale = 10.0 ** rng.integers(-2, 4, size=24)
    latents = torch.from_numpy(scale[:, None, None, None] * rng.normal(1, 0.1, size=(24, *SHAPE))).float()
    latents[3] = math.inf
    groups = {"unit": "patient", "groups": np.split(np.arange(24), [1, 2, 7, 12]), "tiles_per_group": 4}
    plan = make_plan(5, **groups) if by_patient else make_plan(24)
    drawn, changes = privacy.poisson_indices(plan.num_units, 0.5, key_of_queries(KEY), 0), []
    with_it = answers_of(latents, labels, plan)[0]
    for removed in drawn:
        monkeypatch.setattr(privacy, "poisson_indices", lambda *_, gone=removed: drawn[drawn != gone])
        changes.append(float((answers_of(latents, labels, plan)[0] - with_it).norm()))
    assert len(changes) > 1 and torch.isfinite(with_it).all()
    assert 0.99 * MAX_NORM < max(changes) <= MAX_NORM * (1 + 1e-5)  # of single precision


def test_units_are_drawn_independently_and_noise_is_what_is_planned():
    asked: list[np.ndarray] = []

    def latents_of(indices):
        asked.append(indices)
        return torch.full((len(indices), *SHAPE), math.nan)  # not finite, so that nothing but noise is left

    plan = make_plan(300, sigma=4.0, rate=0.2, count=40)
    of_queries = plan_of_queries(plan)
    answers = noisy_means(latents_of, np.zeros(300, dtype=np.int64), 3, SHAPE, of_queries, KEY)
    assert answers.shape == (40, 3, 19)
    counts = np.bincount(np.concatenate(asked), minlength=300)  # of each unit: binomial of 40 queries with 0.2
    assert abs(counts.mean() - 8) < 4 * math.sqrt(6.4 / 300) and 0.7 < counts.var() / 6.4 < 1.35
    sizes = [len(of_queries.draw(key_of_queries(KEY), number)) for number in range(40)]
    assert sum(sizes) == counts.sum() and np.var(sizes) > 0
    noise = answers.flatten().numpy() * of_queries.units_per_step / (4 * MAX_NORM)
    assert stats.kstest(noise, "norm").pvalue > 1e-3
    # Nothing of it comes again in the steps that follow.
    in_steps = privacy.gaussian((1, 57), KEY, 0, 0).numpy()[0]
    assert abs(np.corrcoef(noise[:57], in_steps)[0, 1]) < 0.6
    assert key_of_queries(KEY) != KEY and len(key_of_queries(KEY)) == 32
    assert key_of_queries(KEY) != key_of_queries(KEY[::-1])


def test_without_noise_central_latents_are_the_means_of_classes_of_any_size():
    rng = np.random.default_rng(2)
    labels = rng.choice(3, size=400, p=[0.6, 0.3, 0.1])
    means = torch.from_numpy(rng.normal(0, 0.5, size=(3, *SHAPE))).float()
    latents = means[labels] + 0.1 * torch.from_numpy(rng.normal(size=(400, *SHAPE))).float()
    plan = plan_of_queries(make_plan(400, rate=1.0))
    answers = noisy_means(lambda indices: latents[indices], labels, 3, SHAPE, plan, KEY)
    found = central_latents(answers, SHAPE, 0.0)
    assert found.shape == (3, 3, *SHAPE) and found.dtype == torch.float32
    expected = torch.stack([latents[labels == label].mean(dim=0) for label in range(3)])
    assert torch.allclose(found[0], expected, atol=1e-4)


def test_noise_is_drawn_to_zero_and_what_is_known_stays():
    generator = torch.Generator().manual_seed(0)
    shape, deviation = (2, 8, 8), 0.02
    truth = torch.tensor([[0.8, -0.6], [0.0, 0.0]]).view(2, 2, 1, 1).expand(2, *shape)  # the second class has no look
    answers = torch.cat([truth.flatten(1) / math.sqrt(128), torch.full((2, 1), 0.5)], dim=1) / 2  # of half the units
    answers = answers + deviation * torch.randn(10, 2, 129, generator=generator)
    found = central_latents(answers, shape, deviation)
    noise = deviation * math.sqrt(128) * 2  # more than half of the look: 0.45, for each number
    assert (found - truth).square().mean().sqrt() < 0.25 * noise
    assert torch.allclose(found[:, 0].mean(dim=(0, 2, 3)), torch.tensor([0.8, -0.6]), atol=0.1)


@needs_opacus
@pytest.mark.parametrize(("accountant", "low", "high"), [("prv", -1e-3, 1e-3), ("rdp", -1e-9, 1e-9)])
def test_queries_and_steps_are_one_composition(accountant, low, high):
    """With every unit in each, by hand: mechanisms of σ and τ together are one whose square is 1 / (σ⁻² + τ⁻²)."""
    together = 1 / math.sqrt(1 / 3**2 + 1 / 4**2)
    found = epsilon_spent(4.0, 1e-5, 1.0, 1, accountant, Queries(3.0, 1.0, 1))
    assert low <= found - epsilon_spent(together, 1e-5, 1.0, 1, accountant) <= high


@needs_opacus
def test_epsilon_is_that_of_the_accountant_with_the_same_history():
    from opacus.accountants import RDPAccountant

    queries = Queries(6.0, 0.2, 10)
    sigma = noise_multiplier(2.0, 1e-5, 0.1, 50, "rdp", queries)
    accountant = RDPAccountant()
    for _ in range(10):
        accountant.step(noise_multiplier=6.0, sample_rate=0.2)
    for _ in range(50):
        accountant.step(noise_multiplier=sigma, sample_rate=0.1)
    spent = epsilon_spent(sigma, 1e-5, 0.1, 50, "rdp", queries)
    assert spent == pytest.approx(accountant.get_epsilon(delta=1e-5), rel=1e-9)
    assert 1.99 <= spent <= 2.0
    # Both parts count.
    assert sigma > noise_multiplier(2.0, 1e-5, 0.1, 50)
    for more in (
        epsilon_spent(sigma / 1.1, 1e-5, 0.1, 50, "rdp", queries),
        epsilon_spent(sigma, 1e-5, 0.1, 50, "rdp", queries._replace(noise_multiplier=4.0)),
        epsilon_spent(sigma, 1e-5, 0.1, 50, "rdp", queries._replace(num_queries=20)),
    ):
        assert more > spent > epsilon_spent(sigma, 1e-5, 0.1, 50)


@needs_opacus
def test_queries_that_spend_all_leave_nothing(monkeypatch):
    monkeypatch.setattr(privacy, "epsilon_spent", lambda sigma, *_: 1.01 + 1 / sigma)  # each takes a while
    with pytest.raises(InputError, match="dp_epsilon=1 is out of reach"):
        noise_multiplier(1.0, 1e-5, 0.1, 10, "rdp", Queries(1.0, 0.5, 10))


def tiny_config(data, **changes) -> train_diffusion.TrainDiffusionConfig:
    options = {"data": data, "output": "y", "autoencoder": "z", "dp_epsilon": 8.0, "batch_size": 8}
    return train_diffusion.TrainDiffusionConfig(**options | changes)


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    return patients_npz(tmp_path_factory.mktemp("patients") / "patients.npz", seed=1)


@needs_opacus
def test_plan_and_record_tell_of_the_queries(patients, monkeypatch, capsys):
    from histodistill.training.data.sources import load_tiles

    calls = []
    monkeypatch.setattr(privacy, "noise_multiplier", lambda *of: calls.append(of) or 3.0)
    plan = plan_privacy(tiny_config(patients, max_train_steps=7), load_tiles(patients), central_share=0.25)
    queries, delta = Queries(3.0, 0.2, 10), 0.1 / 8
    assert calls == [(2.0, delta, 0.2, 10, "prv"), (8.0, delta, 0.25, 7, "prv", queries)] and plan.queries == queries
    record = privacy_record(plan)
    assert record["epsilon"] == epsilon_spent(3.0, delta, 0.25, 7, "prv", queries)
    alone = epsilon_spent(3.0, delta, 0.2, 10, "prv")
    assert record["central_images"] == {
        "noise_multiplier": 3.0, "sample_rate": 0.2, "num_queries": 10, "epsilon_alone": alone,
    }  # fmt: skip
    assert alone < record["epsilon"]
    assert "σ = 3, after 10 queries with σ = 3\n" in capsys.readouterr().err


@needs_opacus
def test_a_share_too_small_for_any_noise_is_one_sentence(patients, monkeypatch):
    from histodistill.training.data.sources import load_tiles

    def fails(*args):
        raise InputError("dp_epsilon=0.008 is out of reach")

    monkeypatch.setattr(privacy, "noise_multiplier", fails)
    with pytest.raises(InputError, match=r"^dp_central_share=0\.001 is out of reach: with dp_epsilon 8 no noise is"):
        plan_privacy(tiny_config(patients), load_tiles(patients), central_share=0.001)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dp-central-share", "0.1"], "--dp-central-share=0.1 is out of range: without --dp-epsilon it must be 0"),
        (["--dp-epsilon", "1", "--dp-central-share", "1"], "--dp-central-share=1.0 is out of range: it must be at"),
    ],
)
def test_bad_options_end_with_one_sentence(argv, message, diffusion_argv, capsys):
    with pytest.raises(SystemExit):
        train_diffusion.make_parser().read([*diffusion_argv, "--output", "x", *argv])
    assert without_notes(capsys.readouterr().err).startswith(f"error: {message}")


def test_without_a_share_nothing_is_recorded():
    assert "dp_central_share" not in tiny_config("x").settings()
    assert tiny_config("x", dp_central_share=0.1).settings()["dp_central_share"] == 0.1


@needs_opacus
def test_killed_trainings_end_as_one_that_was_not(tmp_path, run_main, diffusion_argv, patients, monkeypatch):
    """Both where there is a checkpoint and where central images are to be learned anew."""
    monkeypatch.setattr(privacy, "noise_multiplier", lambda *_: 2.0)  # its search takes longer than all else
    monkeypatch.setattr(privacy, "epsilon_spent", lambda *_: 5.0)
    argv = [
        *diffusion_argv, "--data", patients, "--dp-public-autoencoder", "--dp-epsilon", 8, "--dp-views", 1,
        "--max-train-steps", 4, "--validation-steps", 4, "--checkpointing-steps", 2,
        "--dp-central-share", 0.1,
    ]  # fmt: skip
    asked = []

    def seen(training, latents, optimizer):
        before = [parameter.detach().clone() for parameter in training.denoiser.parameters()]
        warm_up(training, latents, optimizer)
        changed = zip(before, training.denoiser.parameters(), strict=True)
        assert not all(torch.equal(old, new) for old, new in changed)
        assert all(parameter.grad is None for parameter in training.denoiser.parameters())
        asked.append(latents)

    monkeypatch.setattr(diffusion_training, "warm_up", seen)

    def train(name, killed_at=None):
        def stopped(*args):
            if args[-1] == killed_at and args[-3].queries:  # a step, not a query
                raise Killed
            set_private_gradients(*args)

        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / KEY_FILE).write_bytes(KEY)
        with monkeypatch.context() as patch:
            patch.setattr(loop, "set_private_gradients", stopped)
            run_main(train_diffusion, *argv, "--output", tmp_path / name, "--resume", "latest")

    def weights(name):
        return load_file(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors")

    train("whole")
    assert len(asked) == 1 and asked[0].shape[:2] == (10, 5)
    for step, times in ((1, 3), (3, 4)):  # the checkpoint is of step 2, before which all is made again
        with pytest.raises(Killed):
            train(f"killed-{step}", killed_at=step)
        train(f"killed-{step}")
        assert len(asked) == times
        whole, killed = weights("whole"), weights(f"killed-{step}")
        assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert all(torch.equal(latents, asked[0]) for latents in asked)
    record = read_json(tmp_path / "whole" / "stage.json")
    assert record["settings"]["dp_central_share"] == 0.1 and not (tmp_path / "whole" / KEY_FILE).exists()
    assert record["privacy"]["central_images"]["num_queries"] == 10
    assert record["privacy"]["total"]["epsilon"] == record["privacy"]["epsilon"] == 5
