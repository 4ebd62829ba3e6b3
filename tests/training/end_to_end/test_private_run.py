"""`distill` under differential privacy: what each step is told, and what cannot be."""

from __future__ import annotations

import re
from importlib import import_module

import pytest

from histodistill.training.end_to_end import distill
from histodistill.training.engine import privacy
from histodistill.training.running.errors import InputError
from histodistill.training.running.presets import load_preset


FOLDERS = ["autoencoder", "pipeline", "pool", "teacher", "distilled", "comparison", "audit"]


@pytest.fixture
def begin(tiny_tiles, tiny_preset, tmp_path, monkeypatch):
    """What run.json of a new run would hold, and what each of its steps reads from its command line, by folder."""

    # Its search takes seconds.
    monkeypatch.setattr(privacy, "noise_multiplier", lambda *_: 2.0)

    def begun(*argv: object):
        options = ["--data", tiny_tiles, "--output", tmp_path / "run", "--preset", tiny_preset, *argv]
        config = distill.make_parser().read([*map(str, options)])
        run = distill.open_run(config)
        stages = distill.stages(config, run)
        return run, {stage.folder: import_module(stage.module).make_parser().read(stage.argv) for stage in stages}

    return begun


def test_only_the_denoiser_is_shown_the_real_tiles(begin, tiny_tiles, tmp_path, capsys):
    run, steps = begin("--dp-epsilon", 10, "--dp-delta", 0.001)
    assert (
        "ε = 10 and δ = 0.001 for each of 55 training tiles, since nothing is known of groups"
        in capsys.readouterr().err
    )
    assert list(steps) == FOLDERS
    assert run["settings"]["differential_privacy"] == {"epsilon": 10.0, "delta": 0.001, "public_data": "phantom:1"}
    autoencoder, denoiser, teacher, select = (
        steps[name] for name in ("autoencoder", "pipeline", "teacher", "distilled")
    )
    assert (autoencoder.data, autoencoder.audit_share, autoencoder.image_size) == ("phantom:1", 0.0, 16)
    assert (denoiser.data, denoiser.audit_share) == (str(tiny_tiles), 0.1)
    assert (denoiser.dp_epsilon, denoiser.dp_delta, denoiser.dp_public_autoencoder) == (10.0, 0.001, True)
    assert denoiser.align is None and denoiser.class_balance == 0
    assert teacher.data == str(tmp_path / "run" / "pool") and teacher.eval_data is None and teacher.autoencoder is None
    assert select.data is None and not select.needs_real_tiles and not select.drop_copies
    # Comparison and audit look at them, and what they find stays in the house.
    assert steps["audit"].data == steps["comparison"].data == str(tiny_tiles)
    assert steps["audit"].audit_share == 0.1


def test_options_of_privacy_may_be_set_for_the_denoiser(begin):
    _, steps = begin("--dp-epsilon", 1, "--set", "diffusion.dp_views=2", "diffusion.dp_unit=tile")
    assert (steps["pipeline"].dp_views, steps["pipeline"].dp_unit) == (2, "tile")


def test_without_it_nothing_is_another(begin):
    run, steps = begin()
    assert list(steps) == ["autoencoder", "teacher", "pipeline", *FOLDERS[2:3], *FOLDERS[4:]]
    assert "differential_privacy" not in run["settings"] and steps["distilled"].drop_copies


def test_a_preset_without_what_is_not_private():
    preset = load_preset("cpu").with_options("select", {"typical_share": 0.9})
    preset = preset.with_options("diffusion", {"gradient_accumulation_steps": 3, "batch_size": 8, "compile": True})
    private = preset.under_privacy()
    assert private.diffusion["batch_size"] == 24 and "typical_share" not in private.select
    assert not {"align_weight", "compile", "gradient_accumulation_steps"} & private.diffusion.keys()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dp-delta", "1e-5"], "dp_delta says nothing without dp_epsilon: give both"),
        (["--dp-epsilon", "1", "--time-budget", "1h"], "time_budget does not go with dp_epsilon"),
        (["--dp-epsilon", "1", "--set", "diffusion.dp_epsilon=2"], "dp_epsilon cannot be set for one step"),
        (["--dp-epsilon", "1", "--set", "autoencoder.dp_epsilon=2"], "dp_epsilon cannot be set here"),
        (["--dp-epsilon", "1", "--set", "select.drop_copies=true"], "drop_copies cannot be set for one step"),
        (["--dp-epsilon", "1", "--set", "select.embedder=teacher"], "select.embedder=teacher is out of range"),
        (["--dp-epsilon", "1", "--set", "diffusion.align_weight=0.5"], "align=.* it must be left out"),
        (["--dp-epsilon", "1", "--set", "diffusion.dp_unit=group"], "dp_unit=group needs groups, and these tiles"),
        (["--dp-epsilon", "1", "--set", "diffusion.batch_size=56"], "at most 55, the number of training tiles"),
        (["--dp-epsilon", "1", "--num-processes", "2"], "dp_epsilon trains in one process, and here are 2"),
    ],
)
def test_what_does_not_go_with_it(begin, argv, message, tmp_path, capsys):
    with pytest.raises((InputError, SystemExit)) as refused:
        begin(*argv)
    said = str(refused.value) + capsys.readouterr().err
    assert re.search(message, said.replace("--", "").replace("-", "_"))
    assert not (tmp_path / "run").exists()


def test_the_public_tiles_are_others(begin, tiny_tiles, capsys):
    with pytest.raises(SystemExit):
        begin("--dp-epsilon", 1, "--dp-public-data", tiny_tiles)
    assert "are the very tiles that are to be protected: give others" in capsys.readouterr().err
