"""Audits a run: what `histodistill audit` runs."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw

from histodistill.hub_cards.gate import AUDIT_FORMAT, audit_sentences, files_to_audit, hash_files
from histodistill.selection.image_audit import (
    AuditResult,
    Finding,
    LabelledImages,
    RealTiles,
    audit,
    judge_set,
    judge_weights,
)
from histodistill.training.commands.audit import parse_args
from histodistill.training.data.audit_tiles import audit_share_of, real_tiles
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.data.images import png_bytes
from histodistill.training.data.sources import load_tiles
from histodistill.training.data.tiles import Tiles, TileSource
from histodistill.training.evaluation.cells import check_same_kind
from histodistill.training.evaluation.weights_attack import attack_scores, denoising_losses
from histodistill.training.models.embedders import embedder_fingerprint, is_classifier, named_embeddings
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import write_bytes, write_json
from histodistill.training.running.options import run_script
from histodistill.training.running.stages import Stage, read_record, require_complete


AUDIT = "audit.json"
PARTS = ("distilled", "selector", "pipeline")


def measure_losses(folder: Path, real: RealTiles, num_tiles: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Losses of at most so many training tiles, and of as many that no model has seen, under a pipeline's weights."""
    # The folder is this machine's own work: its pipeline.py is the file that ships with histodistill.
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    losses = []
    for number, part in enumerate((real.train, real.held_out or real.validation)):
        rows = np.sort(np.random.default_rng([seed, number]).permutation(len(part))[:num_tiles])
        losses.append(denoising_losses(pipeline, Tiles(part.images[rows], part.labels[rows]), seed))
    return attack_scores(*losses)


