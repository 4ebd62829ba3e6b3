"""Ways in which an image may lie on a real tile, and how far chance explains that it looks like the tile there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from histodistill.selection.whitening import log_likelihood_ratio, whitened_score


# Heights and widths of boxes within an image, in which alone it may look like a tile, as shares of the side.
_SPANS = (1.0, 0.7, 0.5)
# The middle of the grey levels.
_MIDDLE = 127.5
# Pixels of the image that must lie on the tile for a box to count: correlations of fewer are all large.
_FEWEST_PIXELS = 60
# Variance of grey levels that counts as noise, without which an empty tile would correlate with others.
_NOISE = 1.0
# Placements that are compared at once: pictures of so few stay in the cache of a processor.
_PLACEMENTS_PER_CALL = 64
# Rings of frequencies over which power is averaged, beside that of frequency 0.
_FREQUENCIES = 14
# Changes that are tried of a placement, each either way, and then their halves and quarters: px of the tile, radians,
# and share of the zoom.
_CHANGES = (("tile_row", 1.0), ("tile_column", 1.0), ("turn", 0.12), ("zoom", 0.06))
_FINER = (1.0, 0.5, 0.25)
# The same where it is strained, too.
_STRAINED = (("aspect", 0.1), ("skew", 0.1), *((name, change / 2) for name, change in _CHANGES))
_STRAINED_FINER = (1.0, 0.5)

#: How an image lies on a tile, turned, zoomed and mirrored about a point: `row`, `column` of that point on the image
#: and `tile_row`, `tile_column` on the tile, in px; `turn`, radians by which the tile is turned to be the image, from
#: the direction of columns to that of rows; `zoom`, px of the tile that a px of the image covers; `mirrored`, whether
#: the tile is mirrored before it is turned, its rows reversed; `aspect`, the logarithm of how much more px of the tile
#: a px of the image covers down than it does on average, and to the right less; `skew`, the same along diagonals.
PLACEMENT = np.dtype(
    [
        ("image", np.int64),
        ("tile", np.int64),
        ("row", np.float32),
        ("column", np.float32),
        ("tile_row", np.float32),
        ("tile_column", np.float32),
        ("turn", np.float32),
        ("zoom", np.float32),
        ("mirrored", np.bool_),
        ("aspect", np.float32),
        ("skew", np.float32),
    ]
)


@dataclass(frozen=True)
class Likeness:
    """How like a tile an image is in each of P placements.

    Attributes:
        score: float64 P, in the best box, see `compare`.
        box: int64 P×4, first row, first column, height and width of that box in px of the image.
    """

    score: np.ndarray
    box: np.ndarray


class Comparison:
    """Compares grey images with grey tiles that they may be copies of.

    Args:
        images: float32 N×s×s.
        tiles: float32 M×s×s.
        spans: Heights and widths of the boxes within an image that are tried, as shares of the side.

    The score of a placement is −½ n log(1 − r²): what a correlation r of n independent pairs of pixels is worth, the
    logarithm of the ratio of likelihoods with and without a linear relation between their grey levels. Neighbouring
    pixels are not independent, the less the smoother the pictures are, so n is the effective sample size of two random
    fields of their spectra (Clifford, Richardson and Hémon 1989): 1 / Σ p q over all frequencies, where p and q are
    the shares of power, averaged over directions. Where the image lies on the tile only in part, or shows it only in
    part, n and r are those of a box of the image; the box with the highest score counts.
    """

    def __init__(self, images: np.ndarray, tiles: np.ndarray, spans: tuple[float, ...] = _SPANS):
        self.side, self._lengths = images.shape[1], spans
        # Grey levels about 0, so that sums of squares are precise.
        self.images, self.tiles = images - np.float32(_MIDDLE), tiles - np.float32(_MIDDLE)
        self._power = _radial_power(images - images.mean(axis=(1, 2), keepdims=True))
        self._rows = np.arange(self.side, dtype=np.float32)[:, None]  # and, transposed, the columns

    def independent(self, placements: np.ndarray) -> np.ndarray:
        """The share of pixels that count as independent in each placement: float64 P in (0, 1]."""
        parts = range(0, len(placements), _PLACEMENTS_PER_CALL)
        found = [self._independent_of_few(placements[start : start + _PLACEMENTS_PER_CALL]) for start in parts]
        return np.concatenate([np.empty(0), *found])

    def _independent_of_few(self, placements: np.ndarray) -> np.ndarray:
        shown, inside = self._shown(placements)
        count = np.maximum(inside.sum(axis=(1, 2), keepdims=True), 1)
        shown = (shown - (shown * inside).sum(axis=(1, 2), keepdims=True) / count) * inside
        of_tiles = _radial_power(shown)
        number = _rings(self.side)[1]
        alike = (self._power[placements["image"]] * of_tiles / number).sum(axis=1)
        return 1 / np.maximum(alike, 1 / self.side**2) / self.side**2

    def compare(self, placements: np.ndarray, independent: np.ndarray, step: int = 1) -> Likeness:
        """How like the tiles the images are.

        Args:
            placements: P of them.
            independent: What `independent` says of them, or of much the same ones.
            step: Pixels from one box to the next.
        """
        spans, of_spans = _spans(self.side, step, self._lengths)
        score, box = np.empty(len(placements)), np.empty((len(placements), 4), np.int64)
        for start in range(0, len(placements), _PLACEMENTS_PER_CALL):
            rows = slice(start, start + _PLACEMENTS_PER_CALL)
            some = placements[rows]
            shown, inside = self._shown(some)
            inside = inside.astype(np.float32)
            own = self.images[some["image"]] * inside
            shown *= inside
            sums = np.stack([inside, own, shown, own * own, shown * shown, own * shown], axis=1)
            # Over the columns of each box, and then over its rows: every span of rows with every span of columns.
            over = (sums.reshape(-1, self.side) @ of_spans).reshape(*sums.shape[:3], -1)
            over = (over.transpose(0, 1, 3, 2).reshape(-1, self.side) @ of_spans).reshape(*sums.shape[:2], -1)
            ratios = _ratios(over, independent[rows])
            best = ratios.argmax(axis=1)
            columns, lines = np.divmod(best, len(spans))
            score[rows] = ratios[np.arange(len(some)), best]
            box[rows] = np.stack([spans[lines, 0], spans[columns, 0], spans[lines, 1], spans[columns, 1]], axis=1)
        return Likeness(score, box)

    def refine(
        self, placements: np.ndarray, independent: np.ndarray, strain: bool = False
    ) -> tuple[np.ndarray, Likeness]:
        """Moves, turns and zooms placements a little wherever that makes image and tile more alike.

        Args:
            placements, independent: As for `compare`.
            strain: Whether `aspect` and `skew` are changed, too.
        """
        best = self.compare(placements, independent, step=2)
        for finer in _STRAINED_FINER if strain else _FINER:
            for name, change in _STRAINED if strain else _CHANGES:
                for signed in (-change * finer, change * finer):
                    tried = placements.copy()
                    tried[name] += signed * placements["zoom"] if name == "zoom" else signed
                    found = self.compare(tried, independent, step=2)
                    better = found.score > best.score
                    placements = np.where(better, tried, placements)
                    best = Likeness(
                        np.where(better, found.score, best.score), np.where(better[:, None], found.box, best.box)
                    )
        return placements, self.compare(placements, independent)

    def whitened(self, placements: np.ndarray, box: np.ndarray) -> np.ndarray:
        """How like the tiles the images are in every detail, see `whitened_score`: float64 P.

        Args:
            placements: P of them.
            box: int64 P×4, what is compared, as `within` gives it; 0 for one of fewer pixels than count.
        """
        shown, inside = self._shown(placements)
        images, score = self.images[placements["image"]], np.zeros(len(placements))
        for height, width in np.unique(box[:, 2:], axis=0).tolist():
            if height * width < _FEWEST_PIXELS:
                continue
            rows = np.flatnonzero((box[:, 2:] == (height, width)).all(axis=1))
            down, right = (box[rows, axis, None] + np.arange(length) for axis, length in enumerate((height, width)))
            at = rows[:, None, None], down[:, :, None], right[:, None]
            counts = inside[at]
            found = whitened_score(images[at], shown[at], counts)
            score[rows] = np.where(counts.sum(axis=(1, 2)) >= _FEWEST_PIXELS, found, 0)
        return score

    def within(self, placements: np.ndarray, box: np.ndarray) -> np.ndarray:
        """Of boxes P×4 what lies on the tile: the smallest box around the pixels that do, as `Likeness.box`."""
        place = np.arange(self.side)
        of_box = (place >= box[:, :2, None]) & (place < (box[:, :2] + box[:, 2:])[:, :, None])
        inside = self._shown(placements)[1] & of_box[:, 0, :, None] & of_box[:, 1, None]
        is_in = np.stack([inside.any(axis=2), inside.any(axis=1)], axis=1)
        first = is_in.argmax(axis=2)
        length = np.where(is_in.any(axis=2), self.side - is_in[..., ::-1].argmax(axis=2) - first, 0)
        return np.concatenate([first, length], axis=1)

    def share_on_tile(self, placements: np.ndarray) -> np.ndarray:
        """The share of an image's pixels that lie on the tile: float64 P."""
        return self._shown(placements)[1].mean(axis=(1, 2))

    def explained(self, score: np.ndarray, independent: np.ndarray) -> np.ndarray:
        """The r² of which a score of `compare` is made: float64 P.

        Args:
            score: Of P placements.
            independent: The share of an image's pixels that counted as independent in each.
        """
        return 1 - np.exp(-2 * score / np.maximum(independent * self.side**2, 1))

    def _shown(self, placements: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What each tile shows where the pixels of the image lie on it, and which of them do: P×s×s each."""
        side = self.side
        down, right = on_tile(placements, self._rows, self._rows.T)
        inside = (down > -0.6) & (down < side - 0.4) & (right > -0.6) & (right < side - 0.4)
        down, right = np.clip(down, 0, side - 1), np.clip(right, 0, side - 1)
        # Whole numbers, of the type of what they are taken from: of two types it takes several times as long.
        row, column = (np.minimum(np.floor(each), np.float32(side - 2)) for each in (down, right))
        down -= row
        right -= column
        place = (row * side + column).astype(np.int64)
        place += placements["tile"][:, None, None] * side**2
        flat = self.tiles.reshape(-1)
        left = 1 - right
        above = flat.take(place) * left + flat.take(place + 1) * right
        place += side
        below = flat.take(place) * left + flat.take(place + 1) * right
        return above * (1 - down) + below * down, inside


def on_tile(placements: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where points of an image lie on the tile.

    Args:
        placements: P of them.
        rows, columns: float32 M×N each, or what broadcasts to it, the points in px.

    Returns:
        Rows and columns of the tile in px, float32 P×M×N each.
    """
    of = {name: placements[name][:, None, None] for name in PLACEMENT.names or ()}
    rows, columns = (rows - of["row"]) * of["zoom"], (columns - of["column"]) * of["zoom"]
    if placements["aspect"].any() or placements["skew"].any():
        stretched = np.exp(of["aspect"])
        rows, columns = rows * stretched + columns * of["skew"], columns / stretched + rows * of["skew"]
    cos, sin = np.cos(of["turn"]), np.sin(of["turn"])
    sign = np.where(of["mirrored"], -1, 1).astype(np.float32)
    return sign * cos * rows - sign * sin * columns + of["tile_row"], sin * rows + cos * columns + of["tile_column"]


def outlines(placement: np.ndarray, box: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The outline of a box of an image, as far as it lies on the tile: on the image, and on the tile.

    Args:
        placement: One `PLACEMENT`, an array of it.
        box: int64 4, as `Likeness.box`.
        side: Pixels along a side of both.

    Returns:
        float64 K×2 each, rows and columns of the same K corners in order, from 0 at the first edge to 1 at the last;
        K is 0 where nothing of the box lies on the tile.
    """
    first, last = box[:2] - 0.5, box[:2] + box[2:] - 0.5
    corners = np.array([first, (first[0], last[1]), last, (last[0], first[1])])
    # A point of the image and one further along either axis tell how all of them lie.
    base, down, right = np.stack(on_tile(placement, *np.array([[[0.0, 1, 0]], [[0.0, 0, 1]]])), axis=-1).reshape(3, 2)
    matrix = np.stack([down - base, right - base])
    shown = _clipped(corners @ matrix + base, -0.5, side - 0.5)
    return tuple((points + 0.5) / side for points in ((shown - base) @ np.linalg.inv(matrix), shown))  # type: ignore[return-value]


def _clipped(polygon: np.ndarray, low: float, high: float) -> np.ndarray:
    """A convex polygon, K×2, without what of it is below or above these in either coordinate."""
    for axis in (0, 1):
        for bound, sign in ((low, 1), (high, -1)):
            points: list[np.ndarray] = []
            for start, end in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
                before, after = sign * (start[axis] - bound), sign * (end[axis] - bound)
                if before >= 0:
                    points.append(start)
                if before * after < 0:
                    points.append(start + (end - start) * before / (before - after))
            polygon = np.array(points).reshape(-1, 2)
    return polygon


def _ratios(sums: np.ndarray, independent: np.ndarray) -> np.ndarray:
    """−½ n log(1 − r²) from sums over B boxes, P×6×B; −1 where too few pixels count."""
    count = np.maximum(sums[:, 0], 1)
    own, other = sums[:, 1] / count, sums[:, 2] / count
    own_variance = np.maximum(sums[:, 3] / count - own * own, 0) + _NOISE
    other_variance = np.maximum(sums[:, 4] / count - other * other, 0) + _NOISE
    covariance = sums[:, 5] / count - own * other
    explained = covariance * covariance / (own_variance * other_variance)
    ratio = log_likelihood_ratio(explained, independent[:, None] * count)
    return np.where(sums[:, 0] >= _FEWEST_PIXELS, ratio, -1.0)


@lru_cache(maxsize=8)
def _spans(side: int, step: int, shares: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Spans of pixels: int64 K×2, first and number; and which pixels are in each, float32 side×K of 0 and 1."""
    lengths = [round(share * side) for share in shares]
    spans = np.array([(first, length) for length in lengths for first in range(0, side - length + 1, step)])
    place = np.arange(side)[:, None]
    return spans, ((place >= spans[:, 0]) & (place < spans.sum(axis=1))).astype(np.float32)


def _radial_power(pictures: np.ndarray) -> np.ndarray:
    """Shares of the power of pictures N×s×s in each ring of frequencies: float64 N×F."""
    ring, _ = _rings(pictures.shape[1])
    twice = np.full(pictures.shape[1] // 2 + 1, 2.0)  # of a real picture half of the frequencies are left out
    twice[0] = 1.0
    if pictures.shape[1] % 2 == 0:
        twice[-1] = 1.0
    power = np.square(np.abs(np.fft.rfft2(pictures))) * twice
    power = power.reshape(len(pictures), -1) @ (ring.reshape(-1)[:, None] == np.arange(_FREQUENCIES + 1))
    return power / np.maximum(power.sum(axis=1, keepdims=True), 1e-9)


@lru_cache(maxsize=8)
def _rings(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Which ring each frequency of `rfft2` is in, and the number of frequencies, of all of a picture, in each."""
    down, right = np.abs(np.fft.fftfreq(side))[:, None], np.abs(np.fft.fftfreq(side))[None]
    ring = np.minimum(np.round(np.hypot(down, right) * 2 * _FREQUENCIES).astype(int), _FREQUENCIES)
    number = np.bincount(ring.reshape(-1), minlength=_FREQUENCIES + 1)
    # Pictures of few pixels have no frequency, and so no power, in some of them.
    return ring[:, : side // 2 + 1], np.maximum(number, 1)
