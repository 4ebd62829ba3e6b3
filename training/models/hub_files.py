"""Folders of trained models and of sets, given by a path or by an id on the Hub: what is fetched is never run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from histodistill.hub_cards.set_record import SET_RECORD
from histodistill.training.data.names import can_be_hub_id, shown
from histodistill.training.running.errors import InputError, param, reason_of
from histodistill.training.running.hub_cache import cache_problem


def model_folder(name_or_path: str | Path, option: str, what: str, files: Sequence[str]) -> Path:
    """The folder itself, or that of the Hugging Face cache with some files of a repository of the Hub.

    Args:
        name_or_path: A folder, or, where there is none of that name, the id of a model on the Hub.
        option: The option that it was given for.
        what: What it must be, for messages, such as "pipeline".
        files: The only files of a repository that are fetched, by their places in it: configurations and weights as
            safetensors.

    Raises:
        InputError: If it is neither, or cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    return _folder(name_or_path, option, what, lambda name: snapshot_download(name, allow_patterns=list(files)))


def set_folder(name_or_path: str | Path, option: str, fetch: Callable[[str], str | Path] | None = None) -> Path:
    """The folder of a distilled set itself, or that of the Hugging Face cache with its tables, record and card.

    Args:
        name_or_path: A folder, or, where there is none of that name, the id of a dataset on the Hub.
        option: The option that it was given for.
        fetch: What fetches such an id in another way, and returns the folder.

    Raises:
        InputError: If it is neither, or cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    patterns = ["README.md", SET_RECORD, "data/*.parquet"]
    return _folder(
        name_or_path,
        option,
        "distilled set",
        fetch or (lambda name: snapshot_download(name, repo_type="dataset", allow_patterns=patterns)),
    )


def _folder(name_or_path: str | Path, option: str, what: str, fetch: Callable[[str], str | Path]) -> Path:
    """The folder itself, or what fetches an id of the Hub returns."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    name, remedy = str(name_or_path), f"give the folder of a {what} or its id on the Hub, user/name"
    if Path(name).is_dir():
        return Path(name)
    # Where there is a folder `user`, a path in it was meant.
    if Path(name).exists() or not can_be_hub_id(name) or Path(name).parent.is_dir():
        raise InputError(f"{param(option)} {shown(name)} is no folder: {remedy}")
    try:
        return Path(fetch(name))
    except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:  # ValueError: ids that the Hub refuses
        reason = cache_problem() or f"the Hub says: {shown(reason_of(error))}"
        raise InputError(
            f"{param(option)} {name} is no folder and cannot be fetched from the Hub, since {reason}: check the name "
            "and the network, and for what is private `hf auth login`"
        ) from error
