"""The rules by which the Hub accepts the YAML header of a card, as far as its documentation states them."""

from __future__ import annotations

import re
from typing import Any

import yaml


# https://huggingface.co/docs/hub/repositories-licenses: those that data and models of this kind come under.
LICENSES = {
    "apache-2.0", "mit", "openrail", "creativeml-openrail-m", "bsd-2-clause", "bsd-3-clause", "cc", "cc0-1.0",
    "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0",
    "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0",
    "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0",
    "gpl-3.0", "agpl-3.0", "lgpl-3.0", "mpl-2.0", "odbl", "odc-by", "pddl", "unknown", "other",
}  # fmt: skip
TASKS = {
    "image-classification", "unconditional-image-generation", "image-to-image", "text-to-image",
    "image-feature-extraction", "image-segmentation", "other",
}  # fmt: skip
SIZES = {
    "n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B", "10B<n<100B",
    "100B<n<1T", "n>1T",
}  # fmt: skip
SDKS = {"gradio", "docker", "static", "streamlit"}
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
_HEADER = re.compile(r"^---\r?\n(.*?)\r?\n---(\r?\n|$)", re.DOTALL)
_REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def read_header(text: str) -> dict[str, Any] | None:
    """The YAML header, None where there is none. Raises ValueError for one that is no mapping."""
    found = _HEADER.match(text)
    if not found:
        return None
    try:
        data = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        raise ValueError(f"the header is no YAML: {error}") from error
    if not isinstance(data, dict):
        raise ValueError("the header is no mapping")
    return data


def card_errors(text: str, kind: str) -> tuple[list[str], list[str]]:
    """Errors and warnings of a card of a "model", "dataset" or "space"."""
    try:
        data = read_header(text)
    except ValueError as error:
        return [str(error)], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    errors = [f'"{name}" must not be null' for name, value in data.items() if value is None]
    errors += _strings(data, "tags") + _strings(data, "datasets") + _strings(data, "task_categories")
    if "license" in data and not set(_listed(data["license"])) <= LICENSES:
        errors.append(f'"license" must be one of the known identifiers, not {data["license"]!r}')
    if data.get("license") == "other" and "license_name" not in data:
        errors.append('"license_name" must go with the license "other"')
    checks = {"space": _space_errors, "dataset": _dataset_errors, "model": _model_errors}
    return errors + checks[kind](data), []


def _space_errors(data: dict[str, Any]) -> list[str]:
    errors = []
    if data.get("sdk") not in SDKS:
        errors.append(f'"sdk" must be one of {sorted(SDKS)}')
    errors += [f'"{name}" must be one of {sorted(COLORS)}' for name in ("colorFrom", "colorTo") if name in data
               and data[name] not in COLORS]  # fmt: skip
    if len(data.get("short_description", "")) > 60:
        errors.append('"short_description" must have at most 60 characters')
    return errors


def _dataset_errors(data: dict[str, Any]) -> list[str]:
    errors = []
    if not set(_listed(data.get("size_categories", []))) <= SIZES:
        errors.append(f'"size_categories" must be of {sorted(SIZES)}')
    if not set(_listed(data.get("task_categories", []))) <= TASKS:
        errors.append('"task_categories" has an unknown task')
    for config in _listed(data.get("configs", [])):
        if not isinstance(config, dict) or "config_name" not in config:
            errors.append('"configs" must be mappings with config_name')
    for info in _listed(data.get("dataset_info", [])):
        features = info.get("features")
        if not isinstance(features, list) or not all("name" in feature for feature in features):
            errors.append('"dataset_info" must have named features')
    return errors


def _model_errors(data: dict[str, Any]) -> list[str]:
    errors = []
    if "pipeline_tag" in data and data["pipeline_tag"] not in TASKS:
        errors.append('"pipeline_tag" is an unknown task')
    if not isinstance(data.get("library_name", ""), str):
        errors.append('"library_name" must be a string')
    for model in _listed(data.get("model-index", [])):
        if not isinstance(model.get("name"), str):
            errors.append('"model-index[0].name" must be a string')
        for result in model.get("results", []):
            errors += _result_errors(result)
    return errors


def _result_errors(result: dict[str, Any]) -> list[str]:
    errors = []
    if not isinstance(result.get("task", {}).get("type"), str):
        errors.append('"model-index[0].results[0].task.type" is required')
    dataset = result.get("dataset", {})
    if not isinstance(dataset.get("name"), str) or not _REPO_ID.fullmatch(str(dataset.get("type", ""))):
        errors.append('"model-index[0].results[0].dataset" needs a name and a type that is a dataset id')
    metrics = result.get("metrics", [])
    if not metrics or not all(isinstance(m.get("type"), str) and m.get("value") is not None for m in metrics):
        errors.append('"model-index[0].results[0].metrics" need type and value')
    return errors


def _strings(data: dict[str, Any], name: str) -> list[str]:
    values = _listed(data.get(name, []))
    return [] if all(isinstance(value, str) for value in values) else [f'"{name}" must be strings']


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
