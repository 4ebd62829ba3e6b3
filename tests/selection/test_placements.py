from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import affine_transform, gaussian_filter, map_coordinates

from histodistill.selection.keypoints import harmonics_at, turns_between
from histodistill.selection.placements import PLACEMENT, Comparison, outlines


SIDE = 28


def textures(count: int, seed: int, width: float = 1.0) -> np.ndarray:
    smooth = gaussian_filter(np.random.default_rng(seed).normal(size=(count, SIDE, SIDE)), (0, width, width))
    return (128 + 40 * smooth / smooth.std()).astype(np.float32)


def placed(count: int, **changes: float) -> np.ndarray:
    """Image i on tile i as it is, but for what is changed."""
    placements = np.zeros(count, PLACEMENT)
    placements["image"] = placements["tile"] = np.arange(count)
    for name in ("row", "column", "tile_row", "tile_column"):
        placements[name] = (SIDE - 1) / 2
    placements["zoom"] = 1
    for name, value in changes.items():
        placements[name] = value
    return placements


def test_score_is_that_of_the_correlation():
    tiles = textures(5, 0)
    images = tiles + 30 * textures(5, 1) / 40
    comparison = Comparison(images, tiles)
    independent = np.full(5, 0.25)
    found = comparison.compare(placed(5), independent)
    # The noise that counts as such is 1 in the variance of each.
    r = [
        np.mean((x - x.mean()) * (y - y.mean())) / np.sqrt((x.var() + 1) * (y.var() + 1))
        for x, y in zip(images.astype(float), tiles.astype(float), strict=True)
    ]
    expected = -0.5 * 0.25 * SIDE**2 * np.log(1 - np.square(r))
    whole = (found.box == [0, 0, SIDE, SIDE]).all(axis=1)
    assert whole.any()
    np.testing.assert_allclose(found.score[whole], expected[whole], rtol=1e-3)
    assert (found.score >= expected * (1 - 1e-3)).all()


def test_a_placement_scores_the_same_among_many_others():
    tiles = textures(70, 0)
    comparison = Comparison(tiles[::-1] + textures(70, 1), tiles)
    placements = placed(70, turn=np.linspace(0, 6, 70), mirrored=np.arange(70) % 3 == 0, skew=np.arange(70) / 700)
    placements["tile"] = placements["image"][::-1]
    independent = comparison.independent(placements)
    found = comparison.compare(placements, independent)
    for i in (0, 31, 32, 63, 64, 69):
        alone = comparison.compare(placements[i : i + 1], independent[i : i + 1])
        np.testing.assert_allclose(alone.score, found.score[i], rtol=1e-4)
        np.testing.assert_array_equal(alone.box[0], found.box[i])


def test_what_shares_nothing_scores_little_and_its_negative_as_much_as_itself():
    tiles = textures(20, 0)
    comparison = Comparison(np.concatenate([textures(20, 1), 255 - tiles, tiles]), tiles)
    scores = []
    for first in (0, 20, 40):
        placements = placed(20, image=np.arange(20) + first)
        scores.append(comparison.compare(placements, comparison.independent(placements)).score)
    assert scores[0].max() < 20 and scores[2].min() > 200
    np.testing.assert_allclose(scores[1], scores[2], rtol=1e-4)


def test_box_is_where_the_image_shows_the_tile():
    tiles, images = textures(6, 0), textures(6, 1)
    images[:, :, :14] = tiles[:, :, :14]
    comparison = Comparison(images, tiles)
    found = comparison.compare(placed(6), np.full(6, 0.3))
    assert (found.box == [0, 0, SIDE, 14]).all(axis=1).sum() >= 5
    assert found.score.min() > 100


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_turn_and_mirroring_of_a_placement(quarters, mirrored):
    tiles = textures(3, 0)
    # Rows reversed, and then turned from the direction of columns to that of rows.
    images = np.ascontiguousarray(np.rot90(tiles[:, ::-1] if mirrored else tiles, -quarters, axes=(1, 2)))
    placements = placed(3, turn=quarters * np.pi / 2, mirrored=mirrored)
    found = Comparison(images, tiles).compare(placements, np.ones(3))
    assert found.score.min() > 0.5 * SIDE**2 * 6  # r² > 1 − e⁻⁶


@pytest.mark.parametrize(("aspect", "skew"), [(0.12, 0.0), (0.0, -0.1), (-0.06, 0.06)])
def test_strain_is_found(aspect, skew):
    tiles = textures(4, 0)
    middle = (SIDE - 1) / 2
    rows, columns = np.mgrid[:SIDE, :SIDE] - middle
    at = rows * np.exp(aspect) + columns * skew + middle, columns * np.exp(-aspect) + rows * skew + middle
    images = np.stack([map_coordinates(tile, at, order=3, mode="reflect") for tile in tiles])
    comparison, independent = Comparison(images, tiles), np.full(4, 0.3)
    apart = comparison.refine(placed(4), independent)[1].score
    placements, likeness = comparison.refine(placed(4), independent, strain=True)
    assert (likeness.score > 1.5 * apart).all()
    found = np.stack([placements["aspect"], placements["skew"]], axis=1)
    assert np.abs(found - [aspect, skew]).max() < 0.06


