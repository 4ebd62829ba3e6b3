"""The picture of a pool's communities that is published: drawn from their sizes alone.

`community_figures` draws maps from embeddings and images, for the report. What goes up is drawn while publishing, from
numbers that stand on the card too, so that no file of the run, whatever it shows, goes up as a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.collections import EllipseCollection
from matplotlib.lines import Line2D

from histodistill.selection.summaries import counted
from histodistill.training.data.images import figure_png
from histodistill.training.distillation.community_figures import INK, PALETTE, class_panels, write_title


# Of a class, in dots and in communities; more cannot be told apart.
_MOST_DOTS, _MOST_DISCS = 2000, 300
# The angle between one dot of a disc and the next, by which a disc of any size is filled evenly, as a sunflower is.
_GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))
# In the mean distance between dots: how large a dot is, how large a chosen one, and how far discs are from each other.
_DOT, _CHOSEN, _GAP = 1.2, 1.5, 1.5
# Places along each side of the square in which discs are laid out.
_PLACES = 161


def community_discs(sizes: Mapping[str, Sequence[int]], chosen: Mapping[str, Sequence[int]]) -> bytes:
    """A PNG figure: for each class its communities as discs of dots, a dot for each image, the chosen ones ringed.

    The largest community lies in the middle, the others around it where there is room. A class of very many images
    has a dot for several of them, and of very many communities the largest are drawn. The same numbers give the same
    file.

    Args:
        sizes: Class → images of each community, at least 1, the largest first.
        chosen: Class → how many of these were chosen, in the same order.

    Raises:
        ValueError: If the two do not fit each other.
    """
    check_counts(sizes, chosen)
    figure, panels = class_panels(len(sizes))
    for (name, counts), panel in zip(sizes.items(), panels, strict=True):
        per_dot = -(-sum(counts) // _MOST_DOTS) or 1
        notes = [
            counted(sum(counts), "image", "images"),
            counted(len(counts), "community", "communities"),
            f"{sum(chosen[name]):,} chosen",
        ]
        if per_dot > 1:
            notes.append(f"a dot for {per_dot:,}")
        if len(counts) > _MOST_DISCS:
            notes.append(f"{_MOST_DISCS} drawn")
        write_title(panel, name, ", ".join(notes))
        dots = [-(-size // per_dot) for size in counts[:_MOST_DISCS]]
        ringed = [-(-number // per_dot) for number in chosen[name][:_MOST_DISCS]]
        for number, (centre, total) in enumerate(zip(pack_discs(np.sqrt(dots)), dots, strict=True)):
            _draw_disc(panel, centre, total, ringed[number], PALETTE[number % len(PALETTE)])
        panel.set_aspect("equal", adjustable="datalim")
        panel.autoscale_view()
    handles = [
        Line2D([], [], ls="none", marker="o", color=PALETTE[0], markersize=4, label="image; a disc is a community"),
        Line2D([], [], ls="none", marker="o", mfc="none", mec=INK, markersize=6, label="chosen"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    return figure_png(figure)


def check_counts(sizes: Mapping[str, Sequence[int]], chosen: Mapping[str, Sequence[int]]) -> None:
    """Sees that numbers of chosen images fit the sizes of communities. Raises ValueError if not."""
    for name, counts in sizes.items():
        mine = chosen.get(name, ())
        if len(mine) != len(counts) or any(
            size < 1 or not 0 <= number <= size for size, number in zip(counts, mine, strict=True)
        ):
            raise ValueError(f"the communities of {name} do not fit the images that were chosen of them")
        if list(counts) != sorted(counts, reverse=True):
            raise ValueError(f"the communities of {name} are not in order: the largest must be the first")
    if sizes.keys() != chosen.keys():
        raise ValueError("the communities and the images chosen of them are not of the same classes")


def pack_discs(radii: np.ndarray) -> np.ndarray:
    """Places for discs that do not overlap: float N×2 centres.

    Args:
        radii: float N, above 0, the largest first: each is laid as close to the middle as there is room.
    """
    radii = radii + _GAP / 2
    side = 1.5 * np.sqrt((radii**2).sum())
    while True:
        steps = np.linspace(-side, side, _PLACES)
        places = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
        places = places[np.argsort((places**2).sum(axis=1), kind="stable")]
        room = np.full(len(places), np.inf)
        centres = np.zeros((len(radii), 2))
        for number, radius in enumerate(radii):
            free = room >= radius
            if not free.any():
                break
            centres[number] = places[free.argmax()]
            room = np.minimum(room, np.linalg.norm(places - centres[number], axis=1) - radius)
        else:
            return centres
        side *= 1.25


def _draw_disc(panel, centre: np.ndarray, total: int, ringed: int, colour: np.ndarray) -> None:
    """Draws a community of `total` dots, of which `ringed` are chosen: those in the middle."""
    numbers = np.arange(total)
    angles, distances = numbers * _GOLDEN_ANGLE, np.sqrt(numbers)
    dots = centre + np.stack([distances * np.cos(angles), distances * np.sin(angles)], axis=1)
    for places, width, style in (
        (dots[ringed:], _DOT, {"alpha": 0.6, "linewidths": 0}),
        (dots[:ringed], _CHOSEN, {"edgecolors": INK, "linewidths": 1.0}),
    ):
        size = np.full(len(places), width)
        shapes = EllipseCollection(
            size,
            size,
            0 * size,
            units="xy",
            offsets=places,
            offset_transform=panel.transData,
            facecolors=colour,
            **style,
        )
        panel.add_collection(shapes)
    panel.update_datalim(np.array([centre - np.sqrt(total) - 1, centre + np.sqrt(total) + 1]))
