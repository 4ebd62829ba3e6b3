"""Macro one-vs-rest AUROC: the mean over the classes of the area under each class's ROC curve."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import roc_auc_score


_DESCRIPTION = """
Macro one-vs-rest AUROC: for each class, the area under the ROC curve of its score for telling its samples from all
others; then the mean over the classes. It is the AUC of MedMNIST's multi-class tasks.
"""

_KWARGS_DESCRIPTION = """
Args:
    prediction_scores (list of list of float): for each sample, one score per class, the higher the more likely.
    references (list of int): true classes.

Returns:
    auroc_macro_ovr (float): in [0, 1]; 0.5 is chance; higher is better.

Raises:
    ValueError: if a class has no sample among the references, for then its AUROC is undefined.

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

    def _compute(self, prediction_scores, references):
        scores = np.asarray(prediction_scores, dtype=np.float64)
        references = np.asarray(references)
        areas = []
        for label in range(scores.shape[1]):
            is_class = references == label
            if not is_class.any() or is_class.all():
                lacking = "no sample" if not is_class.any() else "every sample"
                raise ValueError(
                    f"class {label} has {lacking} among the references, so its one-vs-rest AUROC is undefined: "
                    "score a split that holds every class"
                )
            areas.append(roc_auc_score(is_class, scores[:, label]))
        return {"auroc_macro_ovr": float(np.mean(areas))}
