"""The repositories of a run as they are to be published: files and card of each, past the gate of the audit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from datasets import Features
from PIL import Image

from histodistill.hub_cards import (
    AuditError,
    AuditFacts,
    DistilledDatasetCardData,
    PipelineCardData,
    RunFacts,
    SelectorCardData,
    Upload,
    audit_sentences,
    check_audit,
    check_metadata,
    render_dataset_card,
    render_pipeline_card,
    render_selector_card,
)
from histodistill.hub_cards.uploading import is_allowed
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.data.images import make_grid, png_bytes
from histodistill.training.generate import PIPELINE_OPTIONS
from histodistill.training.models.embedders import describe_embedder
from histodistill.training.publishing.pushing import as_input_error
from histodistill.training.reporting.run_facts import public_name, read_run_facts, source_name
from histodistill.training.reporting.run_files import read_optional
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import read_json
from histodistill.training.running.stages import read_record, require_complete


# What the name of each repository ends with.
SUFFIXES = {"pipeline": "ldm", "selector": "selector", "dataset": "distilled"}
# The folder of a run that each repository is made of, and that its verdict is about.
PARTS = {"pipeline": "pipeline", "selector": "selector", "dataset": "distilled"}
# The picture of the pool's communities, which the repositories of the dataset and of the selector show.
MAP = "community_map.png"
# Images of a class in the picture of the distilled set, which fit side by side on a card.
GRID_COLUMNS = 10
# In pixels: to about this small images are enlarged in that picture.
_GRID_SIDE = 64
# Settings of `select` that say what an image of the pool had to pass.
_FILTERS = ("min_probability", "typical_share")
# What a selector may say in public: choices and communities, nothing of N×D numbers.
SELECTOR_ARRAYS = {
    "classes_", "selected_indices_", "module_labels_", "modular_centrality_", "flow_", "codelength_",
    "num_communities_", "mean_distance_",
}  # fmt: skip
# What cards call the number types of a safetensors file.
_DTYPES = {"I64": "int64", "I32": "int32", "F32": "float32", "F64": "float64"}


def collect_uploads(
    run: Path,
    namespace: str,
    kinds: Sequence[str] = tuple(PARTS),
    *,
    name: str | None = None,
    license: str | None = None,
    attribution: str | None = None,
    audit_file: Path | None = None,
    accept_risk: bool = False,
) -> list[Upload]:
    """The repositories of a run as they are to be, in the order in which they refer to each other.

    Args:
        run: Folder of the run.
        namespace: The user or organisation of the Hub that they belong to.
        kinds: Which repositories, of `PARTS`.
        name: What to call the real tiles; by default their own name where that is known to everybody.
        license, attribution: Of the real tiles; by default those of MedMNIST where they are its tiles.
        audit_file: The audit; by default that of the run.
        accept_risk: Whether the gate's refusal is only noted on the cards.

    Raises:
        InputError: If a stage is missing, the gate refuses, or a file holds what may not leave.
    """
    audit_file = audit_file or run / "audit.json"
    record = require_complete(run / "distilled", "distilled set", "run histodistill select first")
    for kind in kinds:
        _check_metadata(run, kind)
    images, columns, class_names = read_image_dataset(run / "distilled")
    name = _name_to_publish(run, name, class_names)
    repos = {kind: f"{namespace}/{name}-{SUFFIXES[kind]}" for kind in kinds}
    common = read_run_facts(run, repos, name, class_names, images.shape[1], len(images), license, attribution)
    audit = read_optional(audit_file)
    if not isinstance(audit, dict | None):
        raise InputError(f"{audit_file} is no audit: run histodistill audit again")
    facts = {kind: pass_gate(run, kind, audit, common, accept_risk) for kind in kinds}
    grid = png_bytes(distilled_grid(images, columns["label"]))
    makers = {
        "pipeline": lambda: pipeline_upload(run, facts["pipeline"], grid),
        "selector": lambda: selector_upload(run, facts["selector"], record),
        "dataset": lambda: dataset_upload(run, facts["dataset"], record, columns["label"], grid),
    }
    uploads = [make() for kind, make in makers.items() if kind in repos]
    for upload in uploads:
        check_no_paths(upload, (run, Path.home()))
    return uploads


def _name_to_publish(run: Path, name: str | None, class_names: list[str]) -> str:
    """What to call the real tiles in public.

    Raises:
        InputError: If that must be said, or what is said is the name of the built-in drawings and they are not.
    """
    known = public_name(source_name(run), class_names)
    name = name or known
    if name is None:
        raise InputError(
            f"the tiles of {run} come from a source whose name is not published: give {param('name')}, what to "
            "call them"
        )
    if name == "phantom" and known != "phantom":
        raise InputError(
            f"{param('name')}=phantom is the built-in drawings, and these tiles are not: give another {param('name')}"
        )
    return name


def pass_gate(run: Path, kind: str, audit: Any, facts: RunFacts, accept_risk: bool) -> RunFacts:
    """The facts with what the audit says of one repository.

    Args:
        run: Folder of the run.
        kind: Of the repository.
        audit: What audit.json holds, None where there is none.
        facts: What the cards have in common.
        accept_risk: Whether the gate's refusal is only noted.

    Returns:
        The facts with `audit`, where the audit is about these files, and `risk`, what the gate said where it refused.

    Raises:
        InputError: If the gate refuses.
    """
    part = PARTS[kind]
    try:
        for folder, files in _sources(run, kind).items():
            check_audit(folder, audit, part=folder.name, files=files)
        refusal = None
    except AuditError as error:
        if not accept_risk:
            raise as_input_error(error) from error
        refusal = str(error).replace(f"{run}/", "").replace(str(run), run.name)
    try:
        passed, findings = audit["parts"][part]["passed"], audit_sentences(audit, part)
    except (LookupError, TypeError):
        return replace(facts, risk=refusal)
    if refusal and passed:
        # The audit passed, but of other files than these.
        return replace(facts, risk=refusal)
    return replace(facts, risk=refusal, audit=AuditFacts(passed=passed, findings=findings))


def _sources(run: Path, kind: str) -> dict[Path, list[str]]:
    """The files of a run that go into a repository as they are, but for names: folder → paths relative to it."""
    folder = run / PARTS[kind]
    sources = {folder: list(allowed_files(kind, folder))}
    if kind != "pipeline" and (run / "selector" / MAP).is_file():
        sources.setdefault(run / "selector", []).append(MAP)
    return sources


def _check_metadata(run: Path, kind: str) -> None:
    """Sees that the files of a repository carry no metadata. Raises InputError for the first one that does."""
    try:
        for folder, files in _sources(run, kind).items():
            check_metadata(folder, files)
    except AuditError as error:
        raise as_input_error(error) from error


def pipeline_upload(run: Path, facts: RunFacts, grid: bytes) -> Upload:
    """The repository of the pipeline.

    Args:
        run: Folder of the run.
        facts: What its card says of the run.
        grid: PNG file of the distilled set.

    Raises:
        InputError: If there is no finished pipeline.
    """
    folder = run / "pipeline"
    require_complete(folder, "pipeline", "run train_diffusion first")
    files = allowed_files("pipeline", folder)
    index = read_json(folder / "model_index.json")
    components = {name: kind[1] for name, kind in index.items() if name[0] != "_" and isinstance(kind, list)}
    pool = read_record(run / "pool") or {}
    card = PipelineCardData(
        facts=facts,
        components=components,
        parameters={
            name: _count_parameters(folder / name) for name in components if any(folder.glob(f"{name}/*.sa*"))
        },
        generation={name: pool["settings"][name] for name in PIPELINE_OPTIONS} if pool else {},
        pool_size=pool.get("num_images"),
    )
    files |= {"assets/distilled.png": grid, "README.md": render_pipeline_card(card).encode()}
    return Upload("pipeline", facts.repos["pipeline"], files)


def selector_upload(run: Path, facts: RunFacts, record: dict) -> Upload:
    """The repository of the selector. Pictures of pool images stay here: no audit has looked at those.

    Args:
        run: Folder of the run.
        facts: What its card says of the run.
        record: Of the stage that made the distilled set.

    Raises:
        InputError: If a file of the selector is missing, or holds an array that may not leave.
    """
    folder = run / "selector"
    files = allowed_files("selector", folder)
    missing = {"config.json", "selector.safetensors"} - set(files)
    if missing:
        raise InputError(f"{folder} has no {min(missing)}: run histodistill select again")
    arrays = {name: (dtype, shape) for name, dtype, shape in _tensors(folder / "selector.safetensors")}
    for name, (_, shape) in arrays.items():
        if name not in SELECTOR_ARRAYS or len(shape) != 1:
            raise InputError(f"{folder} holds the array {name}, which may not be published: select again")
    config = read_json(folder / "config.json")
    map_file = folder / MAP
    card = SelectorCardData(
        facts=facts,
        selector=config["class_name"],
        params=config["params"],
        arrays={name: f"{dtype}, {shape[0]:,}" for name, (dtype, shape) in arrays.items()},
        n_per_class=record["settings"]["n_per_class"],
        pool_size=(read_record(run / "pool") or {}).get("num_images"),
        embedder=_embedder(record),
        filters=_filters(record),
        community_sizes=record.get("community_sizes", {}),
        dropped=record.get("dropped", {}),
        has_map=map_file.is_file(),
    )
    if map_file.is_file():
        files[f"assets/{MAP}"] = map_file
    files["README.md"] = render_selector_card(card).encode()
    return Upload("selector", facts.repos["selector"], files)


def dataset_upload(run: Path, facts: RunFacts, record: dict, labels: np.ndarray, grid: bytes) -> Upload:
    """The repository of the distilled set.

    Args:
        run: Folder of the run.
        facts: What its card says of the run.
        record: Of the stage that made the distilled set.
        labels: Of its images, int N.
        grid: PNG file of the distilled set.

    Raises:
        InputError: If there is no finished pool.
    """
    files = allowed_files("dataset", run / "distilled")
    config = read_json(run / "selector" / "config.json")
    pool = require_complete(run / "pool", "pool", "run histodistill generate first")
    map_file = run / "selector" / MAP
    card = DistilledDatasetCardData(
        class_names=list(facts.class_names),
        n_per_class=np.bincount(labels).tolist(),
        image_size=facts.image_size,
        pool_size=pool["num_images"],
        selector=config["class_name"],
        selector_params=config["params"],
        features=_features(run / "distilled"),
        embedder=_embedder(record),
        source_name=facts.name,
        license=facts.license,
        attribution=facts.attribution,
        results=facts.results,
        filters=_filters(record),
        generation={name: pool["settings"][name] for name in PIPELINE_OPTIONS},
        facts=facts,
        has_grid=True,
        has_map=map_file.is_file(),
    )
    if map_file.is_file():
        files[f"assets/{MAP}"] = map_file
    files |= {"assets/distilled.png": grid, "README.md": render_dataset_card(card).encode()}
    return Upload("dataset", facts.repos["dataset"], files)


def allowed_files(kind: str, folder: Path) -> dict[str, Path | bytes]:
    """The files of a folder that a repository of this kind may hold, but for the card, which is made anew."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in paths.items() if name != "README.md" and is_allowed(kind, name)}


