from __future__ import annotations

import contextlib
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import ClassLabel, Image, Value, load_dataset
from diffusers import DiffusionPipeline

from histodistill.training import generate as script
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.data.sources import load_tiles
from histodistill.training.engine import pool
from histodistill.training.engine.pool import generate_images, plan_pool, write_chunk
from histodistill.training.models.loading import load_pipeline
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json
from histodistill.training.running.options import run_script


PARQUET = "data/train-00000-of-00001.parquet"


class Killed(BaseException):
    """Ends a run as a kill would: nothing in the scripts catches it."""


@pytest.fixture
def made(monkeypatch) -> list[np.ndarray]:
    """The seeds of every chunk that is generated while the test runs; `made.limit` chunks, then the run is killed."""

    class Made(list):
        limit = None

    made = Made()
    generate = pool.generate_images

    def recorded(pipeline, labels, seeds, **options):
        if len(made) == made.limit:
            raise Killed
        made.append(seeds.tolist())
        return generate(pipeline, labels, seeds, **options)

    monkeypatch.setattr(pool, "generate_images", recorded)
    return made


def test_pool_is_a_dataset(tiny_pool, tiny_npz):
    names = load_tiles(tiny_npz).class_names
    dataset = load_dataset(str(tiny_pool), split="train")
    assert dict(dataset.features) == {"image": Image(), "label": ClassLabel(names=names), "seed": Value("int64")}
    assert dataset["label"] == [0, 1, 2, 3, 4] * 6
    assert len(set(dataset["seed"])) == 30
    assert (dataset[0]["image"].mode, dataset[0]["image"].size) == ("RGB", (16, 16))
    record = read_json(tiny_pool / "stage.json")
    assert (record["complete"], record["num_images"], record["num_processes"]) == (True, 30, 1)
    assert {path.name for path in tiny_pool.iterdir()} == {"data", "stage.json"}


def test_an_image_is_made_again_from_its_seed(tiny_pool, tiny_pipeline):
    images, columns, _ = read_image_dataset(tiny_pool)
    pipeline = DiffusionPipeline.from_pretrained(tiny_pipeline, trust_remote_code=True)
    for row in (3, 17):
        alone = generate_images(
            pipeline, columns["label"][[row]], columns["seed"][[row]], num_inference_steps=2, guidance_scale=1.5
        )
        assert (alone.dtype, alone.shape) == (np.uint8, (1, 16, 16, 3))
        # Convolutions may round differently in another batch size.
        assert np.abs(alone[0].astype(int) - images[row]).max() <= 1
        other = generate_images(
            pipeline, columns["label"][[row]], columns["seed"][[row]] + 1, num_inference_steps=2, guidance_scale=1.5
        )
        assert np.abs(other[0].astype(int) - images[row]).max() > 1


def test_a_larger_pool_begins_with_the_smaller_one(tmp_path, tiny_pool, run_main, pool_argv):
    run_main(script, *pool_argv, "--per-class", 8, "--output", tmp_path)
    images, columns, _ = read_image_dataset(tmp_path)
    smaller, smaller_columns, _ = read_image_dataset(tiny_pool)
    np.testing.assert_array_equal(columns["seed"][:30], smaller_columns["seed"])
    assert np.abs(images[:30].astype(int) - smaller).max() <= 1


def test_killed_run_goes_on_with_the_missing_chunks(tmp_path, tiny_pool, run_main, pool_argv, made):
    made.limit = 2
    with pytest.raises(Killed):
        run_main(script, *pool_argv, "--output", tmp_path)
    assert not read_json(tmp_path / "stage.json")["complete"]
    assert not (tmp_path / "data").exists()

    made.limit = None
    run_main(script, *pool_argv, "--output", tmp_path)
    assert made == [list(range(start, min(start + 8, 30))) for start in (0, 8, 16, 24)]  # each chunk once
    assert (tmp_path / PARQUET).read_bytes() == (tiny_pool / PARQUET).read_bytes()


