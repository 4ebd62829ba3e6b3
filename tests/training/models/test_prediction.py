import numpy as np
import pytest
import torch

from histodistill.training.models.batch_sizes import usual_batch_size
from histodistill.training.models.classifiers import Classifier
from histodistill.training.models.prediction import embed, predict_proba


@pytest.mark.parametrize(("side", "size"), [(8, 256), (28, 256), (32, 256), (33, 128), (64, 64), (96, 16), (224, 8)])
def test_fewer_large_images_are_shown_at_once(side, size):
    assert usual_batch_size(side) == size


def test_any_batch_size_gives_the_same_to_within_rounding():
    torch.manual_seed(0)
    model = Classifier("convnet", class_names=["a", "b"], image_size=40, width=8)
    images = np.random.default_rng(0).integers(0, 256, (70, 40, 40, 3), dtype=np.uint8)
    for function in (embed, predict_proba):
        np.testing.assert_allclose(function(model, images), function(model, images, batch_size=70), atol=1e-5)
