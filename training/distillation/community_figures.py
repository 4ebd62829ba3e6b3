"""Figures of a selection: the pool as a map of its communities, and the images of the largest communities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist, squareform

from histodistill.selection.image_rows import Images, rows_of
from histodistill.selection.streams import stream
from histodistill.training.data.images import figure_png
from histodistill.training.running.files import write_bytes


# More images of a class would only lie on top of each other, and take minutes to lay out.
MAP_IMAGES = 2000
# Of the layout and of the images that are drawn.
_SEED = 0
# t-SNE of fewer points is arbitrary.
_FEWEST_FOR_TSNE = 10
#: Colours of communities: far from each other, and from the grey of dropped images.
PALETTE = np.array(
    ["#4477aa", "#ee6677", "#228833", "#ccaa22", "#66ccee", "#aa3377", "#332288", "#ee7733", "#44aa99", "#999933"]
)
_DROPPED = "#b4bac2"
_LINE = "#dcdfe3"
#: The colour of texts and rings.
INK = "#1d2126"
_SOFT = "#5b6470"
_FRAME = "#00a36c"
# Sizes on the sheet of tiles in pixels: the side of a tile, the space between two, the frame in that space, the space
# between most and least central, the column of sizes, and the height above the first row of a class.
_SIDE, _GAP, _BORDER, _MIDDLE, _LEFT, _TOP = 56, 8, 3, 28, 68, 64
# A power of two, so that pixels become inches and pixels again without rounding.
_DPI = 128


def community_map(
    embeddings: np.ndarray,
    labels: np.ndarray,
    module_labels: np.ndarray,
    chosen: np.ndarray,
    class_names: list[str],
    path: str | Path,
) -> None:
    """Writes a PNG figure: for each class a map of its pool images, coloured by community, the chosen ones ringed.

    A map is a t-SNE layout of the embeddings of one class, of the first two principal components where t-SNE has too
    little to work on. Thin lines join the images of a community, and communities side by side differ in colour where
    ten colours allow it. Of a class with more than `MAP_IMAGES` images, all chosen ones and a random part of the
    others are drawn. The same arguments give the same file, whatever the number of threads.

    Args:
        embeddings: float N×D, finite.
        labels: int N, from 0 to `len(class_names) - 1`.
        module_labels: int N, the community of each image within its class; -1 for an image that was dropped before
            the selection.
        chosen: int K, different indices into the N images.
        class_names: one panel for each, also for a class without images.
        path: the file; it appears whole or not at all.

    Raises:
        ValueError: If the arrays are not of the same length.
        OSError: If the file cannot be written.
    """
    _check_lengths(embeddings, labels, module_labels)
    is_chosen = _mask(chosen, len(labels))
    figure, panels = class_panels(len(class_names))
    for label, (name, panel) in enumerate(zip(class_names, panels, strict=True)):
        members = np.flatnonzero(labels == label)
        drawn = _thin_out(members, is_chosen[members], stream("points of a community map", _SEED, label))
        count = _count(len(members), "image", "images")
        if len(drawn) < len(members):
            count += f" ({len(drawn):,} drawn)"
        found = np.unique(module_labels[members][module_labels[members] >= 0])
        count += f", {_count(len(found), 'community', 'communities')}, {is_chosen[members].sum():,} chosen"
        write_title(panel, name, count)
        if len(drawn):
            _draw_map(panel, _layout(embeddings[drawn]), module_labels[drawn], is_chosen[drawn])
    handles = _map_legend(has_dropped=bool((module_labels < 0).any()))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    _write_png(figure, path)


def class_panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with `count` empty panels side by side, at most three in a row."""
    columns = min(3, int(np.ceil(np.sqrt(count))))
    rows = -(-count // columns)
    figure = Figure(figsize=(4 * columns, 3.7 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels:
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_color(_LINE)
    for panel in panels[count:]:
        panel.set_axis_off()
    return figure, list(panels[:count])


def write_title(panel: Axes, name: str, about: str) -> None:
    """Writes above a panel which class it shows, and a line about it."""
    panel.set_title(f"{_shorten(name, 44)}\n{about}", fontsize=9, color=INK, parse_math=False)


def community_tiles(
    images: Images,
    labels: np.ndarray,
    module_labels: np.ndarray,
    centrality: np.ndarray,
    chosen: np.ndarray,
    class_names: list[str],
    path: str | Path,
    communities: int = 8,
    tiles: int = 6,
) -> None:
    """Writes a PNG figure: for each class its largest communities, one a row, from most to least central image.

    A row begins with the number of images of the community. Then come its `tiles` most central images and, after a
    space, its `tiles` least central ones; a community without so many shows each image once. Chosen images are framed.

    Args:
        images: uint8 N×H×W×3; small ones are shown enlarged by a whole factor, large ones smaller.
        labels: int N, from 0 to `len(class_names) - 1`.
        module_labels: int N, the community of each image within its class; images of -1 are left out.
        centrality: float N, comparable within a community; equal ones are shown in the order of their index.
        chosen: int K, indices into the N images.
        class_names: one block for each, also for a class without communities.
        path: the file; it appears whole or not at all.
        communities: rows of a class, at least 1.
        tiles: images at each end of a row, at least 1.

    Raises:
        ValueError: If the arrays are not of the same length.
        OSError: If the file cannot be written.
    """
    _check_lengths(images, labels, module_labels, centrality)
    is_chosen = _mask(chosen, len(labels))
    blocks = []
    for label in range(len(class_names)):
        found, sizes = np.unique(module_labels[(labels == label) & (module_labels >= 0)], return_counts=True)
        largest = found[np.argsort(-sizes, kind="stable")[:communities]]
        ranked = [np.flatnonzero((labels == label) & (module_labels == community)) for community in largest]
        blocks.append((len(found), [members[np.argsort(-centrality[members], kind="stable")] for members in ranked]))
    # All blocks are as wide as the longest row needs.
    longest = max((len(row) for _, rows in blocks for row in rows), default=0)
    left, right = min(tiles, longest), min(tiles, max(0, longest - tiles))
    step = _SIDE + _GAP
    width = _LEFT + max(left, 5) * step + bool(right) * _MIDDLE + right * step + 2 * _GAP
    height = _TOP + max(len(rows) for _, rows in blocks) * step
    columns = 1 if len(blocks) == 1 else 2 if right else 3
    canvas = np.full((-(-len(blocks) // columns) * height, min(columns, len(blocks)) * width, 3), 255, np.uint8)
    figure = Figure(figsize=(canvas.shape[1] / _DPI, canvas.shape[0] / _DPI), dpi=_DPI)
    write = _Writer(figure, canvas.shape)
    shown = []
    for place, (name, (num_found, rows)) in enumerate(zip(class_names, blocks, strict=True)):
        x, y = place % columns * width + _GAP, place // columns * height + _GAP
        of = f"{len(rows)} of " if len(rows) < num_found else ""
        title = f"{_shorten(name, 40)} · {of}{_count(num_found, 'community', 'communities')}"
        write(x, y + 14, title, fontsize=8.5, color=INK, weight="bold")
        write(x, y + 40, "images")
        write(x + _LEFT, y + 40, "most central first")
        if right:
            write(x + _LEFT + left * step + _MIDDLE, y + 40, "least central last")
        for number, members in enumerate(rows):
            top = y + _TOP - _GAP + number * step
            write(x, top + _SIDE / 2, f"{len(members):,}", fontsize=8, color=INK)
            ends = np.concatenate([members[:tiles], members[tiles:][-tiles:]])
            shown += [(index, top, x + _LEFT + i * step + (i >= tiles) * _MIDDLE) for i, index in enumerate(ends)]
    # In the order of the images, which may be read from files.
    shown.sort()
    for (index, top, x), image in zip(shown, rows_of(images, [index for index, *_ in shown]), strict=True):
        _paste(canvas, image, top, x, is_chosen[index])
    figure.figimage(canvas)
    _write_png(figure, path)


def _check_lengths(*arrays: Images) -> None:
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) > 1:
        raise ValueError(f"the arrays describe different numbers of images: {lengths}")


def _mask(indices: np.ndarray, length: int) -> np.ndarray:
    mask = np.zeros(length, bool)
    mask[indices] = True
    return mask


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _thin_out(members: np.ndarray, is_chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """At most `MAP_IMAGES` of the members, ascending: all chosen ones (however many), a random part of the rest."""
    rest = members[~is_chosen]
    room = max(0, MAP_IMAGES - is_chosen.sum())
    if len(rest) > room:
        rest = rng.choice(rest, room, replace=False)
    return np.sort(np.concatenate([members[is_chosen], rest]))


def _layout(embeddings: np.ndarray) -> np.ndarray:
    """float N×2 places of N ≥ 1 embeddings."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    # Sums over several threads end in other digits, and t-SNE makes these visible.
    with threadpool_limits(limits=1):
        centred = embeddings.astype(np.float64) - embeddings.mean(axis=0, dtype=np.float64)
        # Identical images have no layout: they lie on one spot.
        if not np.ptp(embeddings, axis=0).any():
            return np.zeros((len(centred), 2))
        if len(centred) < _FEWEST_FOR_TSNE or centred.shape[1] < 2:
            places = (centred @ np.linalg.svd(centred, full_matrices=False)[2].T)[:, :2]
            return np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
        perplexity = min(30, (len(centred) - 1) / 3)
        # Twice as many iterations take twice the time and give the same picture.
        tsne = TSNE(perplexity=perplexity, init="pca", max_iter=500, random_state=_SEED, n_jobs=1)
        return tsne.fit_transform(centred)


def _draw_map(panel, places: np.ndarray, communities: np.ndarray, is_chosen: np.ndarray) -> None:
    """Draws one class; markers shrink with the number of images."""
    size = np.clip(12000 / len(places), 12, 40)
    dropped = communities < 0
    panel.scatter(*places[dropped].T, s=size / 2, color=_DROPPED, linewidths=0)
    places, communities, is_chosen = places[~dropped], communities[~dropped], is_chosen[~dropped]
    if len(places):
        inverse = np.unique(communities, return_inverse=True)[1]
        colours = PALETTE[_spread_colours(places, inverse)][inverse]
        lines = _tree_lines(places, inverse)
        panel.add_collection(LineCollection(places[lines], colors=colours[lines[:, 0]], lw=0.7, alpha=0.4))
        panel.scatter(*places[~is_chosen].T, s=size, c=colours[~is_chosen], alpha=0.6, linewidths=0)
        panel.scatter(*places[is_chosen].T, s=2 * size, c=colours[is_chosen], edgecolors=INK, linewidths=1.2)


def _tree_lines(places: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """int64 L×2 pairs of images: the shortest lines that join all images of each community."""
    pairs = [np.zeros((0, 2), int)]
    for community in range(inverse.max() + 1):
        members = np.flatnonzero(inverse == community)
        tree = minimum_spanning_tree(squareform(pdist(places[members])))
        pairs.append(members[np.stack(tree.nonzero(), axis=1)])
    return np.concatenate(pairs)


def _spread_colours(places: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """int64 index of a colour for each community, such that communities side by side differ.

    One community after the other, the largest first, takes the colour that the fewest of its images' neighbours on
    the map have, and of several such colours the one that was taken least often.
    """
    counts = np.bincount(inverse)
    _, near = cKDTree(places).query(places, k=range(1, min(16, len(places)) + 1))
    touch = np.zeros((len(counts), len(counts)))
    np.add.at(touch, (inverse[:, None], inverse[near]), 1)
    touch += touch.T
    colours = np.zeros(len(counts), int)
    order = np.argsort(-counts, kind="stable")
    for number, community in enumerate(order):
        before = order[:number]
        clashes = np.bincount(colours[before], weights=touch[community, before], minlength=len(PALETTE))
        uses = np.bincount(colours[before], minlength=len(PALETTE))
        colours[community] = np.lexsort((uses, clashes))[0]
    return colours


def _map_legend(has_dropped: bool) -> list[Line2D]:
    def marker(label: str, **style) -> Line2D:
        return Line2D([], [], linestyle="none", marker="o", label=label, **style)

    handles = [
        marker("image, coloured by community (colours repeat)", color=PALETTE[0], markersize=4),
        marker("chosen", markerfacecolor="none", markeredgecolor=INK, markersize=6),
    ]
    if has_dropped:
        handles.append(marker("dropped before the selection", color=_DROPPED, markersize=3))
    return handles


class _Writer:
    """Writes text on a figure at pixels that are counted from the top left, as those of its canvas are."""

    def __init__(self, figure: Figure, shape: tuple[int, ...]):
        self.figure, (self.height, self.width, _) = figure, shape

    def __call__(self, x: float, y: float, text: str, **style) -> None:
        style = {"fontsize": 7, "color": _SOFT, "va": "center", "parse_math": False, **style}
        self.figure.text(x / self.width, 1 - y / self.height, text, **style)


def _paste(canvas: np.ndarray, pixels: np.ndarray, top: int, left: int, framed: bool) -> None:
    """Puts an image into the middle of a place of `_SIDE` pixels, with a frame around it where it is chosen."""
    largest = max(pixels.shape[:2])
    if largest > _SIDE:
        image = Image.fromarray(pixels)
        image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        pixels = np.asarray(image)
    else:
        pixels = pixels.repeat(_SIDE // largest, axis=0).repeat(_SIDE // largest, axis=1)
    height, width = pixels.shape[:2]
    top, left = top + (_SIDE - height) // 2, left + (_SIDE - width) // 2
    if framed:
        frame = canvas[top - _BORDER : top + height + _BORDER, left - _BORDER : left + width + _BORDER]
        frame[:] = [int(_FRAME[i : i + 2], 16) for i in (1, 3, 5)]
    canvas[top : top + height, left : left + width] = pixels


def _write_png(figure: Figure, path: str | Path) -> None:
    write_bytes(path, figure_png(figure, _DPI))