@pytest.fixture
def two_chunks_a_shard(monkeypatch):
    """Pools of 30 images of 16 px in chunks of 8 have two shards, of 16 and of 14 images."""
    monkeypatch.setattr(pool, "SHARD_BYTES", 2 * 8 * 16 * 16 * 3)


@pytest.fixture
def sharded_pool(tmp_path, run_main, pool_argv, two_chunks_a_shard):
    """Such a pool, made at one go."""
    run_main(script, *pool_argv, "--output", tmp_path / "at_one_go")
    return tmp_path / "at_one_go"


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}


def same_pool(folder, other):
    """Whether two finished pools have the same files, and nothing else is left."""
    ours, theirs = (files(each) for each in (folder, other))
    assert ours.keys() == theirs.keys()
    return all(ours[name] == theirs[name] for name in ours.keys() - {"stage.json"})


def test_a_large_pool_is_in_several_files(tiny_pool, sharded_pool):
    names = [f"data/train-0000{number}-of-00002.parquet" for number in range(2)]
    assert files(sharded_pool).keys() == {*names, "stage.json"}
    assert not (sharded_pool / "chunks").exists() and not (sharded_pool / "shards").exists()
    images, columns, names = read_image_dataset(sharded_pool)
    expected, expected_columns, expected_names = read_image_dataset(tiny_pool)
    np.testing.assert_array_equal(images, expected)
    assert names == expected_names
    for name in columns:
        np.testing.assert_array_equal(columns[name], expected_columns[name])
    assert load_dataset(str(sharded_pool), split="train")["seed"] == list(range(30))


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_killed_run_goes_on_within_a_shard_and_after_it(tmp_path, sharded_pool, run_main, pool_argv, made, limit):
    made.clear()
    made.limit = limit
    with pytest.raises(Killed):
        run_main(script, *pool_argv, "--output", tmp_path / "pool")
    left = files(tmp_path / "pool").keys() - {"stage.json"}
    shard = {"shards/train-00000-of-00002.parquet"}  # the chunks of which are gone
    assert left == [{"chunks/chunk-000000.npz"}, shard, {*shard, "chunks/chunk-000002.npz"}][limit - 1]
    made.limit = None
    run_main(script, *pool_argv, "--output", tmp_path / "pool")
    assert [seeds[0] for seeds in made] == [0, 8, 16, 24]  # each chunk once
    assert same_pool(tmp_path / "pool", sharded_pool)


def test_a_damaged_shard_is_made_again(tmp_path, sharded_pool, run_main, pool_argv, made):
    made.clear()
    made.limit = 3
    with pytest.raises(Killed):
        run_main(script, *pool_argv, "--output", tmp_path / "pool")
    shard = tmp_path / "pool" / "shards" / "train-00000-of-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:-20])
    (shard.parent / "train-00000-of-00009.parquet").write_bytes(b"of another plan")
    (shard.parent / f".{shard.name}.0123456789abcdef.tmp").write_bytes(b"half")
    made.limit = None
    made.clear()
    run_main(script, *pool_argv, "--output", tmp_path / "pool")
    assert [seeds[0] for seeds in made] == [0, 8, 24]
    assert same_pool(tmp_path / "pool", sharded_pool)


def test_a_run_killed_when_all_is_in_place_makes_nothing_again(tmp_path, sharded_pool, run_main, pool_argv, made):
    made.clear()
    shutil.copytree(sharded_pool, tmp_path / "pool")
    record = read_json(tmp_path / "pool" / "stage.json")
    write_json(tmp_path / "pool" / "stage.json", {**record, "complete": False})
    run_main(script, *pool_argv, "--output", tmp_path / "pool")
    assert made == []
    assert same_pool(tmp_path / "pool", sharded_pool)
    assert read_json(tmp_path / "pool" / "stage.json")["complete"]


