from __future__ import annotations

import numpy as np
import pytest
import torch

from histodistill.training.data.pixels import ready_for, to_device, to_model_input


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """What is asked of tensors that go to a device, without there being one."""
    calls = []

    def pin_memory(self):
        calls.append(("pin", self.dtype))
        return self

    def to(self, device, non_blocking=False):
        calls.append(("to", device.type, self.dtype, non_blocking))
        return self

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    return calls


def test_copies_for_cuda_are_pinned_and_not_waited_for(calls):
    values = torch.arange(3)
    assert to_device(values, CUDA) is values
    assert calls == [("pin", torch.int64), ("to", "cuda", torch.int64, True)]
    calls.clear()
    assert ready_for(CUDA, values) is values
    assert calls == [("pin", torch.int64)]


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_other_devices_get_plain_copies(calls, device):
    to_device(torch.arange(3), torch.device(device))
    assert calls == [("to", device, torch.int64, False)]


def test_images_travel_as_bytes(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    travelled = []

    def note(values, device):
        travelled.append((values.dtype, values.shape, device))
        return values

    monkeypatch.setattr("histodistill.training.data.pixels.to_device", note)
    assert torch.equal(to_model_input(images, CUDA), to_model_input(images))
    assert travelled == [(torch.uint8, (4, 6, 6, 3), CUDA)]


def test_images_are_where_they_are_to_be():
    images = np.zeros((2, 6, 6, 3), dtype=np.uint8)
    assert to_model_input(images, torch.device("meta")).device.type == "meta"
    assert to_model_input(torch.zeros(2, 6, 6, 3, dtype=torch.uint8, device="meta")).device.type == "meta"
