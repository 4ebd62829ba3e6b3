"""Caches that cannot be written, as in containers and on clusters: our own work needs none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from histodistill.training.models.embedders import load_embedder
from histodistill.training.running import program
from histodistill.training.running.errors import InputError


# Scores of the metrics, a pipeline and its images, and a classifier, in a process of their own.
WORK = """
import sys
from histodistill.training import generate, train_classifier
from histodistill.training.running.options import run_script

pipeline, data, output = sys.argv[1:]
options = ["--pipeline", pipeline, "--output", output + "/pool", "--per-class", "1", "--num-inference-steps", "1"]
run_script(generate.make_parser, generate.run, options)
options = ["--data", data, "--output", output + "/classifier", "--width", "8", "--max-train-steps", "1"]
options += ["--validation-steps", "1", "--batch-size", "8", "--mixed-precision", "no"]
run_script(train_classifier.make_parser, train_classifier.run, options)
"""


@pytest.mark.parametrize("kind", ["HF_HOME", "all of a home", "single caches"])
def test_steps_work_without_a_cache(kind, tiny_pipeline, tiny_npz, tmp_path):
    # Below a file there is no folder, not even for root.
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    names = {
        "HF_HOME": ["HF_HOME"],
        "all of a home": ["HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR"],
        "single caches": ["HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_METRICS_CACHE", "MPLCONFIGDIR"],
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "MPL", "XDG"))}
    environment |= {name: str(nowhere / name) for name in names[kind]}
    argv = [sys.executable, "-c", WORK, tiny_pipeline, tiny_npz, tmp_path]
    done = subprocess.run(argv, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "classifier" / "results.json").is_file()
    # In one line, once: what is named by a variable and cannot be used.
    told = f"TORCHINDUCTOR_CACHE_DIR={nowhere / 'TORCHINDUCTOR_CACHE_DIR'} cannot be made (Not a directory): "
    assert done.stderr.count(told) == (kind == "all of a home")


@pytest.mark.parametrize("place", ["file", "file/none", "/dev/null/hub"])
def test_embedder_of_the_hub_says_which_folder_cannot_be_written(place, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / place))
    with pytest.raises(InputError, match=r"fetched, since the cache .+ cannot be written \(.+\): set HF_HOME"):
        load_embedder("somebody/model")


def test_no_folder_for_temporary_files(monkeypatch, capsys):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(program.tempfile, "gettempdir", none)
    with pytest.raises(SystemExit) as ended:
        program.require_temporary_folders()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: no folder for temporary files can be written: make room in /tmp, or set TMPDIR to another folder\n"
    )
