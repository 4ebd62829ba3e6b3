from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from histodistill.training.engine import checkpoints as module
from histodistill.training.engine.checkpoints import (
    check_resume,
    content_of,
    list_checkpoints,
    load_checkpoint,
    resume_training,
    save_checkpoint,
)
from histodistill.training.running.errors import InputError
from histodistill.training.running.stages import fingerprint


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


def test_the_newest_checkpoint_or_the_one_that_is_named_is_taken(tmp_path):
    net, optimizer = make()
    arguments = (SETTINGS, {"net": net}, optimizer)
    assert resume_training(tmp_path / "none", "latest", *arguments) is None
    assert resume_training(None, "latest", *arguments) is None
    for step in (2, 11):
        save_checkpoint(tmp_path, step, *arguments)
    (tmp_path / ".checkpoint-99.1.tmp").mkdir()
    assert resume_training(tmp_path, None, *arguments) is None
    assert resume_training(tmp_path, "latest", *arguments)["step"] == 11
    assert resume_training(tmp_path, str(tmp_path / "checkpoint-2"), *arguments)["step"] == 2
    check_resume(str(tmp_path / "checkpoint-2"))
    for refuse in (check_resume, lambda resume: resume_training(tmp_path, resume, *arguments)):
        with pytest.raises(InputError, match=r"is not a checkpoint: give 'latest' or a checkpoint-<step> folder"):
            refuse(str(tmp_path / "checkpoint-3"))


def rewrite(folder, change) -> None:
    """Changes the record of a checkpoint as somebody does who knows what it is made of."""
    record = json.loads((folder / "state.json").read_text())
    del record["sha256"]
    change(record)
    (folder / "state.json").write_text(json.dumps({**record, "sha256": fingerprint(record)}))


def test_checkpoint_of_other_settings_is_refused_and_never_passed_over(tmp_path):
    net, optimizer = make()
    save_checkpoint(tmp_path, 1, {**SETTINGS, "data": "b"}, {"net": net}, optimizer)
    folder = save_checkpoint(tmp_path, 2, SETTINGS, {"net": net}, optimizer)
    (folder / "net.safetensors").write_bytes(b"")
    message = 'other settings \\(data was "a" and is now "b"\\): give those, or leave resume'
    for resume in (folder, "latest"):
        with pytest.raises(InputError, match=message):
            resume_training(tmp_path, resume, {**SETTINGS, "data": "b"}, {"net": net}, optimizer)
    # And where the one that is passed over was damaged.
    (folder / "state.json").write_text("{")
    with pytest.raises(InputError, match='data was "b" and is now "a"'):
        resume_training(tmp_path, "latest", SETTINGS, {"net": net}, optimizer)


@pytest.mark.parametrize(("found", "version"), [(None, "an earlier"), (3, "another")])
def test_checkpoint_of_another_version_is_refused(tmp_path, found, version):
    net, optimizer = make()
    folder = save_checkpoint(tmp_path, 1, SETTINGS, {"net": net}, optimizer)
    rewrite(folder, lambda record: record.pop("format") if found is None else record.update(format=found))
    message = f"checkpoint-1 is of {version} version of histodistill, .*: delete {tmp_path}, and the same command"
    for resume in (folder, "latest"):
        with pytest.raises(InputError, match=message):
            resume_training(tmp_path, resume, SETTINGS, {"net": net}, optimizer)


def cut_short(folder):
    for path in folder.glob("*.safetensors"):
        path.write_bytes(b"")


def cut_off(folder):
    path = folder / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(folder):
    path = folder / "net.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def put_nan(folder):
    weights = load_file(folder / "net.safetensors")
    weights["scale"] = torch.tensor(float("nan"))
    save_file(weights, folder / "net.safetensors")


def rename_keys(folder):
    weights = load_file(folder / "net.safetensors")
    save_file({f"module.{name}": value for name, value in weights.items()}, folder / "net.safetensors")


def take_another_step(folder):
    path = folder / "state.json"
    path.write_text(path.read_text().replace('"step": 4', '"step": 3'))


