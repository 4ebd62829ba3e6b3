"""The tissues of the phantom: drawings of concentrations of stain, which `phantom` turns into colours.

Each function takes the patient of each of N tiles, a row for each tile, and returns concentrations float32 2×N×S×S
(haematoxylin, eosin), in the stain's units of optical density. Lengths are shares of the tile's side. The numbers
imitate a look; none was measured on tissue.
"""

from __future__ import annotations

import numpy as np

from histodistill.training.data.phantom_patients import Patients


def _adipose(rng: np.random.Generator, patients: Patients, grid: int) -> np.ndarray:
    """Large empty cells with thin walls: the borders of a jittered Voronoi diagram."""
    n = len(patients)
    y, x = _coordinates(grid)
    spacing = rng.uniform(0.40, 0.50, n) * patients.coarseness
    steps = np.arange(-2.5, 3.0)
    jitter = rng.uniform(-0.32, 0.32, (2, n, len(steps), len(steps)))
    offset = rng.uniform(-0.5, 0.5, (2, n, 1, 1))
    seeds_y = 0.5 + (steps[:, None] + offset[0] + jitter[0]) * spacing[:, None, None]
    seeds_x = 0.5 + (steps[None, :] + offset[1] + jitter[1]) * spacing[:, None, None]
    seeds_y, seeds_x = (s.reshape(n, -1).astype(np.float32) for s in (seeds_y, seeds_x))
    warp = 0.018 * waves(rng, n, grid, 3, 1.0, 2.5)
    first = np.full((n, grid, grid), 9.0, dtype=np.float32)
    second = first.copy()
    for k in range(seeds_y.shape[1]):
        distance = np.hypot(y - seeds_y[:, k, None, None] + warp, x - seeds_x[:, k, None, None] - warp)
        second = np.minimum(second, np.maximum(first, distance))
        first = np.minimum(first, distance)
    gap = second - first
    thickness = rng.uniform(0.035, 0.075, (n, 1, 1)).astype(np.float32)
    wall = np.clip(1.4 - gap / thickness, 0, 1)
    haematoxylin = 0.02 + 0.14 * wall
    eosin = 0.03 + 0.60 * wall
    # Flat nuclei lie in the walls: of a few random places, the one nearest to a wall is taken.
    for _ in range(3):
        places = rng.integers(0, grid, (2, n, 12))
        rows = np.arange(n)
        best = gap[rows[:, None], places[0], places[1]].argmin(axis=1)
        keep = rng.random(n) < 0.6
        spot = (places[:, rows, best] + 0.5) / grid
        _stamp(
            haematoxylin,
            rows[keep],
            spot[0][keep],
            spot[1][keep],
            length=rng.uniform(0.035, 0.05, keep.sum()) * patients.nuclei[keep],
            width=rng.uniform(0.02, 0.028, keep.sum()) * patients.nuclei[keep],
            angle=rng.uniform(0, np.pi, keep.sum()),
            amount=rng.uniform(1.0, 1.5, keep.sum()),
        )
    return np.stack([haematoxylin, eosin])


def _glands(rng: np.random.Generator, patients: Patients, grid: int) -> np.ndarray:
    """Crypts: a pale lumen, columnar cells around it, and their nuclei in a ring at the base."""
    n = len(patients)
    fibres = waves(rng, n, grid, 5, 2.0, 5.0)
    eosin = 0.50 + 0.14 * fibres
    haematoxylin = 0.10 + 0.02 * fibres
    angle = rng.uniform(0, np.pi, n)
    _scatter_spindles(rng, haematoxylin, patients, count=8, chance=0.5, angle=angle, wobble=0.6)
    radius = rng.uniform(0.27, 0.40, n)
    centre_y, centre_x = rng.uniform(0.32, 0.68, (2, n))
    for ring in range(2):
        if ring == 1:  # a neighbour, mostly cut by the border of the tile
            direction = rng.uniform(0, 2 * np.pi, n)
            next_radius = rng.uniform(0.24, 0.38, n)
            reach = radius + next_radius + rng.uniform(0.05, 0.16, n)
            centre_y, centre_x = centre_y + reach * np.sin(direction), centre_x + reach * np.cos(direction)
            radius = next_radius
        _draw_crypt(rng, haematoxylin, eosin, patients, radius, centre_y, centre_x)
    return np.stack([haematoxylin, eosin])


