from __future__ import annotations

import json

import pytest
import torch

from histodistill.training.engine.checkpoints import (
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from histodistill.training.running.errors import InputError


SETTINGS = {"data": "a", "channels": (8, 8)}


class Net(torch.nn.Module):
    def __init__(self, width: int = 4, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = torch.nn.Conv2d(3, width, 3)
        self.norm = torch.nn.BatchNorm2d(width)
        self.scale = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, images):
        return self.norm(self.conv(images)) * self.scale


def make(memory_format=torch.contiguous_format, seed: int = 0, fused: bool = True):
    net = Net(seed=seed).to(memory_format=memory_format)
    return net, torch.optim.AdamW(net.parameters(), lr=0.1, fused=fused)


def train(net, optimizer, steps):
    for step in steps:
        images = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(step))
        net(images).pow(3).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_training_goes_on_as_if_never_stopped(tmp_path, memory_format, fused):
    whole, whole_optimizer = make(memory_format, fused=fused)
    train(whole, whole_optimizer, range(3))
    folder = save_checkpoint(tmp_path, 3, SETTINGS, {"net": whole}, whole_optimizer, {"history": [1, 2]})
    train(whole, whole_optimizer, range(3, 6))

    resumed, optimizer = make(memory_format, seed=9, fused=fused)
    state = load_checkpoint(folder, SETTINGS, {"net": resumed}, optimizer)
    train(resumed, optimizer, range(3, 6))

    assert (state["step"], state["history"]) == (3, [1, 2])
    assert resumed.conv.weight.is_contiguous(memory_format=memory_format)
    for (name, expected), value in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name


def test_settings_of_the_optimizer_come_from_the_new_run(tmp_path):
    net, optimizer = make()
    train(net, optimizer, range(1))
    folder = save_checkpoint(tmp_path, 1, SETTINGS, {"net": net}, optimizer)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.5, weight_decay=0.25, fused=True)
    load_checkpoint(folder, SETTINGS, {"net": net}, optimizer)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (0.5, 0.25)


def test_checkpoint_is_safetensors_and_json(tmp_path):
    net, optimizer = make()
    train(net, optimizer, range(1))
    folder = save_checkpoint(tmp_path, 12, SETTINGS, {"net": net, "ema": Net()}, optimizer)
    assert folder == tmp_path / "checkpoint-12"
    names = {"net.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert json.loads((folder / "state.json").read_text())["step"] == 12


def test_only_the_newest_stay(tmp_path):
    net, optimizer = make()
    for step in (9, 10, 100):
        save_checkpoint(tmp_path, step, SETTINGS, {"net": net}, optimizer)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-100"]
    save_checkpoint(tmp_path, 101, SETTINGS, {"net": net}, optimizer, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-101"]


def test_what_was_just_written_stays_beside_more_steps_of_before(tmp_path):
    net, optimizer = make()
    for step in (500, 750):
        save_checkpoint(tmp_path, step, SETTINGS, {"net": net}, optimizer)
    assert save_checkpoint(tmp_path, 250, SETTINGS, {"net": net}, optimizer).is_dir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-250", "checkpoint-750"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_training_that_diverged_replaces_no_checkpoint(tmp_path, value):
    net, optimizer = make()
    for step in (1, 2):
        save_checkpoint(tmp_path, step, SETTINGS, {"net": net}, optimizer)
    with torch.no_grad():
        net.conv.weight[0, 0, 0, 0] = value
    with pytest.raises(InputError, match="the weights are not finite after step 3: lower learning_rate"):
        save_checkpoint(tmp_path, 3, SETTINGS, {"net": net}, optimizer)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]


def test_saving_again_replaces(tmp_path):
    net, optimizer = make()
    for history in ([1], [2]):
        folder = save_checkpoint(tmp_path, 5, SETTINGS, {"net": net}, optimizer, {"history": history})
    assert load_checkpoint(folder, SETTINGS, {"net": net}, optimizer)["history"] == [2]


def test_a_checkpoint_cut_off_while_writing_is_not_seen(tmp_path):
    net, optimizer = make()
    kept = save_checkpoint(tmp_path, 1, SETTINGS, {"net": net}, optimizer)
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_checkpoint(tmp_path, 2, SETTINGS, {"net": net}, optimizer, {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == [kept]


def test_find_checkpoint(tmp_path):
    net, optimizer = make()
    assert find_checkpoint(tmp_path / "none", "latest") is None
    for step in (2, 11):
        save_checkpoint(tmp_path, step, SETTINGS, {"net": net}, optimizer)
    (tmp_path / ".checkpoint-99.1.tmp").mkdir()
    assert find_checkpoint(tmp_path, None) is None
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-11"
    assert find_checkpoint(tmp_path, str(tmp_path / "checkpoint-2")) == tmp_path / "checkpoint-2"
    with pytest.raises(InputError, match=r"is not a checkpoint: give 'latest' or a checkpoint-<step> folder"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-3"))


def test_checkpoint_of_another_model_is_refused(tmp_path):
    net, optimizer = make()
    train(net, optimizer, range(1))
    folder = save_checkpoint(tmp_path, 1, SETTINGS, {"net": net}, optimizer)
    with pytest.raises(
        InputError, match='other settings \\(data was "a" and is now "b"\\): give those, or leave resume'
    ):
        load_checkpoint(folder, {**SETTINGS, "data": "b"}, {"net": net}, optimizer)
    with pytest.raises(InputError, match="does not fit this model: give the settings it was made with, or leave"):
        load_checkpoint(folder, SETTINGS, {"net": Net(width=5)}, optimizer)
    with pytest.raises(InputError, match="does not fit this model"):
        load_checkpoint(folder, SETTINGS, {"other": net}, optimizer)
    (folder / "net.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="does not fit this model"):
        load_checkpoint(folder, SETTINGS, {"net": net}, optimizer)


@pytest.mark.parametrize("text", ['{"step": 1', "[1]", '{"step": 1}', "\xff"])
def test_a_damaged_checkpoint_is_refused(tmp_path, text):
    net, optimizer = make()
    folder = save_checkpoint(tmp_path, 1, SETTINGS, {"net": net}, optimizer)
    (folder / "state.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="is damaged or of an earlier version: delete it, or leave resume out"):
        load_checkpoint(folder, SETTINGS, {"net": net}, optimizer)


def test_scaler_state_is_kept(tmp_path):
    net, optimizer = make()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(1))
    folder = save_checkpoint(tmp_path, 1, SETTINGS, {"net": net}, optimizer, scaler=scaler)
    other = torch.amp.GradScaler("cpu", init_scale=2.0)
    load_checkpoint(folder, SETTINGS, {"net": net}, optimizer, other)
    assert other.scale(torch.ones(1)).item() == 8.0