def become_a_file(folder):
    shutil.rmtree(folder)
    folder.write_bytes(b"")


def become_a_dead_link(folder):
    shutil.rmtree(folder)
    folder.symlink_to("gone")


DAMAGES = {
    "0 bytes": cut_short,
    "cut off": cut_off,
    "a bit": flip_a_bit,
    "not finite": put_nan,
    "other keys": rename_keys,
    "a file is missing": lambda folder: (folder / "net.safetensors").unlink(),
    "no record": lambda folder: (folder / "state.json").unlink(),
    "half a record": lambda folder: (folder / "state.json").write_text('{"step": 4, "set'),
    "a record of 0 bytes": lambda folder: (folder / "state.json").write_bytes(b""),
    "a record of zeros": lambda folder: (folder / "state.json").write_bytes(bytes(200)),
    "another record": lambda folder: (folder / "state.json").write_text("[1]"),
    "deep": lambda folder: (folder / "state.json").write_text("[" * 100_000),
    "no text": lambda folder: (folder / "state.json").write_bytes(b"\xff\xfe"),
    "another step": take_another_step,
    "a folder for a file": lambda folder: (
        (folder / "net.safetensors").unlink(),
        (folder / "net.safetensors").mkdir(),
    ),
    "a plain file": become_a_file,
    "a dead link": become_a_dead_link,
    "empty": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, capsys, damage):
    whole, whole_optimizer = make()
    train(whole, whole_optimizer, range(2))
    save_checkpoint(tmp_path, 2, SETTINGS, {"net": whole}, whole_optimizer)
    train(whole, whole_optimizer, range(2, 4))
    folder = save_checkpoint(tmp_path, 4, SETTINGS, {"net": whole}, whole_optimizer)
    train(whole, whole_optimizer, range(4, 6))
    DAMAGES[damage](folder)

    resumed, optimizer = make(seed=9)
    state = resume_training(tmp_path, "latest", SETTINGS, {"net": resumed}, optimizer)
    assert state["step"] == 2
    error = capsys.readouterr().err
    assert error.startswith(f"warning: checkpoint {folder} is damaged (") and error.count("\n") == 1
    assert error.endswith("left where it is until another one is written: the training goes on from step 2\n")
    train(resumed, optimizer, range(2, 6))
    for (name, expected), value in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name
    # What is written next takes the place of the damaged one, and not of the one that led here.
    save_checkpoint(tmp_path, 3, SETTINGS, {"net": resumed}, optimizer)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-3"}


@pytest.mark.parametrize("damage", ["0 bytes", "half a record", "other keys"])
def test_a_damaged_checkpoint_that_is_named_is_refused_and_changes_nothing(tmp_path, damage):
    net, optimizer = make()
    train(net, optimizer, range(4))
    folder = save_checkpoint(tmp_path, 4, SETTINGS, {"net": net}, optimizer)
    DAMAGES[damage](folder)
    other, optimizer = make(seed=9)
    before = content_of(other)
    with pytest.raises(InputError, match=r"checkpoint-4 is damaged \(.*\): delete it, or give resume=latest"):
        resume_training(tmp_path, folder, SETTINGS, {"net": other}, optimizer)
    assert content_of(other) == before
    assert not optimizer.state


def test_a_training_without_a_whole_checkpoint_begins_anew(tmp_path, capsys):
    net, optimizer = make()
    for step in (1, 2):
        cut_short(save_checkpoint(tmp_path, step, SETTINGS, {"net": net}, optimizer))
    assert resume_training(tmp_path, "latest", SETTINGS, {"net": net}, optimizer) is None
    lines = capsys.readouterr().err.splitlines()
    assert ["checkpoint-2 " in lines[0], "checkpoint-1 " in lines[1]] == [True, True]
    assert all(line.endswith("the training begins anew") for line in lines)


