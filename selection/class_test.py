"""One class judged: what a single class gives away must not hide among the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from histodistill.selection.permutation import aucs_of_draws, highest_test, shares_of_draws


def class_p_value(
    nearest: Mapping[str, np.ndarray],
    labels: np.ndarray,
    tiles: Mapping[str, np.ndarray],
    within: Iterable[tuple[np.ndarray, np.ndarray]],
    draws: np.ndarray,
) -> float:
    """Probability, if nothing leaked, that overfitting or an attack is as high in any class as where it is highest.

    All classes, spaces and attacks are judged by one test, so that the more there are the more each must show.

    Args:
        nearest: Space → int64 G, the unit that each image is nearest to, or −1 for none.
        labels: int64 G, the classes of the images.
        tiles: Space → whole numbers U, tiles of each unit in it.
        within: Of attacks within a class, the M units that have tiles of it and their scores, int64 and float64 M.
        draws: bool D×U, who was held out, and then draws of it.
    """
    columns = [
        shares_of_draws(units[labels == label], tiles[space], draws)
        for label in np.unique(labels)
        for space, units in nearest.items()
    ]
    columns += [aucs_of_draws(scores[:, None], draws[:, units])[:, 0] for units, scores in within]
    return highest_test(np.stack(columns, axis=1))
