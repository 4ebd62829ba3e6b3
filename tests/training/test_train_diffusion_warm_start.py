"""A denoiser that begins from a trained pipeline: what it knows at once, and what its record says."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from trainings import needs_peft

from histodistill.training import train_diffusion as script
from histodistill.training.engine import privacy
from histodistill.training.engine.privacy import gaussian
from histodistill.training.models.loading import load_named_denoiser
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json
from histodistill.training.running.stages import Stage


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
# So small that no weight changes.
NO_STEP = ["--max-train-steps", 1, "--learning-rate", 1e-30]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run_main, diffusion_argv) -> Path:
    """A pipeline that has learned something."""
    folder = tmp_path_factory.mktemp("trained") / "pipeline"
    run_main(
        script, *diffusion_argv, "--max-train-steps", 40, "--validation-steps", 40, "--learning-rate", 5e-3,
        "--ema-decay", 0.5, "--output", folder,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def other_classes(tmp_path_factory, tiny_npz) -> Path:
    """The tiny tiles with the classes in another order, of which the second is called otherwise."""
    arrays = dict(np.load(tiny_npz))
    names = [str(name) for name in arrays["class_names"]]
    order = [4, 1, 0, 2, 3]
    renamed = ["something new" if old == 1 else names[old] for old in order]
    label_of = np.argsort(order)
    for prefix in ("train", "val", "test"):
        arrays[f"{prefix}_labels"] = label_of[arrays[f"{prefix}_labels"]]
    path = tmp_path_factory.mktemp("tiles") / "other.npz"
    np.savez(path, **{**arrays, "class_names": np.array(renamed)})
    return path


def predictions(folder: Path, names: list[str]) -> torch.Tensor:
    """What a pipeline's denoiser predicts for classes by their names; "" is the null class."""
    denoiser, class_names = load_named_denoiser(folder)
    labels = torch.tensor([[*class_names, ""].index(name) for name in names])
    noise = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0)).expand(len(names), -1, -1, -1)
    with torch.no_grad():
        return denoiser(noise, torch.full((len(names),), 400.0), class_labels=labels).sample


def loss(folder: Path) -> float:
    return read_json(folder / "history.json")[0]["validation_loss"]


def test_classes_of_both_are_known_at_once(tmp_path, run_main, diffusion_argv, trained, other_classes, capsys):
    output = tmp_path / "warm"
    run_main(
        script, *diffusion_argv, *NO_STEP, "--data", other_classes, "--init-from", trained, "--output", output,
    )  # fmt: skip
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("warm start: "))
    assert line.endswith(f"from {trained}; begins with the null class for classes it has not seen (something new)")
    _, new_names = load_named_denoiser(output)
    both = [name for name in load_named_denoiser(trained)[1] if name in new_names]
    assert len(both) == 4
    expected = predictions(trained, [*both, "", ""])
    torch.testing.assert_close(predictions(output, [*both, "", "something new"]), expected, rtol=0, atol=0)
    assert not torch.equal(expected[0], expected[1])


def test_it_begins_where_the_other_ended(tmp_path, run_main, diffusion_argv, trained):
    for name, options in (("warm", ["--init-from", trained]), ("scratch", [])):
        run_main(script, *diffusion_argv, *NO_STEP, *options, "--output", tmp_path / name)
    # Other averages of the same weights, but for what the last step did.
    assert loss(tmp_path / "warm") == pytest.approx(loss(trained), rel=1e-4)
    assert loss(tmp_path / "warm") < 0.9 * loss(tmp_path / "scratch")


def test_latents_of_another_autoencoder_are_told_of(tmp_path, run_main, diffusion_argv, trained, capsys):
    copy = shutil.copytree(trained, tmp_path / "other")
    weights = load_file(copy / "vae" / "diffusion_pytorch_model.safetensors")
    save_file(
        {name: value + 1 for name, value in weights.items()}, copy / "vae" / "diffusion_pytorch_model.safetensors"
    )
    for start, told in ((trained, False), (copy, True)):
        run_main(script, *diffusion_argv, *NO_STEP, "--init-from", start, "--output", tmp_path / start.name / "out")
        assert ("so its denoiser learned other latents" in capsys.readouterr().err) == told