def distilled_grid(images: np.ndarray, labels: np.ndarray) -> Image.Image:
    """The first images of each class, uint8 N×H×W×3 with labels int N, one row for each class."""
    classes = np.unique(labels)
    columns = min(GRID_COLUMNS, *(int((labels == label).sum()) for label in classes))
    shown = np.concatenate([np.flatnonzero(labels == label)[:columns] for label in classes])
    return make_grid(images[shown], columns, scale=max(1, _GRID_SIDE // images.shape[1]))


def check_no_paths(upload: Upload, folders: Iterable[Path]) -> None:
    """Checks that no text of an upload names a folder of this machine.

    Raises:
        InputError: If one does.
    """
    words = {str(path.resolve()).encode() for path in folders} - {b"/"}
    for name in upload.files:
        if name.endswith((".json", ".md", ".py")) and any(word in upload.read(name) for word in words):
            raise InputError(f"{name} of {upload.repo_id} names a folder of this machine: make the stage again")


def _features(folder: Path) -> Features:
    """The columns of a dataset."""
    (file, *_) = sorted(folder.glob("data/train-*.parquet"))
    return Features.from_arrow_schema(pyarrow.parquet.read_schema(file))


def _filters(record: dict[str, Any]) -> dict[str, Any]:
    """What an image of the pool had to pass before the selector saw it."""
    filters = {name: record["settings"][name] for name in _FILTERS if record["settings"].get(name)}
    if record.get("copies_dropped") is not None:
        filters["copies of real tiles"] = f"{sum(record['copies_dropped'].values())} images dropped"
    return filters


def _embedder(record: dict) -> str | None:
    """What embedded the pool in words, without the name of a folder."""
    name, _, digest = (record["settings"].get("embedder") or "").partition(", sha256 ")
    if not digest:
        return describe_embedder(name) if name else None
    return name if name.startswith(("features of", "latents of")) else "a model that is not published"


def _tensors(path: Path) -> list[tuple[str, str, list[int]]]:
    """Name, type and shape of each array of a safetensors file."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return [
        (name, _DTYPES.get(about["dtype"], about["dtype"]), about["shape"])
        for name, about in header.items()
        if name != "__metadata__"
    ]


def _count_parameters(folder: Path) -> int:
    """Numbers in all safetensors files of a folder together."""
    files = folder.glob("*.safetensors")
    return sum(int(np.prod(shape)) for file in files for _, _, shape in _tensors(file))
