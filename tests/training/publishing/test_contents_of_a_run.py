"""Nothing of a run goes up but what is known: all ways in that were thought of, with an audit of the very files.

So the audit, which passes, is of no help here: what files may hold is checked whatever it says.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from audits import add_audit
from loopback_hub.card_rules import card_errors
from safetensors.numpy import load_file, save_file

from histodistill.hub_cards import ContentError, rendering
from histodistill.training.evaluation import checked_run, run_contents
from histodistill.training.evaluation.verdicts import RECORDS
from histodistill.training.publishing import publish, pushing
from histodistill.training.publishing.repositories import collect_repositories
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json


PICTURE = base64.b64encode(bytes(range(256)) * 4).decode()
HOSTILE = [
    f'<img src="data:image/png;base64,{PICTURE}">',
    f"![x](data:image/png;base64,{PICTURE})",
    "/mnt/ward7/mueller.npz",
    "https://evil.example/x",
    "evil\u202egnp.x",
    "two\n\n# lines",
    PICTURE,
]
TABLE = "distilled/data/train-00000-of-00001.parquet"
WEIGHTS = "pipeline/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def clean(tiny_run, tmp_path_factory) -> Path:
    """A finished run without what its stages keep for themselves, and with a results table."""
    folder = tmp_path_factory.mktemp("clean") / "run"
    ignored = shutil.ignore_patterns("checkpoints", "progress", "report.html", "chunks")
    shutil.copytree(tiny_run.folder, folder, ignore=ignored)
    score = {"mean": 0.5, "std": None, "margins": {"random": {"mean": 0.1, "low": None, "high": None}}}
    row = {"architecture": "convnet", "row": "kmeans@loss=joint", "size": 3, "seeds": [0]}
    row["test"] = dict.fromkeys(("accuracy", "auc", "f1"), score)
    write_json(folder / "benchmark" / "benchmark.json", {"data": "x", "class_names": [], "rows": [row], "notes": []})
    return folder


@pytest.fixture
def run(clean, tmp_path) -> Path:
    return shutil.copytree(clean, tmp_path / "run")


def collect(run: Path, *, accept_risk: bool = False):
    found = collect_repositories(run, "me", name="toy", accept_risk=accept_risk)
    return {repository.upload.kind: repository.upload for repository in found}


def refusal(run: Path) -> str:
    """Why a run is refused, whatever the audit says and whatever risk is accepted."""
    for accept_risk in (False, True):
        with pytest.raises(InputError) as caught:
            collect(run, accept_risk=accept_risk)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


def test_an_honest_run_goes_up_as_it_is(run):
    add_audit(run)
    uploads = collect(run)
    parts = {"pipeline": "pipeline", "selector": "selector", "dataset": "distilled"}
    for kind, upload in uploads.items():
        for name, content in upload.files.items():
            if name.split("/")[0] not in ("README.md", "assets", "set.json"):
                assert content == (run / parts[kind] / name).read_bytes(), name
        assert card_errors(upload.files["README.md"].decode(), upload.repo_type) == ([], [])
    assert "assets/community_map.png" in uploads["dataset"].files
    assert "kmeans, loss=joint" in uploads["dataset"].files["README.md"].decode()


def margin_of(benchmark: dict) -> dict:
    """A margin of a results table."""
    return benchmark["rows"][0]["test"]["accuracy"]["margins"]["random"]


# Texts.


def places(value, path=()):
    """Where texts are in a JSON document, and its keys."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from places(item, (*path, number))
    elif isinstance(value, dict):
        for name, item in value.items():
            yield (*path, (name,))
            yield from places(item, (*path, name))


def put(document, path, text: str) -> None:
    *steps, last = path
    for step in steps:
        document = document[step]
    if isinstance(last, tuple):
        document[text] = document.pop(last[0])
    else:
        document[last] = text


DOCUMENTS = [
    *RECORDS,
    "pipeline/model_index.json",
    "pipeline/stage.json",
    "pipeline/unet/config.json",
    "pipeline/vae/config.json",
    "pipeline/scheduler/scheduler_config.json",
    "selector/config.json",
    "distilled/stage.json",
    "audit.json",
]


@pytest.fixture
def quick(monkeypatch):
    """What takes longest is done once for the same files and numbers."""
    slow = [(run_contents, name) for name in ("check_pipeline", "check_selector", "check_set")]
    slow += [(checked_run, name) for name in ("distilled_grid", "community_discs", "encode_png")]
    for module, name in slow:
        monkeypatch.setattr(module, name, remembering(getattr(module, name)))


