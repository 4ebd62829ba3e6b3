from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save
from sklearn.exceptions import NotFittedError

from histodistill.selection import SELECTOR_NAMES, SELECTORS, BaseSelector, DistillSelector, RandomSelector


def fitted(name="infomap", class_names=(0, 1), **params):
    rng = np.random.default_rng(0)
    embeddings = (10 * np.eye(4)[np.arange(80) % 4] + rng.normal(size=(80, 4))).astype(np.float32)
    if name == "infomap":
        params = {"n_neighbors": 5, **params}
    return SELECTORS[name](n_per_class=6, **params).fit(embeddings, np.array(class_names)[np.arange(80) // 40])


def fitted_state(selector):
    return {name: value for name, value in vars(selector).items() if name.endswith("_")}


@pytest.fixture
def saved(tmp_path):
    fitted().save_pretrained(tmp_path / "selector")
    return tmp_path / "selector"


@pytest.mark.parametrize("name", SELECTOR_NAMES)
def test_round_trip(name, tmp_path):
    selector = fitted(name, random_state=np.int64(2))
    selector.save_pretrained(tmp_path)
    for loader in (type(selector), BaseSelector):
        loaded = loader.from_pretrained(str(tmp_path))
        assert type(loaded) is type(selector)
        assert loaded.get_params() == selector.get_params()
        assert fitted_state(loaded).keys() == fitted_state(selector).keys()
        for attribute, value in fitted_state(selector).items():
            np.testing.assert_array_equal(getattr(loaded, attribute), value)
            assert np.asarray(getattr(loaded, attribute)).dtype == np.asarray(value).dtype


@pytest.mark.parametrize("name", SELECTOR_NAMES)
def test_classes_named_by_texts_come_back(name, tmp_path):
    selector = fitted(name, class_names=("Drüse", "a much longer name"))
    selector.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["fitted"]["classes_"] == selector.classes_.tolist()
    loaded = BaseSelector.from_pretrained(tmp_path)
    for attribute, value in fitted_state(selector).items():
        np.testing.assert_array_equal(getattr(loaded, attribute), value)
        assert np.asarray(getattr(loaded, attribute)).dtype == np.asarray(value).dtype


def test_loads_and_fits_again_in_a_fresh_process(saved):
    code = """
import json, sys
from histodistill.selection import DistillSelector
import numpy as np
selector = DistillSelector.from_pretrained(sys.argv[1])
before = selector.selected_indices_.tolist()
rng = np.random.default_rng(0)
embeddings = (10 * np.eye(4)[np.arange(80) % 4] + rng.normal(size=(80, 4))).astype(np.float32)
selector.fit(embeddings, np.arange(80) // 40)
print(json.dumps([before, selector.selected_indices_.tolist(), selector.n_neighbors]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(saved)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    loaded, fitted_there, n_neighbors = json.loads(done.stdout)
    assert loaded == fitted_there == fitted().selected_indices_.tolist()
    assert n_neighbors == 5


def test_files(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "selector.safetensors"]
    config = json.loads((saved / "config.json").read_text())
    assert config["class_name"] == "DistillSelector"
    assert config["params"] == fitted().get_params()
    assert {"infomap", "faiss-cpu", "numpy"} <= set(config["versions"])


def test_saving_again_replaces(saved):
    fitted("random").save_pretrained(saved)
    assert isinstance(BaseSelector.from_pretrained(saved), RandomSelector)


def test_a_failed_save_leaves_the_folder_as_it_was(saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("histodistill.selection.files.os.replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        fitted("random").save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_unfitted_is_not_saved(tmp_path):
    with pytest.raises(NotFittedError, match="this DistillSelector is not fitted: call fit before save_pretrained"):
        DistillSelector().save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file: give a folder"):
        fitted().save_pretrained(tmp_path / "file")


def test_another_class_is_refused(saved):
    with pytest.raises(ValueError, match=r"holds a DistillSelector, not a RandomSelector: load it with DistillSel"):
        RandomSelector.from_pretrained(saved)


@pytest.mark.parametrize("name", ["config.json", "selector.safetensors"])
def test_a_missing_file_is_told(saved, name):
    (saved / name).unlink()
    with pytest.raises(ValueError, match=f"has no {name}: give a folder that save_pretrained wrote"):
        DistillSelector.from_pretrained(saved)


def test_truncated_arrays_are_refused(saved):
    arrays = saved / "selector.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-8])
    with pytest.raises(ValueError, match="is incomplete or damaged"):
        DistillSelector.from_pretrained(saved)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"class_name": "DistillSelector", "params": 3}', "[" * 100_000 + "]" * 100_000]
)
def test_a_foreign_config_is_refused(saved, text):
    (saved / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json that describes no selector"):
        DistillSelector.from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_name": "MagicSelector"}, "'MagicSelector': the known selectors are DistillSelector, RandomSelector"),
        ({"params": {"power": 3}}, r"parameters that DistillSelector does not know \(power\)"),
    ],
)
def test_a_config_of_another_version_is_refused(saved, change, message):
    config = json.loads((saved / "config.json").read_text())
    if "params" in change:
        change = {"params": {**config["params"], **change["params"]}}
    (saved / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=message):
        BaseSelector.from_pretrained(saved)


@pytest.mark.parametrize("value", [[1], [["a"], ["b", "c"]], ["a", None]])
def test_texts_that_are_none_are_refused(saved, value):
    config = json.loads((saved / "config.json").read_text())
    config["fitted"]["classes_"] = value
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json that describes no selector"):
        DistillSelector.from_pretrained(saved)


@pytest.mark.parametrize("name", ["fit", "__class__", "get_params", "_private_", "\x1b[2J"])
@pytest.mark.parametrize("where", ["arrays", "numbers"])
def test_what_fit_does_not_set_is_refused(saved, name, where):
    """It would take the place of a method."""
    config = json.loads((saved / "config.json").read_text())
    if where == "numbers":
        config["fitted"][name] = 3
    else:
        payload = save({name: np.zeros(2)})
        (saved / "selector.safetensors").write_bytes(payload)
        config["arrays_sha256"] = hashlib.sha256(payload).hexdigest()
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"holds an array or a number .*, which none learns: save it again") as caught:
        BaseSelector.from_pretrained(saved)
    assert str(caught.value).isprintable()


def test_arrays_of_a_type_that_numpy_lacks_are_refused(saved):
    header = json.dumps({"flow_": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    payload = len(header).to_bytes(8, "little") + header + bytes(4)
    (saved / "selector.safetensors").write_bytes(payload)
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "arrays_sha256": hashlib.sha256(payload).hexdigest()}))
    with pytest.raises(ValueError, match="is incomplete or damaged"):
        BaseSelector.from_pretrained(saved)


@pytest.mark.parametrize("name", ["./nowhere", "nowhere", "/a/b/c", "../x"])
def test_a_missing_folder_is_told_without_asking_the_hub(name):
    with pytest.raises(ValueError, match=r"there is no selector folder .*give a folder .* or a Hub id"):
        DistillSelector.from_pretrained(name)


def test_a_missing_repository_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"'user/nothing' is neither a folder nor a selector .* the Hub") as caught:
        DistillSelector.from_pretrained("user/nothing", cache_dir=tmp_path, local_files_only=True)
    assert "\n" not in str(caught.value)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub made of folders."""
    root = tmp_path / "hub"

    class Api:
        def __init__(self, token=None):
            assert token == "secret"

        def create_repo(self, repo_id, *, private, exist_ok):
            assert exist_ok
            (root / repo_id).mkdir(parents=True, exist_ok=True)
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
            return SimpleNamespace(commit_url=f"hub://{repo_id}/{commit_message}")

    def download(repo_id, filename, *, revision, token, cache_dir, local_files_only):
        return str(Path(root, repo_id, filename))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)


@pytest.mark.usefixtures("hub")
def test_hub_round_trip():
    selector = fitted()
    assert selector.push_to_hub("user/selector", token="secret") == "hub://user/selector/Upload selector"
    loaded = DistillSelector.from_pretrained("user/selector")
    np.testing.assert_array_equal(loaded.selected_indices_, selector.selected_indices_)
    assert loaded.get_params() == selector.get_params()
