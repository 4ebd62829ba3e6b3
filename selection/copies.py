"""Is an image a copy of a real tile? Searches under all views, and a limit set by what independent real tiles score.

Four or so scores, each small for a copy:

- `structure`: the share of the image's variance in optical density that no colour change of a real tile explains,
  turned, mirrored, moved or zoomed in as fits best, over that of similar tiles. Other stains, blends and compression
  hardly raise it, and tiles with nothing on them are no copies of each other.
- `pixels` and one for each embedding: the distance to the nearest real tile over that to a typical near one, the
  nearest-neighbour distance ratio, with the image under the eight symmetries.

A score that is small for an independent real tile as well is no sign of copying, so the limits come from such tiles:
see `calibrate`. The audit takes validation tiles. `AUDIT.md` beside this file tells what was measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from histodistill.selection.stains import optical_density
from histodistill.selection.views import (
    SYMMETRIES,
    apply_symmetry,
    has_content,
    resample,
    window_weights,
)


Embed = Callable[[np.ndarray], np.ndarray]

#: A real tile whose structure score is below this is another real tile once more.
SAME_TILE = 0.1
#: The nearest tile's distance is divided by that to this many-th nearest tile. The second may be the same tile once
#: more; among empty tiles, which are few colours, distances to farther ones grow whatever the nearest is.
RATIO_RANK = 3

# Structure is looked at with at most so many pixels along a side.
_SIDE = 32
# Candidates are found with so many.
_COARSE_SIDE = 7
# So many windows are searched exhaustively. Of more, so many cells, which hold so many windows each.
_MOST_EXHAUSTIVE = 500_000
_WINDOWS_PER_CELL = 256
_CELLS_SEARCHED = 32
# Proposals for each view, different tiles that are kept of all, those of them that are looked at finely, and for which
# share of what is usual.
_PROPOSALS = 24
_CANDIDATES = 12
_FINELY = 3
_LIKELY = 0.9
# Embeddings are brought to so many columns.
_COLUMNS = 256
# Variance of optical density that is noise; keeps an empty tile from being all noise.
_NOISE = 0.01**2
# Times that a tenth of the calibrating tiles is drawn, for which the others set the limit.
_DRAWS = 100
_QUERIES_PER_CALL = 1024
# Pairs of images that stay in the cache while they are compared.
_PAIRS_PER_CALL = 128

_ZOOM = 0.9
_STEPS = (0.0, 0.5 * (1 - _ZOOM), 1 - _ZOOM)
#: Windows of a real tile (scale, down, right) that an image is compared with: all of it, zoomed in, and moved.
_WINDOWS = (
    (1.0, 0.0, 0.0),
    *((_ZOOM, down, right) for down in _STEPS for right in _STEPS),
    *((1.0, down, right) for down in (-0.06, 0.06) for right in (-0.06, 0.06)),
)


@dataclass(frozen=True)
class CopyScores:
    """What a search found for N images.

    Attributes:
        values: name of a score → N float64, small for a copy; infinite for images with nothing on them, which give
            nothing away.
        nearest: name of a score → int64 N, the real tile that it is about.
    """

    values: dict[str, np.ndarray]
    nearest: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def __getitem__(self, rows) -> CopyScores:
        return CopyScores(*({name: x[rows] for name, x in part.items()} for part in (self.values, self.nearest)))


@dataclass(frozen=True)
class CopyLimits:
    """Where copying begins, set by calibrating tiles: validation tiles in the audit, see `calibrate`.

    Attributes:
        scale: Of each score, what 10 % of the calibrating tiles fall below.
        power: Of each score, how fast calibrating tiles become fewer below that: as this power of the score.
        limit: An image is a copy if any score, over its scale and to its power, is below this. Then a score that is
            small for many an independent tile counts for less than one that is not.
        false_alarms: Share of calibrating tiles that limits set by other ones take for copies.
        num_held_out: Tiles that the limits were set by. Not those that an audit share holds out from all models.
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
        images: uint8 N×S×S×3, the real tiles.
        embeddings: name → a function that embeds uint8 M×S×S×3 images as M×D real numbers.

    A tile that is there several times, as it is, turned or mirrored, is searched as one: the scores compare the best
    tile with the next ones, which must be others. `CopyScores.nearest` then has the first of them.

    Memory grows with about 3,800 numbers a tile of 28 pixels in three spaces, and 4,500 of 32 pixels or more: optical
    density, 49 numbers for each of 14 windows, and at most 256 for each space.

    Of more than 35,000 tiles, candidates for `structure` are looked for among windows in the 32 cells nearest to an
    image (an inverted file by k-means, one cell for each 256 windows), and not among all. The cells hold the windows
    once more, which is about 700 numbers a tile.
    """

    def __init__(self, images: np.ndarray, embeddings: Mapping[str, Embed] | None = None):
        self.spaces = {"pixels": pixel_embedding, **(embeddings or {})}
        keys = tile_keys(images)
        self._rows = np.sort(np.unique(keys, return_index=True)[1])
        density = _working_density(images[self._rows])
        # By tile and then by window, so that the first tiles are the first rows.
        coarse = np.stack([_coarse(density, window) for window in _WINDOWS], axis=1)
        # The same tiles in another order make the same cells.
        few = coarse[np.argsort(keys[self._rows])[: -(-len(coarse) // 4)]]
        self._coarse = _WindowSearch(coarse.reshape(-1, coarse.shape[2]), few.reshape(-1, coarse.shape[2]))
        self._density = np.ascontiguousarray(density.transpose(0, 3, 1, 2))
        self.points = {name: project(embed(images)) for name, embed in self.spaces.items()}
        self._distinct = {name: points[self._rows] for name, points in self.points.items()}

    def search(
        self, images: np.ndarray, views: Mapping[str, np.ndarray] | None = None, num_tiles: int | None = None
    ) -> CopyScores:
        """Scores of images.

        Args:
            images: uint8 M×S×S×3 of the same size as the tiles.
            views: `views_of` the images in each of the `spaces`, where they are known already.
            num_tiles: At least 1; the images are searched for among so many of the tiles, the first; all by default.
        """
        count = len(self._rows) if num_tiles is None else int(np.searchsorted(self._rows, num_tiles))
        found = {"structure": self._structure(images, count)}
        for name, embed in self.spaces.items():
            own = views[name] if views else views_of(images, embed)
            found[name] = _distance_ratio(own, self._distinct[name][:count])
        shown = has_content(images)
        return CopyScores(
            {name: np.where(shown, values, np.inf) for name, (values, _) in found.items()},
            {name: self._rows[nearest] for name, (_, nearest) in found.items()},
        )

    def _structure(self, images: np.ndarray, num_tiles: int) -> tuple[np.ndarray, np.ndarray]:
        density = _working_density(images)
        k = min(_PROPOSALS, num_tiles * len(_WINDOWS))
        scores, nearest = np.empty(len(images)), np.empty(len(images), dtype=np.int64)
        for start in range(0, len(images), _QUERIES_PER_CALL):
            part = density[start : start + _QUERIES_PER_CALL]
            turned = np.stack([apply_symmetry(part, symmetry) for symmetry in range(SYMMETRIES)])
            coarse = [_coarse(view, _WINDOWS[0]) for view in turned]
            found = [self._coarse.nearest(view, k, num_tiles * len(_WINDOWS)) for view in coarse]
            distances = np.concatenate([f[0] for f in found], axis=1)
            places = np.concatenate([f[1] for f in found], axis=1)
            symmetries = np.broadcast_to(np.repeat(np.arange(SYMMETRIES), k), places.shape)
            distances, places, symmetries = _best_of_each_tile(distances, places, symmetries)
            tiles, windows = np.divmod(places, len(_WINDOWS))
            turned = np.ascontiguousarray(turned.transpose(0, 1, 4, 2, 3))
            turned -= turned.mean(axis=(3, 4), keepdims=True)
            unexplained = self._unexplained(turned, symmetries, tiles, np.array(_WINDOWS)[windows])
            unexplained[np.isinf(distances)] = 1.0
            order = np.argsort(unexplained, axis=1, kind="stable")
            unexplained, tiles, symmetries = (
                np.take_along_axis(x, order, axis=1) for x in (unexplained, tiles, symmetries)
            )
            usual = np.median(unexplained[:, 1:], axis=1) if unexplained.shape[1] > 1 else np.ones(len(part))
            best = unexplained[:, 0].copy()
            found = tiles[:, 0].copy()
            # What is nothing like a copy so far would not become one by looking more finely.
            rows = np.flatnonzero(best < _LIKELY * usual)
            few = slice(0, min(_FINELY, unexplained.shape[1]))
            fine = unexplained[rows, few]
            for window in _fine_windows(part.shape[1]):
                windows = np.broadcast_to(window, (*fine.shape, 3))
                here = self._unexplained(turned[:, rows], symmetries[rows, few], tiles[rows, few], windows)
                np.minimum(fine, here, out=fine)
            best[rows] = fine.min(axis=1, initial=1.0)
            found[rows] = tiles[rows, fine.argmin(axis=1)] if len(rows) else found[rows]
            scores[start : start + len(part)] = best / np.maximum(usual, 1e-3)
            nearest[start : start + len(part)] = found
        return scores, nearest

    def _unexplained(self, turned, symmetries, tiles, windows) -> np.ndarray:
        """Share of variance that a linear change of the colours of each candidate leaves unexplained.

        Args:
            turned: 8×M×3×s×s, the images in all symmetries, each channel without its mean.
            symmetries, tiles: M×K, which of them to compare with which real tile.
            windows: M×K×3, and with which window of it.

        Returns:
            M×K float64 in [0, 1].
        """
        result = np.empty(tiles.shape)
        kinds, number = np.unique(windows.reshape(-1, 3), axis=0, return_inverse=True)
        number = number.reshape(tiles.shape)
        for kind, window in enumerate(kinds.tolist()):
            rows, columns = np.nonzero(number == kind)
            for start in range(0, len(rows), _PAIRS_PER_CALL):
                r, c = rows[start : start + _PAIRS_PER_CALL], columns[start : start + _PAIRS_PER_CALL]
                candidate = _window(self._density[tiles[r, c]], window)
                result[r, c] = _unexplained_share(turned[symmetries[r, c], r], candidate)
        return result


class _WindowSearch:
    """Nearest windows: among all, or among those in the nearest cells where there are many.

    Args:
        points: P×D float32.
        few: Some of them, to make cells by.
    """

    def __init__(self, points: np.ndarray, few: np.ndarray):
        import faiss

        self._points, self._cells = points, None
        if len(points) > _MOST_EXHAUSTIVE:
            count = len(points) // _WINDOWS_PER_CELL
            self._cells = faiss.IndexIVFFlat(faiss.IndexFlatL2(points.shape[1]), points.shape[1], count)
            # A few passes: cells need not be the best ones, only small.
            self._cells.cp.niter, self._cells.cp.max_points_per_centroid = 5, 64
            self._cells.cp.min_points_per_centroid = 1
            self._cells.train(few)
            self._cells.add(points)

    def nearest(self, queries: np.ndarray, k: int, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances and rows, M×k each, of the nearest of the `first` points; inf and 0 where none was met."""
        import faiss

        if self._cells is None:
            return faiss.knn(queries, self._points[:first], k)
        wanted = faiss.IDSelectorRange(0, first)
        options = faiss.SearchParametersIVF(nprobe=_CELLS_SEARCHED, sel=wanted)
        distances, rows = self._cells.search(queries, k, params=options)
        missing = rows < 0
        return np.where(missing, np.inf, distances), np.where(missing, 0, rows)


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
        seed: Of the draws by which false alarms are counted.

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
    rng, alarms = np.random.default_rng(seed), []
    for _ in range(_DRAWS):
        own, other = np.split(rng.permutation(count), [max(1, count // 10)])
        fewer = _limits(kept[other], max_false_alarms)
        alarms.append((_combine(kept[own], *fewer[:2]) < fewer[2]).mean())
    guaranteed = int(max_false_alarms * (count + 1)) >= 1
    return CopyLimits(scale, power, limit, float(np.mean(alarms)), count, int(same.sum()), guaranteed)


def tile_keys(images: np.ndarray) -> np.ndarray:
    """One number for each of N images, the same for images that are the same but for one of the eight symmetries.

    Args:
        images: uint8 N×S×S×3.

    Returns:
        uint64 N.
    """
    keys = np.empty(len(images), dtype=np.uint64)
    for start in range(0, len(images), 4096):
        part = images[start : start + 4096]
        views = [np.ascontiguousarray(apply_symmetry(part, symmetry)) for symmetry in range(SYMMETRIES)]
        for i in range(len(part)):
            first = min(view[i].tobytes() for view in views)
            keys[start + i] = int.from_bytes(hashlib.blake2b(first, digest_size=8).digest(), "big")
    return keys


def pixel_embedding(images: np.ndarray) -> np.ndarray:
    """Images uint8 N×S×S×3 as their pixels, N×D float32 in [0, 1], with at most 32 of them along a side.

    Not fewer: an empty tile is known by its noise alone.
    """
    side = min(images.shape[1], _SIDE)
    points = np.empty((len(images), side * side * 3), dtype=np.float32)
    for start in range(0, len(images), 4096):
        part = resample(images[start : start + 4096], side)
        points[start : start + 4096] = part.reshape(len(part), -1) / 255
    return points


def views_of(images: np.ndarray, embed: Embed) -> np.ndarray:
    """The eight symmetries of N images, embedded: 8×N×D float32."""
    views = (np.ascontiguousarray(apply_symmetry(images, symmetry)) for symmetry in range(SYMMETRIES))
    return np.stack([project(embed(view)) for view in views])


def project(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings N×D as float32 with at most 256 columns: a fixed random projection, which nearly keeps distances.

    (Johnson & Lindenstrauss 1984; the same for every call.)
    """
    embeddings = np.asarray(embeddings, dtype=np.float32)
    width = embeddings.shape[1]
    if width <= _COLUMNS:
        return np.ascontiguousarray(embeddings)
    matrix = np.random.default_rng(0).standard_normal((width, _COLUMNS)) / np.sqrt(_COLUMNS)
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


def _best_of_each_tile(distances, places, symmetries) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nearest `_CANDIDATES` different tiles of each row, each in its best view; inf where there are fewer."""
    tiles = places // len(_WINDOWS)
    order = np.lexsort((distances, tiles), axis=1)
    distances, places, symmetries, tiles = (
        np.take_along_axis(x, order, axis=1) for x in (distances, places, symmetries, tiles)
    )
    again = np.zeros(tiles.shape, dtype=bool)
    again[:, 1:] = tiles[:, 1:] == tiles[:, :-1]
    distances = np.where(again, np.inf, distances)
    order = np.argsort(distances, axis=1, kind="stable")[:, :_CANDIDATES]
    return tuple(np.take_along_axis(x, order, axis=1) for x in (distances, places, symmetries))


def _working_density(images: np.ndarray) -> np.ndarray:
    """Optical density of images of at most `_SIDE` pixels along a side, float32 N×s×s×3."""
    side = min(images.shape[1], _SIDE)
    parts = [optical_density(resample(images[start : start + 4096], side)) for start in range(0, len(images), 4096)]
    return np.concatenate(parts)


def _coarse(density: np.ndarray, window: tuple[float, float, float]) -> np.ndarray:
    """What candidates are found by: the window's mean density in 7×7 fields, without its mean and its contrast."""
    fields = resample(density.mean(axis=3, keepdims=True), _COARSE_SIDE, *window).reshape(len(density), -1)
    fields -= fields.mean(axis=1, keepdims=True)
    return fields / (np.sqrt(np.square(fields).mean(axis=1, keepdims=True)) + np.float32(0.02))


def _fine_windows(side: int) -> list[tuple[float, float, float]]:
    """The windows once more, more finely: zoomed in, and moved by up to two pixels of `side`."""
    steps = [(1 - _ZOOM) * i / 4 for i in range(5)]
    moves = [i / side for i in range(-2, 3)]
    zoomed = [(_ZOOM, down, right) for down in steps for right in steps]
    return [*zoomed, *((1.0, down, right) for down in moves for right in moves if down or right)]


def _window(density: np.ndarray, window: tuple[float, float, float]) -> np.ndarray:
    """`resample` of N×3×s×s to the same size."""
    count, channels, size, _ = density.shape
    rows, columns = window_weights(size, size, *window)
    moved = (density.reshape(-1, size) @ columns.T).reshape(-1, size, size).transpose(0, 2, 1)
    moved = (np.ascontiguousarray(moved).reshape(-1, size) @ rows.T).reshape(-1, size, size)
    return np.ascontiguousarray(moved.transpose(0, 2, 1)).reshape(count, channels, size, size)


def _unexplained_share(query: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """1 − R² of the regression of query's channels, which have mean 0, on candidate's, both N×3×s×s: N in [0, 1]."""
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
    return np.stack([(scores.values[name] / scale[name]) ** power[name] for name in scale])


def _combine(scores: CopyScores, scale: Mapping[str, float], power: Mapping[str, float]) -> np.ndarray:
    return _parts(scores, scale, power).min(axis=0)


def _limits(scores: CopyScores, max_false_alarms: float) -> tuple[dict[str, float], dict[str, float], float]:
    scale, power = {}, {}
    for name, values in scores.values.items():
        scale[name] = max(float(np.quantile(values, 0.1)), 1e-9)
        low = values[values < scale[name]]
        # Hill's estimator (Annals of Statistics 3, 1975), for a tail at 0.
        mean = np.log(scale[name] / np.maximum(low, 1e-9)).mean() if len(low) else 1.0
        power[name] = float(np.clip(1 / max(mean, 1e-9), 1, 50))
    combined = np.sort(_combine(scores, scale, power))
    rank = max(1, int(max_false_alarms * (len(combined) + 1)))
    return scale, power, float(combined[rank - 1])