def remembering(function):
    known = {}

    def call(*args):
        key = pickle.dumps(args)
        if key not in known:
            known[key] = function(*args)
        return known[key]

    return call


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_text_of_a_run_reaches_what_goes_up(run, name, quick):
    """Texts and keys of every JSON file, one by one, replaced by hostile ones: refused, or not to be seen."""
    add_audit(run)
    original = json.loads((run / name).read_bytes())
    found = list(places(original))
    assert found
    audit = read_json(run / "audit.json")
    refused = 0
    for number, path in enumerate(found):
        text = HOSTILE[number % len(HOSTILE)]
        document = json.loads(json.dumps(original))
        put(document, path, text)
        (run / name).write_text(json.dumps(document))
        if name != "audit.json":
            seal(run, audit, name)
        try:
            uploads = collect(run)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
            continue
        for upload in uploads.values():
            for file, content in upload.files.items():
                assert text.encode() not in content, (path, file)
                assert rendering.escape_markdown(text).encode() not in content, (path, file)
                assert json.dumps(text).encode()[1:-1] not in content, (path, file)
    assert refused or name in ("teacher/results.json", "autoencoder/stage.json")


def seal(run: Path, audit: dict, name: str) -> None:
    """Renews the hash of a file in an audit, as somebody might who forges it."""
    digest = hashlib.sha256((run / name).read_bytes()).hexdigest()
    part, _, file = name.partition("/")
    if name in audit["records"]:
        audit["records"][name] = digest
    else:
        audit["parts"][part]["files"][file] = digest
    write_json(run / "audit.json", audit)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("results.json", lambda d: d["rows"][0]["accuracy"].update(mean=1.2)),
        ("results.json", lambda d: d["rows"][0]["accuracy"].update(mean=0.999)),
        ("results.json", lambda d: d["rows"][0]["accuracy"].update(std=-0.1)),
        ("results.json", lambda d: d["rows"][0].update(row="real_every")),
        ("results.json", lambda d: d["rows"][0].update(row="/mnt/ward7")),
        ("results.json", lambda d: d["rows"][0].update(title="evil\u202egnp")),
        ("results.json", lambda d: d["rows"][0].update(architecture="convnext")),
        ("results.json", lambda d: d["rows"][0].update(seeds=[0, 1])),
        ("results.json", lambda d: d["rows"][0].update(num_train="12")),
        ("results.json", lambda d: d["rows"].append(d["rows"][0])),
        ("results.json", lambda d: d["class_names"].reverse()),
        ("results.json", lambda d: d.update(note=PICTURE)),
        ("run.json", lambda d: d["num_tiles"].update(train=-1)),
        ("run.json", lambda d: d["num_tiles"].update(ward7=3)),
        ("pool/stage.json", lambda d: d.update(num_images="40")),
        ("pool/stage.json", lambda d: d["settings"].update(guidance_scale=PICTURE)),
        ("pool/stage.json", lambda d: d["settings"].update(num_inference_steps=10**500)),
        ("pool/stage.json", lambda d: d["settings"].update(num_inference_steps=10**30)),
        ("pipeline/stage.json", lambda d: d["settings"].update(max_train_steps=10**90)),
        ("teacher/stage.json", lambda d: d["versions"].update(torch="\u0663.\u0664")),
        ("teacher/stage.json", lambda d: d.update(test_accuracy=7)),
        ("teacher/stage.json", lambda d: d["settings"].update(loss=PICTURE)),
        ("teacher/stage.json", lambda d: d["versions"].update(torch=PICTURE)),
        ("autoencoder/stage.json", lambda d: d["settings"].update(channels=[8] * 1000)),
        ("autoencoder/stage.json", lambda d: d.update(validation_psnr="1")),
        ("distilled/stage.json", lambda d: d["community_sizes"].update(ward7=[1])),
        ("distilled/stage.json", lambda d: d["community_sizes"].update(mucus=[10**6])),
        ("distilled/stage.json", lambda d: d["community_chosen"].update(mucus=[-1])),
        ("distilled/stage.json", lambda d: d["dropped"].update(mucus=0.5)),
        ("benchmark/benchmark.json", lambda d: d["rows"][0].update(row=f"random@loss={PICTURE}")),
        ("benchmark/benchmark.json", lambda d: d["rows"][0].update(row="random@loss=evil")),
        ("benchmark/benchmark.json", lambda d: d["rows"][0]["test"]["accuracy"].update(mean=1.5)),
        ("benchmark/benchmark.json", lambda d: d["rows"][0].update(steps=PICTURE)),
        ("benchmark/benchmark.json", lambda d: d["rows"][0].update(batch_size=0)),
        ("benchmark/benchmark.json", lambda d: d["rows"].append(d["rows"][0])),
        ("benchmark/benchmark.json", lambda d: d.update(rows=[{**d["rows"][0], "size": i} for i in range(1, 1002)])),
        ("benchmark/benchmark.json", lambda d: margin_of(d).update(low=0.1)),
        ("benchmark/benchmark.json", lambda d: margin_of(d).update(low=-1e300, high=1e300)),
    ],
)
def test_records_with_something_that_they_cannot_say(run, file, change):
    document = read_json(run / file)
    change(document)
    write_json(run / file, document)
    add_audit(run)
    assert file in refusal(run)


