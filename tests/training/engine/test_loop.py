from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trainings import Killed

from histodistill.selection.image_rows import ImageView
from histodistill.training.data.pixels import to_model_input
from histodistill.training.data.tiles import Tiles
from histodistill.training.engine import loop
from histodistill.training.engine.accelerator import make_accelerator
from histodistill.training.engine.augment import apply_symmetries, draw_symmetries
from histodistill.training.engine.loop import GenerativeTraining, drawn_batches, fit, open_training
from histodistill.training.engine.privacy import KEY_FILE, PrivacyPlan
from histodistill.training.running.errors import InputError
from histodistill.training.running.stages import Stage, read_record
from histodistill.training.running.training_options import PrivateTrainingConfig


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


class MeanColour(GenerativeTraining):
    """Learns the mean colour of tiles; writes down what the loop asks of it."""

    name = "colour"

    def __init__(self, config, accelerator, plan=None, kill_at=None):
        rng = np.random.default_rng(0)
        images = rng.integers(0, 255, (20, 4, 4, 3), dtype=np.uint8)
        super().__init__(config, Tiles(images, np.arange(20) % 2), accelerator, plan)
        torch.manual_seed(config.seed)
        self.model = torch.nn.Linear(3, 3)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.learning_rate)
        self.kill_at, self.calls, self.shown, self.steps = kill_at, [], [], 0

    def draw_batch(self, indices, generator):
        self.shown.append(indices.tolist())
        return draw_symmetries(len(indices), generator), torch.randn(len(indices), 3, generator=generator)

    def make_inputs(self, read, symmetries):
        assert not torch.is_grad_enabled()
        return super().make_inputs(read, symmetries).mean(dim=(2, 3))

    def loss(self, call, inputs, noise):
        return (call(noise) - inputs).square().mean()

    def validate(self):
        self.calls.append("validate")
        return {"validation_norm": self.model.weight.norm().item(), "more": 1.0}

    def draw_progress(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")

    def saved_modules(self):
        if self.calls[-1:] == ["look"]:
            self.calls.append("save")
        return {"net": self.model}

    def before_batch(self, position):
        if position == self.kill_at:
            raise Killed
        self.calls.append(position)

    def after_step(self):
        self.steps += 1
        self.calls.append("step")

    def before_look(self):
        self.calls.append("look")

    def saved_state(self):
        return {"steps": self.steps}

    def load_state(self, state):
        self.steps = state["steps"]


def make_config(output: Path, **values) -> PrivateTrainingConfig:
    given = {"max_train_steps": 6, "batch_size": 4, "learning_rate": 0.1, "mixed_precision": "no", "warmup": 0.5}
    return PrivateTrainingConfig(data="phantom", output=output, **(given | values))


def train(config: PrivateTrainingConfig, **values) -> MeanColour:
    stage = Stage(config.output, {"stage": "colour", **config.settings()})
    training = MeanColour(config, open_training(config, stage, "colour"), **values)
    fit(training, stage)
    return training


def test_order_of_a_training(tmp_path):
    config = make_config(
        tmp_path, max_train_steps=3, gradient_accumulation_steps=2, validation_steps=2, checkpointing_steps=100
    )
    training = train(config)
    # Two batches a step, looked at after the second step and the last one, and saved after the last one.
    assert training.calls == [
        0, 1, "step", 2, 3, "step", "look", "validate", 4, 5, "step", "look", "validate", "look", "save",
    ]  # fmt: skip
    assert [entry["step"] for entry in training.history] == [2, 3]
    assert all(set(entry) == {"step", "train_loss", "validation_norm", "more"} for entry in training.history)
    assert {path.name for path in (tmp_path / "progress").iterdir()} == {"step-0000002.png", "step-0000003.png"}
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"checkpoint-3"}
    assert [len(batch) for batch in training.shown] == [4] * 6
    assert training.tiles_seen == 24
    assert training.training_seconds > 0
    # The stage is claimed, and finished by what comes after the loop.
    assert read_record(tmp_path)["complete"] is False


