"""Is an image a copy of a real tile? Searches under all views, and a limit set by what independent real tiles score.

Five or so scores, each small for a copy:

- `structure`: the share of the image's variance in optical density that no colour change of a real tile explains,
  turned, mirrored, moved or zoomed in as fits best, over that of similar tiles. Other stains, blends and compression
  hardly raise it, and tiles with nothing on them are no copies of each other.
- `parts`: by how much better than chance a part of the image, turned, moved and zoomed in any way, agrees with a part
  of a real tile. It compares with no other tile: see `PartIndex`.
- `pixels` and one for each embedding: the distance to the nearest real tile over that to a typical near one, the
  nearest-neighbour distance ratio, with the image under the eight symmetries.

A score that is small for an independent real tile as well is no sign of copying, so the limits come from such tiles:
see `calibrate`. The audit takes validation tiles. `docs/privacy-audit.md` tells what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from histodistill.selection.image_rows import Images, batches, rows_of
from histodistill.selection.names import SYMMETRIES
from histodistill.selection.near_copies import tile_keys
from histodistill.selection.parts import PartIndex
from histodistill.selection.streams import stream
from histodistill.selection.threads import in_threads
from histodistill.selection.views import (
    LEAST_CONTENT,
    apply_symmetry,
    contrasts_of,
    resample,
    shear,
    window_weights,
)
from histodistill.selection.windows import (
    SIDE,
    WHOLE,
    Window,
    WindowIndex,
    images_per_call,
    in_all_symmetries,
    placements_of,
    working_density,
)


#: What embeds images: uint8 N×S×S×3 to real numbers N×D. It is given a part of them at a time, and so must embed each
#: whatever the others are.
Embed = Callable[[np.ndarray], np.ndarray]

#: A real tile whose structure score (from 0 to about 1) is below this is another real tile once more.
SAME_TILE = 0.1
#: A distance ratio is the distance to the nearest tile over that to this many-th nearest. Not to the second: that may
#: be the same tile once more. Not to a later one: the distances of an empty tile, which is hardly more than one
#: colour, grow with the rank whether the nearest tile is its original or not, so all empty tiles would look like
#: copies.
RATIO_RANK = 3

# Windows of real tiles up to which an image is compared with all of them, coarsely; of 14 windows a tile, these are
# the windows of some 7,000 tiles. More are sorted into cells of similar windows, and few cells are searched.
_MOST_EXHAUSTIVE = 100_000
# Cells that are searched for an image: those whose centres are nearest to it.
_CELLS_SEARCHED = 64

# The search for `structure` goes from coarse to fine, in three steps.
# 1. Windows that are proposed for each of the eight views of an image: those whose coarse pictures are nearest.
_PROPOSALS = 24
# 2. Different tiles among all that were proposed for an image that are kept, and compared with it pixel by pixel.
_CANDIDATES = 12
# 3. Tiles, the best of these, that are compared once more with windows moved in finer steps.
_FINELY = 3
# Step 3 is made only for an image whose best tile leaves less unexplained than this share of what its median candidate
# leaves: one that is no more like its best tile than like others would not become a copy by looking more finely.
_LIKELY = 0.9
# The least that the median candidate is taken to leave unexplained, so that nothing is divided by 0.
_LEAST_USUAL = 1e-3

# Columns that wider embeddings are projected to: distances are nearly kept, and the search takes a fraction of the
# time.
_COLUMNS = 256
# Variance of optical density, per pixel and channel, that counts as noise; without it an empty tile, which is nothing
# but noise, would hardly ever be explained by another.
_NOISE = 0.01**2
# Draws by which false alarms are counted: in each, a tenth of the calibrating tiles meets the limit of the others.
_DRAWS = 100
# Images that are searched for at once in a thread, which bounds the memory.
_QUERIES_PER_CALL = 32
# Images that are embedded at once, at most, and bytes of them; always a multiple of the batches of models, so that a
# batch holds the same images however many there are.
_EMBEDDED_PER_CALL, _EMBEDDED_BYTES, _BATCH = 4096, 2**25, 256
# Bytes of embeddings that are projected at once. As many rows as possible, since the last bit of a product of matrices
# depends on how many there are: so it changes only for sets whose embeddings are larger.
_PROJECTED_BYTES = 2**28
# Pairs of an image and a window that are compared at once: so few stay in the cache of a processor.
_PAIRS_PER_CALL = 128

# The score `parts` is e to the power of that of `PartIndex` over this, negative.
_SCORE_SCALE = 10.0
#: Standard deviation of grey levels below which nobody sees anything on a screen.
LEAST_VISIBLE = 1.0

# Side of the windows of a real tile that are enlarged to the size of an image, as a share of the tile's side.
_ZOOM = 0.9
# Where such a window begins along either axis: at the edge, in the middle, or so that it ends at the other edge.
_STEPS = (0.0, 0.5 * (1 - _ZOOM), 1 - _ZOOM)
# How far a window of full size is moved along either axis, as a share of the side: two pixels of 32.
_MOVES = (-0.06, 0.06)
# The 14 windows of a real tile that an image is compared with: all of it, enlarged parts, and the tile moved.
_WINDOWS: tuple[Window, ...] = (
    WHOLE,
    *((_ZOOM, down, right) for down in _STEPS for right in _STEPS),
    *((1.0, down, right) for down in _MOVES for right in _MOVES),
)


@dataclass(frozen=True)
class CopyScores:
    """What a search found for N images.

    Attributes:
        values: Name of a score → N float64, small for a copy; infinite for images with nothing on them, which give
            nothing away.
        nearest: name of a score → int64 N, the real tile that it is about.
    """

    values: dict[str, np.ndarray]
    nearest: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def __getitem__(self, rows: np.ndarray) -> CopyScores:
        values, nearest = ({name: x[rows] for name, x in part.items()} for part in (self.values, self.nearest))
        return CopyScores(values, nearest)


@dataclass(frozen=True)
class CopyLimits:
    """Where copying begins, set by calibrating tiles: validation tiles in the audit, see `calibrate`.

    Attributes:
        scale: Name of a score → what 10 % of the calibrating tiles fall below.
        power: Name of a score → how fast calibrating tiles become fewer below that: as this power of the score.
        limit: An image is a copy if any score, over its scale and to its power, is below this. Then a score that is
            small for many an independent tile counts for less than one that is not.
        false_alarms: Share of calibrating tiles that limits set by other ones take for copies.
        num_held_out: Calibrating tiles that the limits were set by. (These are not the training tiles that an
            `audit_share` holds out from all models.)
        num_same: Calibrating tiles that are copies of real ones in the data as given; no limit was set by them.
        guaranteed: Whether there were enough calibrating tiles for the allowed share of false alarms to hold.
    """

    scale: dict[str, float]
    power: dict[str, float]
    limit: float
    false_alarms: float
    num_held_out: int
    num_same: int
    guaranteed: bool

    def score(self, scores: CopyScores) -> np.ndarray:
        """One score for each image, N float64 ≥ 0, small for a copy."""
        return _combine(scores, self.scale, self.power)

    def parts(self, scores: CopyScores) -> dict[str, np.ndarray]:
        """Each score on the scale of `limit`: name → N float64 ≥ 0, small for a copy."""
        return dict(zip(self.scale, _parts(scores, self.scale, self.power), strict=True))

    def nearest(self, scores: CopyScores) -> np.ndarray:
        """The real tile that each image is most like, N int64: that of the smallest score."""
        best = np.argmin(_parts(scores, self.scale, self.power), axis=0)
        return np.stack([scores.nearest[name] for name in self.scale])[best, np.arange(len(scores))]

    def is_copy(self, scores: CopyScores) -> np.ndarray:
        """Which images are copies: N bool."""
        return self.score(scores) < self.limit


class CopyIndex:
    """Real tiles, ready to be searched for the originals of copies.

    Args:
        images: uint8 N×S×S×3, the real tiles. They are read a part at a time, and once more where an image is compared
            with them, so that they need not be in memory.
        embeddings: name → a function that embeds uint8 M×S×S×3 images as M×D real numbers, each whatever the others
            are: it is given a part of the images at a time.

    A tile that is there several times, as it is, turned or mirrored, is searched as one: the scores compare the best
    tile with the next ones, which must be others. `CopyScores.nearest` then has the first of them.

    Memory grows with up to 1,024 bytes a tile for each space (256 numbers at most), 2,744 bytes for candidates for
    `structure` (49 numbers for each of 14 windows), and some 10 kB for `parts` (see `PartIndex`; 6 kB more while the
    index is made, 14 kB of tiles of more than 32 px): some 16 kB with pixels and two embeddings, whatever the size of
    the tiles.

    Of more than 7,000 tiles, candidates for `structure` are looked for among windows in the 64 cells nearest to an
    image (an inverted file by k-means, one cell for each 256 windows), and not among all. The cells hold the numbers
    in 16 bits, about 2,000 bytes a tile. A search takes some 100 MB in each of its threads.
    """

    def __init__(self, images: Images, embeddings: Mapping[str, Embed] | None = None):
        self.spaces = {"pixels": pixel_embedding, **(embeddings or {})}
        self._images = images
        keys = tile_keys(images)
        self._rows = np.sort(np.unique(keys, return_index=True)[1])
        # Cells are made by a quarter of the tiles. They are picked by their keys, so that the same tiles in another
        # order make the same cells.
        few = np.argsort(keys[self._rows])[: -(-len(self._rows) // 4)]
        originals = rows_of(images, self._rows)
        self._windows = WindowIndex(
            originals, few, _WINDOWS, most_exhaustive=_MOST_EXHAUSTIVE, cells_searched=_CELLS_SEARCHED
        )
        self._parts = PartIndex(originals, few)
        # Points of tiles that are there once more come last, so that the others are one array.
        order = np.concatenate([self._rows, np.setdiff1d(np.arange(len(images)), self._rows)])
        self._place = np.argsort(order)
        self._points = {name: _in_order(embed_all(images, embed), order) for name, embed in self.spaces.items()}

    def points_at(self, space: str, rows: np.ndarray) -> np.ndarray:
        """The embeddings of tiles in one of the `spaces`: float32 M×D for M rows."""
        return self._points[space][self._place[rows]]

    def search(
        self,
        images: Images,
        views: Mapping[str, np.ndarray] | None = None,
        num_tiles: int | None = None,
        *,
        decoys: bool = False,
    ) -> CopyScores:
        """Scores of images.

        Neighbouring tiles of a slide often overlap, and tiles that show a part of others cannot tell what chance
        does. So calibrating tiles have decoys: for `parts`, each is sheared. Then it shows the same tissue, and no
        tile, however turned or zoomed, shows a part of it (as searches in databases of spectra have decoys).

        Args:
            images: uint8 M×S×S×3 of the same size as the tiles.
            views: `views_of` the images in each of the `spaces`, where they are known already.
            num_tiles: At least 1; the images are searched for among so many of the tiles, the first; all by default.
            decoys: Whether `parts` is that of decoys.

        Returns:
            `CopyScores` of the M images.
        """
        count = len(self._rows) if num_tiles is None else int(np.searchsorted(self._rows, num_tiles))
        found = self._structure_and_parts(images, count, decoys)
        for name, embed in self.spaces.items():
            own = views[name] if views else views_of(images, embed)
            found[name] = _distance_ratio(own, self._points[name][:count])
        deviations = contrasts_of(images)
        return CopyScores(
            {
                name: np.where(deviations >= (LEAST_VISIBLE if name == "parts" else LEAST_CONTENT), values, np.inf)
                for name, (values, _) in found.items()
            },
            {name: self._rows[nearest] for name, (_, nearest) in found.items()},
        )

    def _structure_and_parts(
        self, images: Images, num_tiles: int, decoys: bool
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """`structure` and `parts` of M images among the first tiles: M float64 each, and M int64, the tile."""
        starts = range(0, len(images), _QUERIES_PER_CALL)
        found = list(in_threads(partial(self._structure_and_parts_of_few, images, num_tiles, decoys), starts))
        empty = np.empty(0), np.empty(0, np.int64)
        return {
            name: tuple(map(np.concatenate, zip(empty, *(each[name] for each in found), strict=True)))  # type: ignore[misc]
            for name in ("structure", "parts")
        }

    def _structure_and_parts_of_few(
        self, images: Images, num_tiles: int, decoys: bool, start: int
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """What `_structure_and_parts` gives for some of its images, from number `start` on."""
        part = images[start : start + _QUERIES_PER_CALL]
        turned = in_all_symmetries(working_density(part))
        candidates = self._windows.candidates(turned, num_tiles, _PROPOSALS, _CANDIDATES)
        if decoys:
            parts = self._parts.search(shear(part, start + np.arange(len(part))), num_tiles)
        else:
            parts = self._parts.search(part, num_tiles, placements_of(*candidates, self._parts.side))
        return {
            "structure": self._structure(turned, *candidates),
            "parts": (np.exp(-parts.score / _SCORE_SCALE), parts.tile),
        }

    def _structure(
        self,
        turned: np.ndarray,
        distances: np.ndarray,
        tiles: np.ndarray,
        windows: np.ndarray,
        symmetries: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The score `structure` of few images, M float64, and the tile of each, M int64.

        Args:
            turned: 8×M×s×s×3, the images' optical density in all symmetries.
            distances, tiles, windows, symmetries: Their `WindowIndex.candidates`.
        """
        turned = np.ascontiguousarray(turned.transpose(0, 1, 4, 2, 3))
        turned -= turned.mean(axis=(3, 4), keepdims=True)
        # Each candidate is read once, whatever the number of images that it is compared with.
        candidates, tiles = np.unique(tiles, return_inverse=True)
        tiles = tiles.reshape(distances.shape)
        density = working_density(rows_of(self._images, self._rows[candidates]))
        density = np.ascontiguousarray(density.transpose(0, 3, 1, 2))
        unexplained = _unexplained(turned, symmetries, density, tiles, windows)
        unexplained[np.isinf(distances)] = 1.0
        order = np.argsort(unexplained, axis=1, kind="stable")
        unexplained, tiles, symmetries = (
            np.take_along_axis(x, order, axis=1) for x in (unexplained, tiles, symmetries)
        )
        usual = np.median(unexplained[:, 1:], axis=1) if unexplained.shape[1] > 1 else np.ones(len(tiles))
        best, found = unexplained[:, 0].copy(), tiles[:, 0].copy()
        rows = np.flatnonzero(best < _LIKELY * usual)
        if len(rows):
            few = slice(0, min(_FINELY, unexplained.shape[1]))
            fine = _finely(turned[:, rows], symmetries[rows, few], density, tiles[rows, few], unexplained[rows, few])
            best[rows] = fine.min(axis=1, initial=1.0)
            found[rows] = tiles[rows, fine.argmin(axis=1)]
        return best / np.maximum(usual, _LEAST_USUAL), candidates[found]


