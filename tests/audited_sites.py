"""Distilled sets of sites as they send them, each with the verdict of its audit; of drawings, and in a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from audits import audit_of, audit_result, by_patient

from histodistill.hub_cards import DistilledDatasetCardData, render_dataset_card
from histodistill.hub_cards.contents import check_set
from histodistill.hub_cards.part_files import hash_part
from histodistill.training.data.image_dataset import write_image_dataset
from histodistill.training.data.phantom import PHANTOM_CLASSES, phantom_tiles
from histodistill.training.evaluation.run_contents import RunContents, RunFiles
from histodistill.training.evaluation.set_card import write_site_verdict
from histodistill.training.evaluation.verdicts import make_audit
from histodistill.training.running.stages import Stage


SITES = ("east", "west", "south")


def make_set(folder: Path, site: str, n_per_class: int = 3, seed: int = 0) -> None:
    """Writes what `select` leaves in `folder / "distilled"`: drawings of a site, in place of generated images."""
    tiles = phantom_tiles("train", n_per_class, image_size=16, seed=seed, site=site)
    count, distilled = len(tiles.labels), folder / "distilled"
    stage = Stage(distilled, {"stage": "distilled", "selector": "infomap", "pool": site})
    stage.begin()
    columns = {
        "label": tiles.labels,
        "soft_label": np.random.default_rng(seed).dirichlet(np.ones(len(PHANTOM_CLASSES)), count).astype(np.float32),
        "seed": np.arange(count),
        "community": np.arange(count),
        "rank": np.arange(count) % n_per_class + 1,
    }
    features = write_image_dataset(distilled / "data", tiles.images, columns, list(PHANTOM_CLASSES))
    card = DistilledDatasetCardData(
        class_names=list(PHANTOM_CLASSES), n_per_class=n_per_class, image_size=16, pool_size=40,
        selector="DistillSelector", features=features, source_name="phantom", license="apache-2.0",
    )  # fmt: skip
    (distilled / "README.md").write_text(render_dataset_card(card))
    stage.finish(copies_dropped=None)


def add_verdict(folder: Path, copies: int = 0, patients: bool = False) -> None:
    """Writes the verdict that goes with a set; with copies it did not pass."""
    audit = audit_of(folder, parts=["distilled"], copies=copies)
    if patients:
        facts = {name: getattr(audit, name) for name in ("data", "num_tiles", "copies_dropped")}
        audit = make_audit(by_patient(audit_result()), [], {"distilled": hash_part(folder / "distilled")}, {}, facts)
    files = RunFiles.read(folder, ["distilled"])
    content = check_set(folder / "distilled", files.parts["distilled"])
    write_site_verdict(files, RunContents(None, None, content), audit)  # type: ignore[arg-type]


def make_sites(folder: Path) -> list[Path]:
    """The sets of three sites, each with its verdict, the first by patient: the folders that they send."""
    for site in SITES:
        make_set(folder / site, site)
        add_verdict(folder / site, patients=site == SITES[0])
    return [folder / site / "distilled" for site in SITES]
