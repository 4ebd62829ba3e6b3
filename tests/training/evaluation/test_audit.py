from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from histodistill.hub_cards.gate import AuditError, check_audit
from histodistill.hub_cards.part_files import hash_part, read_part
from histodistill.hub_cards.site_verdict import image_hashes
from histodistill.selection.membership import measure_attack
from histodistill.selection.planting import MUST_FIND
from histodistill.training.data.image_dataset import read_image_dataset, write_image_dataset
from histodistill.training.data.pixels import to_model_input
from histodistill.training.data.sources import load_tiles
from histodistill.training.data.tiles import Tiles
from histodistill.training.distillation import select as select_script
from histodistill.training.distillation.site_sets import read_site
from histodistill.training.engine.flow import flow_loss
from histodistill.training.engine.steps import step_generator
from histodistill.training.evaluation import audit as script
from histodistill.training.evaluation import run_audit
from histodistill.training.evaluation.audit import AuditConfig
from histodistill.training.evaluation.verdicts import read_run_audit
from histodistill.training.evaluation.weights_attack import NOISE_LEVELS, attack_scores, denoising_losses
from histodistill.training.models.denoiser_output import DenoiserOutput
from histodistill.training.models.embedders import embed_images, named_embeddings
from histodistill.training.models.latents import normalised_latents
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json
from histodistill.training.running.options import run_script
from histodistill.training.running.stages import read_record


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_pool, tiny_teacher, tiny_npz, run_main):
    """A run with all that an audit needs; its first half is that of other tests."""
    folder = tmp_path_factory.mktemp("audited") / "run"
    folder.mkdir()
    for name in ("autoencoder", "pipeline", "pool"):
        (folder / name).symlink_to(tiny_pool.with_name(name))
    argv = ["--pool", tiny_pool, "--teacher", tiny_teacher, "--n-per-class", 2, "--n-neighbors", 3]
    run_main(select_script, *argv, "--output", folder)
    return folder


@pytest.fixture(scope="module")
def argv(run, tiny_npz) -> list[object]:
    return [run, "--data", tiny_npz, "--plant", 4, "--embedders", "untrained", "--weight-tiles", 16]


@pytest.fixture(scope="module")
def audited(run, run_main, argv):
    run_main(script, *argv)
    return run


# What it leaves.


def test_audit_says_what_it_found(audited, tiny_npz):
    record = read_json(audited / "audit.json")
    assert list(record["parts"]) == ["distilled", "selector", "pipeline"]
    assert record["held_out_at_random"] is False and record["copies_dropped"] is None
    assert record["num_tiles"] == {"train": 120, "validation": 40, "test": 20}
    figures = record["figures"]
    assert list(figures["planted"]) == list(MUST_FIND)
    assert figures["planted"]["exact"]["value"] == 1
    published = figures["published"]
    assert (published["copies"]["num_images"], figures["pool"]["copies"]["num_images"]) == (10, 30)
    assert list(published["copies"]["per_class"]) == load_tiles(tiny_npz).class_names
    assert set(published["membership"]) == {"pixels", "untrained"}
    assert set(published["overfitting"]) == {"pixels", "untrained", "structure", "parts"}
    for attack in published["membership"]["pixels"].values():
        for figure in (attack["main"]["auc"], attack["control"]["auc"]):
            assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    assert 0 <= figures["weights"]["auc"]["value"] <= 1
    for verdict in record["parts"].values():
        assert verdict["passed"] == all(finding["passed"] for finding in verdict["findings"])
    # The pairs are of single tiles.
    assert "closest" not in json.dumps(record)


def test_pictures_stay_in_their_folder(audited):
    names = {path.name for path in (audited / "audit").iterdir()}
    assert names == {"stage.json", "closest_distilled.png", "closest_pool.png"}
    with Image.open(audited / "audit" / "closest_distilled.png") as picture:
        assert min(picture.size) > 100


@pytest.mark.parametrize(
    ("times", "line"),
    [(1.25, "1.25 x limit: no copy"), (1.0, "1.00 x limit: no copy"), (0.999, "0.99 x limit: a copy")],
)
def test_pairs_say_on_which_side_of_the_limit_they_are(times, line):
    assert run_audit.pair_caption(np.float64(times)) == f"generated | real\n{line}"