def _draw_crypt(
    rng: np.random.Generator,
    haematoxylin: np.ndarray,
    eosin: np.ndarray,
    patients: Patients,
    radius: np.ndarray,
    centre_y: np.ndarray,
    centre_x: np.ndarray,
) -> None:
    """Draws one crypt into each of N tiles (haematoxylin and eosin N×S×S), in place, with N radii and centres."""
    n, grid = len(radius), eosin.shape[1]
    y, x = _coordinates(grid)
    squeeze, tilt = patients.roundness * rng.uniform(0.94, 1.06, n), rng.uniform(0, np.pi, n)
    dent, dent_angle = rng.uniform(0.0, 0.14, n), rng.uniform(0, 2 * np.pi, n)
    lumen_share = patients.lumen * rng.uniform(0.85, 1.15, n)

    def each(values: np.ndarray) -> np.ndarray:
        return values[:, None, None].astype(np.float32)

    dy, dx = y - each(centre_y), x - each(centre_x)
    u = dx * each(np.cos(tilt)) + dy * each(np.sin(tilt))
    v = (dy * each(np.cos(tilt)) - dx * each(np.sin(tilt))) / each(squeeze)
    outline = 1 + each(dent) * np.cos(3 * np.arctan2(v, u) + each(dent_angle))
    r = np.hypot(u, v) / (each(radius) * outline)
    body = np.clip((1.03 - r) / 0.08, 0, 1)
    lumen = np.clip((each(lumen_share) - r) / 0.10 + 0.5, 0, 1)
    eosin += body * (0.34 - eosin)
    haematoxylin += body * (0.30 - haematoxylin)
    eosin += lumen * (0.05 - eosin)
    haematoxylin += lumen * (0.04 - haematoxylin)

    count = np.rint(2 * np.pi * radius / rng.uniform(0.085, 0.115, n))
    k = np.arange(int(count.max()))[None, :]
    tile, slot = np.nonzero((k < count[:, None]) & (rng.random((n, k.size)) < 0.93))
    theta = 2 * np.pi * (slot + rng.uniform(-0.22, 0.22, len(tile))) / count[tile]
    depth = radius[tile] * (1 + dent[tile] * np.cos(3 * theta + dent_angle[tile])) * rng.normal(0.82, 0.045, len(tile))
    pu, pv = depth * np.cos(theta), depth * np.sin(theta) * squeeze[tile]
    cos, sin = np.cos(tilt[tile]), np.sin(tilt[tile])
    py, px = pu * sin + pv * cos, pu * cos - pv * sin
    _stamp(
        haematoxylin,
        tile,
        centre_y[tile] + py,
        centre_x[tile] + px,
        length=rng.uniform(0.048, 0.066, len(tile)) * patients.nuclei[tile],
        width=rng.uniform(0.026, 0.036, len(tile)) * patients.nuclei[tile],
        angle=np.arctan2(py, px),
        amount=rng.uniform(0.95, 1.55, len(tile)),
    )


def _lymphocytes(rng: np.random.Generator, patients: Patients, grid: int) -> np.ndarray:
    """A crowd of small, round, dark nuclei with little between them."""
    n = len(patients)
    between = waves(rng, n, grid, 5, 1.0, 3.0)
    eosin = 0.24 + 0.08 * between
    haematoxylin = 0.16 + 0.04 * between
    side = 10
    spacing = rng.uniform(0.125, 0.15, n) * np.sqrt(patients.nuclei)
    thinning = rng.uniform(0.03, 0.38, n)
    rows, columns = np.divmod(np.arange(side * side), side)
    jitter = rng.uniform(-0.34, 0.34, (2, n, side * side))
    tile, slot = np.nonzero(rng.random((n, side * side)) > thinning[:, None])
    centre_y = 0.5 + (rows[slot] - (side - 1) / 2 + jitter[0, tile, slot]) * spacing[tile]
    centre_x = 0.5 + (columns[slot] - (side - 1) / 2 + 0.5 * (rows[slot] % 2) + jitter[1, tile, slot]) * spacing[tile]
    size = 0.0525 * patients.nuclei[tile] * rng.uniform(0.85, 1.15, len(tile))
    _stamp(
        haematoxylin,
        tile,
        centre_y,
        centre_x,
        length=size * rng.uniform(1.0, 1.2, len(tile)),
        width=size,
        angle=rng.uniform(0, np.pi, len(tile)),
        amount=rng.uniform(1.2, 1.9, len(tile)),
    )
    return np.stack([haematoxylin, eosin])


