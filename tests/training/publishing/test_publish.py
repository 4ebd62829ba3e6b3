"""What `histodistill publish` and `publish-metrics` put together; tests/test_on_the_hub.py uploads it."""

from __future__ import annotations

import hashlib
import io
import shutil

import numpy as np
import pytest
from audits import add_audit
from datasets import Dataset
from loopback_hub.card_rules import card_errors, read_header
from PIL import Image, PngImagePlugin

from histodistill.hub_cards import Published, PublishError, Upload
from histodistill.training.evaluation.checked_run import distilled_grid
from histodistill.training.evaluation.ledger import write_ledger
from histodistill.training.evaluation.run_facts import RunRecords, public_name, read_run_facts
from histodistill.training.metrics import METRICS, metric_folder
from histodistill.training.publishing import publish, publish_metrics, pushing
from histodistill.training.publishing.metric_spaces import metric_upload
from histodistill.training.publishing.publish import PublishConfig
from histodistill.training.publishing.publish_metrics import PublishMetricsConfig
from histodistill.training.publishing.repositories import PARTS, SUFFIXES
from histodistill.training.reporting.run_files import source_name
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json


PRIVATE_NAME = "mueller_2023"  # as if the tiles came from mueller_2023.npz


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of a finished run, with an audit that passed and what the stages keep for themselves beside it."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_run.folder, folder)
    for file in ("run.json", "results.json"):
        write_json(folder / file, read_json(folder / file) | {"data": PRIVATE_NAME})
    write_json(folder / "teacher" / "results.json", {"data": {"train": PRIVATE_NAME}})
    add_audit(folder)
    for private in ("audit/closest_pool.png", "pipeline/progress/real.png", "pipeline/checkpoints/c-1/state.json"):
        (folder / private).parent.mkdir(parents=True, exist_ok=True)
        (folder / private).write_bytes(b"private")
    return folder


def collect(run, *argv):
    return publish.run(publish.make_parser().read([str(run), "--namespace", "me", *map(str, argv)]))


def test_only_the_listed_files_leave(run):
    pipeline, selector, dataset = uploads = collect(run, "--name", "toy")
    assert all(type(content) is bytes for upload in uploads for content in upload.files.values())
    assert [upload.repo_id for upload in (pipeline, selector, dataset)] == [
        "me/toy-ldm", "me/toy-selector", "me/toy-distilled",
    ]  # fmt: skip
    assert sorted(pipeline.files) == [
        "README.md", "assets/distilled.png", "model_index.json", "pipeline.py", "scheduler/scheduler_config.json",
        "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    assert sorted(selector.files) == [
        "README.md", "assets/community_map.png", "config.json", "selector.safetensors",
    ]  # fmt: skip
    assert sorted(dataset.files) == [
        "README.md", "assets/community_map.png", "assets/distilled.png", "data/train-00000-of-00001.parquet",
        "set.json",
    ]  # fmt: skip


def test_nothing_tells_where_the_tiles_were(run, tiny_run):
    words = [str(run), str(tiny_run.folder), str(tiny_run.data.parent), PRIVATE_NAME, "fingerprint"]
    for upload in collect(run, "--name", "toy"):
        for name in upload.files:
            content = upload.files[name]
            assert not [word for word in words if word.encode() in content], name
    # Nor a fingerprint of them.
    record = read_json(run / "distilled" / "stage.json")
    card = collect(run, "--name", "toy")[2].files["README.md"].decode()
    assert record["fingerprint"] not in card and read_json(run / "pipeline/stage.json")["settings"]["data"] not in card


def test_without_a_licence_there_is_a_warning(run, capsys):
    collect(run, "--name", "toy")
    warned = capsys.readouterr().err
    assert warned.startswith("warning: without --license the repositories have no licence, so nobody may lawfully use")
    assert warned.count("\n") == 1
    collect(run, "--name", "toy", "--license", "cc0-1.0")
    for file in ("run.json", "results.json"):
        write_json(run / file, read_json(run / file) | {"data": "phantom"})
    add_audit(run)
    collect(run)  # the built-in drawings are nobody's
    assert capsys.readouterr().err == ""


