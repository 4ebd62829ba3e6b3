"""Names of architectures and encoders as records and tables have them: without a path of this machine.

Nothing here imports torch.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from histodistill.training.models.architectures import ARCHITECTURES, PROBE, SCRATCH, TIMM, split_architecture
from histodistill.training.running.errors import InputError, one_line, param
from histodistill.training.running.files import read_json, sha256_of
from histodistill.training.running.stages import read_record


#: The encoder that is the run's own teacher.
TEACHER = "teacher"
#: Encoders of the run itself, which stand for the folders of the same names in it.
OWN_ENCODERS = ("autoencoder", TEACHER)
#: The encoder with random weights, which needs no training and no files.
UNTRAINED = "untrained"
#: Networks of two architectures with random weights, for selections.
UNTRAINED_SEVERAL = "untrained_several"
#: Encoders that only look at colours, which need neither.
COLOURS = ("mean_colour", "colour_histogram")
#: All that the package brings along.
BUILT_IN = (UNTRAINED, UNTRAINED_SEVERAL, *COLOURS)
#: Side in pixels to which larger tiles are brought for it: of tiles of 224 px, the network as it is would take 15
#: times as long, with each image in eight symmetries.
UNTRAINED_SIDE = 64
#: The same for autoencoders where tiles are searched for copies: of 224 px, whole tiles would take as much time again
#: as all else of an audit.
SEARCHED_SIDE = 64
# A model of the Hub, with or without its owner.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
# What a folder says that it holds, in characters that may stand in a name.
_KIND = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
# Hexadecimal digits of the hash by which a folder is known.
_DIGITS = 8
_PUBLISHED = re.compile(rf"({PROBE}|{SCRATCH})?({TIMM})?{_HUB_ID.pattern}", re.ASCII)


def architecture_label(architecture: str, run: Path | None = None) -> str:
    """What records and tables call an architecture: for a folder, what it holds, and not where it is.

    Args:
        architecture: See `architectures`.
        run: The folder of the run, whose own encoders go by their names.

    Returns:
        One of `ARCHITECTURES`; or `MODEL`, `scratch:MODEL` or `probe:ENCODER`, with a Hub id, `untrained`, one of
        `COLOURS`, `autoencoder` or `teacher` of the run, or for any other folder its kind and the beginning of a hash
        of what it holds, such as `dinov2-1f0c3a9e`.

    Raises:
        InputError: For a path where there is no folder.
    """
    if architecture in ARCHITECTURES:
        return architecture
    prefix, model = split_architecture(architecture)
    if prefix == PROBE and run is not None:
        for name in OWN_ENCODERS:
            if model == name or (Path(model).is_dir() and Path(model).resolve() == (run / name).resolve()):
                return prefix + name
    if prefix == PROBE and model in BUILT_IN:
        return architecture
    try:
        return prefix + encoder_label(model)
    except InputError as error:
        raise InputError(f"{param('architecture')}={one_line(architecture)}: {error.marked()}") from error


def encoder_label(model: str) -> str:
    """What records call a model from elsewhere: its Hub id; or for a folder its kind, and the beginning of a hash.

    Args:
        model: A folder, a Hub id, or either after `timm:`.

    Raises:
        InputError: For a path where there is no folder.
    """
    name = model.removeprefix(TIMM)
    if Path(name).is_dir():
        return _folder_label(Path(name).resolve())
    if not _HUB_ID.fullmatch(name):
        raise InputError(
            f"there is no folder {one_line(name)}, and no model of the Hub is called so: give the folder or Hub id of "
            "a model"
        )
    return model


def resolved_architecture(architecture: str, run: Path | None) -> str:
    """The architecture with the folder of the run where it names one of its own encoders; as it is without a run."""
    prefix, model = split_architecture(architecture)
    is_own = prefix == PROBE and model in OWN_ENCODERS
    return f"{prefix}{run / model}" if is_own and run is not None else architecture


def is_architecture_label(text: str) -> bool:
    """Whether a text can be what `architecture_label` returns, and so stand on a card."""
    if text in ARCHITECTURES:
        return True
    prefix, model = split_architecture(text)
    return bool(_PUBLISHED.fullmatch(text)) and (bool(prefix) or "/" in model or "-" in model)


def is_encoder_label(text: str) -> bool:
    """Whether a text can be what `encoder_label` returns, and so stand on a card."""
    return bool(_HUB_ID.fullmatch(text.removeprefix(TIMM)))


def label_as_file_name(label: str) -> str:
    """A label as part of a file's name; labels that differ have names that differ."""
    if label in ARCHITECTURES:
        return label
    plain = re.sub(r"[^\w.]+", "-", label)[:80]
    return f"{plain}-{hashlib.sha256(label.encode()).hexdigest()[:_DIGITS]}"


def _folder_label(folder: Path) -> str:
    files = [file for file in sorted(folder.glob("*")) if file.suffix in (".json", ".safetensors")]
    files = [file for file in files if file.name not in ("stage.json", "results.json")]
    digest = _digest_of(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))
    return f"{_kind_of(folder)}-{digest[:_DIGITS]}"


@functools.cache
def _digest_of(files: tuple[tuple[Path, int, int], ...]) -> str:
    """SHA-256 of files with their names, which are read again where size or time has changed."""
    return hashlib.sha256("".join(f"{file.name}\0{sha256_of(file)}\0" for file, _, _ in files).encode()).hexdigest()


def is_of_histodistill(folder: Path) -> bool:
    """Whether a folder holds a classifier of this project, or an autoencoder of one of its runs."""
    kind = _kind_of(folder)
    if kind != "autoencoder":
        return kind == "classifier"
    # As a training leaves it, or within a pipeline; where it comes from elsewhere, the run's own records say so.
    return any(read_record(place) is not None for place in (folder, folder.parent))


def is_own_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a `Classifier` of this project."""
    # The key `architecture` alone does not tell: timm's models, which transformers loads, have it, too.
    return {"architecture", "class_names"} <= config.keys()


def _kind_of(folder: Path) -> str:
    """What a folder says that it holds, in a word."""
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError):
        return "model"
    if not isinstance(config, dict):
        return "model"
    if str(config.get("_class_name")).startswith("Autoencoder"):
        return "autoencoder"
    if is_own_classifier(config):
        return "classifier"
    kind = str(config.get("model_type") or config.get("architecture"))
    return kind if _KIND.fullmatch(kind) else "model"