def _mucus(rng: np.random.Generator, patients: Patients, grid: int) -> np.ndarray:
    """Pale bluish swirls: stripes whose phase is itself a smooth random field."""
    n = len(patients)
    phase = rng.uniform(0.35, 0.75, (n, 1, 1)).astype(np.float32) * waves(rng, n, grid, 4, 0.5, 1.3)
    y, x = _coordinates(grid)
    direction = rng.uniform(0, np.pi, (n, 1, 1)).astype(np.float32)
    frequency = (rng.uniform(2.0, 3.3, (n, 1, 1)) / patients.coarseness[:, None, None]).astype(np.float32)
    stripes = np.sin(2 * np.pi * (phase + frequency * (y * np.cos(direction) + x * np.sin(direction))))
    clouds = waves(rng, n, grid, 4, 0.5, 2.0)
    haematoxylin = 0.20 + 0.10 * stripes + 0.05 * clouds
    eosin = 0.07 + 0.03 * clouds - 0.02 * stripes
    count = rng.integers(0, 5, n)
    tile, _ = np.nonzero(np.arange(4)[None, :] < count[:, None])
    size = rng.uniform(0.03, 0.045, len(tile)) * patients.nuclei[tile]
    _stamp(
        haematoxylin,
        tile,
        *rng.uniform(0, 1, (2, len(tile))),
        length=size * 1.15,
        width=size,
        angle=rng.uniform(0, np.pi, len(tile)),
        amount=rng.uniform(0.8, 1.5, len(tile)),
    )
    return np.maximum(np.stack([haematoxylin, eosin]), 0.01)


def _stroma(rng: np.random.Generator, patients: Patients, grid: int) -> np.ndarray:
    """Wavy pink fibres with clefts, and thin nuclei that follow them."""
    n = len(patients)
    y, x = _coordinates(grid)
    angle = rng.uniform(0, np.pi, n)
    across = y * np.cos(angle)[:, None, None] - x * np.sin(angle)[:, None, None]
    bend = 0.075 * waves(rng, n, grid, 3, 0.6, 1.4)
    frequency = rng.uniform(5.2, 7.0, (n, 1, 1)) / patients.coarseness[:, None, None]
    stripes = np.sin(2 * np.pi * frequency * (across + bend) + rng.uniform(0, 2 * np.pi, (n, 1, 1)))
    fine = np.sin(2 * np.pi * 1.7 * frequency * (across + 1.1 * bend) + rng.uniform(0, 2 * np.pi, (n, 1, 1)))
    fibre = (0.65 * stripes + 0.35 * fine).astype(np.float32)
    patches = waves(rng, n, grid, 4, 0.6, 2.0)
    eosin = np.maximum(0.58 + 0.26 * fibre + 0.10 * patches, 0.08)
    haematoxylin = np.maximum(0.10 + 0.04 * fibre, 0.02)
    chance = rng.uniform(0.25, 0.9, (n, 1))
    _scatter_spindles(rng, haematoxylin, patients, count=9, chance=chance, angle=angle, wobble=0.15)
    return np.stack([haematoxylin, eosin])


#: How each class is drawn; the place is the label.
TISSUES = {
    "adipose": _adipose,
    "glands": _glands,
    "lymphocytes": _lymphocytes,
    "mucus": _mucus,
    "stroma": _stroma,
}


# --- Drawing. ---


