"""What a user can mistype is told before libraries are imported that take seconds."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest


#: What takes seconds to import.
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "datasets", "matplotlib", "sklearn", "scipy", "faiss")
TRAIN = ("--output", "o")
#: The words of a command, and what its sentence holds.
MISTAKES = [
    (["distill", "--data", "/nowhere", "--output", "o"], "/nowhere does not exist: a source is phantom, one of"),
    (
        ["distill", "--data", "pathmnst", "--output", "o"],
        "pathmnst does not exist (did you mean pathmnist?): a",
    ),
    (
        ["distill", "--data", "note.txt", "--output", "o"],
        "note.txt is neither a folder nor a .npz, .csv, .tsv or .parquet file",
    ),
    (["distill", "--data", "empty", "--output", "o"], "empty is empty: tiles are expected as empty/train/CLASS/*.png"),
    (["distill", "--data", "bad.npz", "--output", "o"], "bad.npz has no array 'train_images'"),
    (
        ["distill", "--data", "phantom", "--output", "o", "--preset", "gpuu"],
        "--preset=gpuu is unknown (did you",
    ),
    (["distill", "--data", "phantom", "--output", "note.txt"], "--output=note.txt is not a run and not empty"),
    (["distill", "--data", "phantom", "--output", "note.txt/o"], "--output=note.txt/o cannot be written (Not a dir"),
    (["distill", "--data", "phantom", "--output", "o", "--set", "select.n_per_clas=3"], "(did you mean n_per_class?)"),
    (["train", "autoencoder", "--data", "/nowhere", *TRAIN], "/nowhere does not exist"),
    (["train", "classifier", "--data", "bad.npz", *TRAIN], "bad.npz has no array 'train_images'"),
    (["train", "classifier", "--data", "phantom", *TRAIN, "--architecture", "resnet"], "(did you mean resnet18?)"),
    (["train", "diffusion", "--data", "phantom", "--autoencoder", "a", *TRAIN], "a holds no finished autoencoder"),
    (["generate", "--pipeline", "p", "--output", "o"], "p holds no finished pipeline"),
    (["select", "--pool", "p", "--teacher", "t", "--output", "o"], "p holds no finished pool"),
    (["audit", "r", "--data", "phantom"], "r/pipeline holds no finished pipeline"),
    (["compare", "r", "--data", "phantom"], "r/distilled holds no finished distilled set"),
    (["evaluate-pool", "r", "--data", "phantom"], "r/pool holds no finished pool"),
    (["benchmark", "r", "--data", "phantom"], "r/pool holds no finished pool"),
    (["publish", "r", "--namespace", "me"], "r/distilled holds no finished distilled set"),
    (["report", "r"], "r/distilled holds no image dataset"),
    (["merge", "a", "b", "--output", "o"], "a is no site"),
]
PROGRAM = f"""
import contextlib, io, json, sys
from histodistill.training.cli import main
found = []
for argv in json.loads(sys.argv[1]):
    text, code = io.StringIO(), None
    with contextlib.redirect_stderr(text):
        try:
            main(argv)
        except SystemExit as stop:
            code = stop.code
    found.append([code, text.getvalue(), [name for name in {HEAVY!r} if name in sys.modules]])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> list:
    """Exit code, sentence and heavy imports of each of `MISTAKES`, one after the other in one process."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "empty").mkdir()
    (folder / "note.txt").write_text("no tiles")
    np.savez(folder / "bad.npz", images=np.zeros((2, 8, 8, 3), np.uint8))
    command = [sys.executable, "-c", PROGRAM, json.dumps([argv for argv, _ in MISTAKES])]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert sorted(path.name for path in folder.iterdir()) == ["bad.npz", "empty", "note.txt"]
    return json.loads(done.stdout)


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=lambda number: " ".join(MISTAKES[number][0])[:70])
def test_a_mistake_is_told_at_once(number, told):
    code, sentence, imported = told[number]
    assert code == 2
    assert sentence.startswith("error: ") and sentence.count("\n") == 1
    assert MISTAKES[number][1] in sentence
    assert imported == []