def test_gate_goes_by_the_files(audited, tmp_path):
    record = read_run_audit(audited / "audit.json")
    assert not record.parts["distilled"].passed  # four planted copies are too few
    for part in ("distilled", "selector", "pipeline"):
        assert hash_part(audited / part) == record.parts[part].files
        with pytest.raises(AuditError, match="did not pass the privacy audit"):
            check_audit(audited / part, read_part(audited / part), record)
    folder = shutil.copytree(audited / "distilled", tmp_path / "distilled")
    images, columns, names = read_image_dataset(folder)
    write_image_dataset(folder / "data", images[::-1], columns, names)
    with pytest.raises(AuditError, match="is not the file that was audited"):
        check_audit(folder, read_part(folder), record)


def test_the_verdict_on_the_set_goes_with_the_set(audited):
    """And tells neither what the tiles are called nor of any other file of the run."""
    verdict = read_site(audited, audited / "distilled", "site").record
    record = read_json(audited / "audit.json")
    assert verdict.audit.model_dump(mode="json") == record | {
        "data": "image dataset", "records": {}, "parts": {"distilled": record["parts"]["distilled"]},
    }  # fmt: skip
    assert verdict.images == image_hashes(read_image_dataset(audited / "distilled")[0])


def test_from_python_it_takes_a_configuration_and_returns_the_record(audited, tiny_npz, capsys):
    config = AuditConfig(run=audited, data=tiny_npz, plant=4, embedders=["untrained"], weight_tiles=16)
    assert script.run(config) == read_json(audited / "audit.json")
    assert "already finished" in capsys.readouterr().out


def test_finished_audit_is_left_alone(audited, run_main, argv, capsys):
    before = (audited / "audit.json").stat().st_mtime_ns
    run_main(script, *argv)
    assert "already finished" in capsys.readouterr().out
    assert (audited / "audit.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"made with other settings \(seed was 0 and is now 1\): delete .*audit to"):
        run_main(script, *argv, "--seed", 1)


def test_exit_code_says_whether_all_passes(audited, argv, capsys):
    """Also of an audit that was finished before; with four planted copies of a kind nothing is known well enough."""
    with pytest.raises(SystemExit) as ended:
        run_script(script.make_parser, script.run, [str(word) for word in argv], script.exit_code)
    assert ended.value.code == 1
    assert "already finished" in capsys.readouterr().out
    record = read_json(audited / "audit.json")
    assert not all(verdict["passed"] for verdict in record["parts"].values())
    assert script.exit_code(record) == 1
    for verdict in record["parts"].values():
        verdict["passed"] = True
    assert script.exit_code(record) == 0
    record["parts"]["pipeline"]["passed"] = False
    assert script.exit_code(record) == 1


def test_lost_record_is_written_again_and_is_the_same(audited, run_main, argv, capsys):
    before = read_json(audited / "audit.json")
    (audited / "audit.json").unlink()
    run_main(script, *argv)
    assert read_json(audited / "audit.json") == before
    output = capsys.readouterr().out
    assert "audit of distilled: " in output and "no training tiles were held out at random" in output


# What has changed since, or holds something else.


@pytest.fixture
def copy(audited, tmp_path):
    """A copy of the audited run that a test may change."""
    return shutil.copytree(audited, tmp_path / "run")


def test_new_scores_are_sealed_without_measuring_again(copy, run_main, argv, capsys, monkeypatch):
    monkeypatch.setattr(run_audit, "audit_run", None)  # to call it would fail
    before = read_json(copy / "audit.json")
    scores = {"mean": 0.5, "std": None, "values": [0.5]}
    row = {
        "row": "real_all",
        "title": "All real tiles",
        "architecture": "convnet",
        "num_train": 9,
        "steps": 2,
        "seeds": [0],
    }
    row |= {"accuracy": scores, "auc": scores, "f1": scores}
    names = read_image_dataset(copy / "distilled")[2]
    results = {"format": 1, "data": "x", "class_names": names, "n_per_class": 2, "rows": [row], "recovery": {}}
    write_json(copy / "results.json", results)
    run_main(script, copy, *argv[1:])
    assert "nothing was measured again" in capsys.readouterr().out
    after = read_json(copy / "audit.json")
    assert after.pop("records").keys() - before.pop("records").keys() == {"results.json"} and after == before
    run_main(script, copy, *argv[1:])
    assert "already finished" in capsys.readouterr().out
    row["accuracy"] = {**scores, "mean": 0.9}
    write_json(copy / "results.json", results)
    with pytest.raises(InputError, match=r"results.json holds something unknown \(rows.0.accuracy"):
        run_main(script, copy, *argv[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a["figures"]["published"]["copies"].update(of_training=0, of_others=0), "contradicts itself about"),
        (
            lambda a: a["parts"]["pipeline"]["findings"][-1].update(sentence="all is well"),
            "contradicts itself about pipe",
        ),
        (lambda a: a["figures"].update(num_planted=100), "contradicts itself about distilled"),
        (lambda a: a["figures"]["published"].update(overfitting={}), "is no audit, or was changed"),
        (lambda a: a["figures"]["published"].update(membership={}), "is no audit, or was changed"),
        (lambda a: a["figures"]["published"]["membership"].update(pixels={}), "is no audit, or was changed"),
        (lambda a: a["figures"]["weights"].update(true_positives={"0.001": None}), "is no audit, or was changed"),
        (lambda a: a["parts"]["distilled"].update(passed=True), "is no audit, or was changed"),
        (
            lambda a: a["parts"]["distilled"]["files"].update({"stage.json": "0" * 64}),
            "is about other files than those of",
        ),
    ],
)
def test_an_audit_that_was_changed_is_not_renewed(copy, run_main, argv, change, message):
    audit = read_json(copy / "audit.json")
    audit["figures"]["published"]["copies"]["of_training"] += 1
    for verdict in audit["parts"].values():
        verdict["findings"] = [
            {**f, "passed": False, "sentence": f["sentence"].replace("0 of", "1 of")} if f["name"] == "copies" else f
            for f in verdict["findings"]
        ]
    write_json(copy / "audit.json", audit)
    change(audit)
    write_json(copy / "audit.json", audit)
    with pytest.raises(InputError, match=message):
        run_main(script, copy, *argv[1:])