def make_private(run) -> None:
    """The records of the run, as if it had been made under differential privacy; and its ledger."""
    spent = {
        "epsilon": 7.5, "delta": 1e-3, "unit": "patient", "num_units": 90, "accountant": "prv, opacus 1.6.0",
        "autoencoder": "public", "total": {"epsilon": 7.5, "delta": 1e-3},
    }  # fmt: skip
    changes = {
        "autoencoder": ({"data": "0" * 64}, {}),
        "pipeline": ({"dp_epsilon": 8.0, "align": None}, {"privacy": spent}),
        "teacher": ({}, {"of_pool": read_json(run / "pool" / "stage.json")["fingerprint"]}),
        "distilled": ({"drop_copies": False, "embedder": "untrained"}, {"copies_dropped": None}),
    }
    for folder, (settings, facts) in changes.items():
        record = read_json(run / folder / "stage.json")
        write_json(run / folder / "stage.json", {**record, **facts, "settings": record["settings"] | settings})
    write_ledger(run)


def test_under_differential_privacy_the_ledger_is_on_the_cards_and_no_figure_of_real_tiles(run):
    make_private(run)
    add_audit(run)
    for upload in collect(run, "--name", "toy"):
        text = upload.files["README.md"].decode()
        assert "all that is published here was made with ε = 8 and δ = 0.001 for each training patient, of 90" in text
        assert "- Denoiser: made of training tiles by DP-SGD, ε = 7.5, δ = 0.001" in text
        assert "- Classifier that gave the soft labels: made of generated images, which spends nothing." in text
        assert "\n- dropping images that are copies of a real tile\n" in text
        # What the audit found but its verdict, scores, losses and numbers of tiles.
        assert "**The privacy audit passed**" in text and "✓" not in text and "planted" not in text
        assert "Real, all" not in text and "model-index" not in text and "validation loss" not in text
        assert "trained on the real tiles" not in text and "held out for the privacy audit" not in text


def test_a_step_outside_the_budget_is_not_published_with_the_claim(run):
    make_private(run)
    record = read_json(run / "teacher" / "stage.json")
    del record["of_pool"]
    write_json(run / "teacher" / "stage.json", record)
    add_audit(run)
    with pytest.raises(InputError, match="is not all under differential privacy: the teacher saw other tiles than"):
        collect(run, "--name", "toy", "--only", "dataset")


def test_a_claim_is_what_the_steps_have_spent(run):
    make_private(run)
    record = read_json(run / "run.json")
    write_json(run / "run.json", record | {"privacy": record["privacy"] | {"num_units": 9000}})
    add_audit(run)
    with pytest.raises(InputError, match="claims other spendings than the steps have recorded"):
        collect(run, "--name", "toy")
    write_json(run / "run.json", record | {"privacy": record["privacy"] | {"note": "Mueller"}})
    add_audit(run)
    with pytest.raises(InputError, match="holds something unknown"):
        collect(run, "--name", "toy")


def test_risk_is_not_accepted_under_differential_privacy(run):
    make_private(run)
    add_audit(run, copies=3)
    with pytest.raises(InputError, match="i_accept_the_risk does not go with a run under differential privacy"):
        collect(run, "--name", "toy", "--i-accept-the-risk")


def test_drawings_are_called_so_whatever_their_name(run):
    with pytest.raises(InputError, match=r"^name=phantom is the built-in drawings, and these tiles are not") as caught:
        collect(run, "--name", "phantom")
    assert caught.value.for_command_line().startswith("--name=phantom is the built-in drawings")
    assert caught.value.for_command_line().endswith(": give another --name")
    for file in (run / "run.json", run / "results.json"):
        write_json(file, read_json(file) | {"data": "phantom"})
    write_json(run / "teacher" / "results.json", {"data": {"train": "phantom"}})
    add_audit(run)
    for upload in collect(run, "--name", "colon"):
        text = upload.files["README.md"].decode()
        assert "not tissue" in text and "histopathology" not in read_header(text)["tags"]


def test_cards_say_what_was_measured(run):
    for upload in collect(run, "--name", "toy", "--license", "cc0-1.0", "--attribution", "A program"):
        text = upload.files["README.md"].decode()
        assert card_errors(text, upload.repo_type) == ([], [])
        assert read_header(text)["license"] == "cc0-1.0"
        assert "A program" in text and "privacy audit passed" in text
        assert "- ✓ 0 of 15 images are copies of real tiles.\n" in text
        rows = read_json(run / "results.json")["rows"]
        for row in rows:
            assert f"| {row['title']} | {row['num_train']} | convnet | {row['accuracy']['mean']:.3f} |" in text
        assert "| selection |" in text and "kernel_herding" in text and "torch 2." in text
    pipeline = collect(run, "--name", "toy")[0].files["README.md"].decode()
    index = read_header(pipeline)["model-index"][0]["results"]
    distilled = next(row for row in rows if row["row"] == "distilled_ce")
    assert index[0]["metrics"][0]["value"] == round(distilled["accuracy"]["mean"], 4)
    test_tiles = f"toy: {read_json(run / 'run.json')['num_tiles']['test']} private test tiles"
    datasets = [result["dataset"] for result in index]
    assert datasets == [{"type": "private-test-tiles", "name": test_tiles, "split": "test"}]


