"""The parts of auditing a run: its tiles, the attack on its weights, its record and its pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from histodistill.hub_cards.audit_record import AuditRecord, check_space
from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.gate import audit_sentences
from histodistill.hub_cards.part_files import hash_contents, hash_part
from histodistill.selection.audit_figures import AuditResult, SetAudit
from histodistill.selection.image_audit import WeightLosses, audit
from histodistill.selection.image_rows import Images, rows_of
from histodistill.selection.near_copies import in_order
from histodistill.selection.parts import matched_parts
from histodistill.selection.real_tiles import LabelledImages, RealTiles
from histodistill.selection.streams import stream
from histodistill.selection.units import places_in_units
from histodistill.training.data.audit_tiles import audit_share_of, real_tiles
from histodistill.training.data.image_dataset import open_image_table
from histodistill.training.data.images import png_bytes
from histodistill.training.data.sources import load_tiles
from histodistill.training.data.tiles import Tiles, TileSource
from histodistill.training.evaluation.cells import check_same_kind
from histodistill.training.evaluation.run_contents import RunContents, RunFiles
from histodistill.training.evaluation.verdicts import JUDGES, make_audit, read_records, read_run_audit
from histodistill.training.evaluation.weights_attack import attack_scores, denoising_losses
from histodistill.training.models.devices import best_device
from histodistill.training.models.embedders import named_embeddings
from histodistill.training.models.loading import has_classifier, load_pipeline
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import write_bytes, write_json
from histodistill.training.running.stages import read_record, require_parts


# Generated images on a picture, each beside the real tile that it is most like, stand in so many columns.
_COLUMNS = 5
# Pixels: small tiles are enlarged by a whole number to nearly this side, so that one can see them; so much space is
# between the two of a pair and around it, and below it for two lines of text.
_SIDE, _GAP, _TEXT = 112, 6, 30


@dataclass(frozen=True, repr=False)
class AuditedRun:
    """A finished run, as its audit takes it.

    Attributes:
        folder: The run.
        records: Part → its stage record: of `pipeline`, `pool` and `distilled`.
        source: The real tiles, with the same part held out as when the models were trained.
        files: The files that the verdicts are about, as they were read.
        contents: What of them goes up, and so is judged.
    """

    folder: Path
    records: dict[str, dict[str, Any]]
    source: TileSource
    files: RunFiles
    contents: RunContents

    @property
    def class_names(self) -> list[str]:
        """Names of the labels."""
        return self.contents.distilled.table.class_names

    @property
    def facts(self) -> dict[str, Any]:
        """What an audit tells of the real tiles: what they are called, and how many each split has."""
        num_tiles = {name: len(tiles) for name, tiles in self.source.splits.items()}
        return {"data": self.source.name, "num_tiles": num_tiles}

    @cached_property
    def published(self) -> LabelledImages:
        """The distilled set."""
        table = self.contents.distilled.table
        return LabelledImages(table.images, table.columns["label"])

    @cached_property
    def real(self) -> RealTiles:
        """The real tiles by what the models saw of them; `InputError` if there are too few."""
        return real_tiles(self.source)

    @cached_property
    def pool(self) -> LabelledImages:
        """All images that were generated."""
        table = open_image_table(self.folder / "pool")
        if len(table) != self.records["pool"].get("num_images"):
            raise InputError(f"{self.folder / 'pool'} has other images than its record says: generate it anew")
        return LabelledImages(table.images, table.columns["label"])


def read_run(
    run: Path,
    data: str | Path,
    audit_share: float | None,
    embedders: Sequence[str],
    source_options: Mapping[str, Any] | None = None,
) -> AuditedRun:
    """Reads what is audited, and sees that it belongs together and holds nothing but what may be published.

    Args:
        run: Folder with finished autoencoder/, pipeline/, pool/ and distilled/.
        data: The real tiles, as `load_tiles` takes them.
        audit_share: Share of the training tiles that no model saw; None for what run.json says.
        embedders: Embedding spaces beside pixels.
        source_options: What `load_tiles` is told of the groups.

    Raises:
        InputError: For a part that is not finished, not made from the others or holds what may not be published,
            tiles that the run was not made from, or an embedder that is a classifier.
    """
    records = require_parts(run, "pipeline", "pool", "distilled")
    try:
        # Before anything is measured, which takes minutes.
        files = RunFiles.read(run)
        contents = files.check()
        files.copies_dropped(contents.distilled.table.class_names)
        for name in named_embeddings(embedders):
            check_space(name)
    except ContentError as error:
        raise InputError(str(error)) from error
    for name in embedders:
        if Path(name).is_dir() and has_classifier(name):
            raise InputError(
                f"{param('embedders')} {name} is a classifier, which knows the tiles that it was trained on whatever "
                "is published: give another"
            )
    check_one_run(run, records)
    source = load_run_tiles(run, data, audit_share, records["pipeline"], source_options or {})
    table = contents.distilled.table
    check_same_kind(run / "distilled", table.images, table.class_names, source)
    return AuditedRun(run, records, source, files, contents)


def audit_run(run: AuditedRun, embedders: Sequence[str], n_planted: int, weight_tiles: int, seed: int) -> AuditResult:
    """All figures of a run: of what it publishes, its pool, and its weights.

    Args:
        run: The run.
        embedders: Embedding spaces beside pixels.
        n_planted: Copies of each kind to plant.
        weight_tiles: Tiles of either kind whose loss is measured, at most.
        seed: Of all that is random.

    Raises:
        InputError: If the real tiles are not fit for an audit.
    """
    assert run.contents.pipeline is not None
    losses = measure_losses(run.contents.pipeline.files, run.real, weight_tiles, seed)
    return audit_set(run, run.published, embedders, n_planted, seed, losses)


def audit_set(
    run: AuditedRun,
    published: LabelledImages,
    embedders: Sequence[str],
    n_planted: int,
    seed: int,
    weight_losses: WeightLosses | None = None,
) -> AuditResult:
    """All figures of a set of images, by the real tiles and the pool of a run.

    All is measured anew on the files that are there, also what the selection has measured of the same pool.

    Args:
        run: The run.
        published: The images.
        embedders, n_planted, seed: As for `audit_run`.
        weight_losses: Of one who holds the weights; None leaves the attack on them out.

    Raises:
        InputError: If the real tiles are not fit for an audit.
    """
    try:
        return audit(
            published,
            run.pool,
            run.real,
            named_embeddings(embedders),
            group_kind=run.source.group_kind or "group",
            n_planted=n_planted,
            weight_losses=weight_losses,
            seed=seed,
        )
    except ValueError as error:  # what the tiles are not fit for
        raise InputError(f"the tiles of {run.source.name} cannot be audited by: {error}") from error


def check_one_run(run: Path, records: dict[str, dict[str, Any]]) -> None:
    """Refuses a run whose parts do not belong together, or were not all trained on the same tiles.

    A pool of another pipeline would be judged in place of what the weights make; and if the autoencoder or the teacher
    saw the tiles that were held out from the denoiser, these would be no control.

    Raises:
        InputError: Names the two parts.
    """
    pipeline = records["pipeline"]
    autoencoder = require_parts(run, "autoencoder")["autoencoder"]
    teacher = read_record(run / "teacher")
    made_by = [
        ("pool", records["pool"]["settings"].get("pipeline"), "pipeline", pipeline["fingerprint"]),
        ("distilled", records["distilled"]["settings"].get("pool"), "pool", records["pool"]["fingerprint"]),
        ("pipeline", pipeline["settings"].get("autoencoder"), "autoencoder", autoencoder["fingerprint"]),
    ]
    for part, source, of, expected in made_by:
        if source != expected:
            raise InputError(f"{run / part} was not made from {run / of}, which has changed since: make it anew")
    # An autoencoder of public tiles was trained on others, as it should be.
    is_public = pipeline["settings"].get("dp_public_autoencoder")
    if teacher and teacher.get("of_pool") == records["pool"]["fingerprint"]:
        teacher = None  # it saw generated images alone
    for name, record in {"autoencoder": None if is_public else autoencoder, "teacher": teacher}.items():
        if record and record["settings"].get("data") != pipeline["settings"]["data"]:
            raise InputError(
                f"{run / name} was not trained on the same tiles as {run / 'pipeline'}, so it may have seen those "
                f"that were held out: train it with the same {param('data')} and {param('audit_share')}"
            )


def load_run_tiles(
    run: Path,
    data: str | Path,
    audit_share: float | None,
    pipeline_record: dict[str, Any],
    source_options: Mapping[str, Any],
) -> TileSource:
    """The real tiles, with the same part held out as when the pipeline was trained.

    Raises:
        InputError: If these are not the tiles that it was trained on.
    """
    share = audit_share_of(run) if audit_share is None else audit_share
    size = require_parts(run, "autoencoder")["autoencoder"]["image_size"]
    # What the tiles are now, and not what they were when they were last looked at.
    source = load_tiles(data, image_size=size, audit_share=share, reread=True, **source_options)
    if source.fingerprint() != pipeline_record["settings"]["data"]:
        raise InputError(
            f"{param('data')} {data} with {param('audit_share')} {share} is not what {run / 'pipeline'} was trained "
            "on: give the same tiles, groups and share"
        )
    return source


def measure_losses(files: Mapping[str, bytes], real: RealTiles, num_tiles: int, seed: int) -> WeightLosses:
    """The losses of an attacker who holds a pipeline's weights; with groups, of some tiles of as many as possible.

    Args:
        files: The pipeline as it is published, path → content.
        real: The real tiles.
        num_tiles: Tiles of either kind, at most.
        seed: Of which tiles are drawn, and of the noise.

    Returns:
        One loss for each of the training tiles drawn, and for each of those that no model has seen.
    """
    # From a copy of what was checked, so that these are the weights that the verdict is about.
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            write_bytes(Path(folder) / name, content)
        pipeline = load_pipeline(folder)
    pipeline.to(best_device())
    losses, chosen = [], attacked_rows(real, num_tiles, seed)
    for part, rows in zip((real.train, real.held_out or real.validation), chosen, strict=True):
        losses.append(denoising_losses(pipeline, Tiles(rows_of(part.images, rows), part.labels[rows]), seed))
    return WeightLosses(*attack_scores(*losses), *chosen)


def attacked_rows(real: RealTiles, num_tiles: int, seed: int) -> list[np.ndarray]:
    """The tiles on which an attack by losses is tried; with groups, some of as many as possible.

    Args:
        real: The real tiles.
        num_tiles: Tiles of either kind, at most.
        seed: Of which tiles are drawn.

    Returns:
        int64 N, rows of the training tiles, and int64 M, rows of those that no model has seen.
    """
    rows = []
    for number, part in enumerate((real.train, real.held_out or real.validation)):
        order = stream("tiles of the attack on weights", seed, number).permutation(len(part))
        rows.append(np.sort(_spread_over_groups(order, part.groups)[:num_tiles]))
    return rows


def _spread_over_groups(order: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Rows in an order in which each group has had a tile before any has another; as they are without groups."""
    if groups is None:
        return order
    return order[np.argsort(places_in_units(in_order(groups[order])), kind="stable")]