def calibrate(scores: CopyScores, max_false_alarms: float = 0.01, seed: int = 0) -> CopyLimits:
    """Limits that at most a share of independent real tiles fall below.

    Calibrating tiles that are the same as another real tile (structure below `SAME_TILE`) are left out: data sets do
    hold tiles twice, turned or mirrored. So are those with nothing on them. Of the others, the limit is the one with
    rank ⌊share · (n + 1)⌋ from below, so that a further tile falls below it with that probability at most, whatever
    the distribution (split conformal prediction). With fewer than 1/share − 1 tiles the limit is the lowest of all and
    promises less.

    Args:
        scores: Of the calibrating tiles, real ones that were searched for among the others; the audit takes at most
            2,000 validation tiles.
        max_false_alarms: The share, above 0 and below 1.
        seed: Seed of the draws by which false alarms are counted.

    Returns:
        The limits.

    Raises:
        ValueError: If fewer than two tiles are left.
    """
    same = scores.values["structure"] < SAME_TILE
    kept = scores[~same & np.isfinite(scores.values["structure"])]
    count = len(kept)
    if count < 2:
        raise ValueError(
            f"{count} validation tiles show something and are no copies of other real tiles: at least 2 are needed to "
            "say what a copy is"
        )
    scale, power, limit = _limits(kept, max_false_alarms)
    rng, alarms = stream("shares of tiles that try the limits of copying", seed), []
    for _ in range(_DRAWS):
        own, other = np.split(rng.permutation(count), [max(1, count // 10)])
        fewer = _limits(kept[other], max_false_alarms)
        alarms.append((_combine(kept[own], *fewer[:2]) < fewer[2]).mean())
    guaranteed = int(max_false_alarms * (count + 1)) >= 1
    return CopyLimits(scale, power, limit, float(np.mean(alarms)), count, int(same.sum()), guaranteed)


def pixel_embedding(images: np.ndarray) -> np.ndarray:
    """Images uint8 N×S×S×3 as their pixels, N×D float32 in [0, 1], with at most 32 of them along a side.

    With fewer, the noise of an empty tile would be averaged away, by which alone such a tile can be known again.
    """
    side = min(images.shape[1], SIDE)
    points = np.empty((len(images), side * side * 3), dtype=np.float32)
    start = 0
    for part in batches(images, images_per_call(images)):
        points[start : start + len(part)] = resample(part, side).reshape(len(part), -1) / 255
        start += len(part)
    return points


def embed_all(images: Images, embed: Embed, symmetry: int = 0) -> np.ndarray:
    """N images in one of the symmetries, embedded and projected (`project`) a part at a time: float32 N×D."""
    points, start = np.empty((0, 0), np.float32), 0
    for block in _embedded_blocks(images, embed, symmetry):
        projected = project(block)
        if len(projected) == len(images):
            return projected
        if not start:
            points = np.empty((len(images), projected.shape[1]), np.float32)
        points[start : start + len(projected)] = projected
        start += len(projected)
    return points


def _embedded_blocks(images: Images, embed: Embed, symmetry: int) -> Iterator[np.ndarray]:
    """Embeddings of all images in their full width, float32, as many rows at a time as `_PROJECTED_BYTES` allows."""
    size = _EMBEDDED_BYTES // int(np.prod(images.shape[1:])) // _BATCH * _BATCH
    size = min(_EMBEDDED_PER_CALL, max(_BATCH, size))
    block, filled = np.empty((0, 0), np.float32), 0
    for start in range(0, max(1, len(images)), size):  # of no images, too, the width is known
        part = np.ascontiguousarray(apply_symmetry(images[start : start + size], symmetry))
        points = np.asarray(embed(part), dtype=np.float32)
        if not filled:
            most = max(1, _PROJECTED_BYTES // max(1, points[:1].nbytes) // size) * size
            block = np.empty((min(most, len(images) - start), points.shape[1]), np.float32)
        block[filled : filled + len(points)] = points
        filled += len(points)
        if filled == len(block):
            yield block
            filled = 0


def views_of(images: Images, embed: Embed) -> np.ndarray:
    """The eight symmetries of N images, embedded: 8×N×D float32."""
    first = embed_all(images, embed)
    views = np.empty((SYMMETRIES, *first.shape), np.float32)
    views[0] = first
    for symmetry in range(1, SYMMETRIES):
        views[symmetry] = embed_all(images, embed, symmetry)
    return views


def project(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings N×D as float32 with at most 256 columns: a fixed random projection, which nearly keeps distances.

    (Johnson & Lindenstrauss 1984; the same for every call.)
    """
    embeddings = np.asarray(embeddings, dtype=np.float32)
    width = embeddings.shape[1]
    if width <= _COLUMNS:
        return np.ascontiguousarray(embeddings)
    matrix = stream("projection of embeddings").standard_normal((width, _COLUMNS)) / np.sqrt(_COLUMNS)
    return embeddings @ matrix.astype(np.float32)


def nearest_under_views(views: np.ndarray, points: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of N images, the `k` nearest points to any of its views, nearest first.

    Args:
        views: V×N×D float32.
        points: M×D float32.
        k: At least 1; the number of points if there are fewer.

    Returns:
        Indices N×k int64, no point twice, and Euclidean distances N×k float64.
    """
    import faiss

    k = min(k, len(points))
    found = [faiss.knn(view, points, k) for view in views]
    distances = np.concatenate([f[0] for f in found], axis=1)
    indices = np.concatenate([f[1] for f in found], axis=1)
    # A point that several views find counts once, at its smallest distance.
    order = np.lexsort((distances, indices), axis=1)
    indices, distances = (np.take_along_axis(x, order, axis=1) for x in (indices, distances))
    again = np.zeros(indices.shape, dtype=bool)
    again[:, 1:] = indices[:, 1:] == indices[:, :-1]
    distances[again] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    indices, distances = (np.take_along_axis(x, order, axis=1) for x in (indices, distances))
    return indices.astype(np.int64), np.sqrt(np.maximum(distances, 0).astype(np.float64))


def _distance_ratio(views: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the nearest point over that to the `RATIO_RANK`-th (0 where both are 0), and which that point is."""
    indices, distances = nearest_under_views(views, points, RATIO_RANK)
    return distances[:, 0] / np.maximum(distances[:, -1], 1e-12), indices[:, 0]


def _in_order(points: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The same rows in another order; no copy of those that are in order."""
    return points if (order[1:] > order[:-1]).all() else points[order]


def _finely(
    turned: np.ndarray, symmetries: np.ndarray, density: np.ndarray, tiles: np.ndarray, unexplained: np.ndarray
) -> np.ndarray:
    """`unexplained` (M×K, see `_unexplained`), or less where a finer window of the same tile explains more."""
    least = unexplained.copy()
    for window in _fine_windows(turned.shape[-1]):
        windows = np.broadcast_to(window, (*tiles.shape, 3))
        np.minimum(least, _unexplained(turned, symmetries, density, tiles, windows), out=least)
    return least


def _unexplained(
    turned: np.ndarray, symmetries: np.ndarray, density: np.ndarray, tiles: np.ndarray, windows: np.ndarray
) -> np.ndarray:
    """Share of variance that a linear change of the colours of each candidate leaves unexplained.

    Args:
        turned: 8×M×3×s×s, the images in all symmetries, each channel without its mean.
        symmetries: M×K, in which of them an image is compared with each of its candidates.
        density: C×3×s×s, optical density of the candidates of all images.
        tiles: M×K, which of them are those of each image.
        windows: M×K×3, and with which window of it.

    Returns:
        M×K float64 in [0, 1].
    """
    result = np.empty(tiles.shape)
    # Pairs with the same window are compared together, since they share its weights.
    kinds, number = np.unique(windows.reshape(-1, 3), axis=0, return_inverse=True)
    number = number.reshape(tiles.shape)
    for kind, window in enumerate(kinds.tolist()):
        rows, columns = np.nonzero(number == kind)
        for start in range(0, len(rows), _PAIRS_PER_CALL):
            r, c = rows[start : start + _PAIRS_PER_CALL], columns[start : start + _PAIRS_PER_CALL]
            candidate = _window(density[tiles[r, c]], window)
            result[r, c] = _unexplained_share(turned[symmetries[r, c], r], candidate)
    return result


def _fine_windows(side: int) -> list[Window]:
    """The windows once more, more finely: zoomed in, and moved by up to two pixels of `side`."""
    steps = [(1 - _ZOOM) * i / 4 for i in range(5)]
    moves = [i / side for i in range(-2, 3)]
    zoomed = [(_ZOOM, down, right) for down in steps for right in steps]
    return [*zoomed, *((1.0, down, right) for down in moves for right in moves if down or right)]


def _window(density: np.ndarray, window: Window) -> np.ndarray:
    """`resample` of N×3×s×s to the same size."""
    count, channels, size, _ = density.shape
    rows, columns = window_weights(size, size, *window)
    moved = (density.reshape(-1, size) @ columns.T).reshape(-1, size, size).transpose(0, 2, 1)
    moved = (np.ascontiguousarray(moved).reshape(-1, size) @ rows.T).reshape(-1, size, size)
    return np.ascontiguousarray(moved.transpose(0, 2, 1)).reshape(count, channels, size, size)


def _unexplained_share(query: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """The share of a query's variance that no linear change of the candidate's colours explains.

    Args:
        query: N×3×s×s, each channel with mean 0.
        candidate: N×3×s×s, what query i is compared with.

    Returns:
        N float64 in [0, 1]: 1 − R² of the regression of query's channels on candidate's.
    """
    count, pixels = len(query), query.shape[2] * query.shape[3]
    query, candidate = query.reshape(count, 3, pixels), candidate.reshape(count, 3, pixels)
    candidate = candidate - candidate.mean(axis=2, keepdims=True)
    noise = pixels * _NOISE
    inner = (candidate @ candidate.transpose(0, 2, 1)).astype(np.float64) + noise * np.eye(3)
    cross = (candidate @ query.transpose(0, 2, 1)).astype(np.float64)
    explained = (cross * np.linalg.solve(inner, cross)).sum(axis=(1, 2))
    total = np.einsum("ncp,ncp->n", query, query).astype(np.float64) + 3 * noise
    return np.clip(1 - explained / total, 0, 1)


def _parts(scores: CopyScores, scale: Mapping[str, float], power: Mapping[str, float]) -> np.ndarray:
    """The scores as shares of independent tiles that score lower: (number of scores)×N float64."""
    return np.stack([(scores.values[name] / scale[name]) ** power[name] for name in scale])


def _combine(scores: CopyScores, scale: Mapping[str, float], power: Mapping[str, float]) -> np.ndarray:
    """One score of each image, N float64: the smallest of its `_parts`."""
    return _parts(scores, scale, power).min(axis=0)


def _limits(scores: CopyScores, max_false_alarms: float) -> tuple[dict[str, float], dict[str, float], float]:
    """Scales, powers and limit, as `CopyLimits` has them, from the scores of independent tiles."""
    scale, power = {}, {}
    for name, values in scores.values.items():
        scale[name] = max(float(np.quantile(values, 0.1)), 1e-9)
        low = values[values < scale[name]]
        # Hill's estimator of how fast a tail becomes thin (Annals of Statistics 3, 1975), here the tail towards 0.
        mean = np.log(scale[name] / np.maximum(low, 1e-9)).mean() if len(low) else 1.0
        power[name] = float(np.clip(1 / max(mean, 1e-9), 1, 50))
    combined = np.sort(_combine(scores, scale, power))
    rank = max(1, int(max_false_alarms * (len(combined) + 1)))
    return scale, power, float(combined[rank - 1])
