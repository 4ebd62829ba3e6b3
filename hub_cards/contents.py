"""What of each part of a run may be published: built from checked values, never copied.

Takes the files of a part as `read_part` gives them, and returns those that go up. Where a part is as our stages write
it, these are the same bytes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from histodistill.hub_cards.documents import (
    SelectorDocument,
    read_config,
    read_model_index,
    read_selector_config,
    write_document,
    write_selector_config,
)
from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.part_files import PARTS, WEIGHTS
from histodistill.hub_cards.table_files import read_table, write_table
from histodistill.hub_cards.tables import DISTILLED, ImageTable, canonical
from histodistill.hub_cards.weights import (
    WEIGHTS_METADATA,
    check_selector_values,
    model_arrays,
    read_arrays,
    round_selector_values,
    selector_arrays,
    write_arrays,
)


@dataclass(frozen=True, repr=False)
class PipelineContent:
    """A checked pipeline.

    Attributes:
        files: Path → content, as it is published.
        class_names: Names of its classes.
        image_size: Side of its images in pixels.
        components: Component → its class.
        parameters: Component → number of its parameters, of those that have some.
    """

    files: dict[str, bytes]
    class_names: list[str]
    image_size: int
    components: dict[str, str]
    parameters: dict[str, int]


@dataclass(frozen=True, repr=False)
class SelectorContent:
    """A checked selector.

    Attributes:
        files: Path → content, as it is published.
        config: Its class and parameters.
        arrays: Name → array.
    """

    files: dict[str, bytes]
    config: SelectorDocument
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True, repr=False)
class SetContent:
    """A checked distilled set.

    Attributes:
        files: Path → content, as it is published.
        table: Its images and what is known of each, as it is published.
    """

    files: dict[str, bytes]
    table: ImageTable


@contextmanager
def about(folder: str | Path, name: str = "") -> Iterator[None]:
    """Makes a sentence of what is wrong with a file of a folder."""
    try:
        yield
    except ContentError as error:
        place = f"{folder}/{name}" if name else folder
        raise ContentError(f"{place} {error}: make it anew") from error


def _take(folder: str | Path, files: Mapping[str, bytes], name: str) -> bytes:
    if name not in files:
        raise ContentError(f"{folder} has no {name}: make it anew")
    return files[name]


def check_pipeline(folder: str | Path, files: Mapping[str, bytes], code: bytes) -> PipelineContent:
    """Sees that a pipeline is what our trainings make, and nothing else.

    Args:
        folder: Where it was read from, for messages.
        files: Its files, path → content.
        code: The file `pipeline.py` as it is published, whatever the run holds under that name: that of the class
            that is installed.

    Raises:
        ContentError: Names the file.
    """
    import diffusers

    with about(folder, "model_index.json"):
        index = read_model_index(_take(folder, files, "model_index.json"))
    published = {"model_index.json": index.written(), "pipeline.py": code}
    configs, parameters = {}, {}
    for name, class_name in index.components.items():
        path = f"{name}/{'scheduler_config' if name == 'scheduler' else 'config'}.json"
        component = getattr(diffusers, class_name)
        data = _take(folder, files, path)
        with about(folder, path):
            configs[name] = read_config(data, component)
            published[path] = write_document(configs[name])
            if name == "scheduler":
                continue
            expected = model_arrays(component, configs[name])
        path = f"{name}/{WEIGHTS}"
        data = _take(folder, files, path)
        with about(folder, path):
            published[path] = write_arrays(read_arrays(data, expected, WEIGHTS_METADATA), WEIGHTS_METADATA)
        parameters[name] = sum(math.prod(spec.shape) for spec in expected.values())
    with about(folder):
        if index.skip_noise and configs["scheduler"]["prediction_type"] != "sample":
            raise ContentError("holds a skip connection that its scheduler does not go with")
        image_size = _image_size(configs["unet"], configs["vae"], len(index.class_names))
    return PipelineContent(published, index.class_names, image_size, index.components, parameters)


def _image_size(unet: Mapping[str, Any], vae: Mapping[str, Any], num_classes: int) -> int:
    """Side of the images. Raises ContentError where denoiser, autoencoder and classes do not fit each other."""
    channels = vae["latent_channels"]
    if (unet["in_channels"], unet["out_channels"], unet["num_class_embeds"]) != (channels, channels, num_classes + 1):
        raise ContentError("holds a denoiser, an autoencoder and classes that do not fit each other")
    # Every level after the first halves the side; of an AutoencoderKL encoder and decoder are as wide.
    widths = vae["encoder_block_out_channels" if "encoder_block_out_channels" in vae else "block_out_channels"]
    return unet["sample_size"] * 2 ** (len(widths) - 1)


def check_selector(
    folder: str | Path, files: Mapping[str, bytes], chosen: ImageTable, pool_size: int
) -> SelectorContent:
    """Sees that a selector holds what its class has, and nothing else.

    Args:
        folder: Where it was read from, for messages.
        files: Its files, path → content.
        chosen: The distilled set, which it chose.
        pool_size: Images of the pool.

    Raises:
        ContentError: Names the file.
    """
    data, weights = _take(folder, files, "config.json"), _take(folder, files, "selector.safetensors")
    with about(folder, "config.json"):
        config = read_selector_config(data)
        if config.arrays_sha256 != hashlib.sha256(weights).hexdigest():
            raise ContentError("was not saved with the arrays beside it")
    with about(folder, "selector.safetensors"):
        arrays = read_arrays(weights, selector_arrays(config, len(chosen.class_names), pool_size), None)
        arrays = round_selector_values(arrays)
        check_selector_values(arrays, pool_size)
        if len(arrays["selected_indices_"]) != len(chosen):
            raise ContentError("holds the choice of other images than those of the distilled set")
    payload = write_arrays(arrays, None)
    published = {
        "config.json": write_selector_config(config, hashlib.sha256(payload).hexdigest()),
        "selector.safetensors": payload,
    }
    return SelectorContent(published, config, arrays)


def check_set(folder: str | Path, files: Mapping[str, bytes]) -> SetContent:
    """Sees that a distilled set is a table of images and known columns, and nothing else.

    Args:
        folder: Where it was read from, for messages.
        files: Its files, path → content.

    Raises:
        ContentError: Names the file.
    """
    (path,) = PARTS["distilled"].published
    data = _take(folder, files, path)
    with about(folder, path):
        table = canonical(read_table(data, DISTILLED))
        return SetContent({path: write_table(table)}, table)