def test_killed_training_goes_on_as_if_it_never_was(tmp_path):
    def settings(name):
        return make_config(tmp_path / name, checkpointing_steps=2, validation_steps=2, resume="latest")

    whole = train(settings("whole"))
    with pytest.raises(Killed):
        train(settings("killed"), kill_at=5)
    resumed = train(settings("killed"), kill_at=3)
    assert resumed.start == 4 and resumed.tiles_seen == 8
    assert resumed.history == whole.history
    assert resumed.steps == whole.steps == 6
    assert torch.equal(resumed.model.weight, whole.model.weight)


def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path, capsys):
    def settings(name):
        return make_config(tmp_path / name, checkpointing_steps=2, validation_steps=1, resume="latest")

    whole = train(settings("whole"))
    with pytest.raises(Killed):
        train(settings("killed"), kill_at=5)
    newest = tmp_path / "killed" / "checkpoints" / "checkpoint-4"
    for path in newest.iterdir():
        path.write_bytes(b"")  # as a power cut leaves it
    resumed = train(settings("killed"))
    assert f"{newest} is damaged" in capsys.readouterr().err
    assert resumed.start == 2
    assert resumed.history == whole.history
    assert torch.equal(resumed.model.weight, whole.model.weight)
    # And from the beginning, where none is left.
    with pytest.raises(Killed):
        train(settings("again"), kill_at=3)
    (tmp_path / "again" / "checkpoints" / "checkpoint-2" / "net.safetensors").unlink()
    again = train(settings("again"))
    assert again.start == 0
    assert again.history == whole.history
    assert torch.equal(again.model.weight, whole.model.weight)


def test_checkpoint_is_tied_to_what_is_given(tmp_path):
    class OnOtherWeights(MeanColour):
        def given(self):
            return {"frozen": "other"}

    train(make_config(tmp_path / "one"))
    config = make_config(tmp_path / "two", resume=tmp_path / "one" / "checkpoints" / "checkpoint-6")
    stage = Stage(config.output, {"stage": "colour", **config.settings()})
    with pytest.raises(InputError, match=r"other settings \(frozen was null and is now \"other\"\)"):
        fit(OnOtherWeights(config, open_training(config, stage, "colour")), stage)


def test_gradients_of_accumulated_batches_are_averaged(tmp_path):
    class Plain(MeanColour):
        def draw_batch(self, indices, generator):
            symmetries, noise = super().draw_batch(indices, generator)
            return symmetries, torch.ones_like(noise)

    moments = {}
    for name, batch_size, accumulation in (("large", 8, 1), ("halves", 4, 2), ("half", 4, 1)):
        config = make_config(
            tmp_path / name, max_train_steps=1, batch_size=batch_size, gradient_accumulation_steps=accumulation,
            class_balance=0, max_grad_norm=1e9,
        )  # fmt: skip
        stage = Stage(config.output, config.settings())
        training = Plain(config, open_training(config, stage, "colour"))
        fit(training, stage)
        moments[name] = training.optimizer.state[training.model.weight]["exp_avg"]
    torch.testing.assert_close(moments["halves"], moments["large"])
    assert not torch.allclose(moments["half"], moments["large"])


def test_batches_that_are_read_ahead_are_the_same(tmp_path, monkeypatch):
    threads = threading.active_count()
    plain = train(make_config(tmp_path / "plain", gradient_accumulation_steps=2))
    monkeypatch.setattr(loop, "batches_ahead", lambda device: 2)
    ahead = train(make_config(tmp_path / "ahead", gradient_accumulation_steps=2))
    assert ahead.shown == plain.shown and ahead.calls == plain.calls
    assert torch.equal(ahead.model.weight, plain.model.weight)
    with pytest.raises(Killed):
        train(make_config(tmp_path / "killed"), kill_at=2)
    assert threading.active_count() == threads


