"""A run goes to a Hub by the command line, and is used by somebody who has no histodistill: the same bytes come out.

Clients are the real ones, each in a process of its own, and nothing in them is patched but the endpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest
from audited_sites import SITES, make_sites
from audits import add_audit
from loopback_hub import Fault, LoopbackHub, User

from histodistill.training.data.image_dataset import read_image_table
from histodistill.training.distillation import merge
from histodistill.training.evaluation import audit as audit_step
from histodistill.training.metrics import METRICS


TOKEN = "a-very-secret-token"

# Nothing of histodistill can be imported, wherever it is installed.
BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "histodistill":
            raise ModuleNotFoundError(f"{name} is not installed")

sys.meta_path.insert(0, Block())
"""

USE_IT = """
import hashlib, json
import evaluate, torch
from datasets import Image, load_dataset
from diffusers import DiffusionPipeline

try:
    import histodistill
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("histodistill can be imported")


def pixels(where):
    pipe = DiffusionPipeline.from_pretrained(where, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
    options = {"num_inference_steps": 3, "guidance_scale": 2.0}
    images = pipe(class_labels=[0, "mucus", 4], generator=seeds, output_type="np", **options).images
    return hashlib.sha256(images.tobytes()).hexdigest()


local, = sys.argv[1:]
found = {"published": pixels("me/toy-ldm"), "local": pixels(local + "/pipeline")}
rows = load_dataset("me/toy-distilled", split="train", revision="v1")
found["features"] = repr(rows.features)
cells = rows.cast_column("image", Image(decode=False))["image"]
found["images"] = [hashlib.sha256(cell["bytes"]).hexdigest() for cell in cells]
stream = load_dataset("me/toy-distilled", split="train", streaming=True)
found["streamed features"] = repr(stream.features)
found["streamed"] = [[row["label"], row["seed"], list(row["image"].size)] for row in stream]
found["rows"] = [[row["label"], row["seed"], list(row["image"].size)] for row in rows]
f1 = evaluate.load("me/f1_macro", module_type="metric")
found["f1"] = f1.compute(predictions=[0, 1, 1, 0], references=[0, 1, 0, 0])
auc = evaluate.load("me/auroc_macro_ovr", module_type="metric")
found["auc"] = auc.compute(prediction_scores=[[0.9, 0.1], [0.4, 0.6]], references=[0, 1])
found["ours"] = [name for name in sys.modules if name.partition(".")[0] == "histodistill"]
print(json.dumps(found))
"""


class Machine:
    """Somebody's machine: an empty Hugging Face cache, and a Hub."""

    def __init__(self, hub: LoopbackHub, folder):
        self.hub, self.folder = hub, folder

    def run(self, *command: str, token: str | None = TOKEN, **variables: str) -> subprocess.CompletedProcess:
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        environment |= {
            **self.hub.environment(self.folder / "huggingface", token),
            "OMP_NUM_THREADS": "1",
            **variables,
        }
        return subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, check=False)

    def python(self, *command: str, **variables: str) -> subprocess.CompletedProcess:
        return self.run(sys.executable, *command, **variables)

    def cli(self, *argv: str, **variables: str) -> subprocess.CompletedProcess:
        finished = self.python("-m", "histodistill.training.cli", *argv, **variables)
        assert TOKEN not in finished.stdout + finished.stderr
        return finished


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with LoopbackHub(tmp_path_factory.mktemp("hub"), {TOKEN: User("me")}) as hub:
        yield hub
        assert hub.unknown == []


@pytest.fixture(scope="module")
def machine(hub, tmp_path_factory):
    return Machine(hub, tmp_path_factory.mktemp("machine"))


@pytest.fixture(scope="module")
def audit(tiny_run, tmp_path_factory):
    """An audit of the run that passed."""
    path = tmp_path_factory.mktemp("audit") / "audit.json"
    add_audit(tiny_run.folder, path)
    return path