def test_another_number_of_processes_goes_on(tmp_path, sharded_pool, run_main, pool_argv, made, tiny_pipeline):
    """Of two processes the second has made its chunks when the first is killed; then one makes the rest."""
    made.clear()
    made.limit = 3
    config = script.make_parser().read([*map(str, pool_argv), "--output", str(tmp_path / "pool")])
    labels, seeds = plan_pool(5, 6, 0)
    chunks = pool.cut_into_chunks(tmp_path / "pool" / "chunks", labels, seeds, 8)
    shards = pool.gather_into_shards(tmp_path / "pool" / "shards", chunks, 16)
    pipeline = load_pipeline(tiny_pipeline)
    pipeline.set_progress_bar_config(disable=True)
    (tmp_path / "pool").mkdir()
    record = read_json(sharded_pool / "stage.json")
    write_json(tmp_path / "pool" / "stage.json", {**record, "complete": False})
    for index in (1, 0):
        process = SimpleNamespace(
            process_index=index, num_processes=2, is_main_process=False, is_local_main_process=False,
            wait_for_everyone=lambda: None, autocast=contextlib.nullcontext,
        )  # fmt: skip
        with contextlib.suppress(Killed):
            script.make_missing_shards(config, pipeline, 16, shards, process, None)
    assert made == [list(range(8, 16)), list(range(24, 30)), list(range(8))]
    assert files(tmp_path / "pool").keys() == {
        "stage.json", "shards/train-00000-of-00002.parquet", "chunks/chunk-000003.npz",
    }  # fmt: skip
    made.limit = None
    run_main(script, *pool_argv, "--output", tmp_path / "pool")
    assert made[3:] == [list(range(16, 24))]
    assert same_pool(tmp_path / "pool", sharded_pool)