def test_each_process_reads_its_share_alone(tmp_path):
    class Counted(ImageView):
        def read(self, rows):
            read.extend(rows.tolist())
            return super().read(rows)

    def shares(num_processes):
        for index in range(num_processes):
            training = MeanColour(make_config(tmp_path, batch_size=6, max_train_steps=5), make_accelerator("no"))
            training.accelerator = SimpleNamespace(
                device=torch.device("cpu"), process_index=index, num_processes=num_processes
            )
            whole = training.train
            training.train = Tiles(Counted(whole.images, np.arange(20)), whole.labels)
            with drawn_batches(training) as batches:
                for position, batch in enumerate(batches):
                    assert batch.position == position
                    images = GenerativeTraining.make_inputs(training, batch.read, batch.views)
                    rows = training.shown[-1][index::num_processes]
                    assert torch.equal(images, apply_symmetries(to_model_input(whole.images[rows]), batch.views))
                    yield index, position, images, batch.drawn[0]

    read = []
    one = [(images, noise) for _, _, images, noise in shares(1)]
    assert len(one) == 5 and len(read) == 30
    read.clear()
    for index, position, images, noise in shares(2):
        assert torch.equal(images, one[position][0][index::2]) and torch.equal(noise, one[position][1][index::2])
    assert len(read) == 30  # by both together


def test_gradients_are_clipped(tmp_path):
    training = train(make_config(tmp_path, max_train_steps=1, max_grad_norm=1e-3))
    gradients = [training.optimizer.state[parameter]["exp_avg"] * 10 for parameter in training.model.parameters()]
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_private_training(tmp_path, monkeypatch):
    config = make_config(tmp_path, dp_epsilon=1, validation_steps=3, max_train_steps=3)
    plan = PrivacyPlan(1.0, 1e-5, 1.0, 0.5, units_per_step=4, num_units=20, steps=3, views=2)
    training = train(config, plan=plan)
    # A tile and its views at a time, and nothing of their loss.
    assert all(len(batch) == 2 and len(set(batch)) == 1 for batch in training.shown)
    assert [set(entry) for entry in training.history] == [{"step", "validation_norm", "more"}]
    assert (tmp_path / KEY_FILE).is_file()
    # The key, not the seed, decides which tiles are seen.
    again = train(make_config(tmp_path / "other", dp_epsilon=1, validation_steps=3, max_train_steps=3), plan=plan)
    assert again.shown != training.shown


def test_a_training_that_diverges_says_so(tmp_path):
    class Diverges(MeanColour):
        def after_step(self):
            torch.nn.init.constant_(self.model.weight, float("nan"))

    config = make_config(tmp_path, validation_steps=1)
    stage = Stage(tmp_path, config.settings())
    with pytest.raises(InputError, match=r"^the weights are not finite after step 1: lower learning_rate$"):
        fit(Diverges(config, open_training(config, stage, "colour")), stage)


def test_finished_training_is_not_opened(tmp_path, capsys):
    config = make_config(tmp_path)
    stage = Stage(tmp_path, config.settings())
    assert open_training(config, stage, "colour").gradient_accumulation_steps == 1
    assert capsys.readouterr().out == "" and not any(tmp_path.iterdir())
    stage.finish()
    (tmp_path / KEY_FILE).write_bytes(bytes(32))
    assert open_training(config, Stage(tmp_path, config.settings()), "colour") is None
    assert capsys.readouterr().out == f"colour: {tmp_path} is already finished\n"
    assert not (tmp_path / KEY_FILE).exists()


def test_accelerator_has_the_options(tmp_path):
    config = make_config(tmp_path, gradient_accumulation_steps=3, mixed_precision="bf16")
    accelerator = open_training(config, Stage(tmp_path, config.settings()), "colour")
    assert (accelerator.gradient_accumulation_steps, accelerator.mixed_precision) == (3, "bf16")
    assert accelerator.project_dir == tmp_path


def test_a_missing_checkpoint_claims_no_folder(tmp_path):
    config = make_config(tmp_path / "run", resume="/no/checkpoint")
    stage = Stage(config.output, config.settings())
    with pytest.raises(InputError, match=r"^resume /no/checkpoint is not a checkpoint"):
        fit(MeanColour(config, make_accelerator("no")), stage)
    assert not config.output.exists()
