"""What a teacher says of fixed views of images, beside the images as they are."""

from __future__ import annotations

import numpy as np

from histodistill.hub_cards.tables import encode_soft_label_views
from histodistill.selection.fixed_views import FixedViews
from histodistill.training.data.tiles import LabelViews, Tiles
from histodistill.training.models.classifiers import Classifier
from histodistill.training.models.prediction import predict_proba


# Images of which views are made at once.
_ROWS = 1024


def label_views(teacher: Classifier, tiles: Tiles, ranks: np.ndarray, num_views: int) -> LabelViews:
    """Asks a teacher what it sees in the views of `selection.fixed_views`.

    Args:
        teacher: It tells as many classes as there are.
        tiles: All images of the set.
        ranks: int64 N, their places among those of their class, from 1, each once.
        num_views: Views of each image, the image as it is included; at least 2.

    Returns:
        The teacher's probabilities of views 1 to `num_views` − 1. Of a view that is missing, since the image that it
        is mixed with is, they are those of the image as it is.
    """
    views = FixedViews(tiles.labels, ranks, teacher.num_classes, num_views)
    codes = np.empty((len(tiles), num_views - 1, teacher.num_classes), np.uint8)
    for start in range(0, len(tiles), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(tiles)))
        for view in range(1, num_views):
            images = views.make(tiles.images, rows, np.full(len(rows), view))
            codes[rows, view - 1] = encode_soft_label_views(predict_proba(teacher, images))
    return LabelViews(codes, ranks)


def places_in_classes(labels: np.ndarray) -> np.ndarray:
    """The place of each image among those of its class, in their order, from 1: int64 N."""
    places = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        places[rows] = np.arange(1, len(rows) + 1)
    return places