@pytest.mark.parametrize(
    "name",
    ["distilled/names.csv", "pipeline/unet/.tiles", "selector/embeddings.npy", "pipeline/vae/model.bin"],
)
def test_a_stowaway_is_refused_before_anything_is_measured(run, tmp_path, run_main, argv, monkeypatch, name):
    monkeypatch.setattr(run_audit, "load_tiles", None)  # to call it would fail
    folder = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("audit*"))
    (folder / name).write_bytes(b"tiles")
    with pytest.raises(InputError, match=rf"{name} is no file of a "):
        run_main(script, folder, *argv[1:])
    assert not (folder / "audit.json").exists() and not (folder / "audit").exists()


def test_files_that_change_while_they_are_audited(run, tmp_path, run_main, argv, monkeypatch):
    folder = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("audit*"))
    draw = run_audit.draw_pairs

    def swap(path, *args):
        file = folder / "distilled" / "stage.json"
        file.write_bytes(file.read_bytes() + b" ")
        draw(path, *args)

    monkeypatch.setattr(run_audit, "draw_pairs", swap)
    with pytest.raises(InputError, match="have changed while it was audited: run histodistill audit again"):
        run_main(script, folder, *argv[1:])
    assert not (folder / "audit.json").exists()


def test_no_audit_tells_what_the_folder_of_an_embedder_is_called(run, tmp_path, run_main, argv, tiny_autoencoder):
    folder = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("audit*"))
    # Without the record of a run it is one from elsewhere.
    embedder = shutil.copytree(tiny_autoencoder, tmp_path / "ward 7 <b>", ignore=shutil.ignore_patterns("stage.json"))
    run_main(script, folder, *argv[1:-4], "--embedders", embedder, "--weight-tiles", 16)
    audit = (folder / "audit.json").read_text()
    assert "ward" not in audit and "autoencoder-" in audit


# What it refuses.


def test_other_tiles_than_those_of_the_run(run, tmp_path, tiny_npz, run_main, argv):
    with pytest.raises(
        InputError, match=r"is not what .*pipeline was trained on: give the same tiles, groups and share"
    ):
        run_main(script, *argv, "--audit-share", 0.5)
    with pytest.raises(InputError, match="holds no finished pipeline: run train_diffusion first"):
        run_main(script, tmp_path, "--data", tiny_npz)


