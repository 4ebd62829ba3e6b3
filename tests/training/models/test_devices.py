from __future__ import annotations

import pytest
import torch

from histodistill.training.models import embedders
from histodistill.training.models.devices import best_device
from histodistill.training.models.embedders import load_embedder


@pytest.fixture
def gpu(monkeypatch) -> torch.device:
    """Pretends that there is an accelerator; tensors on this device have no values."""
    device = torch.device("meta")
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: device)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    return device


def test_the_accelerator_if_there_is_one(gpu, monkeypatch):
    assert best_device() == gpu
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    assert best_device() == torch.device("cpu")


@pytest.mark.parametrize(("value", "wanted"), [("true", "cpu"), ("1", "cpu"), ("false", "meta"), ("", "meta")])
def test_whoever_asks_for_the_cpu_gets_it(gpu, monkeypatch, value, wanted):
    monkeypatch.setenv("ACCELERATE_USE_CPU", value)
    assert best_device().type == wanted


def test_embedders_work_there(gpu, tiny_teacher, tiny_autoencoder):
    for folder in (tiny_teacher, tiny_autoencoder):
        assert {weights.device for weights in load_embedder(folder).function.args[0].parameters()} == {gpu}
    *_, device = embedders.load_embedder("untrained").function.args
    assert device == gpu
