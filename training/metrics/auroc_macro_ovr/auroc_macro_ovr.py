"""Macro one-vs-rest AUROC: the mean over the classes of the area under each class's ROC curve."""

import warnings

import datasets
import evaluate
import numpy as np
from sklearn.metrics import roc_auc_score


_DESCRIPTION = """
Macro one-vs-rest AUROC: for each class, the area under the ROC curve of its score for telling its samples from all
others; then the mean over the classes that occur among the references. A warning names those that do not, whose AUROC
is undefined. Where all occur, it is the AUC of MedMNIST's multi-class tasks.
"""

_KWARGS_DESCRIPTION = """
Args:
    prediction_scores (list of list of float): for each sample, one score per class, the higher the more likely; for
        two classes, both.
    references (list of int): true classes. Each is the number of a column, from 0.

Returns:
    auroc_macro_ovr (float): in [0, 1]; 0.5 is chance; higher is better.

Raises:
    ValueError: for a reference that is no whole number or has no column, fewer than two columns, scores that are not
        finite numbers, no samples, or samples of a single class.

Examples:
    >>> from histodistill.training.metrics import load_metric
    >>> auroc = load_metric("auroc_macro_ovr")
    >>> scores = [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6], [0.1, 0.6, 0.3]]
    >>> result = auroc.compute(prediction_scores=scores, references=[0, 1, 2, 2])
    >>> round(result["auroc_macro_ovr"], 4)
    1.0
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


def _check_classes(values):
    """Refuses what `evaluate` would make whole numbers of without a word: 0.9 is no class, and neither is "1"."""
    values = np.asarray(values)
    if values.size and (values.dtype.kind not in "iu" or values.min() < 0):
        raise ValueError(
            f"references must be classes, which are whole numbers from 0: got {values.ravel()[:5].tolist()}"
        )


def _as_array(scores):
    """Scores as N×C numbers; whatever has no such shape, or holds what is no number, is refused."""
    widths = sorted({len(row) for row in scores})
    if not widths:
        raise ValueError("there are no samples to score: give at least one")
    if len(widths) > 1:
        raise ValueError(f"prediction_scores have from {widths[0]} to {widths[-1]} columns: give each sample as many")
    if widths[0] < 2:
        raise ValueError(
            f"prediction_scores have {widths[0]} column: give one for each class, also for two classes, whose columns "
            "are 1 - p and p where p is the score of class 1"
        )
    scores = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(scores).all():
        raise ValueError("prediction_scores hold NaN or infinity: give finite numbers")
    return scores


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class AurocMacroOvr(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "prediction_scores": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
            reference_urls=["https://scikit-learn.org/stable/modules/generated/sklearn.metrics.roc_auc_score.html"],
        )

    def add_batch(self, *, references=None, **others):
        """Takes samples, after a check of their classes."""
        _check_classes(references)
        super().add_batch(references=references, **others)

    def add(self, *, reference=None, **others):
        """Takes one sample, after a check of its classes."""
        _check_classes(reference)
        super().add(reference=reference, **others)

    def _compute(self, prediction_scores, references):
        scores, references = _as_array(prediction_scores), np.asarray(references)
        num_classes = scores.shape[1]
        if references.max() >= num_classes:
            raise ValueError(
                f"class {references.max()} is among the references, and prediction_scores have {num_classes} columns: "
                "give one for each class, and leave out samples of others"
            )
        present = np.unique(references)
        if len(present) < 2:
            raise ValueError(
                f"every sample is of class {present[0]}, so no AUROC is defined: give samples of two classes or more"
            )
        if len(present) < num_classes:
            missing = sorted(set(range(num_classes)) - set(present.tolist()))
            warnings.warn(
                f"the mean is over {len(present)} of {num_classes} classes, since no sample is of class "
                f"{', '.join(map(str, missing))}",
                stacklevel=2,
            )
        areas = [roc_auc_score(references == label, scores[:, label]) for label in present]
        return {"auroc_macro_ovr": float(np.mean(areas))}