def audit_record(run: AuditedRun, result: AuditResult) -> AuditRecord:
    """What audit.json holds of a run.

    Raises:
        InputError: If a file has changed since it was read: then nobody knows what was judged beside it.
    """
    try:
        now = {part: hash_part(run.folder / part) for part in JUDGES}
        records = hash_contents(read_records(run.folder))
    except ContentError as error:
        raise InputError(str(error)) from error
    if (now, records) != (run.files.part_hashes(), run.files.record_hashes()):
        raise InputError(f"files of {run.folder} have changed while it was audited: run histodistill audit again")
    facts = {**run.facts, "copies_dropped": run.files.copies_dropped(run.class_names)}
    return make_audit(result, run.class_names, now, records, facts)


def write_audit(path: Path, audit: AuditRecord) -> None:
    """Writes audit.json."""
    write_json(path, audit.model_dump(mode="json"))


def renew_audit(path: Path, run: AuditedRun) -> AuditRecord:
    """The audit of a run whose files are those that were judged, with the hashes of the records as they are now.

    Args:
        path: The audit.json that is there.
        run: The run, whose records were just seen to hold nothing but what they may.

    Returns:
        The audit as it now is.

    Raises:
        InputError: If it is about other files, or is no audit.
    """
    known = read_run_audit(path)
    if known is None or {part: verdict.files for part, verdict in known.parts.items()} != run.files.part_hashes():
        raise InputError(f"{path} is about other files than those of {run.folder}: delete it to audit anew")
    records = run.files.record_hashes()
    if known.records == records:
        print(f"audit: {path} is already finished")
    else:
        changed = sorted(
            name for name in known.records.keys() | records.keys() if known.records.get(name) != records.get(name)
        )
        known = known.model_copy(update={"records": records})
        write_audit(path, known)
        print(
            f"audit: what was judged has not changed, so nothing was measured again; {path} is now about "
            f"{', '.join(changed)} as it is"
        )
    return known