def test_finished_chunks_are_kept_and_damaged_ones_made_again(tmp_path, tiny_pool, run_main, pool_argv, made):
    labels, seeds = plan_pool(5, 6, 0)
    kept = np.full((8, 16, 16, 3), 77, np.uint8)
    write_json(tmp_path / "stage.json", {})
    write_chunk(tmp_path / "chunks" / "chunk-000000.npz", kept, labels[:8], seeds[:8])
    write_chunk(tmp_path / "chunks" / "chunk-000001.npz", kept, labels[8:16], seeds[8:16])
    damaged = (tmp_path / "chunks" / "chunk-000001.npz").read_bytes()
    (tmp_path / "chunks" / "chunk-000001.npz").write_bytes(damaged[: len(damaged) // 2])
    write_chunk(tmp_path / "chunks" / "chunk-000002.npz", kept, labels[16:24], seeds[:8])  # of another pool
    run_main(script, *pool_argv, "--output", tmp_path)

    assert [seeds[0] for seeds in made] == [8, 16, 24]
    images, columns, _ = read_image_dataset(tmp_path)
    expected, _, _ = read_image_dataset(tiny_pool)
    assert (images[:8] == 77).all()
    np.testing.assert_array_equal(images[8:], expected[8:])
    np.testing.assert_array_equal(columns["seed"], seeds)


def test_finished_pool_is_left_alone(tiny_pool, run_main, pool_argv, made, capsys):
    before = {path: path.stat().st_mtime_ns for path in tiny_pool.rglob("*")}
    run_main(script, *pool_argv, "--output", tiny_pool)
    assert "already finished" in capsys.readouterr().out
    assert made == []
    assert {path: path.stat().st_mtime_ns for path in tiny_pool.rglob("*")} == before


def test_other_settings_in_the_same_folder_are_refused(tiny_pool, run_main, pool_argv):
    with pytest.raises(InputError, match=r"was made with other settings \(guidance_scale was 1.5 and is now 3.0\)"):
        run_main(script, *pool_argv, "--output", tiny_pool, "--guidance-scale", 3)


def test_pool_is_guided_in_the_interval_alone(tmp_path, run_main, pool_argv):
    pools = {}
    for name, options in (
        ("conditional", ["--guidance-scale", 1]),
        ("nowhere", ["--guidance-scale", 4, "--guidance-interval", 0, 0]),
        ("half", ["--guidance-scale", 4, "--guidance-interval", 0, 0.7]),
        ("everywhere", ["--guidance-scale", 4]),
    ):
        run_main(script, *pool_argv, "--per-class", 2, *options, "--output", tmp_path / name)
        pools[name], _, _ = read_image_dataset(tmp_path / name)
        assert read_json(tmp_path / name / "stage.json")["complete"]
    np.testing.assert_array_equal(pools["nowhere"], pools["conditional"])
    assert (pools["half"] != pools["conditional"]).any()
    assert (pools["half"] != pools["everywhere"]).any()
    assert read_json(tmp_path / "half" / "stage.json")["settings"]["guidance_interval"] == [0.0, 0.7]


def test_number_of_processes():
    argv = ["--pipeline", "p", "--output", "o"]
    assert script.make_parser().read(argv).num_processes == 1
    several = script.make_parser().read([*argv, "--num-processes", "4"])
    assert several.num_processes == 4
    # The pool is the same whatever their number.
    assert several.settings() == script.make_parser().read(argv).settings()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--per-class", "0"], "--per-class=0 is out of range: it must be at least 1"),
        (["--chunk-size", "0"], "--chunk-size=0 is out of range: it must be at least 1"),
        (["--num-inference-steps", "0"], "--num-inference-steps=0 is out of range: it must be at least 1"),
        (["--guidance-scale", "-1"], "--guidance-scale=-1.0 is out of range: it must be at least 0"),
        (
            ["--guidance-interval", "0.8", "0.2"],
            "--guidance-interval=0.8 0.2 is out of range: it must be LOW HIGH with 0 <= LOW <= HIGH <= 1",
        ),
        (
            ["--guidance-interval", "0", "1.5"],
            "--guidance-interval=0.0 1.5 is out of range: it must be LOW HIGH with 0 <= LOW <= HIGH <= 1",
        ),
        (["--seed", "-1"], "--seed=-1 is out of range: it must be at least 0 and below 2^31"),
        (["--pipeline", "/no/such"], "/no/such holds no finished pipeline: run train_diffusion on it first"),
    ],
)
def test_bad_input_ends_with_one_sentence(tmp_path, pool_argv, argv, message, capsys, fresh_accelerate):
    output = tmp_path / "output"
    with pytest.raises(SystemExit) as error:
        run_script(script.make_parser, script.run, [*pool_argv, "--output", str(output), *argv])
    assert error.value.code == 2
    captured = capsys.readouterr().err
    assert captured.startswith(f"error: {message}")
    assert captured.count("\n") == 1
    assert not output.exists()


def test_unfinished_pipeline_is_refused(tmp_path, tiny_pipeline, run_main, pool_argv):
    shutil.copytree(tiny_pipeline, tmp_path / "pipeline")
    record = read_json(tmp_path / "pipeline" / "stage.json")
    (tmp_path / "pipeline" / "stage.json").write_text(json.dumps({**record, "complete": False}))
    with pytest.raises(InputError, match="holds no finished pipeline"):
        run_main(script, *pool_argv, "--pipeline", tmp_path / "pipeline", "--output", tmp_path / "pool")
    assert not (tmp_path / "pool").exists()


@pytest.mark.launch
def test_two_processes_make_the_same_pool(tmp_path, tiny_pool, launch, pool_argv):
    finished = launch(2, "histodistill.training.generate", *pool_argv, "--output", tmp_path)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert read_json(tmp_path / "stage.json")["num_processes"] == 2
    images, columns, names = read_image_dataset(tmp_path)
    expected, expected_columns, expected_names = read_image_dataset(tiny_pool)
    assert names == expected_names
    np.testing.assert_array_equal(columns["seed"], expected_columns["seed"])
    np.testing.assert_array_equal(columns["label"], expected_columns["label"])
    np.testing.assert_array_equal(images, expected)
    assert (tmp_path / PARQUET).read_bytes() == (tiny_pool / PARQUET).read_bytes()
