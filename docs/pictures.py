"""Makes the pictures of `how-it-works.md` from a run on the built-in drawings.

    make demo
    .venv/bin/python docs/pictures.py demo-run

Writes PNG files to `docs/assets/`. Only drawings and what was learned from them may be shown here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from histodistill import load_tiles, read_image_dataset
from histodistill.training.data.images import make_grid, png_bytes
from histodistill.training.data.pixels import to_model_input, to_uint8
from histodistill.training.models.latents import reconstruct
from histodistill.training.models.loading import load_autoencoder
from histodistill.training.running.files import read_json


ASSETS = Path(__file__).resolve().parent / "assets"
# Tiles in a row of a picture.
COLUMNS = 12
# How many times a tile is enlarged.
SCALE = 2


def rows_by_class(images: np.ndarray, labels: np.ndarray) -> Image.Image:
    """A row with the first images of each class."""
    chosen = [index for label in np.unique(labels) for index in np.flatnonzero(labels == label)[:COLUMNS]]
    return make_grid(images[chosen], COLUMNS, SCALE)


def reconstructions(run: Path, images: np.ndarray) -> Image.Image:
    """Tiles above, and below what the autoencoder of the run makes of them."""
    autoencoder = load_autoencoder(run / "autoencoder")
    with torch.no_grad():
        pixels = to_model_input(images)
        drawn = to_uint8(reconstruct(autoencoder, pixels))
    return make_grid(np.concatenate([images, drawn]), len(images), SCALE)


def panel_of_glands(run: Path) -> Image.Image:
    """The second of the three panels in the upper row of the map of communities."""
    figure = Image.open(run / "selector" / "community_map.png")
    width, height = figure.size
    return figure.crop((width // 3, 0, 2 * width // 3, round(0.476 * height)))


def main() -> None:
    """Makes all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run of `distill --data phantom`")
    run = parser.parse_args().run
    if read_json(run / "run.json")["data"] != "phantom":
        parser.error("only a run on phantom may be shown")
    tiles = load_tiles("phantom")
    train, validation = tiles.split("train"), tiles.split("validation")
    pictures = {
        "real.png": rows_by_class(train.images, train.labels),
        "reconstructions.png": reconstructions(run, validation.images[:: len(validation.images) // COLUMNS][:COLUMNS]),
        "communities.png": panel_of_glands(run),
    }
    for name in ("pool", "distilled"):
        images, columns, _ = read_image_dataset(run / name)
        pictures[f"{name}.png"] = rows_by_class(images, columns["label"])
    for name, picture in pictures.items():
        (ASSETS / name).write_bytes(png_bytes(picture))


if __name__ == "__main__":
    main()