def test_cards_tell_of_dropped_copies_and_not_what_looked_for_them(run):
    file = run / "distilled" / "stage.json"
    record, class_names = read_json(file), read_json(run / "run.json")["class_names"]
    record["settings"] |= {"drop_copies": True, "copy_embedders": ["untrained", "private_model, sha256 ab"]}
    write_json(file, record | {"copies_dropped": dict.fromkeys(class_names, 0) | {"mucus": 7}})
    add_audit(run)
    pipeline, selector, dataset = (x.files["README.md"].decode() for x in collect(run, "--name", "toy"))
    assert "copies of real tiles: 7 images dropped" in selector and "| copies of real tiles | 7 images" in dataset
    assert not any("private_model" in text for text in (pipeline, selector, dataset))


def test_parts_of_a_run(run):
    (upload,) = collect(run, "--name", "toy", "--only", "pipeline")
    assert upload.repo_id == "me/toy-ldm" and b"toy-distilled" not in upload.files["README.md"]


def test_cards_without_scores_say_so(run):
    (run / "results.json").unlink()
    (run / "run.json").unlink()
    shutil.rmtree(run / "teacher")
    add_audit(run)
    for upload in collect(run, "--name", "toy"):
        assert b"not measured" in upload.files["README.md"]


def test_the_gate(run):
    add_audit(run, weights_auc=0.7)
    with pytest.raises(
        InputError, match=r"pipeline did not pass the privacy audit \(one who holds the weights tells training tiles"
    ) as caught:
        collect(run, "--name", "toy")
    assert str(caught.value).endswith("publish it all the same with i_accept_the_risk")
    assert caught.value.for_command_line().endswith("publish it all the same with --i-accept-the-risk")
    pipeline, selector, dataset = collect(run, "--name", "toy", "--i-accept-the-risk")
    first = pipeline.files["README.md"].decode().split("\n---\n", 1)[1].lstrip().splitlines()[0]
    assert first.startswith("> **This was published although it did not pass") and "AUC of 0.700" in first
    # What passed is not said to have failed, and can go alone.
    for upload in (selector, dataset, *collect(run, "--name", "toy", "--only", "selector", "dataset")):
        text = upload.files["README.md"].decode()
        assert "did not pass" not in text and "privacy audit passed" in text


def test_without_an_audit(run):
    (run / "audit.json").unlink()
    with pytest.raises(InputError, match="has not been audited: run histodistill audit on the run first"):
        collect(run, "--name", "toy")
    for upload in collect(run, "--name", "toy", "--i-accept-the-risk"):
        text = upload.files["README.md"].decode()
        assert "although it did not pass a privacy audit" in text and "no privacy audit has been made" in text
        assert str(run) not in text


def test_an_audit_of_other_files_does_not_count(run):
    audit = read_json(run / "audit.json")
    for part in audit["parts"].values():
        part["files"] = dict.fromkeys(part["files"], "0" * 64)
    write_json(run / "audit.json", audit)
    with pytest.raises(InputError, match="is not the file that was audited"):
        collect(run, "--name", "toy")
    for upload in collect(run, "--name", "toy", "--i-accept-the-risk"):
        text = upload.files["README.md"].decode()
        assert "privacy audit passed" not in text and "no privacy audit has been made" in text
        assert str(run) not in text


def test_the_name_of_a_file_is_not_the_name_of_a_repository(run):
    assert source_name(run) == PRIVATE_NAME
    with pytest.raises(InputError, match="a source whose name is not published: give name,") as caught:
        collect(run)
    assert "is not published: give --name, what to call them" in caught.value.for_command_line()


def test_names_that_everybody_knows():
    from histodistill.training.data.medmnist import MEDMNIST

    assert public_name("phantom", ["a", "b"]) == "phantom"
    assert public_name("pathmnist", list(MEDMNIST["pathmnist"].class_names)) == "pathmnist"
    # A private file may be called so as well.
    assert public_name("pathmnist", ["a", "b"]) is None
    for name in ("./pathmnist", "./phantom", "pathmnist_1k"):
        assert public_name(name, list(MEDMNIST["pathmnist"].class_names)) is None
    assert public_name("mueller_2023", ["a", "b"]) is None and public_name(None, []) is None


