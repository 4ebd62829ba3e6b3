"""A run whose tiles are of patients: remembered options, an audit by patient, and no name in what may be published."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from audits import add_audit
from PIL import Image

from histodistill.hub_cards.part_files import hash_part
from histodistill.training.data.phantom import phantom_source
from histodistill.training.data.sources import load_tiles
from histodistill.training.data.tiles import HELD_OUT
from histodistill.training.distillation import merge
from histodistill.training.end_to_end import distill
from histodistill.training.evaluation import audit
from histodistill.training.publishing import publish
from histodistill.training.reporting import report
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json
from histodistill.training.running.source_options import source_options_of_run


# Patients of training tiles, which are 3 of each class for each patient.
PATIENTS = 20
# Words that no file of ours holds by chance.
NAME, SITE, COLUMN = "Quetzal", "Xanadu", "mrn_column"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    """A manifest of 16-pixel phantom tiles whose patients and sites have names to be searched for."""
    folder = tmp_path_factory.mktemp("patients")
    source = phantom_source(image_size=16, sizes={"train": 3 * PATIENTS, "validation": 4, "test": 4})
    rows = []
    for split, tiles in source.splits.items():
        for number, (image, label, group) in enumerate(zip(tiles.images, tiles.labels, tiles.groups, strict=True)):
            path = folder / "tiles" / f"{split}-{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(image).save(path)
            site = f"{SITE}-{sum(map(ord, group)) % 2}"
            rows.append([f"tiles/{path.name}", source.class_names[label], split, f"{NAME}-{group}", site])
    with open(folder / "tiles.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "split", COLUMN, "site"], *rows])
    return folder / "tiles.csv"


@pytest.fixture(scope="module")
def run(manifest, tmp_path_factory, tiny_preset, offline_environment) -> Path:
    """The folder of a run that was told of the patients."""
    folder = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in offline_environment.items():
            patch.setenv(name, value)
        argv = ["--data", manifest, "--output", folder, "--preset", tiny_preset, "--mixed-precision", "no"]
        argv += ["--group-column", COLUMN, "--group-kind", "patient"]
        distill.run(distill.make_parser().read([*map(str, argv)]))
    return folder


def test_the_run_remembers_what_was_said(run, manifest):
    assert source_options_of_run(run) == {"group_column": COLUMN, "group_kind": "patient"}
    record = read_json(run / "run.json")
    assert record["groups"] == {
        "kind": "patient", "train": 15, "held_out": 5, "per_class": dict.fromkeys(record["class_names"], 15),
        "least_tiles": 15, "median_tiles": 15.0, "shared": 0, "made": [],
    }  # fmt: skip
    source = load_tiles(manifest, audit_share=0.1, **source_options_of_run(run))
    assert source.fingerprint() == record["settings"]["fingerprint"] and source.group_kind == "patient"
    assert not set(source.splits[HELD_OUT].groups) & set(source.splits["train"].groups)


def test_the_verdict_is_by_patient(run):
    found = read_json(run / "audit.json")
    assert found["figures"]["units"]["kind"] == "patient"
    assert (found["figures"]["units"]["num_training"], found["figures"]["units"]["num_held_out"]) == (15, 5)
    sentences = [finding["sentence"] for verdict in found["parts"].values() for finding in verdict["findings"]]
    assert any(
        "by patient: 15 in training, 5 held out; a leak with an AUC above 0.9" in sentence for sentence in sentences
    ), sentences
    assert not any("single tiles only" in sentence for sentence in sentences)


def test_other_groups_are_other_tiles(run, manifest):
    with pytest.raises(InputError, match="give the same tiles, groups and share"):
        # A site is in all splits, which is refused before anything else.
        argv = [str(run), "--data", str(manifest), "--group-column", "site", "--allow-shared-groups"]
        audit.run(audit.make_parser().read(argv))


def test_no_file_holds_the_name_of_a_group_or_a_site(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    report.run(report.make_parser().read([str(copy)]))
    told = [file for file in copy.rglob("*") if file.is_file()]
    assert len(told) > 30
    for file in told:
        content = file.read_bytes()
        for word in (NAME, NAME.lower(), SITE):
            for code in ("utf-8", "utf-16-le"):
                assert word.encode(code) not in content, file
        # What the column is called stands in the run's own settings alone.
        assert COLUMN.encode() not in content or file.name in ("run.json", "report.html"), file


def test_nothing_that_is_published_holds_the_name_of_a_group(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    add_audit(copy)
    uploads = publish.run(publish.make_parser().read([str(copy), "--namespace", "me", "--name", "toy"]))
    files = {name: content for upload in uploads for name, content in upload.files.items()}
    assert {"README.md", "data/train-00000-of-00001.parquet", "selector.safetensors"} <= files.keys()
    for upload in uploads:
        for name, content in upload.files.items():
            for word in (NAME, SITE, COLUMN, str(copy)):
                assert word.encode() not in content, name
            for text in pictures_and_columns(name, content):
                assert NAME not in text and SITE not in text, name
        assert "The training tiles are of 15 patients, with 15 tiles at least" in upload.files["README.md"].decode()


def pictures_and_columns(name: str, content: bytes) -> list[str]:
    """All text that is packed inside a file: of the columns of Parquet, and chunks of a PNG."""
    if name.endswith(".parquet"):
        table = pq.read_table(io.BytesIO(content))
        return [str(table.schema), *(str(table[column].to_pylist()) for column in table.column_names)]
    if name.endswith(".png"):
        return [str(Image.open(io.BytesIO(content)).info)]
    return []


def test_a_merged_set_is_audited_by_the_tiles_of_a_site(run, manifest, tmp_path):
    other = shutil.copytree(run / "distilled", tmp_path / "south" / "distilled")
    merged = tmp_path / "merged"
    argv = [str(run), str(other.parent), "--names", "north", "south", "--output", str(merged)]
    merge.run(merge.make_parser().read(argv))
    assert "15 patients" in (merged / "README.md").read_text()
    place = shutil.copytree(run, tmp_path / "run")
    argv = [str(place), "--data", str(manifest), "--merged", str(merged), "--plant", "20"]
    found = audit.run(audit.make_parser().read(argv))
    assert list(found["parts"]) == ["distilled"] and found["figures"]["units"]["kind"] == "patient"
    assert found["parts"]["distilled"]["files"] == hash_part(merged, "distilled")
    assert found == read_json(place / "audit_merged.json")
    assert read_json(place / "audit.json") == read_json(run / "audit.json")


def test_only_a_merged_set_is_audited_as_one(run, manifest):
    argv = [str(run), "--data", str(manifest), "--merged", str(run / "distilled")]
    with pytest.raises(InputError, match="has no column site: give what histodistill merge left"):
        audit.run(audit.make_parser().read(argv))