def test_record_has_a_hash_and_no_path(tmp_path, run_main, diffusion_argv, trained, tiny_pipeline):
    copy, output = shutil.copytree(trained, tmp_path / "a copy"), tmp_path / "out"
    run_main(script, *diffusion_argv, *NO_STEP, "--init-from", copy, "--output", output)
    settings = read_json(output / "stage.json")["settings"]
    assert len(settings["init_from"]) == 64 and "dp_public_init" not in settings
    assert "a copy" not in (output / "stage.json").read_text()
    assert "init_from" not in read_json(tiny_pipeline / "stage.json")["settings"]
    # Where it lies does not matter; what it holds does.
    run_main(script, *diffusion_argv, *NO_STEP, "--init-from", trained, "--output", output)
    with pytest.raises(InputError, match=r"was made with other settings \(init_from was .* and is now "):
        run_main(script, *diffusion_argv, *NO_STEP, "--init-from", tiny_pipeline, "--output", output)
    with pytest.raises(InputError, match=r"\(init_from was .* and is now null\)"):
        run_main(script, *diffusion_argv, *NO_STEP, "--output", output)


def test_a_checkpoint_has_the_last_word(tmp_path, run_main, diffusion_argv, trained, tiny_pipeline):
    argv = [*diffusion_argv, "--max-train-steps", 4, "--checkpointing-steps", 2, "--init-from", trained]
    run_main(script, *argv, "--output", tmp_path / "whole")
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "checkpoint-2", killed / "checkpoints" / "checkpoint-2")
    Stage(killed, read_json(tmp_path / "whole" / "stage.json")["settings"]).begin()
    with pytest.raises(InputError, match="init_from was"):
        run_main(script, *argv[:-1], tiny_pipeline, "--resume", "latest", "--output", killed)
    run_main(script, *argv, "--resume", "latest", "--output", killed)
    whole, resumed = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


ALONE = ["--trained-weights", "embeddings"]
ADAPTERS = ["--trained-weights", "adapters"]
CLASSES = "class_embedding.weight"


def changed(folder: Path, start: Path) -> set[str]:
    """The weights of a denoiser that are others than those of the one that it began from."""
    ours, theirs = (load_file(pipeline / WEIGHTS) for pipeline in (folder, start))
    return {name for name in theirs if not torch.equal(ours[name], theirs[name])}


@pytest.mark.parametrize("options", [[], ["--optimizer", "muon"], ["--dp-epsilon", 8]])
def test_embeddings_and_norms_alone_are_trained(
    tmp_path, run_main, diffusion_argv, trained, other_classes, capsys, monkeypatch, options
):
    noisy = []
    if "--dp-epsilon" in options:
        pytest.importorskip("opacus")
        monkeypatch.setattr(privacy, "gaussian", lambda shape, *of: noisy.append(shape) or gaussian(shape, *of))
        options = [*options, "--dp-views", 1, "--dp-public-autoencoder", "--dp-public-init", "--data", other_classes]
    argv = [*diffusion_argv, *ALONE, *options, "--init-from", trained, "--max-train-steps", 3]
    run_main(script, *argv, "--output", tmp_path / "out")
    denoiser, _ = load_named_denoiser(trained)
    norms = {name for name, module in denoiser.named_modules() if isinstance(module, torch.nn.GroupNorm)}
    wanted = {name for name in load_file(trained / WEIGHTS) if name.rpartition(".")[0] in norms}
    wanted.add(CLASSES)
    assert changed(tmp_path / "out", trained) == wanted
    weights = load_file(trained / WEIGHTS)
    count = sum(weights[name].numel() for name in wanted)
    assert f"warm start: {count:,} of {denoiser.num_parameters():,} weights are trained" in capsys.readouterr().err
    assert read_json(tmp_path / "out" / "stage.json")["settings"]["trained_weights"] == "embeddings"
    # Nothing else is clipped, and bears noise.
    assert len(noisy) == (3 * len(wanted) if "--dp-epsilon" in options else 0)


