"""Fitting the steps of a distillation to a time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from histodistill.training.end_to_end.budget import SHARES, fit
from histodistill.training.running.errors import InputError
from histodistill.training.running.presets import Preset


PRESET = Preset(
    autoencoder={"channels": [8, 8], "latent_channels": 2, "batch_size": 8, "train_pixels": 100_000},
    diffusion={"channels": [8], "max_train_steps": 4000, "batch_size": 8},
    teacher={"max_train_steps": 1000},
    generate={"per_class": 1000},
    select={"n_per_class": 20},
    compare=("convnet:800:real_all",),
)
FIXED_SECONDS = 100.0


def cost(preset: Preset) -> dict[str, float]:
    """A second for each step of the denoiser, and so on; and what does not depend on any."""
    (plan,) = preset.compare
    return {
        "autoencoder": preset.autoencoder["train_pixels"] / 100,
        "pipeline": preset.diffusion["max_train_steps"],
        "teacher": preset.teacher["max_train_steps"],
        "pool": preset.generate["per_class"],
        "comparison": 2 * int(plan.split(":")[1]),
        "audit": FIXED_SECONDS + preset.audit.get("weight_tiles", 2000) / 5,
    }


WHOLE = sum(cost(PRESET).values())


def test_what_fits_is_left_alone():
    fitted = fit(PRESET, 1.2 * WHOLE, cost, {})
    assert fitted.changes == {} and set(fitted.shares.values()) == {1.0}
    assert fitted.line(3600) == "everything fits into 1 h as it is"


@pytest.mark.parametrize("part", [0.7, 0.3, 0.1])
def test_it_takes_as_long_as_it_may(part):
    fitted = fit(PRESET, part * WHOLE, cost, {})
    taken = sum(cost(PRESET.with_changes(fitted.changes)).values())
    assert 0.85 * part * WHOLE < taken <= part * WHOLE
    assert fitted == fit(PRESET, part * WHOLE, cost, {})


def test_each_step_gets_its_share():
    fitted = fit(PRESET, 0.3 * WHOLE, cost, {})
    seconds = cost(PRESET.with_changes(fitted.changes))
    per_share = {
        "diffusion": seconds["pipeline"] / SHARES["diffusion"],
        "autoencoder": seconds["autoencoder"] / SHARES["autoencoder"],
        "compare": seconds["comparison"] / SHARES["compare"],
        "teacher": seconds["teacher"] / SHARES["teacher"],
    }
    assert list(per_share.values()) == pytest.approx([per_share["diffusion"]] * 4, rel=0.03)


def test_what_a_step_does_not_need_goes_to_the_others():
    fitted = fit(PRESET, 0.9 * WHOLE, cost, {})
    assert fitted.shares["autoencoder"] == 1.0 and "autoencoder" not in fitted.changes
    assert fitted.shares["diffusion"] < 0.8
    assert sum(cost(PRESET.with_changes(fitted.changes)).values()) > 0.8 * WHOLE


def test_what_is_asked_for_stays():
    fixed = {"generate": ["per_class"], "teacher": ["max_train_steps", "validation_tiles"]}
    fitted = fit(PRESET, 0.5 * WHOLE, cost, fixed)
    assert {"generate", "teacher"}.isdisjoint(fitted.changes)
    assert fitted.changes["diffusion"]["max_train_steps"] < 4000


def test_a_pool_has_images_to_choose_from():
    fitted = fit(PRESET, 0.11 * WHOLE, cost, {})
    assert fitted.changes["generate"]["per_class"] >= 25


def test_nothing_mends_what_an_autoencoder_loses():
    fitted = fit(PRESET, 0.11 * WHOLE, cost, {})
    assert fitted.shares["autoencoder"] == 0.25 and fitted.changes["autoencoder"] == {"train_pixels": 25_000}
    assert fitted.shares["diffusion"] < 0.1


def test_an_audit_asks_about_enough_tiles():
    fitted = fit(PRESET, 0.12 * WHOLE, cost, {})
    assert fitted.changes["audit"] == {"weight_tiles": 500}
    few = replace(PRESET, audit={"weight_tiles": 300})
    assert "audit" not in fit(few, 0.12 * WHOLE, cost, {}).changes


def test_the_least_is_told_where_not_even_that_fits():
    with pytest.raises(InputError) as raised:
        fit(PRESET, 200, cost, {})
    said = raised.value.for_command_line()
    assert said.startswith("--time-budget is too short: the least takes about ")
    assert said.endswith(" here: give that, a smaller --image-size or --n-per-class")


def test_the_line_names_what_is_left():
    assert (
        fit(PRESET, 0.3 * WHOLE, cost, {})
        .line(5400)
        .startswith("fitted to 1 h 30 min: of what the preset does, denoiser ")
    )


def test_what_is_told_is_what_is_left():
    many = replace(PRESET, select={"n_per_class": 200})
    fitted = fit(many, 0.13 * WHOLE, cost, {})
    # The pool can be no smaller, whatever its share.
    assert fitted.changes["generate"] == {"per_class": 250} and fitted.shares["generate"] == 0.25
    assert fitted.shares["audit"] == fitted.changes["audit"]["weight_tiles"] / 2000
    assert "pool 25%" in fitted.line(60)