@pytest.mark.parametrize("file", ["results.json", "run.json", "benchmark/benchmark.json", "teacher/stage.json"])
def test_records_that_were_not_audited(run, file):
    """Also where they say nothing that they could not: a score that was forged after the audit."""
    add_audit(run)
    collect(run)
    (run / file).write_bytes((run / file).read_bytes() + b" ")
    with pytest.raises(InputError, match=rf"{file} is not what was audited: run histodistill audit again"):
        collect(run)
    (run / file).unlink()
    with pytest.raises(InputError, match=rf"{file} is not what was audited: run histodistill audit again"):
        collect(run)


@pytest.mark.parametrize("settings", [None, [], "x", 3])
@pytest.mark.parametrize("part", ["distilled", "pool", "pipeline"])
def test_settings_that_are_none(run, part, settings):
    path = run / part / "stage.json"
    write_json(path, read_json(path) | {"settings": settings})
    add_audit(run)
    assert f"{part} holds no finished" in refusal(run)


def test_a_refusal_on_a_card_is_the_same_wherever_the_command_is_given(run, monkeypatch):
    add_audit(run)
    (run / "results.json").write_bytes((run / "results.json").read_bytes() + b" ")
    said = b"The gate said: results.json is not what was audited."
    monkeypatch.chdir(run)
    for folder in (run, Path(), Path("..") / run.name):
        for upload in collect(folder, accept_risk=True).values():
            assert said in upload.files["README.md"], folder


# Files.


@pytest.mark.parametrize(
    "name",
    ["pipeline/unet/diffusion_pytorch_model-tiles-of-hiddn.safetensors", "pipeline/unet/notes.txt", "pipeline/.hidden",
     "selector/embeddings.npy", "distilled/names.csv", "distilled/data/train-old/real.parquet",
     "pipeline/unet/.cache/x", "distilled/data/train-00001-of-00002.parquet",
     "pipeline/model.fp16.safetensors", "distilled/audit/closest.png"],
)  # fmt: skip
def test_files_that_nobody_knows(run, name):
    add_audit(run)
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).write_bytes(b"private")
    message = refusal(run)
    assert message.startswith(f"{run / name} is no file of a ") and message.endswith("or delete it")


@pytest.mark.parametrize("name", [TABLE, WEIGHTS, "selector/config.json", "results.json", "distilled/stage.json"])
def test_links(run, tmp_path, name):
    add_audit(run)
    (run / name).rename(tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    assert f"{run / name} is a link" in refusal(run)


# Arrays and tables.


def change_arrays(path: Path, change, metadata=None) -> None:
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path, metadata)


@pytest.mark.parametrize(
    ("part", "change", "found"),
    [
        ("unet", lambda a: a.update({"hidden.tiles": np.zeros((3, 8, 8, 3), np.uint8)}), "the array hidden.tiles"),
        ("vae", lambda a: a.update({n: v.astype(np.float64) for n, v in a.items()}), "as float64"),
        ("vae", lambda a: a.update({n: np.concatenate([v, v[:1]]) for n, v in a.items()}), "of shape"),
        ("unet", lambda a: a.pop("conv_in.bias"), "has no array conv_in.bias"),
        ("unet", lambda a: a["conv_in.bias"].fill(np.nan), "conv_in.bias with values that are no numbers"),
    ],
)
def test_weights(run, part, change, found):
    change_arrays(run / "pipeline" / part / "diffusion_pytorch_model.safetensors", change, {"format": "pt"})
    add_audit(run)
    assert found in refusal(run)


