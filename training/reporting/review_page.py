"""The page on which people look through a distilled set and leave images out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from histodistill.hub_cards.site_verdict import image_hash
from histodistill.training.data.image_dataset import read_image_table
from histodistill.training.data.images import base64_png
from histodistill.training.distillation.reviews import LONGEST_NOTE, LONGEST_SIGN
from histodistill.training.reporting.templates import render_page, script_values
from histodistill.training.running.files import write_text
from histodistill.training.running.stages import content_of


#: The folder in a run for all of a review. It is no part that is published, and must not leave the house.
REVIEW_FOLDER = "review"
#: The page's file in it.
REVIEW_PAGE = "review.html"
#: In pixels. Larger images are shown smaller, so that a page can still be opened.
LARGEST_SIDE = 256


def write_review_page(run: Path) -> Path:
    """Writes `run/review/review.html`: the set by class, and what to say of each image.

    It needs nothing else, loads nothing, and the only script that may run is its own. It saves a file that
    `select --exclude` takes.

    Args:
        run: A run with a finished selection.

    Returns:
        The path of the page.

    Raises:
        InputError: If the set cannot be read.
    """
    folder = run / "distilled"
    table = read_image_table(folder)
    labels, seeds = table.columns["label"], table.columns["seed"]
    classes = []
    for label, name in enumerate(table.class_names):
        images = [
            {
                "row": int(row),
                "seed": int(seeds[row]),
                "hash": image_hash(table.images[row]),
                "png": base64_png(table.images[row], LARGEST_SIDE),
            }
            for row in np.flatnonzero(labels == label)
        ]
        classes.append({"name": name, "images": images})
    values = {
        "title": "Review of a distilled set",
        "kind": "review",
        "about": content_of(folder),
        "num_images": len(table),
        "classes": classes,
        "longest_note": LONGEST_NOTE,
        "longest_sign": LONGEST_SIGN,
    }
    path = run / REVIEW_FOLDER / REVIEW_PAGE
    write_text(path, render_page("review.html.jinja", values | script_values("saved_page.js")))
    return path
