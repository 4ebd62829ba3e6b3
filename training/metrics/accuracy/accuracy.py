"""Accuracy: the share of samples whose predicted class is the true one."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score


_DESCRIPTION = """
Accuracy is the share of samples whose predicted class is the true one. For predictions that are the class of the
highest score it is the ACC of MedMNIST's multi-class tasks.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of int): predicted classes.
    references (list of int): true classes.

Returns:
    accuracy (float): in [0, 1]; higher is better.

Raises:
    ValueError: for anything that is no whole number from 0, or no samples.

Examples:
    >>> from histodistill.training.metrics import load_metric
    >>> accuracy = load_metric("accuracy")
    >>> accuracy.compute(predictions=[0, 1, 2, 1], references=[0, 1, 2, 2])
    {'accuracy': 0.75}
"""

_CITATION = """
@article{yang2023medmnist,
  title={MedMNIST v2: a large-scale lightweight benchmark for 2D and 3D biomedical image classification},
  author={Yang, Jiancheng and Shi, Rui and Wei, Donglai and Liu, Zequan and Zhao, Lin and Ke, Bilian and
          Pfister, Hanspeter and Ni, Bingbing},
  journal={Scientific Data},
  volume={10},
  year={2023}
}
"""


def _check_classes(name, values):
    """Refuses what `evaluate` would make whole numbers of without a word: 0.9 is no class, and neither is "1"."""
    values = np.asarray(values)
    if values.size and (values.dtype.kind not in "iu" or values.min() < 0):
        raise ValueError(f"{name} must be classes, which are whole numbers from 0: got {values.ravel()[:5].tolist()}")


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Accuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://scikit-learn.org/stable/modules/generated/sklearn.metrics.accuracy_score.html"],
        )

    def add_batch(self, *, predictions=None, references=None, **others):
        """Takes samples, after a check of their classes."""
        _check_classes("predictions", predictions)
        _check_classes("references", references)
        super().add_batch(predictions=predictions, references=references, **others)

    def add(self, *, prediction=None, reference=None, **others):
        """Takes one sample, after a check of its classes."""
        _check_classes("predictions", prediction)
        _check_classes("references", reference)
        super().add(prediction=prediction, reference=reference, **others)

    def _compute(self, predictions, references):
        if not len(references):
            raise ValueError("there are no samples to score: give at least one")
        return {"accuracy": float(accuracy_score(references, predictions))}