def test_arrays_of_the_selector(run):
    file, config = run / "selector" / "selector.safetensors", run / "selector" / "config.json"
    change_arrays(file, lambda a: a.update({"mean_distance_": np.zeros(5000, np.uint8)}))
    add_audit(run)
    assert "was not saved with the arrays beside it" in refusal(run)
    write_json(config, read_json(config) | {"arrays_sha256": hashlib.sha256(file.read_bytes()).hexdigest()})
    add_audit(run)
    assert "the array mean_distance_, which is not known" in refusal(run)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.append_column("image_2", table["image"]),
        lambda table: table.append_column("x", pa.array([[1, 2]] * len(table))),
        lambda table: table.replace_schema_metadata({**table.schema.metadata, b"Patient": b"somebody"}),
        lambda table: table.drop_columns(["label"]),
    ],
)
def test_tables(run, change):
    pq.write_table(change(pq.read_table(run / TABLE)), run / TABLE)
    add_audit(run)
    assert f"{run / TABLE} " in refusal(run)


def test_parts_that_do_not_fit_each_other(run):
    file = run / "pipeline" / "model_index.json"
    index = read_json(file)
    write_json(file, index | {"id2label": {**index["id2label"], "0": "ward 7"}})
    add_audit(run)
    assert "makes other classes or sizes than" in refusal(run)
    write_json(file, index | {"skip_noise": 0.25})
    assert "holds a skip connection that its scheduler does not go with" in refusal(run)


def test_code_of_a_run_does_not_go_up(run, capsys):
    from histodistill.pipelines import histology_pipeline

    installed = Path(histology_pipeline.__file__).read_bytes()
    (run / "pipeline" / "pipeline.py").write_bytes(installed + b"\n# tiles: " + PICTURE.encode())
    add_audit(run)
    capsys.readouterr()
    assert collect(run)["pipeline"].files["pipeline.py"] == installed
    assert "pipeline.py is not the file of the installed histodistill" in capsys.readouterr().err


# Checked, then changed.


def steal(run: Path, what: str) -> None:
    """Somebody else puts another file in the place of one that was checked."""
    target = run / TABLE
    if what == "file":
        table = pq.read_table(target)
        pq.write_table(table.take(list(reversed(range(len(table))))), target)
    elif what == "link":
        target.unlink()
        target.symlink_to(run / "pool" / "data" / "train-00000-of-00001.parquet")
    elif what == "folder":
        target.parent.rename(run / "old")
        shutil.copytree(run / "pool" / "data", target.parent)
    elif what == "gone":
        shutil.rmtree(run)
    elif what == "weights":
        os.truncate(run / WEIGHTS, 100)


@pytest.mark.parametrize("what", ["file", "link", "folder", "gone", "weights"])
def test_what_was_checked_is_what_is_uploaded(run, monkeypatch, what):
    add_audit(run)
    before = collect(run)
    uploaded = {}

    def pretend(uploads, **options):
        steal(run, what)
        for upload in uploads:
            uploaded[upload.kind] = dict(upload.files)
        return iter(())

    monkeypatch.setattr(pushing, "publish", pretend)
    publish.run(publish.PublishConfig(run=run, namespace="me", name="toy", push=True))
    assert uploaded == {kind: dict(upload.files) for kind, upload in before.items()}


@pytest.mark.parametrize("what", ["file", "link", "folder", "weights"])
def test_what_changes_while_it_is_read_is_not_mixed(run, monkeypatch, what):
    """Everything is made of what was read first, the pictures too, and a file that was swapped before is refused."""
    add_audit(run)
    before = collect(run)
    check = run_contents.RunFiles.check

    def check_late(files):
        steal(run, what)
        return check(files)

    monkeypatch.setattr(run_contents.RunFiles, "check", check_late)
    found = collect(run)
    assert {kind: dict(x.files) for kind, x in found.items()} == {kind: dict(x.files) for kind, x in before.items()}
    monkeypatch.setattr(run_contents.RunFiles, "check", check)
    with pytest.raises((InputError, ContentError)):
        collect(run)
