from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from histodistill.training.data.images import base64_png, make_grid, png_bytes, save_grid


def noise(count: int, height: int = 4, width: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, height, width, 3), dtype=np.uint8)


def test_grid_lays_out_row_by_row():
    images = noise(5)
    grid = np.asarray(make_grid(images, columns=3, gap=2))
    assert grid.shape == (4 + 2 + 4, 3 * 5 + 2 * 2, 3)
    for number, image in enumerate(images):
        top, left = number // 3 * 6, number % 3 * 7
        np.testing.assert_array_equal(grid[top : top + 4, left : left + 5], image)
    covered = 5 * 4 * 5
    assert (grid == 255).all(axis=2).sum() == grid.shape[0] * grid.shape[1] - covered  # gaps and the empty place


def test_grid_enlarges_without_smoothing():
    images = noise(2)
    grid = np.asarray(make_grid(images, columns=2, scale=3, gap=0))
    assert grid.shape == (12, 30, 3)
    np.testing.assert_array_equal(grid[::3, ::3], np.concatenate(images, axis=1))
    np.testing.assert_array_equal(grid[2::3, 2::3], np.concatenate(images, axis=1))


def test_png_comes_back_and_has_no_metadata():
    image = Image.fromarray(noise(1)[0])
    image.info["comment"] = "where it came from"
    data = png_bytes(image)
    read = Image.open(io.BytesIO(data))
    assert (read.format, read.info) == ("PNG", {})
    np.testing.assert_array_equal(np.asarray(read), np.asarray(image))
    assert png_bytes(image) == data


def test_base64_holds_the_png_file():
    pixels = noise(1)[0]
    assert base64.b64decode(base64_png(pixels, 5)) == png_bytes(Image.fromarray(pixels))


def test_base64_of_a_larger_image_is_shrunk_and_keeps_its_shape():
    pixels = noise(1, height=20, width=40)[0]
    assert Image.open(io.BytesIO(base64.b64decode(base64_png(pixels, 10)))).size == (10, 5)


@pytest.mark.parametrize("scale", [1, 2])
def test_save_grid(tmp_path, scale):
    images = noise(4, 6, 6)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    save_grid(pixels, tmp_path / "deep" / "grid.png", columns=2, scale=scale)
    with Image.open(tmp_path / "deep" / "grid.png") as grid:
        np.testing.assert_array_equal(np.asarray(grid), np.asarray(make_grid(images, 2, scale)))