def test_medmnist_brings_licence_and_attribution(run):
    from histodistill.training.data.medmnist import MEDMNIST

    names = list(MEDMNIST["pathmnist"].class_names)
    records = RunRecords.read(run, {"run.json": b'{"data": "pathmnist", "num_tiles": {"train": 9}}'})
    facts = read_run_facts(records, {}, "pathmnist", names, 16, 15)
    assert facts.license == "cc-by-4.0" and "Kather et al." in facts.attribution


@pytest.mark.parametrize(("settings", "warm"), [('{"init_from": "c0ffee"}', True), ("{}", False)])
def test_weights_that_a_denoiser_began_from_are_a_fact(run, settings, warm):
    record = f'{{"complete": true, "settings": {settings}}}'
    records = RunRecords.read(run, {"pipeline/stage.json": record.encode()})
    assert read_run_facts(records, {}, "tiles", ["a", "b"], 16, 15).warm_start is warm


def png_with(**info) -> bytes:
    buffer, texts = io.BytesIO(), PngImagePlugin.PngInfo()
    for name, value in info.items():
        texts.add_text(name, value)
    Image.new("RGB", (16, 16)).save(buffer, format="PNG", pnginfo=texts)
    return buffer.getvalue()


@pytest.mark.parametrize(("image", "path"), [(png_with(), "patient_7.png"), (png_with(Date="2023-01-01"), None)])
def test_images_with_names_or_metadata_are_refused_whatever_is_accepted(run, image, path):
    file = run / "distilled/data/train-00000-of-00001.parquet"
    rows = Dataset.from_parquet(str(file))
    columns = {name: rows[name] for name in rows.column_names if name != "image"}
    cells = [{"bytes": png_with(), "path": None}] * (len(rows) - 1) + [{"bytes": image, "path": path}]
    Dataset.from_dict({"image": cells, **columns}, features=rows.features).to_parquet(str(file))
    with pytest.raises(InputError, match=r"train-00000-of-00001.parquet .*(file name|part 'tEXt')"):
        collect(run, "--name", "toy", "--i-accept-the-risk")


def test_a_selector_with_embeddings_is_refused(run):
    from safetensors.numpy import load_file, save_file

    file = run / "selector" / "selector.safetensors"
    arrays = load_file(file)
    config = run / "selector" / "config.json"
    for name, array in (("embeddings_", np.zeros((40, 8), np.float32)), ("flow_", np.zeros((40, 8), np.float32))):
        save_file({**arrays, name: array}, file)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        write_json(config, read_json(config) | {"arrays_sha256": digest})
        with pytest.raises(InputError, match=f"holds the array {name}, which is not known"):
            collect(run, "--name", "toy", "--i-accept-the-risk")


def test_a_folder_of_this_machine_in_a_config_is_refused(run):
    config = run / "pipeline" / "vae" / "config.json"
    write_json(config, read_json(config) | {"_name_or_path": str(run / "autoencoder")})
    with pytest.raises(InputError, match=r"vae/config.json holds _name_or_path, which our"):
        collect(run, "--name", "toy", "--i-accept-the-risk")
    with pytest.raises(InputError, match=r"README.md of me/toy-distilled names a folder of this machine"):
        collect(run, "--name", "toy", "--only", "dataset", "--attribution", f"see {run}/notes")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("distilled/stage.json", "holds no finished distilled set: run histodistill select first"),
        ("pipeline/stage.json", "holds no finished pipeline: run train_diffusion first"),
        ("selector/selector.safetensors", "has no selector.safetensors: make it anew"),
    ],
)
def test_an_unfinished_run(run, missing, message):
    (run / missing).unlink()
    with pytest.raises(InputError, match=message):
        collect(run, "--name", "toy", "--i-accept-the-risk")


def test_dry_run_lists_and_uploads_nothing(run, monkeypatch, capsys):
    monkeypatch.setattr(pushing, "publish", None)  # to call it would fail
    found = publish.run(PublishConfig(run=run, namespace="me", name="toy"))
    assert [upload.repo_id for upload in found] == ["me/toy-ldm", "me/toy-selector", "me/toy-distilled"]
    assert all(isinstance(upload, Upload) for upload in found)
    shown = capsys.readouterr().out
    assert "dataset me/toy-distilled: 5 files" in shown and "data/train-00000-of-00001.parquet" in shown
    assert shown.rstrip().endswith("Nothing was uploaded: add --push to do it.")


def test_pushing_returns_what_became_of_each_repository(monkeypatch, capsys):
    def pretend(uploads, *, public, tag):
        assert (public, tag) == (True, "v1")
        for upload in uploads:
            yield Published(upload, f"https://hub/{upload.repo_id}", "0123456789abcdef", "created")

    monkeypatch.setattr(pushing, "publish", pretend)
    config = PublishMetricsConfig(namespace="me", push=True, public=True, revision_tag="v1")
    found = publish_metrics.run(config)
    assert [done.upload.repo_id for done in found] == [f"me/{name}" for name in METRICS]
    shown = capsys.readouterr().out
    assert shown.endswith("".join(f"created: https://hub/me/{name} at 0123456789\n" for name in METRICS))
    assert ", to be seen by everybody:" in shown


