from __future__ import annotations

import doctest
import importlib
import os
import subprocess
import sys

import evaluate
import numpy as np
import pytest
import yaml

from histodistill.training.metrics import METRICS, load_metric, metric_folder


def random_case(num_classes: int, seed: int = 0, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), rng.integers(num_classes, size=count - num_classes)])
    scores = rng.normal(size=(count, num_classes)) + 1.5 * np.eye(num_classes)[labels]
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    # Coarse values make ties, which an AUC must count as one half.
    return np.round(probabilities, 2), labels


def auc_by_counting_pairs(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes of P(score of a member > score of another) + P(equal) / 2, from the definition."""
    areas = []
    for label in range(scores.shape[1]):
        own, other = scores[labels == label, label], scores[labels != label, label]
        difference = own[:, None] - other[None, :]
        areas.append((difference > 0).mean() + 0.5 * (difference == 0).mean())
    return float(np.mean(areas))


@pytest.mark.parametrize("num_classes", [2, 9])
def test_auroc_equals_its_definition(num_classes):
    scores, labels = random_case(num_classes)
    found = load_metric("auroc_macro_ovr").compute(prediction_scores=scores, references=labels)["auroc_macro_ovr"]
    assert found == pytest.approx(auc_by_counting_pairs(scores, labels), abs=1e-9)
    assert 0.5 < found < 1


def test_accuracy_and_f1_by_hand():
    predictions, references = [0, 1, 1, 2, 2, 2], [0, 1, 2, 2, 2, 0]
    assert load_metric("accuracy").compute(predictions=predictions, references=references)["accuracy"] == 4 / 6
    # F1 = 2TP / (2TP + FP + FN): class 0 2/3, class 1 2/3, class 2 4/6.
    found = load_metric("f1_macro").compute(predictions=predictions, references=references)["f1_macro"]
    assert found == pytest.approx((2 / 3 + 2 / 3 + 4 / 6) / 3)


def test_f1_of_a_class_that_is_never_right_is_zero():
    found = load_metric("f1_macro").compute(predictions=[0, 0, 0], references=[0, 0, 1])["f1_macro"]
    assert found == pytest.approx((4 / 5 + 0) / 2)


def test_same_as_medmnist():
    medmnist = pytest.importorskip("medmnist.evaluator", reason="medmnist is not installed", exc_type=ImportError)
    scores, labels = random_case(9, seed=3)
    accuracy = load_metric("accuracy").compute(predictions=scores.argmax(axis=1), references=labels)["accuracy"]
    auc = load_metric("auroc_macro_ovr").compute(prediction_scores=scores, references=labels)["auroc_macro_ovr"]
    assert accuracy == pytest.approx(medmnist.getACC(labels[:, None], scores, "multi-class"), abs=1e-6)
    assert auc == pytest.approx(medmnist.getAUC(labels[:, None], scores, "multi-class"), abs=1e-6)


SCORES = [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6], [0.1, 0.6, 0.3]]


def test_auroc_leaves_out_a_class_that_does_not_occur_and_says_so():
    auroc = load_metric("auroc_macro_ovr")
    with pytest.warns(UserWarning, match=r"^the mean is over 2 of 3 classes, since no sample is of class 1$"):
        found = auroc.compute(prediction_scores=SCORES, references=[0, 2, 0, 2])["auroc_macro_ovr"]
    scores, labels = np.array(SCORES)[:, [0, 2]], np.array([0, 1, 0, 1])
    assert found == pytest.approx(auc_by_counting_pairs(scores, labels))


NO_CLASSES = {
    "ignored": [0, 1, 2, -100],
    "negative": [0, 1, 2, -1],
    "floats": [0.0, 1.0, 2.0, 2.0],
    "cut down": [0.2, 1.7, 2.1, 2.9],
    "an array of floats": np.array([0.0, 1.0, 2.0, 2.0]),
    "truth values": [True, False, True, False],
    "an array of truth values": np.array([True, False, True, False]),
    "text": ["0", "1", "2", "2"],
    "names": ["fat", "glands", "mucus", "mucus"],
    "None": [0, 1, 2, None],
    "NaN": [0, 1, 2, float("nan")],
    "probabilities": SCORES,
}


@pytest.mark.parametrize("wrong", NO_CLASSES)
def test_what_is_no_class_is_refused(wrong):
    values, message = NO_CLASSES[wrong], "must be classes, which are whole numbers from 0: got"
    with pytest.raises(ValueError, match=f"references {message}"):
        load_metric("auroc_macro_ovr").compute(prediction_scores=SCORES, references=values)
    with pytest.raises(ValueError, match=f"references {message}"):
        load_metric("auroc_macro_ovr").add(prediction_scores=SCORES[3], reference=values[3])
    for name in ("accuracy", "f1_macro"):
        right = [0, 1, 2, 2]
        for inputs in ({"predictions": values, "references": right}, {"predictions": right, "references": values}):
            with pytest.raises(ValueError, match=message):
                load_metric(name).compute(**inputs)
        for inputs in ({"prediction": values[3], "reference": 1}, {"prediction": 1, "reference": values[3]}):
            with pytest.raises(ValueError, match=message):
                load_metric(name).add(**inputs)


@pytest.mark.parametrize("whole", [np.uint8, np.int32, np.int64, np.uint64, list])
def test_whole_numbers_of_any_kind_are_classes(whole):
    labels = [0, 1, 2, 2] if whole is list else np.array([0, 1, 2, 2], dtype=whole)
    assert (
        load_metric("auroc_macro_ovr").compute(prediction_scores=SCORES, references=labels)["auroc_macro_ovr"] == 1.0
    )
    assert load_metric("accuracy").compute(predictions=labels, references=labels) == {"accuracy": 1.0}
    assert load_metric("f1_macro").compute(predictions=labels, references=labels) == {"f1_macro": 1.0}


@pytest.mark.parametrize(
    ("scores", "references", "message"),
    [
        (SCORES, [0, 1, 2, 3], "class 3 is among the references, and prediction_scores have 3 columns"),
        ([[0.1], [0.9]], [0, 1], "have 1 column: give one for each class, also for two classes"),
        ([[0.1], [0.9]], [0, 0], "have 1 column"),
        ([[], []], [0, 1], "have 0 column"),
        ([[0.1, 0.9], [0.5, 0.3, 0.2]], [0, 1], "have from 2 to 3 columns: give each sample as many"),
        ([[float("nan"), 0.1], [0.5, 0.5]], [0, 1], "hold NaN or infinity"),
        ([[float("inf"), 0.1], [0.5, 0.5]], [0, 1], "hold NaN or infinity"),
        (SCORES, [1, 1, 1, 1], "every sample is of class 1, so no AUROC is defined"),
        ([], [], "there are no samples to score"),
    ],
)
def test_auroc_refuses_what_does_not_fit_together(scores, references, message):
    with pytest.raises(ValueError, match=message):
        load_metric("auroc_macro_ovr").compute(prediction_scores=scores, references=references)


@pytest.mark.parametrize("name", ["accuracy", "f1_macro"])
def test_no_samples_are_refused(name):
    with pytest.raises(ValueError, match="there are no samples to score"):
        load_metric(name).compute(predictions=[], references=[])


def test_metrics_take_batches():
    accuracy = load_metric("accuracy")
    accuracy.add_batch(predictions=[0, 1], references=[0, 0])
    accuracy.add_batch(predictions=[1, 1], references=[1, 1])
    assert accuracy.compute() == {"accuracy": 0.75}


@pytest.mark.parametrize("name", METRICS)
def test_examples_in_docstring(name):
    module = importlib.import_module(f"histodistill.training.metrics.{name}.{name}")
    test = doctest.DocTestParser().get_doctest(module._KWARGS_DESCRIPTION, {}, name, None, 0)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize("name", METRICS)
def test_card(name):
    folder = metric_folder(name)
    text = (folder / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["title"] and header["tags"] == ["evaluate", "metric"]
    assert "between 0 and 1. Higher is better" in text
    code = text.split("```python")[1].split("```")[0]
    shown = code.strip().splitlines()[-1].removeprefix("# ")
    values: dict = {}
    lines = code.strip().splitlines()
    exec("\n".join([*lines[:-2], f"result = {lines[-2]}"]), values)
    assert repr(values["result"]) == shown


def test_unknown_name():
    with pytest.raises(ValueError, match="'recall' is unknown: it must be one of accuracy, auroc_macro_ovr, f1_macro"):
        load_metric("recall")


def test_path_loading_offline_leaves_nothing_beside_the_scripts(tmp_path):
    def contents():
        return {name: {p.name for p in metric_folder(name).iterdir()} - {"__pycache__"} for name in METRICS}

    before = contents()
    code = (
        "import evaluate\n"
        "from histodistill.training.metrics import METRICS, load_metric, metric_folder\n"
        "loaded = {name: evaluate.load(str(metric_folder(name)), keep_in_memory=True) for name in METRICS}\n"
        "print(loaded['accuracy'].compute(predictions=[0, 1], references=[0, 0]))\n"
        "print(load_metric('accuracy').compute(predictions=[0, 1], references=[0, 0]))\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["{'accuracy': 0.5}"] * 2
    assert contents() == before == {name: {"README.md", f"{name}.py"} for name in METRICS}


def test_metrics_are_evaluate_modules():
    for name in METRICS:
        metric = load_metric(name)
        assert isinstance(metric, evaluate.Metric)
        assert metric.description.strip() and metric.citation.strip()
