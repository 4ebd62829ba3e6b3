"""Whose encoders a result was made with, and by what licence: some licences bind what is made with a model.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from histodistill.training.models.architectures import ARCHITECTURES, PROBE, SCRATCH, TIMM
from histodistill.training.models.encoder_names import BUILT_IN, OWN_ENCODERS, encoder_label, is_of_histodistill
from histodistill.training.running.notes import tell
from histodistill.training.running.options import require
from histodistill.training.running.stages import read_record


#: What an encoder did, by the word for it in a record.
USES = {
    "selection": "embedded the images for the selection",
    "copies": "looked for copies of real tiles",
    "soft_labels": "is in the classifier that gave the soft labels",
}


def encoder_records(
    names: Iterable[str | Path], use: str, licence: str | None = None, beside: Iterable[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """What a stage's record says of the encoders from elsewhere that it used.

    Args:
        names: Of embedders, or of architectures; those of a run or of this project are left out.
        use: A key of `USES`.
        licence: What the user says the licence is; by default what the model's own card says.
        beside: Records that come first, whose encoders and uses are not told twice.

    Returns:
        For each encoder `use`, `name`, without a path, and `license`, None where it is not known.
    """
    records = list(beside)
    for name in map(str, names):
        model = name.removeprefix(PROBE)
        if model in (*ARCHITECTURES, *OWN_ENCODERS, *BUILT_IN) or name.startswith(SCRATCH):
            continue
        if Path(model).is_dir() and is_of_histodistill(Path(model)):
            # One of this project may have been made with others, and then does what they do.
            found = [{**record, "use": use} for record in (read_record(Path(model)) or {}).get("encoders", ())]
        else:
            found = [{"use": use, "name": encoder_label(model), "license": licence or licence_of(model)}]
        records += [record for record in found if record not in records]
    return records


def for_cards(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Such records as cards take them: `use` says what the encoder did, in words, and none comes twice."""
    found: list[dict[str, Any]] = []
    for record in records:
        told = {**record, "use": USES[record["use"]]}
        if told not in found:
            found.append(told)
    return found


def tell_licences(records: Iterable[dict[str, Any]]) -> None:
    """Tells by what licences the encoders of some records may be used, and that it is for the user to look at them."""
    for name, licence in dict.fromkeys((record["name"], record["license"]) for record in records):
        tell(licence_sentence(name, licence))


def licence_sentence(name: str, licence: str | None) -> str:
    """What is to be known of something that was made with an encoder, for its maker."""
    whose = f"whose licence is {licence}" if licence else "whose licence is not known (its page says it)"
    return f"made with {name}, {whose}; whether it binds this set is for you to check"


def check_licence(option: str, licence: str | None) -> None:
    """Raises `InputError` for a licence that is no identifier."""
    from histodistill.hub_cards.names import is_license_id

    rule = "it must be an identifier of the Hub, such as cc-by-4.0"
    require(licence is None or is_license_id(licence), option, licence, rule)


def licence_of(name: str | Path) -> str | None:
    """The licence of a model by its own card, the README.md beside it or on the Hub; None where that says none.

    Args:
        name: A folder, a Hub id, or either after `timm:`.
    """
    from huggingface_hub import hf_hub_download, metadata_load

    from histodistill.hub_cards.names import is_license_id

    model = str(name).removeprefix(TIMM)
    is_from_timm = model != str(name) and "/" not in model
    try:
        card = Path(model) / "README.md"
        if not Path(model).is_dir():
            card = Path(hf_hub_download(f"timm/{model}" if is_from_timm else model, "README.md"))
        metadata = metadata_load(card) or {}
    except Exception:  # of any kind: without a card, or a network, nothing is known
        return None
    found = metadata.get("license")
    if found == "other":
        found = metadata.get("license_name") or found
    text = str(found).lower()
    return text if isinstance(found, str) and is_license_id(text) else None
