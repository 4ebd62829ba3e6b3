"""Differential privacy of a whole run: what its steps have spent, from the records that they left.

A ledger is made of these records alone, and so whoever holds the run can make it again: `publish` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from histodistill.hub_cards.card_facts import ARCHITECTURES
from histodistill.hub_cards.documents import check_document
from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.privacy_ledger import GENERATED, OFF, PUBLIC, TRAINING, WEIGHTS, Ledger
from histodistill.training.models.encoder_names import BUILT_IN
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json
from histodistill.training.running.stages import require_complete


# The folder of each step that a ledger tells of, what its stage makes, and which command makes it.
_STEPS = {
    "autoencoder": ("autoencoder", "autoencoder"),
    "denoiser": ("pipeline", "pipeline"),
    "pool": ("pool", "pool"),
    "teacher": ("teacher", "teacher"),
    "selection": ("distilled", "distilled set"),
}


def make_ledger(run: Path) -> Ledger:
    """What the steps of a run have spent, where each is within the budget that run.json states.

    Args:
        run: Folder of a run that `distill` made with `dp_epsilon`, up to its distilled set.

    Raises:
        InputError: If a step is not finished, looks at real tiles outside the budget, or the budget does not suffice.
    """
    records = {step: require_complete(run / folder, what, "make it first") for step, (folder, what) in _STEPS.items()}
    for step, is_within in _RULES:
        if reason := is_within(records):
            raise InputError(
                f"{run} is not all under differential privacy: the {step} {reason}; make it anew with histodistill "
                "distill, in another folder"
            )
    spent = records["denoiser"]["privacy"]
    of_denoiser = {name: spent[name] for name in ("epsilon", "delta")}
    mechanism = "DP-SGD after central images" if "central_images" in spent else "DP-SGD"
    of_denoiser |= {"mechanism": mechanism, "accountant": spent["accountant"].partition(",")[0]}
    steps = [
        {"step": "autoencoder", "made_of": PUBLIC},
        {"step": "denoiser", "made_of": TRAINING, **of_denoiser},
        {"step": "pool", "made_of": WEIGHTS},
        *({"step": step, "made_of": GENERATED} for step in ("teacher", "selection")),
    ]
    document = {
        "unit": spent["unit"],
        "num_units": spent["num_units"],
        "epsilon": records["denoiser"]["settings"]["dp_epsilon"],
        "delta": spent["delta"],
        "composition": "basic",
        "steps": steps,
        "off": list(OFF),
    }
    try:
        return check_document(document, Ledger)
    except ContentError as error:
        raise InputError(f"what the steps of {run} say of differential privacy is not right ({error})") from error


def _of_denoiser(records: Mapping[str, Any]) -> str:
    record, autoencoder = records["denoiser"], records["autoencoder"]
    if "num_units" not in record.get("privacy", {}):
        return "was trained without"
    if record["settings"].get("align") is not None:
        return "was aligned with a classifier"
    is_its = record["settings"]["autoencoder"] == autoencoder["fingerprint"]
    return "" if is_its else "is of another autoencoder"


def _of_autoencoder(records: Mapping[str, Any]) -> str:
    denoiser = records["denoiser"]
    is_other = records["autoencoder"]["settings"]["data"] != denoiser["settings"]["data"]
    return "" if is_other and denoiser["privacy"]["autoencoder"] == "public" else "is not of public tiles"


def _of_pool(records: Mapping[str, Any]) -> str:
    is_its = records["pool"]["settings"]["pipeline"] == records["denoiser"]["fingerprint"]
    return "" if is_its else "is of another denoiser"


def _of_teacher(records: Mapping[str, Any]) -> str:
    record = records["teacher"]
    if record.get("of_pool") != records["pool"]["fingerprint"]:
        return "saw other tiles than the images of the pool"
    is_new = record["settings"].get("architecture") in ARCHITECTURES
    return "" if is_new else "begins from weights from elsewhere"


def _of_selection(records: Mapping[str, Any]) -> str:
    settings = records["selection"]["settings"]
    for name in ("pool", "teacher"):
        if settings[name] != records[name]["fingerprint"]:
            return f"is of another {name}"
    for name in ("drop_copies", "typical_share"):
        if settings.get(name):
            return f"goes by real tiles ({name})"
    if settings["embedder"] not in BUILT_IN:
        return "goes by features that may know real tiles"
    return ""


# Step → what of it is outside the budget, in words; empty where all is within.
_RULES: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
    ("denoiser", _of_denoiser),
    ("autoencoder", _of_autoencoder),
    ("pool", _of_pool),
    ("teacher", _of_teacher),
    ("selection", _of_selection),
]


def write_ledger(run: Path) -> Ledger:
    """Writes the ledger of a run into its run.json, where it is not there already.

    Raises:
        InputError: As for `make_ledger`.
    """
    ledger, path = make_ledger(run), run / "run.json"
    document, record = ledger.model_dump(), read_json(path)
    if record.get("privacy") != document:
        write_json(path, {**record, "privacy": document})
    return ledger


def check_ledger(run: Path, claimed: Ledger) -> None:
    """Sees that a run's steps have spent what its run.json says.

    Raises:
        InputError: If they have not, or one is outside the budget.
    """
    if make_ledger(run) != claimed:
        raise InputError(
            f"{run / 'run.json'} claims other spendings than the steps have recorded: run the same histodistill "
            "distill again, which writes it anew"
        )