@needs_peft
def test_adapters_are_trained_too_and_nobody_sees_them_in_the_pipeline(
    tmp_path, run_main, diffusion_argv, trained, other_classes, capsys
):
    pytest.importorskip("opacus")
    run_main(
        script, *diffusion_argv, *ADAPTERS, "--init-from", trained, "--max-train-steps", 3, "--ema-decay", 0.5,
        "--data", other_classes, "--dp-epsilon", 8, "--dp-views", 1, "--dp-public-autoencoder", "--dp-public-init",
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert "matrices of rank 8 are added, of which " in capsys.readouterr().err
    average = load_file(tmp_path / "out" / "checkpoints" / "checkpoint-3" / "ema.safetensors")
    ours, theirs = (load_file(folder / WEIGHTS) for folder in (tmp_path / "out", trained))
    # Of each layer that has one, what was before and the product of the averaged matrices.
    adapted = {name.removesuffix(".base_layer.weight") for name in average if name.endswith(".base_layer.weight")}
    for layer in adapted:
        before, down, up = (
            average[f"{layer}.{part}.weight"] for part in ("base_layer", "lora_A.default", "lora_B.default")
        )
        product = (up.flatten(1) @ down.flatten(1)).view_as(before)
        assert torch.equal(before, theirs[f"{layer}.weight"]) and product.abs().max() > 0
        torch.testing.assert_close(ours[f"{layer}.weight"], before + product, rtol=0, atol=1e-6)
    norms = {name for name in theirs if "norm" in name}
    assert changed(tmp_path / "out", trained) == {f"{layer}.weight" for layer in adapted} | norms | {CLASSES}
    assert list(ours) == list(theirs)
    for file in ("model_index.json", "unet/config.json"):
        found, wanted = (read_json(folder / file) for folder in (tmp_path / "out", trained))
        assert {name: value for name, value in found.items() if name != "id2label"} == {
            name: value for name, value in wanted.items() if name != "id2label"
        }


@pytest.mark.parametrize("chosen", ["embeddings", pytest.param("adapters", marks=needs_peft)])
def test_a_training_of_few_weights_goes_on_as_if_nobody_had_stopped_it(
    tmp_path, run_main, diffusion_argv, trained, chosen
):
    options = ["--trained-weights", chosen, "--max-train-steps", 4, "--checkpointing-steps", 2]
    argv = [*diffusion_argv, *options, "--init-from", trained]
    run_main(script, *argv, "--output", tmp_path / "whole")
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "checkpoint-2", killed / "checkpoints" / "checkpoint-2")
    Stage(killed, read_json(tmp_path / "whole" / "stage.json")["settings"]).begin()
    with pytest.raises(InputError, match=f'trained_weights was "{chosen}"'):
        run_main(script, *argv, "--trained-weights", "all", "--resume", "latest", "--output", killed)
    run_main(script, *argv, "--resume", "latest", "--output", killed)
    assert not changed(killed, tmp_path / "whole")


def test_what_is_not_trained_must_have_been(tmp_path, run_main, diffusion_argv, trained, capsys):
    with pytest.raises(SystemExit):
        script.make_parser().read([*map(str, diffusion_argv), *ALONE, "--output", str(tmp_path)])
    assert "--trained-weights=embeddings is out of range: without --init-from it must be" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script.make_parser().read([*map(str, diffusion_argv), *ADAPTERS, "--output", str(tmp_path)])
    assert "--trained-weights=adapters is out of range: without --init-from it must be" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"would stay as they were made, since none that fit were trained before"):
        run_main(
            script, *diffusion_argv, *NO_STEP, *ALONE, "--layers-per-block", 2, "--init-from", trained,
            "--output", tmp_path / "out",
        )  # fmt: skip


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, run_main, diffusion_argv, trained):
    argv = [*diffusion_argv, *NO_STEP, "--output", tmp_path / "out"]
    with pytest.raises(InputError, match=r"fit this model: give channels 12, layers_per_block 1 and attention_levels"):
        run_main(script, *argv, "--channels", 20, "--init-from", trained)
    with pytest.raises(InputError, match=r"has no model_index.json or no unet/"):
        run_main(script, *argv, "--init-from", tmp_path)
    with pytest.raises(InputError, match=r"init_from nowhere is no folder: give the folder of a pipeline or its id"):
        run_main(script, *argv, "--init-from", "nowhere")
    assert not (tmp_path / "out").exists()