@pytest.mark.parametrize(
    ("part", "setting", "message"),
    [
        ("pool", "pipeline", r"pool was not made from .*pipeline, which has changed since: make it anew"),
        ("distilled", "pool", r"distilled was not made from .*pool, which has changed since"),
        ("pipeline", "autoencoder", r"pipeline was not made from .*autoencoder, which has changed since"),
        ("autoencoder", "data", r"autoencoder was not trained on the same tiles as .*pipeline, so it may have seen"),
    ],
)
def test_parts_that_do_not_belong_together(run, tmp_path, run_main, argv, part, setting, message):
    folder = shutil.copytree(run, tmp_path / "run")
    record = read_json(folder / part / "stage.json")
    record["settings"][setting] = "0" * 64
    write_json(folder / part / "stage.json", record)
    with pytest.raises(InputError, match=message):
        run_main(script, folder, *argv[1:])


def test_tiles_by_which_nothing_can_be_told_are_one_sentence(run, run_main, argv, tmp_path, monkeypatch):
    def audit(*args, **options):
        raise ValueError("0 held-out tiles show something")

    monkeypatch.setattr(run_audit, "audit", audit)
    folder = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("audit*"))
    with pytest.raises(InputError, match="cannot be audited by: 0 held-out tiles show something"):
        run_main(script, folder, *argv[1:])


def test_images_that_are_like_no_tile_have_no_picture(tmp_path):
    run_audit.draw_pairs(tmp_path / "none.png", np.zeros((2, 8, 8, 3), np.uint8), None, Found(), None)
    assert not (tmp_path / "none.png").exists()


class Found:
    closest = np.empty((0, 2), dtype=int)


