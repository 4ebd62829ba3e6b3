"""The pictures that the steps of a run leave and that the report and the demo page show, with how to read them.

Each is a file, a title and a caption. They show synthetic images and scores only.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path
from typing import Any


#: What `histodistill select` may leave in `selector/`.
SELECTION_PICTURES = (
    (
        "community_map.png",
        "Maps of the pool",
        "One panel is one class, one dot one of its generated images. Images that the embedding finds alike lie close "
        "together (t-SNE). Dots of one colour that a thin line joins are one community; colours repeat, so the same "
        "colour elsewhere is another one. Large dots with a ring are the chosen images: they should lie in all "
        "parts of the cloud. Grey dots, if any, were dropped before the selection. Only closeness means "
        "something, not the directions and not the width of a gap.",
    ),
    (
        "community_tiles.png",
        "Images of the largest communities",
        "One row is one community, its number of images on the left. First come its most central images, those most "
        "typical of it, and after the gap its least central ones; a small community shows each image once. Chosen "
        "images have a green frame. A row should look alike, and the rows of a class unlike each other.",
    ),
)
#: The picture that shows what `benchmark.json` holds.
ACCURACY_PICTURE = "accuracy_by_size.png"
#: What `histodistill benchmark` leaves in `benchmark/`.
BENCHMARK_PICTURES = (
    (
        ACCURACY_PICTURE,
        "Accuracy against images per class",
        "Test tiles, mean and standard deviation over seeds. Dashed lines are sets of a fixed size.",
    ),
    (
        "confusion.png",
        "Which class is taken for which",
        "A row is a true class, a column a predicted one; the numbers are per cent of the row's test tiles.",
    ),
    ("per_class_f1.png", "F1 of each class", "Test tiles, mean and standard deviation over seeds."),
    (
        "reliability.png",
        "How far confidence can be relied on",
        "Test tiles of all seeds, in ten ranges of confidence. On the grey line a classifier is right as often as it "
        "says; below it, less often. ECE is the mean distance from it.",
    ),
)


# What shows images: to be seen as they are, on white, whatever the colours of the page.
_TILES = "community_tiles.png"


def read_pictures(folder: Path, pictures: Iterable[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """Title, caption, base64 PNG and `has_tiles` of those pictures (file, title, caption) that are in `folder`."""
    found = []
    for file, title, caption in pictures:
        if (folder / file).is_file():
            png = base64.b64encode((folder / file).read_bytes()).decode()
            found.append({"title": title, "caption": caption, "png": png, "has_tiles": file == _TILES})
    return found
