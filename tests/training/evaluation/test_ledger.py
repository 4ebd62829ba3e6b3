from __future__ import annotations

import copy
from typing import Any

import pytest

from histodistill.hub_cards.documents import check_document
from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.privacy_ledger import LEDGER_STEPS, OFF, Ledger
from histodistill.training.evaluation.ledger import check_ledger, make_ledger, write_ledger
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json


# What a training under differential privacy records.
SPENT = {"epsilon": 3.99, "delta": 1e-3, "unit": "patient", "num_units": 90, "accountant": "prv, opacus 1.6.0"}
RECORDS: dict[str, dict[str, Any]] = {
    "autoencoder": {"settings": {"stage": "autoencoder", "data": "public"}},
    "pipeline": {
        "settings": {"stage": "diffusion", "data": "real", "autoencoder": "of autoencoder", "dp_epsilon": 4.0},
        "privacy": {**SPENT, "autoencoder": "public"},
    },
    "pool": {"settings": {"stage": "pool", "pipeline": "of pipeline"}},
    "teacher": {"settings": {"stage": "classifier", "architecture": "convnet"}, "of_pool": "of pool"},
    "distilled": {
        "settings": {
            "stage": "distilled", "pool": "of pool", "teacher": "of teacher", "embedder": "untrained",
            "drop_copies": False, "typical_share": None,
        }
    },
}  # fmt: skip


def write_run(folder, changes=()) -> None:
    """The records of a run, changed at some places: path of keys → value."""
    records = copy.deepcopy(RECORDS)
    for (*path, last), value in dict(changes).items():
        place = records
        for key in path:
            place = place[key]
        place[last] = value
    write_json(folder / "run.json", {"format": 1, "data": "toy", "settings": {}})
    for name, record in records.items():
        bare = {"complete": True, "seconds": 1.0, "fingerprint": f"of {name}"}
        write_json(folder / name / "stage.json", bare | record)


def test_ledger_adds_up_what_the_steps_have_spent(tmp_path):
    write_run(tmp_path)
    ledger = make_ledger(tmp_path)
    assert (ledger.unit, ledger.num_units, ledger.epsilon, ledger.delta) == ("patient", 90, 4.0, 1e-3)
    assert [step.step for step in ledger.steps] == list(LEDGER_STEPS) and ledger.off == list(OFF)
    assert [step.epsilon for step in ledger.steps] == [0, 3.99, 0, 0, 0]
    assert [step.delta for step in ledger.steps] == [0, 1e-3, 0, 0, 0]
    assert ledger.composition == "basic"
    assert ledger.sentences()[:3] == [
        "Autoencoder: made of public tiles, which spends nothing.",
        "Denoiser: made of training tiles by DP-SGD, ε = 3.99, δ = 0.001 (reckoned by Opacus, by privacy loss "
        "distributions).",
        "Pool of images: made of weights of the denoiser, which spends nothing.",
    ]


def test_ledger_tells_of_central_images(tmp_path):
    write_run(tmp_path, {("pipeline", "privacy", "central_images"): {"noise_multiplier": 9.0}})
    said = make_ledger(tmp_path).sentences()[1]
    assert said.startswith("Denoiser: made of training tiles by DP-SGD after central images, ε = 3.99, δ = 0.001 (")


def test_ledger_is_written_once_and_checked(tmp_path):
    write_run(tmp_path)
    ledger = write_ledger(tmp_path)
    assert check_document(read_json(tmp_path / "run.json")["privacy"], Ledger) == ledger
    before = (tmp_path / "run.json").stat().st_mtime_ns
    assert write_ledger(tmp_path) == ledger and (tmp_path / "run.json").stat().st_mtime_ns == before
    check_ledger(tmp_path, ledger)
    with pytest.raises(InputError, match="claims other spendings than the steps have recorded"):
        check_ledger(tmp_path, ledger.model_copy(update={"epsilon": 3.995}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({("autoencoder", "settings", "data"): "real"}, "the autoencoder is not of public tiles; make it anew"),
        ({("pipeline", "privacy"): {}}, "the denoiser was trained without"),
        ({("pipeline", "settings", "align"): "x"}, "the denoiser was aligned with a classifier"),
        ({("pipeline", "settings", "autoencoder"): "x"}, "the denoiser is of another autoencoder"),
        ({("pool", "settings", "pipeline"): "x"}, "the pool is of another denoiser"),
        ({("teacher", "of_pool"): None}, "the teacher saw other tiles than the images of the pool"),
        ({("teacher", "settings", "architecture"): "a/b"}, "the teacher begins from weights from elsewhere"),
        ({("distilled", "settings", "pool"): "x"}, "the selection is of another pool"),
        ({("distilled", "settings", "teacher"): "x"}, "the selection is of another teacher"),
        ({("distilled", "settings", "drop_copies"): True}, r"the selection goes by real tiles \(drop_copies\)"),
        ({("distilled", "settings", "typical_share"): 0.9}, r"the selection goes by real tiles \(typical_share\)"),
        ({("distilled", "settings", "embedder"): "a/b"}, "the selection goes by features that may know real tiles"),
        ({("pipeline", "privacy", "epsilon"): 4.1}, "spends more epsilon than there is"),
        ({("pipeline", "privacy", "autoencoder"): SPENT}, "the autoencoder is not of public tiles"),
        ({("pipeline", "privacy", "unit"): "P-0042"}, "holds something unknown"),
        ({("teacher", "complete"): False}, "holds no finished teacher"),
    ],
)
def test_what_is_outside_the_budget_has_no_ledger(tmp_path, changes, message):
    write_run(tmp_path, changes)
    with pytest.raises(InputError, match=message):
        write_ledger(tmp_path)
    assert "privacy" not in read_json(tmp_path / "run.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"composition": "none"},
        {"unit": "Mueller"},
        {"off": ["anything"]},
        {"epsilon": 0.0},
        {"steps": []},
        {"note": "free text"},
    ],
)
def test_ledger_holds_names_of_lists_and_numbers_alone(tmp_path, changes):
    write_run(tmp_path)
    document = make_ledger(tmp_path).model_dump()
    assert check_document(document, Ledger)
    with pytest.raises(ContentError):
        check_document(document | changes, Ledger)
    steps = document["steps"]
    for wrong in ({"made_of": "training tiles"}, {"epsilon": 1.0}, {"step": "P-0042"}):
        with pytest.raises(ContentError):
            check_document(document | {"steps": [steps[0] | wrong, *steps[1:]]}, Ledger)
