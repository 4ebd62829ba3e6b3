"""Macro F1: the mean over the classes of the harmonic mean of precision and recall."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import f1_score


_DESCRIPTION = """
Macro F1: for each class the harmonic mean of precision and recall, 2·TP / (2·TP + FP + FN); then the mean over the
classes that occur among the predictions or the references. A class that occurs and is never right has an F1 of 0.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of int): predicted classes.
    references (list of int): true classes.

Returns:
    f1_macro (float): in [0, 1]; higher is better.

Raises:
    ValueError: for anything that is no whole number from 0, or no samples.

Examples:
    >>> from histodistill.training.metrics import load_metric
    >>> f1 = load_metric("f1_macro")
    >>> result = f1.compute(predictions=[0, 1, 1, 0], references=[0, 1, 0, 0])
    >>> round(result["f1_macro"], 4)
    0.7333
"""

_CITATION = """
@article{scikit-learn,
  title={Scikit-learn: Machine Learning in Python},
  author={Pedregosa, F. and Varoquaux, G. and Gramfort, A. and Michel, V. and Thirion, B. and Grisel, O. and
          Blondel, M. and Prettenhofer, P. and Weiss, R. and Dubourg, V. and Vanderplas, J. and Passos, A. and
          Cournapeau, D. and Brucher, M. and Perrot, M. and Duchesnay, E.},
  journal={Journal of Machine Learning Research},
  volume={12},
  pages={2825--2830},
  year={2011}
}
"""


def _check_classes(name, values):
    """Refuses what `evaluate` would make whole numbers of without a word: 0.9 is no class, and neither is "1"."""
    values = np.asarray(values)
    if values.size and (values.dtype.kind not in "iu" or values.min() < 0):
        raise ValueError(f"{name} must be classes, which are whole numbers from 0: got {values.ravel()[:5].tolist()}")


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class F1Macro(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://scikit-learn.org/stable/modules/generated/sklearn.metrics.f1_score.html"],
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
        return {"f1_macro": float(f1_score(references, predictions, average="macro", zero_division=0.0))}
