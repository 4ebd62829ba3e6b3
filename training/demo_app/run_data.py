"""What the demo page shows of a run: plain data, and the HTML of its images, audit and scores.

Nothing here shows a real tile, a path, or the name of a private source. Of the pictures that a run holds, only those
of its pool and those of its scores are read; `audit/`, `evaluation/` and `autoencoder/progress/` show real tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from histodistill.hub_cards.audit_record import AuditRecord
from histodistill.hub_cards.card_facts import architecture_title
from histodistill.hub_cards.gate import audit_sentences
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.data.images import base64_png
from histodistill.training.data.medmnist import public_name
from histodistill.training.evaluation.verdicts import read_run_audit
from histodistill.training.generate import PIPELINE_OPTIONS
from histodistill.training.reporting.audit_texts import audit_outcome
from histodistill.training.reporting.group_texts import group_sentences
from histodistill.training.reporting.pictures import BENCHMARK_PICTURES, SELECTION_PICTURES, read_pictures
from histodistill.training.reporting.run_files import read_results, read_run_record, source_name
from histodistill.training.reporting.scores import ScoreText, recoveries, score_tables
from histodistill.training.running.errors import InputError
from histodistill.training.running.stages import read_record
from histodistill.training.tables.benchmark_record import BenchmarkRow, read_benchmark
from histodistill.training.tables.results_summary import row_title


#: torch's CPU generators read 32 bits of a seed: above this, two seeds are one image.
LARGEST_SEED = 2**32 - 1
# The parts of a run that an audit may be about, as the page calls them.
_AUDITED = {
    "distilled": "The distilled set",
    "selector": "The selector",
    "pipeline": "The pipeline, whose weights give away more than images do",
}
# In pixels. Larger images are sent smaller where many are shown, so that a class stays a few megabytes.
_LARGEST_SIDE = 96
# The same for images that were just generated, of which there are few.
_LARGEST_GENERATED_SIDE = 256
# Of the overview: images of a class, the best first, and classes.
_OVERVIEW_IMAGES, _OVERVIEW_CLASSES = 10, 9


@dataclass(frozen=True)
class AuditedPart:
    """What the audit says of a part of the run.

    Attributes:
        title: What the part is.
        verdict: "passed", "failed", or "outdated" where its files are not the audited ones.
        sentences: The findings in plain words, each with a mark of whether it holds, without those that an earlier
            part has too.
    """

    title: str
    verdict: str
    sentences: list[str]


@dataclass(frozen=True, eq=False)
class DemoRun:
    """What the page shows of a run.

    Attributes:
        name: Of the real tiles where it is known to everybody, otherwise "Private tiles".
        class_names: Names of the labels.
        images, labels: The distilled set: uint8 N×H×W×3 and int64 N, best first within a class.
        columns: Its other columns, arrays of length N: mostly seed, community, modular_centrality and soft_label.
        generation: Options that the pool was generated with, by name; empty where there is no pool.
        maps: Title, caption and base64 PNG of the pictures of the pool's communities.
        audit: One entry for each audited part; empty without an audit that can be read.
        groups: What is known of the groups of the tiles, such as patients, in sentences.
        tables, recovery: Scores of results.json, as `report` has them.
        benchmark: Scores on test tiles of the results table, one table for each architecture, numbers as text.
        figures: Title, caption and base64 PNG of the figures of the results table.
    """

    name: str
    class_names: list[str]
    images: np.ndarray
    labels: np.ndarray
    columns: dict[str, np.ndarray]
    generation: dict[str, Any] = field(default_factory=dict)
    maps: list[dict[str, str]] = field(default_factory=list)
    audit: list[AuditedPart] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    recovery: list[dict[str, Any]] = field(default_factory=list)
    benchmark: list[dict[str, Any]] = field(default_factory=list)
    figures: list[dict[str, str]] = field(default_factory=list)


def read_demo_run(run: str | Path) -> DemoRun:
    """Reads what the page shows; all but the distilled set may be missing.

    Raises:
        InputError: If there is no distilled set, or a JSON file of the run cannot be read or is of a later format.
    """
    run = Path(run)
    images, columns, class_names = read_image_dataset(run / "distilled")
    results = read_results(run)
    pool_settings = (read_record(run / "pool") or {}).get("settings", {})
    return DemoRun(
        name=public_name(source_name(run), class_names) or "Private tiles",
        class_names=class_names,
        images=images,
        labels=columns.pop("label"),
        columns=columns,
        generation={name: pool_settings[name] for name in PIPELINE_OPTIONS if name in pool_settings},
        maps=read_pictures(run / "selector", SELECTION_PICTURES),
        audit=audited_parts(run, read_run_audit(run / "audit.json")),
        groups=group_sentences(read_run_record(run) or {}),
        tables=score_tables(results) if results else [],
        recovery=recoveries(results) if results else [],
        benchmark=benchmark_tables(read_benchmark(run)),
        figures=read_pictures(run / "benchmark", BENCHMARK_PICTURES),
    )


def audited_parts(run: Path, audit: AuditRecord | None) -> list[AuditedPart]:
    """What `audit.json` says of each part of the run, and whether its files are still those that were audited."""
    if audit is None:
        return []
    parts: list[AuditedPart] = []
    told: set[str] = set()
    for name, verdict in audit.parts.items():
        sentences = [sentence for sentence in audit_sentences(audit, name) if sentence not in told]
        told.update(sentences)
        parts.append(AuditedPart(_AUDITED.get(name, name), audit_outcome(run / name, verdict), sentences))
    return parts


def benchmark_tables(rows: Sequence[BenchmarkRow]) -> list[dict[str, Any]]:
    """Rows of `benchmark.json` as one table for each architecture, in the order of sizes: scores on test tiles."""
    tables = []
    for architecture in dict.fromkeys(row.architecture for row in rows):
        mine = [row for row in rows if row.architecture == architecture]
        mine.sort(key=lambda row: (row.size is not None, row.size or 0))
        tables.append(
            {
                "architecture": architecture_title(architecture),
                "rows": [
                    {
                        "title": row_title(row.row).replace("`", ""),
                        "images": "all" if row.size is None else str(row.size),
                        "steps": row.steps_text(),
                        "scores": [
                            ScoreText.of(score.model_dump())
                            for score in (row.test.accuracy, row.test.auc, row.test.f1)
                        ],
                    }
                    for row in mine
                ],
            }
        )
    return tables


def communities_of(run: DemoRun, label: int) -> list[tuple[int, np.ndarray]]:
    """The communities that the distilled images of a class are from: id and indices of its images, largest first.

    One group with the id -1 where the distilled set does not say.
    """
    members = np.flatnonzero(run.labels == label)
    if "community" not in run.columns:
        return [(-1, members)]
    found = run.columns["community"][members]
    groups = [(int(community), members[found == community]) for community in np.unique(found)]
    return sorted(groups, key=lambda group: -len(group[1]))


def find_distilled(run: DemoRun, label: int, seed: int) -> int | None:
    """Index of the distilled image of this class and seed, or None."""
    if "seed" not in run.columns:
        return None
    found = np.flatnonzero((run.labels == label) & (run.columns["seed"] == seed))
    return int(found[0]) if len(found) else None


def parse_seed(value: float | None) -> int:
    """The seed that was typed in.

    Raises:
        InputError: Unless it is a whole number from 0 to `LARGEST_SEED`.
    """
    if value is None or not 0 <= value <= LARGEST_SEED or value != int(value):
        shown = "nothing" if value is None else value
        raise InputError(f"seed={shown} is out of range: it must be a whole number from 0 to {LARGEST_SEED:,}")
    return int(value)


def data_url(pixels: np.ndarray, largest_side: int = _LARGEST_SIDE) -> str:
    """An image, uint8 H×W×3, as a URL that holds the PNG file; one larger than `largest_side` pixels is shrunk."""
    return f"data:image/png;base64,{base64_png(pixels, largest_side)}"


def intro_html(run: DemoRun) -> str:
    """What the page is about, and what it must not be used for."""
    return _macro("intro", run)


def overview_html(run: DemoRun) -> str:
    """What to see first: scores, verdicts, and the first images of each class."""
    strips = []
    for label, name in enumerate(run.class_names[:_OVERVIEW_CLASSES]):
        members = np.flatnonzero(run.labels == label)
        urls = [data_url(run.images[i]) for i in members[:_OVERVIEW_IMAGES]]
        if urls:
            strips.append({"name": name, "count": len(members), "urls": urls})
    return _macro("overview", run, strips)


def communities_html(run: DemoRun, label: int, community: int | None = None) -> str:
    """The distilled images of a class, grouped by community; one group where `community` is given."""
    groups = []
    for number, members in communities_of(run, label):
        if community is None or community == number:
            tiles = [{"url": data_url(run.images[i]), **_notes(run, i)} for i in members]
            groups.append({"number": number, "tiles": tiles})
    return _macro("communities", groups)


def generated_html(run: DemoRun, label: int, seeds: list[int], images: np.ndarray) -> str:
    """Generated images, uint8 N×H×W×3, each with its seed and what the distilled set holds of that seed."""
    tiles = []
    for seed, image in zip(seeds, images, strict=True):
        notes, index = [f"seed {seed}"], find_distilled(run, label, seed)
        if index is not None:
            difference = int(np.abs(image.astype(int) - run.images[index]).max())
            notes.append("distilled" if difference == 0 else f"distilled, up to {difference}/255 apart")
        tiles.append({"url": data_url(image, _LARGEST_GENERATED_SIDE), "notes": notes, "hint": ""})
    return _macro("generated", run.class_names[label], tiles)


def example_html(run: DemoRun) -> str:
    """The first distilled image as the one that its seed generates; empty where the seed is not known."""
    if "seed" not in run.columns:
        return ""
    return generated_html(run, int(run.labels[0]), [int(run.columns["seed"][0])], run.images[:1])


def maps_html(run: DemoRun) -> str:
    """The pictures of the communities."""
    return _macro("maps", run.maps)


def audit_html(run: DemoRun) -> str:
    """The verdicts of the audit, and what they are based on."""
    return _macro("audit", run.audit, run.groups)


def scores_html(run: DemoRun) -> str:
    """The scores of the run and of its results table, and figures."""
    return _macro("scores", run)


def _notes(run: DemoRun, index: int) -> dict[str, Any]:
    """What is written below a distilled image, and what is said of it where the pointer rests on it."""
    label, notes, hint = run.labels[index], [], ""
    if "seed" in run.columns:
        notes.append(f"seed {run.columns['seed'][index]}")
    if "soft_label" in run.columns:
        share = run.columns["soft_label"][index][label]
        hint = f"The teacher takes it for {run.class_names[label]} with a probability of {share:.2f}."
    return {"notes": notes, "hint": hint}


def _macro(name: str, *args: Any) -> str:
    """The HTML that a macro of `page.html.jinja` makes of some values."""
    # Autoescaped: names of classes come from outside.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = resources.files("histodistill.training.demo_app").joinpath("page.html.jinja").read_text(encoding="utf-8")
    return str(getattr(environment.from_string(source).module, name)(*args)).strip()
