"""Accuracy: the share of samples whose predicted class is the true one."""

import datasets
import evaluate
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

    def _compute(self, predictions, references):
        return {"accuracy": float(accuracy_score(references, predictions))}