def summary_lines(audit: AuditRecord, brief: bool = False) -> list[str]:
    """What `audit.json` says, for people.

    Args:
        audit: What it says.
        brief: Whether to say of planted copies only which are not found as often as they must be.
    """
    lines = []
    for part, verdict in audit.parts.items():
        lines.append(f"audit of {part}: {'passed' if verdict.passed else 'NOT PASSED: it should not be published'}")
    shown = max((part for part in ("pipeline", "distilled") if part in audit.parts), key=list(JUDGES).index)
    lines += [
        f"  {sentence}"
        for finding, sentence in zip(audit.parts[shown].findings, audit_sentences(audit, shown), strict=True)
        if not (brief and finding.passed and finding.name.startswith("planted "))
    ]
    lines += [f"  warning: {warning}" for warning in audit.warnings]
    if not audit.held_out_at_random:
        lines.append(
            "  note: no training tiles were held out at random (--audit-share), so validation tiles stood in for them"
        )
    return lines


def draw_pairs(path: Path, images: Images, real: RealTiles, found: SetAudit, result: AuditResult) -> None:
    """Writes the picture of the closest pairs of one set; there is none where no image is like a tile.

    Args:
        path: The PNG file.
        images: uint8 N×S×S×3, the set.
        real: The real tiles.
        found: What the audit found of this set.
        result: The whole audit.
    """
    if not len(found.closest):  # images with nothing on them are like no tile
        path.unlink(missing_ok=True)
        return
    rows, tiles = found.closest.T
    write_bytes(path, draw_closest(images[rows], real.all_images[tiles], found.closest_scores, result.limits.limit))


