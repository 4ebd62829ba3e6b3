from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from histodistill.training.distillation import community_discs as module
from histodistill.training.distillation.community_discs import community_discs, pack_discs


SIZES = {"fat": [40, 20, 5], "$x & <b>": [7]}
CHOSEN = {"fat": [4, 0, 5], "$x & <b>": [1]}


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG" and "Software" not in image.info
        return np.asarray(image.convert("RGB"))


def test_the_same_numbers_give_the_same_file():
    assert community_discs(SIZES, CHOSEN) == community_discs(SIZES, CHOSEN)
    assert (pixels(community_discs(SIZES, CHOSEN)) != 255).any()


@pytest.mark.parametrize("radii", [[3.0], [9.0, 5.0, 5.0, 1.0, 1.0], [1.0] * 60, [30.0] + [1.0] * 20, []])
def test_discs_do_not_overlap(radii):
    radii = np.array(radii)
    centres = pack_discs(radii)
    distances = np.linalg.norm(centres[:, None] - centres, axis=-1)
    apart = radii[:, None] + radii
    np.fill_diagonal(distances, np.inf)
    assert centres.shape == (len(radii), 2) and (distances > apart).all()


def test_each_image_is_a_dot_and_each_chosen_one_is_ringed(monkeypatch):
    drawn = []
    draw = module._draw_disc
    monkeypatch.setattr(module, "_draw_disc", lambda *args: drawn.append((args[2], args[3])) or draw(*args))
    community_discs(SIZES, CHOSEN)
    assert drawn == [(40, 4), (20, 0), (5, 5), (7, 1)]


def test_very_many_images_and_communities_are_drawn_in_little_time(monkeypatch):
    drawn = []
    monkeypatch.setattr(module, "_draw_disc", lambda *args: drawn.append((args[2], args[3])))
    community_discs({"a": [10**9], "b": [1] * 4000, "c": []}, {"a": [5], "b": [1] * 4000, "c": []})
    assert drawn[0] == (2000, 1) and drawn[1:] == [(1, 1)] * 300


@pytest.mark.parametrize(
    ("sizes", "chosen"),
    [
        ({"a": [3, 2]}, {"a": [1]}),
        ({"a": [3, 2]}, {"a": [1, 3]}),
        ({"a": [3, 2]}, {"a": [-1, 2]}),
        ({"a": [2, 3]}, {"a": [1, 1]}),
        ({"a": [3, 0]}, {"a": [1, 0]}),
        ({"a": [3]}, {}),
        ({"a": [3]}, {"a": [1], "b": []}),
    ],
)
def test_numbers_that_do_not_fit_are_refused(sizes, chosen):
    with pytest.raises(ValueError, match="communities"):
        community_discs(sizes, chosen)