@pytest.mark.parametrize("name", ["namespace", "name", "public", "revision_tag", "i_accept_the_risk"])
def test_what_stands_in_the_way_names_parameters_or_options(name, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise PublishError(f"it is taken: log in with `hf auth login`, or give another `{name}`")
        yield

    monkeypatch.setattr(pushing, "publish", refuse)
    with pytest.raises(InputError) as caught:
        publish_metrics.run(PublishMetricsConfig(namespace="me", push=True))
    assert str(caught.value) == f"it is taken: log in with `hf auth login`, or give another {name}"
    assert caught.value.for_command_line().endswith(f"`hf auth login`, or give another --{name.replace('_', '-')}")


def test_grid_has_a_row_for_each_class():
    images = np.zeros((5, 32, 32, 3), np.uint8)
    images[3:] = 200
    grid = np.asarray(distilled_grid(images, np.array([0, 0, 0, 1, 1])))
    assert grid.shape == (2 * 64 + 2, 2 * 64 + 2, 3)
    assert (grid[:64, :64] == 0).all() and (grid[66:, :64] == 200).all()


@pytest.mark.parametrize("name", METRICS)
def test_metric_space(name):
    upload = metric_upload(name, f"me/{name}")
    assert sorted(upload.files) == sorted(["README.md", "index.html", "requirements.txt", f"{name}.py"])
    assert upload.files[f"{name}.py"] == (metric_folder(name) / f"{name}.py").read_bytes()
    text = upload.files["README.md"].decode()
    assert card_errors(text, "space") == ([], [])
    assert f'evaluate.load("me/{name}", module_type="metric")' in text and "load_metric" not in text
    assert "- **references** (list of int): true classes." in text and "## Limitations and bias\n\n" in text
    # The figure is that of the notes, computed anew.
    shown = (metric_folder(name) / "README.md").read_text().split("# {")[1].split("\n")[0]
    assert f"# {{{shown}\n" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--namespace", "a/b"], "--namespace=a/b is out of range: it must be letters and digits"),
        ([], "--namespace is missing: give your name on the Hub, or only --preview"),
        (["--preview", "cards", "--push"], "--preview uploads nothing and --push does: give one of them"),
        (["--namespace", "me", "--name", "a--b"], "--name=a--b is out of range"),
        (["--namespace", "me", "--revision-tag", "v 1"], "--revision-tag=v 1 is out of range"),
        (["--namespace", "me", "--license", "CC BY 4.0"], "--license=CC BY 4.0 is out of range: it must be an ident"),
    ],
)
def test_options_are_checked(argv, message, capsys):
    with pytest.raises(SystemExit) as ended:
        publish.make_parser().read(["run", *argv])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error and error.count("\n") == 1


def test_defaults_upload_nothing():
    config = publish.make_parser().read(["a-run", "--namespace", "my-lab", "--name", "crc.5_a"])
    assert config == PublishConfig(run="a-run", namespace="my-lab", name="crc.5_a")
    assert config.only == publish.KINDS == tuple(PARTS) == tuple(SUFFIXES) and config.audit is None
    assert not (config.push or config.public or config.i_accept_the_risk)


def test_the_audit_may_be_another_file(run):
    (run / "audit.json").rename(run / "other.json")
    with pytest.raises(InputError, match="has not been audited"):
        collect(run, "--name", "toy")
    assert len(collect(run, "--name", "toy", "--audit", run / "other.json")) == 3


def test_metric_options_are_checked(capsys):
    with pytest.raises(SystemExit):
        publish_metrics.make_parser().read(["--namespace", "-x-"])
    with pytest.raises(SystemExit):
        publish_metrics.make_parser().read(["--namespace=a..b"])
    assert "--namespace=a..b is out of range" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("results.json", "{", r"results.json is no JSON as it should be"),
        ("results.json", '{"data": "x", "rows": []}', r"results.json holds something unknown \(class_names: "),
        ("audit.json", "[1]", r"audit.json is no audit, or was changed"),
        ("audit.json", "{", r"audit.json is no audit, or was changed"),
    ],
)
def test_a_damaged_record(run, file, text, message):
    (run / file).write_text(text)
    with pytest.raises(InputError, match=message):
        collect(run, "--name", "toy", "--i-accept-the-risk")