def test_weights_that_were_made_to_look_whole_do_not_pass_either(tmp_path):
    net, optimizer = make()
    train(net, optimizer, range(1))
    for change in (put_nan, rename_keys):
        folder = save_checkpoint(tmp_path, 1, SETTINGS, {"net": net}, optimizer)
        change(folder)
        sums = {"net.safetensors": hashlib.sha256((folder / "net.safetensors").read_bytes()).hexdigest()}
        rewrite(folder, lambda record, sums=sums: record["files"].update(sums))
        with pytest.raises(
            InputError, match=r"damaged \(.*net.safetensors (does not fit this model|are not finite)\)"
        ):
            load_checkpoint(folder, SETTINGS, {"net": net}, optimizer)


def test_checkpoint_of_another_model_is_refused(tmp_path):
    net, optimizer = make()
    train(net, optimizer, range(1))
    folder = save_checkpoint(tmp_path, 1, SETTINGS, {"net": net}, optimizer)
    for modules in ({"net": Net(width=5)}, {"other": net}):
        with pytest.raises(InputError, match=r"does not fit this model|other\.safetensors cannot be read"):
            load_checkpoint(folder, SETTINGS, modules, optimizer)
    with pytest.raises(InputError, match=r"optimizer.safetensors does not fit this model"):
        load_checkpoint(folder, SETTINGS, {"net": net}, torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]))


def test_content_of_a_module():
    first = content_of(Net())
    assert first == content_of(Net())
    others = [Net(seed=1), Net(width=5), Net().double(), torch.nn.Sequential(Net())]
    assert len({first, *map(content_of, others)}) == 5


def test_scaler_state_is_kept(tmp_path):
    net, optimizer = make()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(1))
    folder = save_checkpoint(tmp_path, 1, SETTINGS, {"net": net}, optimizer, scaler=scaler)
    other = torch.amp.GradScaler("cpu", init_scale=2.0)
    load_checkpoint(folder, SETTINGS, {"net": net}, optimizer, other)
    assert other.scale(torch.ones(1)).item() == 8.0


class Process:
    """One of two, as Accelerate knows them."""

    num_processes = 2

    def __init__(self, is_main_process: bool):
        self.is_main_process = is_main_process


@pytest.mark.parametrize("said", [2, 4, None])
def test_the_main_process_says_which_is_the_latest(tmp_path, monkeypatch, said):
    net, optimizer = make()
    train(net, optimizer, range(1))
    for step in (2, 4):
        save_checkpoint(tmp_path, step, SETTINGS, {"net": net}, optimizer)
    # What this process sees in the folder does not matter.
    answer = None if said is None else tmp_path / f"checkpoint-{said}"
    monkeypatch.setattr(module, "broadcast_object_list", lambda objects: [answer])
    state = resume_training(tmp_path, "latest", SETTINGS, {"net": net}, optimizer, accelerator=Process(False))
    assert (state and state["step"]) == said


def test_the_main_process_says_what_it_has_loaded(tmp_path, monkeypatch, capsys):
    net, optimizer = make()
    train(net, optimizer, range(1))
    for step in (2, 4):
        save_checkpoint(tmp_path, step, SETTINGS, {"net": net}, optimizer)
    (tmp_path / "checkpoint-4" / "net.safetensors").write_bytes(b"")
    told = []
    monkeypatch.setattr(module, "broadcast_object_list", lambda objects: told.extend(objects) or objects)
    state = resume_training(tmp_path, "latest", SETTINGS, {"net": net}, optimizer, accelerator=Process(True))
    assert state["step"] == 2 and told == [tmp_path / "checkpoint-2"]
    assert "checkpoint-4 is damaged" in capsys.readouterr().err
    # One that the main process could read, and this one cannot, is no reason to go on from another.
    monkeypatch.setattr(module, "broadcast_object_list", lambda objects: [tmp_path / "checkpoint-4"])
    with pytest.raises(InputError, match=r"checkpoint-4 is damaged"):
        resume_training(tmp_path, "latest", SETTINGS, {"net": net}, optimizer, accelerator=Process(False))
