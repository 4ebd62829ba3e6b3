"""A set that people looked through: it is audited anew, and published with numbers alone."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from audits import add_audit
from reviews import write_review

from histodistill.hub_cards.errors import ContentError
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.distillation import select
from histodistill.training.end_to_end import distill
from histodistill.training.end_to_end.steps import Common, stage_calls
from histodistill.training.evaluation.checked_run import read_checked_run
from histodistill.training.publishing import publish
from histodistill.training.publishing.publish import PublishConfig
from histodistill.training.reporting import review
from histodistill.training.reporting.review import ReviewConfig
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json


NOTE, SIGN = "Looks like that of Mrs Mueller", "Dr QZX"


def select_again(run, data, *files):
    """`select` with the options that `distill` gave it, and these files."""
    common = Common(data=data, output=run, audit_share=0.0, seed=0, mixed_precision="no", exclude=files)
    (config,) = [call.config for call in stage_calls(common, read_json(run / "run.json")) if call.step is select]
    return select.run(config)


def collect(run):
    return publish.run(PublishConfig(run=run, namespace="me", name="toy", license="cc0-1.0"))


@pytest.fixture(scope="module")
def reviewed(tiny_run, tmp_path_factory):
    """A run whose set was audited, then reviewed and selected anew, with the pages of the review; seeds that went."""
    run = shutil.copytree(tiny_run.folder, tmp_path_factory.mktemp("reviewed") / "run")
    add_audit(run)
    collect(run)  # it could be published
    seeds = read_image_dataset(run / "distilled")[1]["seed"]
    review.run(ReviewConfig(run=run, data=tiny_run.data, per_class=1))
    files = [
        write_review(run / "review" / "one.json", run / "distilled", [0, 4], SIGN, notes={0: NOTE}),
        write_review(run / "review" / "two.json", run / "distilled", [4, 8], "2"),
    ]
    with pytest.raises(InputError, match=r"the set that was reviewed \(audit, comparison, results\.json\): move that"):
        select_again(run, tiny_run.data, *files)
    for name in ("audit", "comparison", "results.json"):
        (run / name).rename(run.parent / name)
    select_again(run, tiny_run.data, *files)
    return run, seeds[[0, 4, 8]]


@pytest.fixture
def run(reviewed, tmp_path):
    return shutil.copytree(reviewed[0], tmp_path / "run")


def test_the_audit_of_the_set_before_does_not_count(run, reviewed):
    assert not np.isin(reviewed[1], read_image_dataset(run / "distilled")[1]["seed"]).any()
    with pytest.raises(InputError, match=r"results\.json is not what was audited: run histodistill audit again"):
        collect(run)
    shutil.copy(reviewed[0].parent / "results.json", run)
    with pytest.raises(InputError, match=r"selector/config\.json is not the file that was audited: run histodistill"):
        collect(run)
    with pytest.raises(InputError, match=r"is not the file that was audited: run histodistill audit again"):
        publish.run(PublishConfig(run=run, namespace="me", name="toy", only=("dataset",)))


def test_numbers_go_up_and_nothing_else_of_a_review(run):
    add_audit(run)
    uploads = collect(run)
    record = read_json(run / "distilled" / "stage.json")
    card = uploads[2].files["README.md"].decode()
    assert (
        "generated images were reviewed by 2 people: 3 were left out, and the selection was made again without them."
        in card
    )
    assert record["reviewed"]["num_images"] == 15
    private = [NOTE, "Mueller", SIGN, "QZX", "blinded", *record["settings"]["review"]["sets"]]
    for upload in uploads:
        assert not [name for name in upload.files if "review" in name or "blinded" in name]
        for name, content in upload.files.items():
            assert not [word for word in private if word.encode() in content], name
    # Nor does a page that lies where a set is.
    shutil.copy(run / "review" / "blinded.html", run / "distilled" / "blinded.html")
    with pytest.raises(InputError, match=r"blinded\.html is no file of a distilled"):
        collect(run)


def test_distill_goes_on_with_the_reviewed_set(run, tiny_run, monkeypatch, capsys):
    seeds = read_image_dataset(run / "distilled")[1]["seed"]
    select_again(run, tiny_run.data)
    assert "is already finished" in capsys.readouterr().out
    np.testing.assert_array_equal(read_image_dataset(run / "distilled")[1]["seed"], seeds)
    # And with files, it asks the selection whether they are in it; all that follows is made anew.
    started = []
    monkeypatch.setattr(distill, "run_module", lambda module, argv, *_: started.append((module.split(".")[-1], argv)))
    (run / "audit.json").unlink()
    argv = [*tiny_run.argv, "--output", str(run), "--exclude", "a.json", "b.json"]
    distill.run(distill.make_parser().read(argv))
    assert [name for name, _ in started] == ["select", "compare", "audit"]
    assert started[0][1][-2:] == ["a.json", "b.json"]


@pytest.mark.parametrize(
    "change",
    [
        {"num_people": "Dr QZX"},
        {"num_people": 0},
        {"num_left_out": 16},
        {"num_images": 41, "num_left_out": 3},  # the pool has 40
        {"num_unseen": 16},
        {"notes": "Mrs Mueller"},
    ],
)
def test_numbers_that_cannot_be(run, change):
    path = run / "distilled" / "stage.json"
    record = read_json(path)
    write_json(path, record | {"reviewed": record["reviewed"] | change})
    with pytest.raises(
        ContentError, match=r"distilled/stage\.json (holds something unknown|tells of reviews of more)"
    ):
        _ = read_checked_run(run, with_pipeline=True).review