@pytest.mark.parametrize("degrees", [30, 198])
@pytest.mark.parametrize("mirrored", [False, True])
def test_keypoints_place_the_image(degrees, mirrored):
    """A turned tile lies as what is around one place says: `turns_between` and `PLACEMENT` mean the same."""
    tiles = textures(6, 0, width=2)
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    # From rows and columns of the image to those of the tile, about the pixel (15, 12) of both.
    matrix, about = np.diag([-1 if mirrored else 1, 1]) @ [[cos, -sin], [sin, cos]], np.array([15, 12])
    images = np.stack([affine_transform(x, matrix, about - matrix @ about, order=3, mode="reflect") for x in tiles])
    own, other = (harmonics_at(x, np.arange(6), np.tile(about, (6, 1)))[0] for x in (images, tiles))
    turn, flipped = turns_between(own, other)
    assert flipped.tolist() == [mirrored] * 6
    placements = placed(6, turn=turn, mirrored=flipped, row=15, column=12, tile_row=15, tile_column=12)
    shown, inside = Comparison(images, tiles)._shown(placements)
    for image, tile, on_tile in zip(images, shown, inside, strict=True):
        assert np.corrcoef(image[on_tile], tile[on_tile])[0, 1] > 0.97


def test_zoom_and_place_of_a_placement():
    tiles = textures(3, 0, width=2)
    images = np.repeat(np.repeat(tiles[:, 3:17, 5:19], 2, axis=1), 2, axis=2)
    placements = placed(3, zoom=0.5, tile_row=9.5, tile_column=11.5)
    good = Comparison(images, tiles).compare(placements, np.ones(3)).score
    moved = Comparison(images, tiles).compare(placed(3, zoom=0.5, tile_row=12.5, tile_column=11.5), np.ones(3)).score
    assert (good > 3 * moved).all()


def test_refining_finds_the_placement_and_never_loses():
    tiles = textures(8, 0, width=1.5)
    images = np.roll(tiles, (1, -1), axis=(1, 2))
    comparison = Comparison(images, tiles)
    start = placed(8, turn=0.1)
    independent = comparison.independent(start)
    before = comparison.compare(start, independent, step=2).score
    placements, found = comparison.refine(start, independent)
    assert (found.score >= before * (1 - 1e-6)).all() and found.score.mean() > 1.5 * before.mean()
    assert np.abs(placements["turn"]).max() < 0.1
    np.testing.assert_allclose(placements["tile_row"] - start["tile_row"], -1, atol=0.6)
    np.testing.assert_array_equal(start, placed(8, turn=0.1))


def test_fewer_pixels_of_smooth_pictures_are_independent():
    rough, smooth = textures(30, 0, width=0.01), textures(30, 1, width=2.5)
    shares = [Comparison(x, x).independent(placed(30)) for x in (rough, smooth)]
    assert 0.9 < shares[0].mean() <= 1 and (shares[0] <= 1).all()
    assert shares[1].max() < 0.2


@pytest.mark.parametrize("side", [8, 9, 16, 32])
def test_sides_of_any_number_of_pixels(side):
    noise = np.random.default_rng(0).normal(128, 40, (40, side, side)).astype(np.float32)
    placements = placed(40)
    for name in ("row", "column", "tile_row", "tile_column"):
        placements[name] = (side - 1) / 2
    shares = Comparison(noise, noise).independent(placements)
    assert 0.7 < shares.mean() <= 1 and shares.max() <= 1


def test_an_image_beside_the_tile_is_not_compared():
    tiles = textures(2, 0)
    found = Comparison(tiles, tiles).compare(placed(2, tile_row=50.0), np.ones(2))
    assert (found.score == -1).all()


def test_outlines_are_where_the_image_lies_on_the_tile():
    # Moved down by 7 px: the lower three quarters of the image lie on the upper ones of the tile.
    moved = placed(1)
    moved["tile_row"] -= 7
    on_image, on_tile = outlines(moved, np.array([0, 0, SIDE, SIDE]), SIDE)
    np.testing.assert_allclose(sorted(on_image.tolist()), [[0.25, 0], [0.25, 1], [1, 0], [1, 1]], atol=1e-6)
    np.testing.assert_allclose(on_tile, on_image - [0.25, 0], atol=1e-6)
    assert Comparison(*textures(2, 0)[:, None]).within(moved, np.array([[0, 14, SIDE, 14]])).tolist() == [
        [7, 14, 21, 14]
    ]
    moved["tile_row"] -= 2 * SIDE
    assert [part.shape for part in outlines(moved, np.array([0, 0, SIDE, SIDE]), SIDE)] == [(0, 2), (0, 2)]


def test_outline_of_a_turned_image_is_within_the_tile():
    # By an eighth, about the middle: the tile cuts off all four corners.
    on_image, on_tile = outlines(placed(1, turn=np.pi / 4), np.array([0, 0, SIDE, SIDE]), SIDE)
    assert len(on_image) == len(on_tile) == 8
    for points in (on_image, on_tile):
        assert points.min() >= -1e-6 and points.max() <= 1 + 1e-6
    # Of the same size, since nothing is zoomed.
    lengths = [np.linalg.norm(np.diff(points, axis=0), axis=1) for points in (on_image, on_tile)]
    np.testing.assert_allclose(*lengths, atol=1e-5)


def test_whole_images_alone_are_compared():
    tiles = textures(6, 0)
    comparison = Comparison(tiles, tiles, spans=(1.0,))
    independent = comparison.independent(placed(6))
    found = comparison.compare(placed(6, tile_row=10.0), independent)
    assert (found.box == [0, 0, SIDE, SIDE]).all()
    np.testing.assert_allclose(comparison.share_on_tile(placed(6)), 1)
    assert comparison.explained(comparison.compare(placed(6), independent).score, independent).min() > 0.99