def to_plain(value: Any, class_names: list[str]) -> Any:
    """Figures as JSON holds them: dataclasses as objects, classes by name."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name), class_names) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {_key(key, class_names): to_plain(item, class_names) for key, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def draw_closest(synthetic: np.ndarray, real: np.ndarray, scores: np.ndarray, limit: float) -> bytes:
    """A PNG of generated images, each beside the real tile that it is most like: uint8 N×S×S×3 each.

    Args:
        synthetic, real: The pairs.
        scores: Of the pairs, smallest first.
        limit: A pair below this is a copy, and gets a red frame.
    """
    size = synthetic.shape[1]
    scale = max(1, 112 // size)
    side, gap, text = size * scale, 6, 14
    columns = min(5, len(synthetic))
    rows = -(-len(synthetic) // columns)
    canvas = Image.new("RGB", (columns * (2 * side + 4 * gap), rows * (side + 2 * gap + text)), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (pair, score) in enumerate(zip(zip(synthetic, real, strict=True), scores, strict=True)):
        left, top = i % columns * (2 * side + 4 * gap) + gap, i // columns * (side + 2 * gap + text) + gap
        if score < limit:
            draw.rectangle((left - 3, top - 3, left + 2 * side + gap + 2, top + side + 2), outline="red", width=3)
        for number, image in enumerate(pair):
            enlarged = Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(enlarged, (left + number * (side + gap), top))
        draw.text((left, top + side + 2), f"generated | real   {score / limit:.2f} of the limit", fill="black")
    return png_bytes(canvas)


def summary_lines(record: dict[str, Any]) -> list[str]:
    """What `audit.json` says, for people."""
    lines = []
    for part in record["parts"]:
        verdict = "passed" if record["parts"][part]["passed"] else "NOT PASSED: it should not be published"
        lines.append(f"audit of {part}: {verdict}")
    shown = max((p for p in ("pipeline", "distilled") if p in record["parts"]), key=PARTS.index)
    lines += [f"  {sentence}" for sentence in audit_sentences(record, shown)]
    if not record["held_out_at_random"]:
        lines.append(
            "  note: no training tiles were held out at random (--audit-share), so validation tiles stood in for them"
        )
    return lines


def main(args: argparse.Namespace) -> None:
    """Audits what is finished of a run, and writes audit.json."""
    run = args.run
    records = {
        "pipeline": require_complete(run / "pipeline", "pipeline", "run train_diffusion first"),
        "pool": require_complete(run / "pool", "pool", "run histodistill generate first"),
        "distilled": require_complete(run / "distilled", "distilled set", "run histodistill select first"),
    }
    source = load_run_tiles(args, records["pipeline"])
    images, columns, class_names = read_image_dataset(run / "distilled")
    check_same_kind(run / "distilled", images, class_names, source)
    for name in args.embedders:
        if Path(name).is_dir() and is_classifier(name):
            raise InputError(
                f"--embedders {name} is a classifier, which knows the tiles that it was trained on whatever is "
                "published: give another"
            )
    files = {part: hash_files(run / part, files_to_audit(run / part)) for part in PARTS if (run / part).is_dir()}
    check_one_run(run, records)
    settings = {
        "stage": "audit",
        "format": AUDIT_FORMAT,
        "data": source.fingerprint(),
        "pool": records["pool"]["fingerprint"],
        "files": files,
        "embedders": [embedder_fingerprint(name) for name in args.embedders],
        "plant": args.plant,
        "weight_tiles": args.weight_tiles,
        "seed": args.seed,
    }
    folder = run / "audit"
    # A run has one audit, and files that have changed need another one.
    stage = Stage(folder, settings, remedy=f"delete {folder} to audit anew")
    if stage.complete and (run / AUDIT).is_file():
        print(f"audit: {run / AUDIT} is already finished")
        return
    stage.begin()
    (run / AUDIT).unlink(missing_ok=True)
    real = real_tiles(source)
    pool_images, pool_columns, _ = read_image_dataset(run / "pool")
    published = LabelledImages(images, columns["label"])
    losses = measure_losses(run / "pipeline", real, args.weight_tiles, args.seed)
    try:
        result = audit(
            published,
            LabelledImages(pool_images, pool_columns["label"]),
            real,
            named_embeddings(args.embedders),
            n_planted=args.plant,
            weight_losses=losses,
            seed=args.seed,
        )
    except ValueError as error:  # what the tiles are not fit for
        raise InputError(f"the tiles of {source.name} cannot be audited by: {error}") from error
    draw_pairs(folder / "closest_distilled.png", published.images, real, result.published, result)
    draw_pairs(folder / "closest_pool.png", pool_images, real, result.pool, result)
    record = audit_record(result, source, files, class_names, records["distilled"].get("copies_dropped"))
    stage.finish()
    # The very last: where it is there, it is of these files.
    write_json(run / AUDIT, record)
    print("\n".join(summary_lines(record)))
    print(f"audit: saved to {run / AUDIT}; {folder} shows real tiles and must not be shared")


def check_one_run(run: Path, records: dict[str, dict[str, Any]]) -> None:
    """Refuses a run whose parts do not belong together, or were not all trained on the same tiles.

    A pool of another pipeline would be judged in place of what the weights make; and if the autoencoder or the teacher
    saw the tiles that were held out from the denoiser, these would be no control.

    Raises:
        InputError: Names the two parts.
    """
    pipeline = records["pipeline"]
    autoencoder = require_complete(run / "autoencoder", "autoencoder", "run train_autoencoder first")
    teacher = read_record(run / "teacher")
    made_by = [
        ("pool", records["pool"]["settings"].get("pipeline"), "pipeline", pipeline["fingerprint"]),
        ("distilled", records["distilled"]["settings"].get("pool"), "pool", records["pool"]["fingerprint"]),
        ("pipeline", pipeline["settings"].get("autoencoder"), "autoencoder", autoencoder["fingerprint"]),
    ]
    for part, source, of, expected in made_by:
        if source != expected:
            raise InputError(f"{run / part} was not made from {run / of}, which has changed since: make it anew")
    if pipeline["settings"].get("dp_public_autoencoder"):
        autoencoder = None
    for name, record in {"autoencoder": autoencoder, "teacher": teacher}.items():
        if record and record["settings"].get("data") != pipeline["settings"]["data"]:
            raise InputError(
                f"{run / name} was not trained on the same tiles as {run / 'pipeline'}, so it may have seen those "
                "that were held out: train it with the same --data and --audit-share"
            )


def load_run_tiles(args: argparse.Namespace, pipeline_record: dict[str, Any]) -> TileSource:
    """The real tiles, with the same part held out as when the pipeline was trained.

    Raises:
        InputError: If these are not the tiles that it was trained on.
    """
    share = audit_share_of(args.run) if args.audit_share is None else args.audit_share
    size = require_complete(args.run / "autoencoder", "autoencoder", "run train_autoencoder first")["image_size"]
    source = load_tiles(args.data, image_size=size, audit_share=share)
    if source.fingerprint() != pipeline_record["settings"]["data"]:
        raise InputError(
            f"--data {args.data} with --audit-share {share} is not what {args.run / 'pipeline'} was trained on: give "
            "the same tiles and share"
        )
    return source


def draw_pairs(path: Path, images: np.ndarray, real: RealTiles, found, result: AuditResult) -> None:
    """Writes the picture of the closest pairs of one set."""
    if not len(found.closest):  # images with nothing on them are like no tile
        path.unlink(missing_ok=True)
        return
    rows, tiles = found.closest.T
    write_bytes(path, draw_closest(images[rows], real.all_images[tiles], found.closest_scores, result.limits.limit))


def audit_record(
    result: AuditResult,
    source: TileSource,
    files: dict[str, dict[str, str]],
    class_names: list[str],
    copies_dropped: dict[str, int] | None,
) -> dict[str, Any]:
    """What audit.json holds: nothing in it is of a single real tile."""
    findings = {"distilled": judge_set(result), "selector": judge_set(result), "pipeline": judge_weights(result)}
    figures = to_plain(result, class_names)
    for part in ("published", "pool"):
        for name in ("closest", "closest_scores"):
            del figures[part][name]
    return {
        "format": AUDIT_FORMAT,
        "data": source.name,
        "num_tiles": {name: len(tiles) for name, tiles in source.splits.items()},
        "held_out_at_random": result.is_random,
        "copies_dropped": copies_dropped,
        "parts": {part: _verdict(findings[part], files[part]) for part in files},
        "figures": figures,
    }


def _verdict(findings: list[Finding], files: dict[str, str]) -> dict[str, Any]:
    return {
        "passed": all(bool(finding.passed) for finding in findings),
        "findings": [to_plain(finding, []) for finding in findings],
        "files": files,
    }


def _key(key: Any, class_names: list[str]) -> str:
    # Whole numbers are classes; false positive rates are not whole.
    return class_names[key] if isinstance(key, int) else str(key)


if __name__ == "__main__":
    run_script(parse_args, main)
