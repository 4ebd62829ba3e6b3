"""Publishing against the loopback Hub, with all that can go wrong on the way.

The client is the real one, in processes of its own: a driver forks one for each publishing, so that they start quickly
and can be killed.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from loopback_hub import Fault, LoopbackHub, User

from histodistill.hub_cards import Upload


# Reads one job a line; answers with the process id, then the outcome. The child waits until its id is told.
DRIVER = """
import base64, json, os, sys
from histodistill.hub_cards import PublishError, Upload, publish

for line in sys.stdin:
    job = json.loads(line)
    told, tell = os.pipe()
    child = os.fork()
    if child:
        print(json.dumps({"pid": child}), flush=True)
        os.write(tell, b".")
        status = os.waitpid(child, 0)[1]
        if os.waitstatus_to_exitcode(status) != 0:
            print(json.dumps({"killed": status}), flush=True)
        os.close(told), os.close(tell)
        continue
    os.read(told, 1)
    os.environ.pop("HF_TOKEN", None)
    if job["token"]:
        os.environ["HF_TOKEN"] = job["token"]
    outcome = {"done": [], "error": None}
    try:
        uploads = [
            Upload(kind, repo_id, {name: base64.b64decode(data) for name, data in files.items()})
            for kind, repo_id, files in job["uploads"]
        ]
        for done in publish(uploads, public=job["public"], tag=job["tag"]):
            outcome["done"].append([done.upload.repo_id, done.status])
    except PublishError as error:
        outcome["error"] = str(error)
    os.write(1, json.dumps(outcome).encode() + b"\\n")
    os._exit(0)