def draw_closest(synthetic: np.ndarray, real: np.ndarray, scores: np.ndarray, limit: float) -> bytes:
    """A PNG of generated images, each left of the real tile that it is most like: uint8 N×S×S×3 each.

    An outline on both shows where the image is most like the tile, as far as it lies on it.

    Args:
        synthetic, real: The pairs.
        scores: Of the pairs, smallest first.
        limit: A pair below this is a copy, and gets a red frame.
    """
    size = synthetic.shape[1]
    side, gap, text = size * max(1, _SIDE // size), _GAP, _TEXT
    columns = min(_COLUMNS, len(synthetic))
    rows = -(-len(synthetic) // columns)
    canvas = Image.new("RGB", (columns * (2 * side + 4 * gap), rows * (side + 2 * gap + text)), "white")
    draw = ImageDraw.Draw(canvas)
    parts = matched_parts(synthetic, real)
    for i, (pair, score) in enumerate(zip(zip(synthetic, real, strict=True), scores, strict=True)):
        left, top = i % columns * (2 * side + 4 * gap) + gap, i // columns * (side + 2 * gap + text) + gap
        if score < limit:
            draw.rectangle((left - 3, top - 3, left + 2 * side + gap + 2, top + side + 2), outline="red", width=3)
        for number, image in enumerate(pair):
            enlarged = Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)
            _outline(enlarged, parts[i][number])
            canvas.paste(enlarged, (left + number * (side + gap), top))
        draw.text((left, top + side + 2), pair_caption(score / limit), fill="black")
    return png_bytes(canvas)


def _outline(picture: Image.Image, corners: np.ndarray) -> None:
    """Draws the outline of a part, K×2 rows and columns from 0 to 1, so that one sees it on light and on dark."""
    if not len(corners):
        return
    points = [(x, y) for y, x in (1.5 + corners * (picture.width - 4)).round().astype(int).tolist()]
    draw = ImageDraw.Draw(picture)
    for colour, width in (("black", 3), ("yellow", 1)):
        draw.line([*points, points[0]], fill=colour, width=width, joint="curve")


def pair_caption(times: float) -> str:
    """Two lines for below a pair: what is what, and how many times the limit apart it is; below 1 is a copy."""
    # Cut, not rounded, so that a pair just below the limit does not read as one at it. The font has no sign for times.
    return f"generated | real\n{np.floor(100 * times) / 100:.2f} x limit: {'a copy' if times < 1 else 'no copy'}"