@pytest.fixture(scope="module")
def publish_argv(tiny_run, audit):
    return [
        "publish", str(tiny_run.folder), "--namespace", "me", "--name", "toy", "--audit", str(audit),
        "--revision-tag", "v1", "--push",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def published(machine, publish_argv):
    """What the two commands print."""
    first = machine.cli(*publish_argv)
    assert first.returncode == 0, first.stderr
    second = machine.cli("publish-metrics", "--namespace", "me", "--push")
    assert second.returncode == 0, second.stderr
    return first.stdout, second.stdout


def test_published_by_the_command_line(published, hub):
    run, metrics = published
    lines = re.findall(r"^created: (\S+) at [0-9a-f]{10}$", run + metrics, re.MULTILINE)
    names = ["me/toy-ldm", "me/toy-selector", "datasets/me/toy-distilled", *(f"spaces/me/{name}" for name in METRICS)]
    assert lines == [f"{hub.url}/{name}" for name in names]
    for kind, name in (("model", "me/toy-ldm"), ("model", "me/toy-selector"), ("dataset", "me/toy-distilled")):
        repo = hub.repo(kind, name)
        assert repo.state["private"] and list(repo.state["tags"]) == ["v1"]
        assert repo.history() == ["Publish with histodistill", "initial commit"]


def test_used_without_us(published, machine, tiny_run):
    finished = machine.python("-I", "-c", BLOCK + USE_IT, str(tiny_run.folder))
    assert finished.returncode == 0, finished.stderr[-3000:]
    found = json.loads(finished.stdout.splitlines()[-1])
    assert found["ours"] == []
    assert found["published"] == found["local"]
    assert "ClassLabel(names=['adipose', 'glands'" in found["features"] and "Image(" in found["features"]
    assert found["streamed features"] == found["features"]
    assert found["streamed"] == found["rows"] and len(found["rows"]) == 15
    assert found["f1"] == {"f1_macro": pytest.approx(0.7333333333333334)} and found["auc"] == {"auroc_macro_ovr": 1.0}
    # The files themselves are those of the run.
    from datasets import Image, load_dataset

    files = [str(file) for file in (tiny_run.folder / "distilled" / "data").glob("*.parquet")]
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(machine.folder / "cache"))
    cells = rows.cast_column("image", Image(decode=False))["image"]
    assert found["images"] == [hashlib.sha256(cell["bytes"]).hexdigest() for cell in cells]


RECEIVE_IT = """
import sys
from pathlib import Path
from histodistill import GenerateConfig, InputError, VerifyConfig, generate, verify

found = verify(VerifyConfig(set="me/toy-distilled", fingerprint=sys.argv[1]))
assert (found.findings, found.audit_passed) == ((), True), found
generate(GenerateConfig(pipeline=Path("me/toy-ldm"), like="me/toy-distilled", output=Path("again")))
try:
    verify(VerifyConfig(set="me/nothing"))
except InputError as error:
    print(error)
"""


def test_who_receives_a_set_checks_it_and_makes_it_again(published, hub, tmp_path):
    fingerprint = re.search(r"^  fingerprint ([0-9a-f]{32}): tell it", published[0], re.MULTILINE)[1]
    finished = Machine(hub, tmp_path).python("-c", RECEIVE_IT, fingerprint)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "verify: me/toy-distilled is what was published under this fingerprint\n" in finished.stdout
    assert "generate: 15 of 15 images are equal to the pixel\n" in finished.stdout
    assert "set me/nothing is no folder and cannot be fetched from the Hub, since" in finished.stdout