"""
USERS = {"secret-token": User("me", ["lab"]), "read-only": User("me", can_write=False), "else": User("you")}


def card(text: str) -> bytes:
    return f"---\ntags:\n- histodistill\n---\n\n{text}\n".encode()


OLD = {"README.md": card("old"), "data/train-0.parquet": b"old rows", "data/train-1.parquet": b"more old rows"}
NEW = {"README.md": card("new"), "data/train-0.parquet": b"new rows", "assets/distilled.png": b"grid"}
MODEL = {"README.md": card("model"), "config.json": b"{}", "selector.safetensors": b"weights"}


class Publisher:
    """The driver and the Hub that it publishes to."""

    def __init__(self, hub: LoopbackHub, home):
        self.hub = hub
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        environment |= {**hub.environment(home, None), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.answers: queue.Queue[dict] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.answers.put(json.loads(line))

    def start(self, *uploads, token="secret-token", public=False, tag=None) -> int:
        packed = [
            [kind, repo_id, {name: base64.b64encode(data).decode() for name, data in files.items()}]
            for kind, repo_id, files in uploads
        ]
        job = {"uploads": packed, "token": token, "public": public, "tag": tag}
        print(json.dumps(job), file=self.process.stdin, flush=True)
        return self.answer()["pid"]

    def answer(self) -> dict:
        return self.answers.get(timeout=120)

    def publish(self, *uploads, **options) -> dict:
        self.start(*uploads, **options)
        return self.answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self._reader.join()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def publisher(tmp_path_factory):
    with LoopbackHub(tmp_path_factory.mktemp("hub"), USERS) as hub:
        publisher = Publisher(hub, tmp_path_factory.mktemp("home"))
        yield publisher
        publisher.close()
        assert hub.unknown == []


@pytest.fixture(autouse=True)
def no_faults(publisher):
    publisher.hub.one_namespace = False
    publisher.hub.reset()
    yield
    publisher.hub.reset()


def copy_repo(hub: LoopbackHub, kind: str, old: str, new: str) -> None:
    shutil.copytree(hub.repo(kind, old).folder, hub.repo(kind, new).folder)


@pytest.fixture(scope="module")
def old_versions(publisher):
    """Repositories that hold an old version, to be copied."""
    outcome = publisher.publish(("dataset", "me/old", OLD), ("selector", "me/old", MODEL))
    assert outcome == {"done": [["me/old", "created"]] * 2, "error": None}


def test_new_repositories_are_private_whole_and_tagged(publisher):
    outcome = publisher.publish(("selector", "lab/x", MODEL), ("dataset", "me/x", NEW), tag="v1")
    assert outcome == {"done": [["lab/x", "created"], ["me/x", "created"]], "error": None}
    for kind, repo_id, files in (("model", "lab/x", MODEL), ("dataset", "me/x", NEW)):
        repo = publisher.hub.repo(kind, repo_id)
        assert repo.files() == files == repo.files("v1")
        assert repo.state["private"]
        assert repo.history() == ["Publish with histodistill", "initial commit"]


def test_the_same_again_changes_nothing(publisher):
    publisher.publish(("dataset", "me/same", NEW), tag="v1")
    publisher.hub.reset()
    outcome = publisher.publish(("dataset", "me/same", NEW), tag="v1")
    assert outcome == {"done": [["me/same", "unchanged"]], "error": None}
    assert {method for method, _ in publisher.hub.requests} == {"GET"}


def test_an_update_replaces_what_is_ours_and_keeps_the_rest(publisher, old_versions):
    copy_repo(publisher.hub, "dataset", "me/old", "me/update")
    repo = publisher.hub.repo("dataset", "me/update")
    head = repo.resolve("main")
    files = {**repo.commit(head)["files"], "LICENSE": repo.add_blob(b"added by hand")}
    repo.set_state(branches={"main": repo.add_commit(head, "by hand", files)})
    assert publisher.publish(("dataset", "me/update", NEW))["done"] == [["me/update", "updated"]]
    assert repo.files() == {**NEW, "LICENSE": b"added by hand"}
    assert repo.history()[0] == "Update with histodistill"


def test_public_is_asked_for_each_time(publisher):
    assert publisher.publish(("dataset", "me/public", OLD), public=True)["error"] is None
    repo = publisher.hub.repo("dataset", "me/public")
    assert not repo.state["private"]
    refused = publisher.publish(("dataset", "me/public", NEW))
    assert "me/public is public already: add `public` to update it" in refused["error"]
    assert repo.files() == OLD
    assert publisher.publish(("dataset", "me/public", NEW), public=True)["done"] == [["me/public", "updated"]]


def test_a_private_repository_becomes_public_only_after_its_commit(publisher, old_versions):
    copy_repo(publisher.hub, "dataset", "me/old", "me/later")
    publisher.hub.reset(Fault("status", path="/commit/", status=500))
    assert publisher.publish(("dataset", "me/later", NEW), public=True)["error"]
    assert publisher.hub.repo("dataset", "me/later").state["private"]


def test_a_tag_is_never_moved(publisher):
    publisher.publish(("dataset", "me/tagged", OLD), tag="v1")
    refused = publisher.publish(("dataset", "me/tagged", NEW), tag="v1")
    assert "the tag v1 of me/tagged stands for another version: give another `revision_tag`" in refused["error"]
    repo = publisher.hub.repo("dataset", "me/tagged")
    assert repo.files() == OLD
    assert publisher.publish(("dataset", "me/tagged", NEW), tag="v2")["error"] is None
    assert (repo.files("v1"), repo.files("v2")) == (OLD, NEW)


def check_interrupted(publisher, number: int, how: str, kinds: tuple[str, ...], updating: bool) -> bool:
    """Publishes, interrupts at a request, and publishes again; returns whether there was such a request."""
    hub, name = publisher.hub, f"me/{how.replace(' ', '-')}-{'update' if updating else 'create'}-{number}"
    own = name.encode()  # contents that the Hub has not seen, or they would not be uploaded
    new = {
        "selector": {**MODEL, "selector.safetensors": own},
        "dataset": {**NEW, "data/train-0.parquet": own + b" rows"},
    }
    old = {"selector": MODEL, "dataset": OLD}
    repos = {kind: hub.repo({"selector": "model", "dataset": "dataset"}[kind], name) for kind in kinds}
    if updating:
        for repo in repos.values():
            copy_repo(hub, repo.kind, "me/old", name)
    uploads = [(kind, name, new[kind]) for kind in kinds]
    fault = Fault(how, number=number)
    hub.reset(fault)
    pid = publisher.start(*uploads, tag="v1")
    if how.startswith("hold"):
        while not fault.reached.wait(0.005) and publisher.answers.empty():
            pass
        if fault.reached.is_set():
            os.kill(pid, signal.SIGKILL)
            fault.release.set()
    outcome = publisher.answer()
    if how.startswith("hold"):
        assert ("killed" in outcome) == fault.reached.is_set()
    elif outcome["error"]:
        assert "\n" not in outcome["error"] and "run the same command again" in outcome["error"]
    hub.reset()
    for kind, repo in repos.items():
        if not updating and not repo.exists:
            continue
        assert repo.files() in ([old[kind], new[kind]] if updating else [{}, new[kind]])
        assert repo.state["private"]
        assert "v1" not in repo.state["tags"] or repo.files("v1") == new[kind]
    if fault.reached.is_set():
        again = publisher.publish(*uploads, tag="v1")
        assert again["error"] is None and [repo_id for repo_id, _ in again["done"]] == [name] * len(kinds)
        for kind, repo in repos.items():
            assert repo.files() == new[kind] == repo.files("v1")
            # Not one commit more than without the interruption.
            assert len(repo.history()) == 2 + updating
    return fault.reached.is_set()


@pytest.mark.parametrize("updating", [False, True], ids=["create", "update"])
def test_killed_at_every_request(publisher, old_versions, updating):
    # Killed before request n + 1 is as killed after request n, for the Hub.
    kinds, number = ("selector", "dataset"), 1
    while check_interrupted(publisher, number, "hold", kinds, updating):
        number += 1
    assert number > 20
    assert check_interrupted(publisher, number - 1, "hold after", kinds, updating)


@pytest.mark.parametrize("how", ["cut", "cut after"])
def test_cut_off_at_every_request(publisher, old_versions, how):
    number = 1
    while check_interrupted(publisher, number, how, ("dataset",), updating=True):
        number += 1
    assert number > 10


def test_somebody_else_was_faster(publisher, old_versions):
    copy_repo(publisher.hub, "dataset", "me/old", "me/race")
    repo = publisher.hub.repo("dataset", "me/race")
    fault = Fault("slow", path="/preupload/", seconds=60)
    publisher.hub.reset(fault)
    publisher.start(("dataset", "me/race", NEW))
    assert fault.reached.wait(30)
    head = repo.resolve("main")
    theirs = {**repo.commit(head)["files"], "notes.txt": repo.add_blob(b"theirs")}
    repo.set_state(branches={"main": repo.add_commit(head, "theirs", theirs)})
    fault.release.set()
    assert "me/race was changed by somebody else in the meantime" in publisher.answer()["error"]
    assert repo.files() == {**OLD, "notes.txt": b"theirs"}


def test_a_slow_hub_and_one_that_asks_to_wait(publisher):
    publisher.hub.reset(
        Fault("slow", path="/preupload/", seconds=0.5),
        Fault("status", number=1, path="/storage/", status=500),
        Fault("status", number=1, path="/lfs/objects/batch", status=429, headers={"Retry-After": "1"}),
    )
    files = {**NEW, "data/train-0.parquet": b"rows that the Hub has not seen"}
    assert publisher.publish(("dataset", "me/slow", files))["done"] == [["me/slow", "created"]]
    assert all(fault.reached.is_set() for fault in publisher.hub.faults)


ERRORS = {
    "wrong token": (
        {"token": "made-up-token"},
        [],
        "the Hub does not know the token: set HF_TOKEN to a valid one, or log in with `hf auth login`",
    ),
    "no token": ({"token": None}, [], "there is no token: set HF_TOKEN, or log in with `hf auth login`"),
    "another's namespace": (
        {"token": "else"},
        [],
        "the token belongs to you, who has no rights in 'me': give one of you as `namespace`, or use another token",
    ),
    "no right to write": (
        {"token": "read-only"},
        [],
        "the token has no right to write to me/error: use one with write access to it",
    ),
    "no network": (
        {},
        [Fault("cut", times=99)],
        "the Hub cannot be reached or broke off (RemoteProtocolError): check the network, then run the same command "
        "again to go on",
    ),
    "disk full": (
        {},
        [Fault("status", path="/storage/", status=507, times=99)],
        "the Hub has no room for me/error (status 507): free storage of the account, then run the same command again "
        "to go on",
    ),
    "asked to stop": (
        {},
        [Fault("status", path="/commit/", status=429)],
        "the Hub asks to be left alone for a while (status 429): wait, then run the same command again to go on",
    ),
    "broken Hub": (
        {},
        [Fault("status", path="/commit/", status=500)],
        "the Hub failed over me/error (status 500): run the same command again to go on",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_one_sentence(publisher, name):
    options, faults, sentence = ERRORS[name]
    publisher.hub.reset(*faults)
    files = {**NEW, "data/train-0.parquet": name.encode()}
    outcome = publisher.publish(("dataset", "me/error", files), **options)
    assert outcome == {"done": [], "error": sentence}
    repo = publisher.hub.repo("dataset", "me/error")
    assert not repo.exists or repo.files() == {}


def test_offline_mode(publisher, tmp_path):
    code = (
        "from histodistill.hub_cards import PublishError, Upload, publish\n"
        "try:\n    list(publish([Upload('dataset', 'me/x', {'README.md': b''})]))\n"
        "except PublishError as error:\n    print(error)\n"
    )
    environment = {**os.environ, **publisher.hub.environment(tmp_path, "secret-token"), "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert finished.stdout == "the Hub cannot be reached, for HF_HUB_OFFLINE is set: unset it\n"


def test_a_name_that_another_type_has(publisher):
    publisher.hub.repo("model", "me/taken").create(private=True, sdk=None)
    publisher.hub.one_namespace = True
    outcome = publisher.publish(("dataset", "me/taken", NEW))
    assert outcome["error"] == ("the name me/taken is taken by a repository of another type: give another `name`")


def test_what_somebody_else_made_is_left_alone(publisher):
    repo = publisher.hub.repo("dataset", "me/foreign")
    repo.create(private=True, sdk=None)
    head = repo.resolve("main")
    files = {**repo.commit(head)["files"], "README.md": repo.add_blob(b"---\ntags: [cats]\n---\nCats.")}
    repo.set_state(branches={"main": repo.add_commit(head, "cats", files)})
    outcome = publisher.publish(("dataset", "me/foreign", NEW))
    assert "me/foreign holds something that histodistill did not make: give another `name`" in outcome["error"]


def test_a_header_that_the_hub_refuses(publisher):
    bad = {**NEW, "README.md": b"---\ntags:\n- histodistill\nlicense: my-own\n---\n"}
    error = publisher.publish(("dataset", "me/bad", bad))["error"]
    assert "me/bad cannot be published (Invalid metadata in README.md." in error and '"license" must be' in error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("dataset", "stage.json"),
        ("dataset", "audit/closest.png"),
        ("dataset", "data/validation-0.parquet"),
        ("dataset", "data/train-old/real.parquet"),
        ("pipeline", "progress/step-0000010.png"),
        ("pipeline", "checkpoints/checkpoint-5/state.json"),
        ("pipeline", "unet/optimizer.safetensors"),
        ("pipeline", "unet/diffusion_pytorch_model/old.safetensors"),
        ("pipeline", "unet/diffusion_pytorch_model.fp16.safetensors"),
        ("pipeline", "unet/diffusion_pytorch_model-00001-of-00002.safetensors"),
        ("pipeline", "unet/diffusion_pytorch_model.safetensors.index.json"),
        ("pipeline", "history.json"),
        ("selector", "community_tiles.png"),
        ("metric", "README.txt"),
        ("metric", "private/notes.py"),
    ],
)
def test_a_file_that_is_not_on_the_list_is_refused(kind, path):
    with pytest.raises(ValueError, match="may not be published"):
        Upload(kind, "me/x", {"README.md": b"", path: b""})


def test_contents_are_bytes_that_nobody_changes():
    files = {"README.md": b"", "config.json": b"{}"}
    upload = Upload("selector", "me/x", files)
    files["config.json"] = b"[]"
    assert upload.files["config.json"] == b"{}"
    with pytest.raises(TypeError):
        upload.files["config.json"] = b"[]"
    for content in (Path("config.json"), "config.json", bytearray(b"{}")):
        with pytest.raises(TypeError, match=r"config.json is no bytes: read it first"):
            Upload("selector", "me/x", {"README.md": b"", "config.json": content})


def test_a_repository_needs_a_card():
    with pytest.raises(ValueError, match="me/x has no card"):
        Upload("selector", "me/x", {"config.json": b"{}"})
