"""The arrays that are published: weights of models, and what a selector chose.

Which there may be, of what type and shape, is known beforehand: of a model from its class and configuration, of a
selector from its class and the sizes of the run. What goes up is written anew from the checked arrays.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from histodistill.hub_cards.documents import SelectorDocument, parse_json
from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.part_files import shown
from histodistill.hub_cards.tables import round_significant


if TYPE_CHECKING:
    from diffusers import ModelMixin

#: What a file of weights may say of itself.
WEIGHTS_METADATA = {"format": "pt"}
# What a configuration that fits no model can raise, deep in diffusers and torch.
_MODEL_ERRORS = (
    ValueError,
    TypeError,
    RuntimeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    NotImplementedError,
)
# Rounding of sums of shares that add up to 1: each has `SIGNIFICANT_DIGITS`.
_TOLERANCE = 1e-3
# The least value of a number of a selector that is not 0.
_LEAST_VALUE = 1e-12


class ArraySpec(NamedTuple):
    """What is known of an array.

    Attributes:
        dtype: Name of its type, as NumPy has it.
        shape: Its shape.
    """

    dtype: str
    shape: tuple[int, ...]


def model_arrays(model: type[ModelMixin], config: Mapping[str, Any]) -> dict[str, ArraySpec]:
    """The weights that a model of this configuration has, by name. None are made: the model stands on no device.

    Args:
        model: A class of diffusers.
        config: As `read_config` gives it.

    Raises:
        ContentError: If there is no such model.
    """
    import torch

    known = inspect.signature(model.__init__).parameters  # without notes, such as the version of diffusers
    try:
        with torch.device("meta"):
            weights = model.from_config({name: config[name] for name in config if name in known}).state_dict()
    except _MODEL_ERRORS as error:
        raise ContentError(f"describes no {model.__name__} ({shown(error)})") from error
    # float32, but for the counters of batch norms.
    return {
        name: ArraySpec(str(each.dtype).removeprefix("torch."), tuple(each.shape)) for name, each in weights.items()
    }


def read_arrays(data: bytes, expected: Mapping[str, ArraySpec], metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """The arrays of a safetensors file, all of them expected ones.

    Args:
        data: The file.
        expected: What it must hold, and nothing else.
        metadata: What it must say of itself; None for nothing.

    Returns:
        Name → array, finite.

    Raises:
        ContentError: For another array, type, shape or text, bytes that belong to no array, NaN or infinity.
    """
    length = int.from_bytes(data[:8], "little")
    header = parse_json(data[8 : 8 + length]) if 8 + length <= len(data) else None
    if not isinstance(header, dict) or header.pop("__metadata__", None) != metadata:
        raise ContentError("holds something else than arrays")
    if stranger := sorted(header.keys() - expected.keys()):
        raise ContentError(f"holds the array {shown(stranger[0])}, which is not known")
    if missing := sorted(expected.keys() - header.keys()):
        raise ContentError(f"has no array {missing[0]}")
    try:
        arrays = load(data)  # refuses bytes between, before and after the arrays
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ContentError(f"holds something else than arrays ({shown(error)})") from error
    for name, array in arrays.items():
        found = ArraySpec(str(array.dtype), array.shape)
        if found != expected[name]:
            raise ContentError(f"holds the array {name} as {_text(found)}: it must be {_text(expected[name])}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ContentError(f"holds the array {name} with values that are no numbers")
    return arrays


def write_arrays(arrays: Mapping[str, Any], metadata: Mapping[str, str] | None) -> bytes:
    """The safetensors file of arrays: the same arrays give the same bytes."""
    return save(dict(arrays), None if metadata is None else dict(metadata))


def _text(spec: ArraySpec) -> str:
    return f"{spec.dtype} of shape {spec.shape}"


def selector_arrays(config: SelectorDocument, num_classes: int, pool_size: int) -> dict[str, ArraySpec]:
    """The arrays that a fitted selector has: choices and communities, nothing of N×D numbers.

    Args:
        config: Of the selector.
        num_classes: Classes C of the pool.
        pool_size: Images N of the pool.
    """
    arrays = {
        "classes_": ArraySpec("int64", (num_classes,)),
        "selected_indices_": ArraySpec("int64", (num_classes * config.params.n_per_class,)),
    }
    if config.class_name == "DistillSelector":
        for name, dtype in (("module_labels_", "int64"), ("modular_centrality_", "float64"), ("flow_", "float64")):
            arrays[name] = ArraySpec(dtype, (pool_size,))
        arrays["codelength_"] = ArraySpec("float64", (num_classes,))
        arrays["num_communities_"] = ArraySpec("int64", (num_classes,))
    elif config.class_name == "FacilityLocationSelector":
        arrays["mean_distance_"] = ArraySpec("float64", (num_classes,))
    elif config.class_name == "KernelRidgeSelector":
        arrays["error_"] = ArraySpec("float64", (num_classes,))
    return arrays


def check_selector_values(arrays: Mapping[str, np.ndarray], pool_size: int) -> None:
    """Sees that the values of a selector's arrays are what they can be.

    Args:
        arrays: Of the shapes of `selector_arrays`.
        pool_size: Images of the pool.

    Raises:
        ContentError: Names the array.
    """
    classes, chosen = arrays["classes_"], arrays["selected_indices_"]
    rules = {
        "classes_": (classes == np.arange(len(classes))).all(),
        "selected_indices_": _within(chosen, 0, pool_size - 1) and len(np.unique(chosen)) == len(chosen),
        "mean_distance_": _within(arrays.get("mean_distance_"), 0, np.inf),
        "error_": _within(arrays.get("error_"), 0, np.inf),
        "codelength_": _within(arrays.get("codelength_"), 0, 64),
        "num_communities_": _within(arrays.get("num_communities_"), 0, pool_size),
    }
    if "num_communities_" in arrays:
        found = int(arrays["num_communities_"].sum())
        rules |= {
            "module_labels_": _within(arrays["module_labels_"], -1, found - 1),
            # -p y log2(y) with p and y up to 1.
            "modular_centrality_": _within(arrays["modular_centrality_"], 0, 0.6),
            "flow_": _within(arrays["flow_"], 0, 1) and arrays["flow_"].sum() <= len(classes) + _TOLERANCE,
        }
    for name, holds in rules.items():
        if not holds:
            raise ContentError(f"holds the array {name} with values that it cannot have")


def round_selector_values(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A selector's arrays with numbers that are not whole rounded, as in tables; what is rounded stays as it is."""
    return {name: _round(array) if array.dtype.kind == "f" else array for name, array in arrays.items()}


def _round(values: np.ndarray) -> np.ndarray:
    return round_significant(np.where(np.abs(values) < _LEAST_VALUE, 0, values))


def _within(values: np.ndarray | None, low: float, high: float) -> bool:
    return values is None or bool(((values >= low) & (values <= high)).all())