def test_a_pipeline_of_the_hub_is_fetched_as_data(tmp_path, run_main, diffusion_argv, trained, monkeypatch, capsys):
    asked = []

    def snapshot_download(repo_id, *, allow_patterns):
        asked.append((repo_id, allow_patterns))
        for name in allow_patterns:
            (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(trained / name, tmp_path / "cache" / name)
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    run_main(script, *diffusion_argv, *NO_STEP, "--init-from", "user/tissue-ldm", "--output", tmp_path / "out")
    parts = ["model_index.json", "unet/config.json", WEIGHTS, "scheduler/scheduler_config.json"]
    assert asked == [("user/tissue-ldm", parts)]
    assert "takes all of " in (told := capsys.readouterr().err) and " from user/tissue-ldm" in told
    assert loss(tmp_path / "out") == pytest.approx(loss(trained), rel=1e-4)
    assert "tissue-ldm" not in (tmp_path / "out" / "stage.json").read_text()


def test_without_a_network_there_is_one_sentence(tmp_path, run_main, diffusion_argv, monkeypatch):
    def snapshot_download(repo_id, *, allow_patterns):
        raise LocalEntryNotFoundError("no connection\nand a second line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(InputError, match=r"^init_from user/none is no folder and cannot be fetched .*: no conn") as e:
        run_main(script, *diffusion_argv, *NO_STEP, "--init-from", "user/none", "--output", tmp_path)
    assert "\n" not in str(e.value)


def test_differential_privacy_takes_only_public_weights(tmp_path, diffusion_argv, trained):
    parser = script.make_parser()
    argv = [*map(str, diffusion_argv), "--dp-epsilon", "8", "--output", str(tmp_path), "--init-from", str(trained)]
    with pytest.raises(SystemExit):
        parser.read(argv)
    config = parser.read([*argv, "--dp-public-init"])
    assert config.settings()["dp_public_init"]
    # A statement about a pipeline that there is none of is no setting.
    assert "dp_public_init" not in parser.read([*argv[:-2], "--dp-public-init"]).settings()


def test_public_weights_cost_nothing_of_the_budget(tmp_path, run_main, diffusion_argv, trained, other_classes):
    pytest.importorskip("opacus")
    run_main(
        script, *diffusion_argv, *NO_STEP, "--data", other_classes, "--dp-epsilon", 8, "--dp-views", 1,
        "--dp-public-autoencoder", "--dp-public-init", "--init-from", trained, "--output", tmp_path / "out",
    )  # fmt: skip
    record = read_json(tmp_path / "out" / "stage.json")
    assert record["settings"]["dp_public_init"] and record["privacy"]["init"] == "public"
    assert record["privacy"]["total"]["epsilon"] == record["privacy"]["epsilon"] <= 8
    # It begins with what was taken, and not with new weights.
    names = [name for name in load_named_denoiser(trained)[1] if name in load_named_denoiser(tmp_path / "out")[1]]
    torch.testing.assert_close(predictions(tmp_path / "out", names), predictions(trained, names), rtol=0, atol=0)


def test_public_weights_that_are_of_these_tiles_are_refused(tmp_path, run_main, diffusion_argv, trained):
    with pytest.raises(InputError, match=r"dp_public_init contradicts the record of .* these very tiles: begin from"):
        run_main(
            script, *diffusion_argv, *NO_STEP, "--dp-epsilon", 8, "--dp-public-autoencoder", "--dp-public-init",
            "--init-from", trained, "--output", tmp_path / "out",
        )  # fmt: skip


def test_held_out_tiles_must_be_new_to_it(tmp_path, run_main, diffusion_argv, trained, other_classes, capsys):
    argv = [*diffusion_argv, *NO_STEP, "--init-from", trained]
    run_main(script, *argv, "--output", tmp_path / "none held out")
    assert "warning" not in capsys.readouterr().err
    # The same pixels, but who can tell: the tiles of the pipeline may have been any.
    run_main(script, *argv, "--data", other_classes, "--audit-share", 0.25, "--output", tmp_path / "some held out")
    assert "must not have had the tiles that are held out here for the audit" in capsys.readouterr().err
