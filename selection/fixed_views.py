"""Fixed views of the images of a distilled set, of which a teacher's probabilities can be published.

A view is an image turned, cut out or mixed with another, which can be made again from the number of the view and the
place of the image in the set: its class and its rank there. Nothing else has to be stored. This is the rule. View 0 is
the image as it is. Those after it are of three kinds in turn, so that the first few have one of each:

- 1, 4, 7 … are turned or mirrored: view v by `apply_symmetry` with the symmetry (v − 1) / 3 mod 7, plus 1;
- 2, 5, 8 … are a square of the image, resized to its side S by Pillow's bicubic filter. Of four numbers u from
  [0, 1), the first says which share of the area is kept, `LEAST_CROP` + (1 − `LEAST_CROP`) · u₁, so that the square
  has the side s = S · √share, rounded; its upper left corner is at the pixel ⌊u₂ · (S − s + 1)⌋ from the top and
  ⌊u₃ · (S − s + 1)⌋ from the left;
- 3, 6, 9 … are CutMix (Yun et al., ICCV 2019): a square of another image is put in its place in this one. Its side is
  S · √u₁, rounded, and what of it would be outside is cut off; its middle is at pixel ⌊u₂ · S⌋ from the top and
  ⌊u₃ · S⌋ from the left, and what comes before the middle is half of the side, rounded down. The other image has the
  same rank in the class that is 1 + ⌊u₄ · (C − 1)⌋ places after its own of C classes, counted in a circle.

The numbers u are `stream("fixed view of a distilled image", view, label, rank).random(4)`. Halves are rounded up.

Since the two images of CutMix have one rank, each part of a set that has the images up to some rank of all classes
has all its views. Of other parts some are missing, and those are known: see `FixedViews.available`.
"""

from __future__ import annotations

import numpy as np

from histodistill.selection.image_rows import Images
from histodistill.selection.names import SYMMETRIES
from histodistill.selection.streams import stream
from histodistill.selection.views import apply_symmetry, crop_and_resize


#: The least share of an image's area that a cut-out view shows.
LEAST_CROP = 0.25
# The kinds of views by their number modulo 3; view 0 is none of them.
_TURNED, _CROPPED, _MIXED = 1, 2, 0


class FixedViews:
    """The views of the images of a set; the module's docstring tells what they are.

    Args:
        labels: N whole numbers, the classes of the images.
        ranks: N whole numbers, from 1: the place of each among the images of its class.
        num_classes: Classes of the set, C.
        num_views: Views of each image, at least 1: view 0 is the image as it is.

    Attributes:
        available: N×num_views bool: False where an image that the view is mixed with is not among these.

    Raises:
        ValueError: If two images have the same class and rank.
    """

    def __init__(self, labels: np.ndarray, ranks: np.ndarray, num_classes: int, num_views: int):
        rows = {place: row for row, place in enumerate(zip(labels.tolist(), ranks.tolist(), strict=True))}
        if len(rows) < len(labels):
            raise ValueError("two images of a class have the same rank: views are told by class and rank")
        self._numbers = np.zeros((len(labels), num_views, 4))
        # Of images that are mixed with none, a row of their own.
        self._partners = np.repeat(np.arange(len(labels))[:, None], num_views, axis=1)
        self.available = np.ones((len(labels), num_views), bool)
        for view in range(1, num_views):
            if view % 3 == _TURNED:
                continue
            for (label, rank), row in rows.items():
                numbers = stream("fixed view of a distilled image", view, label, rank).random(4)
                self._numbers[row, view] = numbers
                if view % 3 == _MIXED:
                    other = (label + 1 + int(numbers[3] * (num_classes - 1))) % num_classes
                    partner = rows.get((other, rank)) if other != label else None
                    self._partners[row, view] = row if partner is None else partner
                    self.available[row, view] = partner is not None

    def make(self, images: Images, rows: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Makes views.

        Args:
            images: uint8 N×S×S×3, all images of the set.
            rows: int64 M, which of them.
            views: int64 M, the view of each that is wanted. Where the one that it is mixed with is missing, the image
                stays as it is.

        Returns:
            A new array uint8 M×S×S×3.
        """
        made = np.array(images[rows])
        is_mixed = (views > 0) & (views % 3 == _MIXED) & self.available[rows, views]
        partners = iter(images[self._partners[rows, views][is_mixed]])
        for place, (row, view) in enumerate(zip(rows.tolist(), views.tolist(), strict=True)):
            if view == 0:
                continue
            if view % 3 == _TURNED:
                made[place] = apply_symmetry(made[place : place + 1], (view - 1) // 3 % (SYMMETRIES - 1) + 1)[0]
            elif view % 3 == _CROPPED:
                made[place] = _cropped(made[place], self._numbers[row, view])
            elif is_mixed[place]:
                _paste(made[place], next(partners), self._numbers[row, view])
        return made


def _cropped(image: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    size = len(image)
    side = max(1, _rounded(size * np.sqrt(LEAST_CROP + (1 - LEAST_CROP) * numbers[0])))
    corner = (numbers[1:3] * (size - side + 1)).astype(np.int64)
    return crop_and_resize(image[None], side, corner[None])[0]


def _paste(image: np.ndarray, other: np.ndarray, numbers: np.ndarray) -> None:
    """Puts a square of another image in its place in this one, which is changed."""
    size = len(image)
    side = _rounded(size * np.sqrt(numbers[0]))
    top, left = (numbers[1:3] * size).astype(np.int64) - side // 2
    box = slice(max(0, top), top + side), slice(max(0, left), left + side)
    image[box] = other[box]


def _rounded(number: float) -> int:
    return int(np.floor(number + 0.5))