def test_a_training_begins_from_what_was_published(published, machine, tiny_run):
    finished = machine.cli(
        "train", "diffusion", "--data", str(tiny_run.data), "--autoencoder", str(tiny_run.folder / "autoencoder"),
        "--channels", "8", "--layers-per-block", "1", "--attention-levels", "1", "--max-train-steps", "1",
        "--mixed-precision", "no", "--init-from", "me/toy-ldm", "--output", "warm",
        HF_HOME=str(machine.folder / "new"),
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "(100 % of its weights) from me/toy-ldm" in finished.stderr
    # Neither code nor any other part was fetched.
    (snapshot,) = (machine.folder / "new" / "hub" / "models--me--toy-ldm" / "snapshots").iterdir()
    assert sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()) == [
        "model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip


def test_snippets_of_the_cards_run(published, machine, hub):
    snippets = []
    repos = [("model", "me/toy-ldm"), ("model", "me/toy-selector"), ("dataset", "me/toy-distilled")]
    for kind, name in [*repos, ("space", "me/accuracy")]:
        card = hub.repo(kind, name).files()["README.md"].decode()
        found = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
        assert found
        snippets += found
    finished = machine.python("-c", "\n".join([*snippets, "print(class_names)"]))
    assert finished.returncode == 0, finished.stderr[-3000:]
    printed = finished.stdout.splitlines()
    assert printed[0].startswith("KernelHerdingSelector(") and printed[-1].startswith("['adipose', 'glands'")
    assert (machine.folder / "image.png").is_file()


def test_an_autoencoder_of_the_hub_is_taken_by_its_id(published, hub, tiny_run, tmp_path):
    machine, out = Machine(hub, tmp_path), tmp_path / "taken"
    argv = ["train", "autoencoder", "--data", str(tiny_run.data), "--autoencoder", "me/toy-ldm", "--output", str(out)]
    finished = machine.cli(*argv, "--autoencoder-license", "mit")
    assert finished.returncode == 0, finished.stderr
    theirs = tiny_run.folder / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors"
    assert (out / theirs.name).read_bytes() == theirs.read_bytes()
    stated = json.loads((out / "stage.json").read_text())["pretrained"]
    assert stated == {"class_name": "AutoencoderDC", "is_taken": True, "name": "me/toy-ldm", "license": "mit"}
    (snapshot,) = tmp_path.rglob("models--me--toy-ldm/snapshots/*")
    fetched = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}
    assert fetched == {"vae/config.json", f"vae/{theirs.name}"}


def test_the_sets_of_three_sites_are_merged_audited_published_and_loaded(machine, hub, tmp_path):
    folder = merge.run(merge.MergeConfig(sites=make_sites(tmp_path), names=SITES, output=tmp_path / "merged"))
    assert audit_step.exit_code(audit_step.run(audit_step.AuditConfig(run=folder))) == 0
    finished = machine.cli("publish", str(folder), "--namespace", "me", "--name", "three", "--push")
    assert finished.returncode == 0, finished.stderr
    assert f"created: {hub.url}/datasets/me/three-distilled at " in finished.stdout
    code = (
        "import hashlib, json, numpy\nfrom datasets import load_dataset\n"
        "rows = load_dataset('me/three-distilled', split='train').with_format('numpy')\n"
        "digest = hashlib.sha256(numpy.ascontiguousarray(rows[:]['image']).tobytes()).hexdigest()\n"
        "print(json.dumps([rows.features['site'].names, rows[:]['site'].tolist(), digest]))"
    )
    loaded = machine.python("-c", code)
    assert loaded.returncode == 0, loaded.stderr[-2000:]
    table = read_image_table(folder)
    digest = hashlib.sha256(table.images.tobytes()).hexdigest()
    assert json.loads(loaded.stdout) == [list(SITES), table.columns["site"].tolist(), digest]


def test_one_sentence_and_no_traceback(published, machine, publish_argv, hub):
    finished = machine.cli(*publish_argv, token="another-token")
    assert finished.returncode == 2
    sentence = finished.stderr.splitlines()[-1]
    assert sentence.startswith("error: the Hub does not know the token")
    assert "Traceback" not in finished.stderr and "another-token" not in finished.stderr
    # No network: nobody listens there.
    finished = machine.cli("publish-metrics", "--namespace", "me", "--push", HF_ENDPOINT="http://127.0.0.1:9")
    assert finished.returncode == 2 and "Traceback" not in finished.stderr
    assert finished.stderr.splitlines()[-1].startswith("error: the Hub cannot be reached or broke off (ConnectError)")


def test_a_download_that_is_cut_goes_on(published, hub, tmp_path):
    # The loaders' own doing; here it is shown that the Hub answers a part of a file as they ask for it.
    machine = Machine(hub, tmp_path)
    fault = Fault("cut", method="GET", path="/storage/", number=1)
    hub.reset(fault)
    code = "from datasets import load_dataset\nprint(len(load_dataset('me/toy-distilled', split='train')))"
    finished = machine.python("-c", code)
    hub.reset()
    assert fault.reached.is_set()
    assert finished.returncode == 0 and finished.stdout.split() == ["15"], finished.stderr[-2000:]