def test_embedder_that_was_trained_on_the_labels(run, run_main, argv, tiny_teacher):
    with pytest.raises(InputError, match="is a classifier, which knows the tiles that it was trained on"):
        run_main(script, *argv, "--embedders", tiny_teacher)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--plant", "-1"], "--plant=-1 is out of range: it must be at least 0"),
        (["--seed", "-1"], "--seed=-1 is out of range: it must be at least 0"),
        (["--audit-share", "1"], "--audit-share=1.0 is out of range: it must be at least 0 and below 1"),
        (["--weight-tiles", "1"], "--weight-tiles=1 is out of range: it must be at least 2"),
    ],
)
def test_bad_options(argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.make_parser().read(["run", "--data", "phantom", *argv])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_number_of_planted_copies_is_not_left_out(capsys):
    with pytest.raises(SystemExit) as stopped:
        script.make_parser().read(["run", "--data", "phantom", "--plant"])
    assert stopped.value.code == 2
    assert "--plant: expected one argument" in capsys.readouterr().err


def test_embedding_spaces_are_not_left_out(capsys):
    with pytest.raises(SystemExit) as stopped:
        script.make_parser().read(["run", "--data", "phantom", "--embedders"])
    assert stopped.value.code == 2
    assert "--embedders: expected at least one argument" in capsys.readouterr().err


def test_defaults():
    config = script.make_parser().read(["runs/one", "--data", "phantom"])
    assert config == AuditConfig(run="runs/one", data="phantom")
    assert config.spaces == ("untrained", "runs/one/autoencoder")
    assert (config.plant, config.audit_share, config.seed) == (100, None, 0)
    assert config.settings() == {"plant": 100, "seed": 0, "weight_tiles": 2000}
    assert script.make_parser().read(["runs/one", "--data", "phantom", "--plant", "0"]).plant == 0
    assert AuditConfig(run="runs/one", data="phantom", embedders=["untrained"]).spaces == ("untrained",)


# Its parts.


def test_losses_are_those_of_the_training(tiny_pipeline, tiny_npz):
    pipeline = DiffusionPipeline.from_pretrained(tiny_pipeline, trust_remote_code=True)
    train = load_tiles(tiny_npz).split("train")
    tiles = Tiles(train.images[:6], train.labels[:6])
    losses = denoising_losses(pipeline, tiles, seed=3, batch_size=4)
    assert losses.shape == (6, len(NOISE_LEVELS))
    np.testing.assert_allclose(losses[4:], denoising_losses(pipeline, tiles.subset([4, 5]), 3), rtol=1e-4)
    # The same noise for every tile, so that of one level can be found by its losses alone.
    size, channels = pipeline.unet.config.sample_size, pipeline.unet.config.in_channels
    noise = torch.randn(
        1, len(NOISE_LEVELS), channels, size, size, generator=step_generator("noise of the attack on weights", 3, 0)
    )[0, 2]
    with torch.no_grad():
        latents = normalised_latents(pipeline.vae, to_model_input(tiles.images))
        levels = torch.full((6,), NOISE_LEVELS[2])
        class_ids, noises = torch.from_numpy(tiles.labels), noise.expand_as(latents)
        expected = flow_loss(pipeline.unet, latents, class_ids, noises, levels, DenoiserOutput())
    assert losses[:, 2].mean() == pytest.approx(expected.item(), rel=1e-4)


def test_attack_with_the_weights_tells_tiles_that_were_learned_by_heart(tiny_pipeline, tiny_npz):
    pipeline = DiffusionPipeline.from_pretrained(tiny_pipeline, trust_remote_code=True)
    source = load_tiles(tiny_npz)
    members, others = source.split("train").subset(range(0, 120, 15)), source.split("validation")
    optimizer = torch.optim.AdamW(pipeline.unet.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        latents = normalised_latents(pipeline.vae, to_model_input(members.images)).repeat(4, 1, 1, 1)
    class_ids = torch.from_numpy(members.labels).repeat(4)
    pipeline.unet.train()
    for _ in range(150):
        noise, levels = torch.randn(latents.shape, generator=generator), torch.rand(len(latents), generator=generator)
        loss = flow_loss(pipeline.unet, latents, class_ids, noise, levels, DenoiserOutput())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    pipeline.unet.eval()
    losses = attack_scores(*(denoising_losses(pipeline, tiles) for tiles in (members, others)))
    assert measure_attack(*(-part for part in losses)).auc.low > 0.7


def test_levels_weigh_alike():
    members, others = attack_scores(np.array([[1.0, 100.0]]), np.array([[3.0, 300.0]]))
    assert (members.item(), others.item()) == pytest.approx((0.5, 1.5))


def test_names_of_embeddings(tiny_autoencoder, tiny_npz):
    images = load_tiles(tiny_npz).split("train").images[:2]
    embeddings = named_embeddings(["untrained", str(tiny_autoencoder)])
    assert list(embeddings) == ["untrained", "autoencoder"]
    np.testing.assert_array_equal(embeddings["untrained"](images), embed_images("untrained", images))
    with pytest.raises(InputError, match="embedders names untrained twice"):
        named_embeddings(["untrained", "untrained"])


# Copies are dropped before the selection.


def test_copies_are_never_selected(tmp_path, tiny_pool, tiny_teacher, tiny_npz, run_main):
    pool = shutil.copytree(tiny_pool, tmp_path / "pool")
    images, columns, names = read_image_dataset(pool)
    train = load_tiles(tiny_npz).split("train")
    copied = [np.flatnonzero(columns["label"] == label)[1] for label in range(5)]
    images[copied] = [train.images[np.flatnonzero(train.labels == label)[3]] for label in range(5)]
    write_image_dataset(pool / "data", images, columns, names)
    argv = ["--pool", pool, "--teacher", tiny_teacher, "--n-per-class", 3, "--data", tiny_npz]
    run_main(select_script, *argv, "--drop-copies", "--min-probability", 1, "--output", tmp_path)
    record = read_record(tmp_path / "distilled")
    assert all(count >= 1 for count in record["copies_dropped"].values())
    chosen = read_image_dataset(tmp_path / "distilled")[1]["seed"]
    assert not set(chosen) & set(columns["seed"][copied])
    card = (tmp_path / "distilled" / "README.md").read_text()
    assert f"| copies of real tiles | {sum(record['copies_dropped'].values())} of 30 images dropped |" in card
    with pytest.raises(SystemExit):
        select_script.make_parser().read(["--pool", "a", "--teacher", "b", "--output", "c", "--drop-copies"])
