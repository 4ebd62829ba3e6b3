"""`generate --like`: the images of a distilled set, made again from the seeds in it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from histodistill.training import generate as script
from histodistill.training.data.image_dataset import read_image_table, write_image_dataset
from histodistill.training.distillation import select
from histodistill.training.engine import pool
from histodistill.training.engine.remade import compare_images, likeness_lines
from histodistill.training.generate import GenerateConfig
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory, run_main, pool_argv, tiny_teacher):
    """A distilled set of 3 of 6 images of each of 5 classes, which were made 8 at a time."""
    place = tmp_path_factory.mktemp("run")
    run_main(script, *pool_argv, "--output", place / "pool")
    run_main(
        select, "--pool", place / "pool", "--teacher", tiny_teacher, "--output", place, "--n-per-class", 3,
        "--n-neighbors", 3,
    )  # fmt: skip
    return place / "distilled"


@pytest.fixture
def again(run_main, tiny_pipeline, tmp_path):
    """Makes a set again, and returns what was found."""

    def make(like):
        run_main(script, "--pipeline", tiny_pipeline, "--like", like, "--output", tmp_path / "again")
        return read_json(tmp_path / "again" / "comparison.json")

    return make


def test_all_images_come_out_equal(chosen, again, tmp_path, capsys):
    found = again(chosen)
    nothing = {"max_difference": None, "mean_difference": None, "psnr": None}
    assert found == {"num_images": 15, "different": [], **nothing}
    assert "generate: 15 of 15 images are equal to the pixel\n" in capsys.readouterr().out
    made, given = read_image_table(tmp_path / "again"), read_image_table(chosen)
    np.testing.assert_array_equal(made.images, given.images)
    assert made.class_names == given.class_names
    for name in ("label", "seed"):
        np.testing.assert_array_equal(made.columns[name], given.columns[name])


def test_images_that_differ_are_named(chosen, again, tmp_path, capsys):
    table = read_image_table(chosen)
    for row, step in ((4, 3), (11, 5)):
        level = int(table.images[row, 0, 0, 0])
        table.images[row, 0, 0, 0] = level + step if level < 128 else level - step
    shutil.copytree(chosen, tmp_path / "set")
    write_image_dataset(tmp_path / "set" / "data", table.images, table.columns, table.class_names)
    found = again(tmp_path / "set")
    assert (found["different"], found["max_difference"]) == ([4, 11], 5)
    assert found["mean_difference"] == pytest.approx((3 + 5) / 2 / (16 * 16 * 3))
    assert found["psnr"] == pytest.approx(10 * np.log10(255**2 * 16 * 16 * 3 / 25))
    printed = capsys.readouterr().out
    assert "13 of 15 images are equal to the pixel" in printed and "counted from 0: 4, 11\n" in printed


def test_a_killed_run_goes_on_and_a_finished_one_compares_alone(chosen, again, monkeypatch):
    made = []
    generate = pool.generate_images

    def recorded(pipeline, labels, seeds, **options):
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(len(seeds))
        return generate(pipeline, labels, seeds, **options)

    monkeypatch.setattr(pool, "generate_images", recorded)
    with pytest.raises(KeyboardInterrupt):
        again(chosen)
    made.append(None)
    assert again(chosen)["different"] == []
    assert made == [8, None, 7]  # as many at a time as in the pool
    assert again(chosen)["different"] == [] and len(made) == 3


def test_what_cannot_be_made_again_is_refused(chosen, again, tmp_path, tiny_pipeline, run_main):
    with pytest.raises(InputError, match=r"^seed does not go with like, whose set says it: leave it out$"):
        GenerateConfig(pipeline=tiny_pipeline, like=chosen, output=tmp_path / "again", seed=3)
    other = tmp_path / "pipeline"
    shutil.copytree(tiny_pipeline, other, ignore=shutil.ignore_patterns("checkpoints", "progress"))
    config = other / "vae" / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(InputError, match=r"pipeline is not the one that made .*distilled: give that one$"):
        run_main(script, "--pipeline", other, "--like", chosen, "--output", tmp_path / "again")
    shutil.copytree(chosen, tmp_path / "set")
    record = read_json(chosen / "stage.json")
    write_json(tmp_path / "set" / "stage.json", {**record, "generation": {**record["generation"], "chunk_size": 0}})
    with pytest.raises(InputError, match="does not say rightly how its images were made"):
        again(tmp_path / "set")
    del record["generation"]
    write_json(tmp_path / "set" / "stage.json", record)
    with pytest.raises(InputError, match="does not say how its images were made, as sets of earlier versions do not"):
        again(tmp_path / "set")
    table = read_image_table(chosen)
    columns = {"label": table.columns["label"]}
    write_image_dataset(tmp_path / "plain" / "data", table.images, columns, table.class_names)
    with pytest.raises(InputError, match="has no seeds"):
        again(tmp_path / "plain")
    assert not (tmp_path / "again").exists()


def test_images_are_compared_in_parts(monkeypatch):
    monkeypatch.setattr("histodistill.training.engine.remade._BATCH", 4)
    given = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 3), np.uint8)
    made = given.copy()
    made[10] = 255 - made[10]
    found = compare_images(made, given)
    apart = np.abs(made[10].astype(int) - given[10])
    assert (found["different"], found["max_difference"]) == ([10], apart.max())
    assert found["mean_difference"] == pytest.approx(apart.mean())
    assert found["psnr"] == pytest.approx(10 * np.log10(255**2 / np.mean(apart**2)))
    assert likeness_lines(compare_images(given, given)) == ["11 of 11 images are equal to the pixel"]
