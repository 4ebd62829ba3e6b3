"""A merged set as a whole: the verdicts of its sites, what may be in it, and its way to the Hub and back."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from audited_sites import SITES, add_verdict, make_sites
from loopback_hub.card_rules import card_errors

from histodistill.training.data.image_dataset import read_image_table, write_image_dataset
from histodistill.training.distillation import merge
from histodistill.training.evaluation import audit
from histodistill.training.publishing import publish, verify
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, sha256_of, write_json


@pytest.fixture(scope="module")
def made(tmp_path_factory, run_main):
    """Three sites, and what was merged of them; both are copied."""
    folder = tmp_path_factory.mktemp("made")
    run_main(merge, *make_sites(folder), "--names", *SITES, "--output", folder / "merged")
    return folder


@pytest.fixture
def sites(made, tmp_path):
    for site in SITES:
        shutil.copytree(made / site, tmp_path / site)
    return [tmp_path / site / "distilled" for site in SITES]


@pytest.fixture
def merged(made, tmp_path):
    return shutil.copytree(made / "merged", tmp_path / "merged")


def judge(merged):
    return audit.run(audit.make_parser().read([str(merged)]))


def collect(merged, *argv):
    return publish.run(publish.make_parser().read([str(merged), "--namespace", "me", "--name", "colon", *argv]))


def refusal(function, *args) -> str:
    with pytest.raises(InputError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return caught.value.for_command_line()


def change_images(merged, change, *, hidden=False):
    """Writes the table of a merged set with other images; hidden, with the hash that its record then has."""
    table = read_image_table(merged)
    write_image_dataset(
        merged / "data", change(table.images), table.columns, table.class_names, site_names=table.site_names
    )
    if hidden:
        record = read_json(merged / "stage.json")
        write_json(merged / "stage.json", record | {"data_sha256": sha256_of(*(merged / "data").iterdir())})


def invert_one(images):
    return np.concatenate([255 - images[:1], images[1:]])


def test_verdicts_of_all_sites_are_carried_and_published(merged):
    record = judge(merged)
    assert audit.exit_code(record) == 0 and record == read_json(merged / "audit.json")
    findings = record["parts"]["distilled"]["findings"]
    assert [finding["name"] for finding in findings] == ["site 1", "site 2", "site 3", "common"]
    assert findings[0]["sentence"].endswith("by patient: 90 whose tiles were trained on, 10 held out")
    assert findings[1]["sentence"].endswith("by single tiles only, so nothing is known about its patients")
    assert findings[3]["sentence"].startswith("0 images are equal to one of another site")
    (upload,) = collect(merged)
    assert (upload.repo_id, sorted(upload.files)) == (
        "me/colon-distilled", ["README.md", "assets/distilled.png", "data/train-00000-of-00001.parquet", "set.json"],
    )  # fmt: skip
    assert upload.files["data/train-00000-of-00001.parquet"] == (next((merged / "data").iterdir())).read_bytes()
    card = upload.files["README.md"].decode()
    assert card_errors(card, "dataset") == ([], [])
    for words in (
        "# Distilled colon, merged from 3 sites",
        "**The privacy audit passed, at each site**",
        "- ✓ The set of south passed the audit of its own site, by single tiles only",
        "| east | 15 | 3 | phantom |",
        "not tissue",
        'load_dataset("me/colon-distilled"',
    ):
        assert words in card
    assert "mueller_2023" not in card + (merged / "stage.json").read_text()  # what the tiles are called stays there


def test_who_receives_a_merged_set_can_check_it(merged, tmp_path):
    judge(merged)
    (upload,) = collect(merged)
    for name, content in upload.files.items():
        path = tmp_path / "received" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    found = verify.run(verify.VerifyConfig(set=tmp_path / "received"))
    assert found.findings == () and found.audit_passed
    card = tmp_path / "received" / "README.md"
    card.write_text(card.read_text().replace("by single tiles only, so", "by patient, and"))
    findings = verify.run(verify.VerifyConfig(set=tmp_path / "received")).findings
    assert findings and "README.md" in findings[0]


def test_a_site_without_a_passing_verdict_is_named_and_nobody_accepts_its_risk(sites, tmp_path, run_main, capsys):
    (sites[1] / "audit.json").unlink()
    add_verdict(sites[2].parent, copies=2)
    run_main(merge, *sites, "--names", *SITES, "--output", tmp_path / "merged")
    assert "came with the set of west, so this may not be published" in capsys.readouterr().out
    record = judge(tmp_path / "merged")
    assert audit.exit_code(record) == 1
    said = refusal(collect, tmp_path / "merged")
    assert "no record of an audit came with the set of west; the set of south did not pass the audit of its s" in said
    assert "(copies)" in said and "accept" not in said
    assert "has images of other sites: leave it out" in refusal(collect, tmp_path / "merged", "--i-accept-the-risk")


def test_what_was_not_audited_is_not_published(merged):
    assert "has not been audited" in refusal(collect, merged)
    pages = merged.parent / "cards"
    collect(merged, "--preview", str(pages))
    assert "has not been audited" in (pages / "dataset.html").read_text()
    assert str(merged) not in (pages / "dataset.html").read_text()


def test_an_edited_merged_set_is_refused_before_and_after_its_audit(merged):
    judge(merged)
    change_images(merged, invert_one)
    for function in (judge, collect):
        assert "train-00000-of-00001.parquet is not the file that merge left" in refusal(function, merged)


def test_no_image_gets_in_that_no_site_has_audited(merged):
    """Nor where its record is changed with it: each image is known by its hash in the verdict of its site."""
    judge(merged)
    change_images(merged, invert_one, hidden=True)
    for function in (judge, collect):
        said = refusal(function, merged)
        assert "has images of east that its audit was not about (1 of 15): merge the sites again" in said
    # An image of another site does not count, and none may be there more often than at its site.
    change_images(merged, lambda images: np.concatenate([images[3:6], images[3:]]), hidden=True)
    assert "images of east that its audit was not about (3 of 15)" in refusal(judge, merged)


def test_a_forged_record_of_the_merged_set_changes_nothing(sites, tmp_path, run_main):
    add_verdict(sites[2].parent, copies=2)
    run_main(merge, *sites, "--names", *SITES, "--output", tmp_path / "merged")
    record = judge(tmp_path / "merged")
    verdict = record["parts"]["distilled"]
    for finding in verdict["findings"]:
        finding["passed"] = True
    verdict["passed"] = True
    write_json(tmp_path / "merged" / "audit.json", record)
    assert "audit.json is not about this set, or was changed" in refusal(collect, tmp_path / "merged")
    write_json(tmp_path / "merged" / "audit.json", record | {"note": "x"})
    assert "is no audit of a merged set" in refusal(collect, tmp_path / "merged")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record: record["audit"]["parts"]["distilled"].update(passed=True), "is no record of an audit, or was"),
        (lambda record: record.update(images=["0" * 64] * 15), "is about other images than those of the set of south"),
        (lambda record: record["audit"].update(records={"run.json": "0" * 64}), "is no record of an audit, or was"),
        (lambda record: record.update(format=2), "is no record of an audit, or was changed"),
    ],
)
def test_an_edited_verdict_is_not_merged(sites, tmp_path, run_main, change, words):
    add_verdict(sites[2].parent, copies=2)
    record = read_json(sites[2] / "audit.json")
    change(record)
    write_json(sites[2] / "audit.json", record)
    said = refusal(run_main, merge, *sites, "--names", *SITES, "--output", tmp_path / "merged")
    assert words in said and "ask south for its set" in said
    assert not (tmp_path / "merged").exists()


def test_a_verdict_that_its_figures_do_not_bear_out_is_refused(sites, tmp_path, run_main):
    add_verdict(sites[2].parent, copies=2)
    record = read_json(sites[2] / "audit.json")
    verdict = record["audit"]["parts"]["distilled"]
    verdict["findings"] = [finding | {"passed": True} for finding in verdict["findings"]]
    verdict["passed"] = True
    write_json(sites[2] / "audit.json", record)
    run_main(merge, *sites, "--names", *SITES, "--output", tmp_path / "merged")
    assert "the record of the audit of south contradicts itself" in refusal(judge, tmp_path / "merged")


def test_the_verdict_of_another_set_does_not_count(sites, tmp_path, run_main):
    shutil.copy(sites[0] / "audit.json", sites[1] / "audit.json")
    said = refusal(run_main, merge, *sites, "--names", *SITES, "--output", tmp_path / "merged")
    assert "is about other files than those of the set of west" in said


def test_the_same_images_at_two_sites_are_told_and_do_not_pass(sites, tmp_path, run_main):
    """Turned ones as well; those that are nearly the same are told."""
    east = read_image_table(sites[0]).images

    def change(images):
        return np.concatenate([np.rot90(east[:2], axes=(1, 2)), east[2:3] // 4 * 4, images[3:]])

    change_images(sites[1], change)
    add_verdict(sites[1].parent)
    run_main(merge, *sites, "--names", *SITES, "--output", tmp_path / "merged")
    common = judge(tmp_path / "merged")["parts"]["distilled"]["findings"][-1]
    assert not common["passed"]
    assert common["sentence"].startswith(
        "4 images are equal to one of another site, also turned or mirrored; 2 more d"
    )
    assert "4 images are equal" in refusal(collect, tmp_path / "merged")


def test_options_that_are_about_runs_are_refused(merged, tmp_path):
    read = audit.make_parser().read
    assert "--data=phantom is for a run, and" in refusal(audit.run, read([str(merged), "--data", "phantom"]))
    assert "--data is missing: give the real tiles" in refusal(audit.run, read([str(tmp_path)]))
    judge(merged)
    assert "--license=cc0-1.0 is not that of the set of east" in refusal(collect, merged, "--license", "cc0-1.0")
    assert "leaves nothing of a merged set" in refusal(collect, merged, "--only", "pipeline")


def test_renamed_classes_and_shares_keep_the_verdicts(sites, tmp_path, run_main):
    renames = [f"{site}:mucus=goo" for site in SITES]
    argv = ["--names", *SITES, "--shares", "east=2", "west=1", "south=3", "--rename", *renames]
    run_main(merge, *sites, *argv, "--output", tmp_path / "merged")
    assert audit.exit_code(judge(tmp_path / "merged")) == 0
    table = read_image_table(tmp_path / "merged")
    assert "goo" in table.class_names and np.bincount(table.columns["site"]).tolist() == [10, 5, 15]
