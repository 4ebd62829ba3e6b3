"""Metrics as `evaluate` modules that travel with the package: one folder each, with its script and its card.

They are loaded from where the package is installed, so no network is needed. Each folder can also be given to
`evaluate.load(metric_folder(name))`, or be uploaded as it is. This room imports nothing of the others.
"""

from __future__ import annotations

import importlib
import inspect
import tempfile
from pathlib import Path

import evaluate


__all__ = ["METRICS", "load_metric", "metric_folder"]


#: The metrics; each is the name of a folder.
METRICS = ("accuracy", "auroc_macro_ovr", "f1_macro")


def _check(name: str) -> None:
    if name not in METRICS:
        raise ValueError(f"metric {name!r} is unknown: it must be one of {', '.join(METRICS)}")


def metric_folder(name: str) -> Path:
    """The installed folder of a metric (script and card). Raises ValueError for an unknown name."""
    _check(name)
    return Path(__file__).resolve().parent / name


def load_metric(name: str) -> evaluate.Metric:
    """A new metric, one of `METRICS`, that keeps what it is given in memory. Raises ValueError for an unknown name."""
    _check(name)
    module = importlib.import_module(f"{__name__}.{name}.{name}")
    classes = inspect.getmembers(module, lambda item: inspect.isclass(item) and item.__module__ == module.__name__)
    (metric,) = [found for _, found in classes if issubclass(found, evaluate.Metric)]
    # A metric makes a folder for what it is given, by default in the Hugging Face cache, which may not be writable.
    with tempfile.TemporaryDirectory() as unused:
        return metric(keep_in_memory=True, cache_dir=unused)