def _coordinates(grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the pixels as shares of the tile: y float32 S×1 and x 1×S."""
    centres = ((np.arange(grid) + 0.5) / grid).astype(np.float32)
    return centres[:, None], centres[None, :]


def gradient(rng: np.random.Generator, n: int, grid: int) -> np.ndarray:
    """A plane of slope 1 that rises in a random direction, 0 in the middle of each tile: float32 N×S×S."""
    y, x = _coordinates(grid)
    angle = rng.uniform(0, 2 * np.pi, (n, 1, 1)).astype(np.float32)
    return (y - 0.5) * np.sin(angle) + (x - 0.5) * np.cos(angle)


def waves(rng: np.random.Generator, n: int, grid: int, count: int, low: float, high: float) -> np.ndarray:
    """A smooth random field float32 N×S×S of mean about 0 and variance about 1: a sum of plane waves."""
    y, x = _coordinates(grid)
    total = np.zeros((n, grid, grid), dtype=np.float32)
    for _ in range(count):
        angle, phase = rng.uniform(0, 2 * np.pi, (2, n, 1, 1)).astype(np.float32)
        frequency = 2 * np.pi * rng.uniform(low, high, (n, 1, 1)).astype(np.float32)
        total += np.cos(frequency * (y * np.sin(angle) + x * np.cos(angle)) + phase)
    return total * np.float32(np.sqrt(2 / count))


def _scatter_spindles(
    rng: np.random.Generator,
    canvas: np.ndarray,
    patients: Patients,
    *,
    count: int,
    chance: float | np.ndarray,
    angle: np.ndarray,
    wobble: float,
) -> None:
    """Draws thin nuclei at random places into canvas N×S×S, in place.

    Args:
        rng: The source of chance.
        canvas: float32 N×S×S, the haematoxylin.
        patients: Of each tile.
        count: Most nuclei in a tile.
        chance: The chance of each of them to be there, a number or N×1.
        angle: N, the direction of the nuclei of each tile in radians.
        wobble: Standard deviation of a nucleus's own direction around it, in radians.
    """
    tile, _ = np.nonzero(rng.random((len(canvas), count)) < chance)
    _stamp(
        canvas,
        tile,
        *rng.uniform(0, 1, (2, len(tile))),
        length=rng.uniform(0.065, 0.105, len(tile)) * patients.nuclei[tile],
        width=rng.uniform(0.02, 0.028, len(tile)) * patients.nuclei[tile],
        angle=angle[tile] + rng.normal(0, wobble, len(tile)),
        amount=rng.uniform(0.9, 1.5, len(tile)),
    )


def _stamp(
    canvas: np.ndarray,
    tile: np.ndarray,
    y: np.ndarray,
    x: np.ndarray,
    *,
    length: np.ndarray,
    width: np.ndarray,
    angle: np.ndarray,
    amount: np.ndarray,
) -> None:
    """Draws soft ellipses (nuclei) into canvas N×S×S, in place; `length` and `width` are half axes.

    Only a small window around each nucleus is touched: a crowd of lymphocytes would be slow otherwise.
    """
    if not len(tile):
        return
    grid = canvas.shape[1]
    half = int(np.ceil(1.3 * grid * float(np.max(length)))) + 1
    offsets = np.arange(-half, half + 1)
    rows = np.floor(y * grid).astype(int)[:, None, None] + offsets[None, :, None]
    columns = np.floor(x * grid).astype(int)[:, None, None] + offsets[None, None, :]
    dy = (rows + 0.5) / grid - y[:, None, None]
    dx = (columns + 0.5) / grid - x[:, None, None]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    along = (dx * cos + dy * sin) / length[:, None, None]
    across = (dy * cos - dx * sin) / width[:, None, None]
    value = amount[:, None, None] * np.clip((1 - np.hypot(along, across)) / 0.4 + 0.5, 0, 1)
    inside = (rows >= 0) & (rows < grid) & (columns >= 0) & (columns < grid) & (value > 0)
    which, row, column = np.nonzero(inside)
    target = (tile[which], rows[which, row, 0], columns[which, 0, column])
    np.maximum.at(canvas, target, value[inside].astype(canvas.dtype))
