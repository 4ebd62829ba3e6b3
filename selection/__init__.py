"""What chooses: embeddings → filters → exactly `n_per_class` images per class, by default by kernel herding.

The paper's way, embeddings → kNN graph → Infomap communities → images of each community, is `DistillSelector`.
`copies`, `membership` and `image_audit` look for what the images give away about the real tiles.

Everything here takes and returns arrays and plain dataclasses; nothing loads data or prints, but for `benchmark`, a
program of its own. The names below are imported on first use, so that importing this package is quick and needs
neither faiss nor infomap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from histodistill.selection.names import QUOTA_RULES, RANKINGS, SELECTOR_NAMES, WEIGHTINGS


if TYPE_CHECKING:
    from histodistill.selection.audit_verdict import Verdict
    from histodistill.selection.base import BaseSelector, ClassSelection, ClasswiseSelector, JointSelector
    from histodistill.selection.baselines import (
        FacilityLocationSelector,
        HerdingSelector,
        KCenterSelector,
        KMeansSelector,
        RandomSelector,
    )
    from histodistill.selection.communities import Communities, DegenerateGraphWarning, find_communities
    from histodistill.selection.distill_selector import DistillSelector
    from histodistill.selection.filters import at_least, recognised, typical
    from histodistill.selection.fixed_views import FixedViews
    from histodistill.selection.graph import knn_graph, nearest_among, nearest_neighbors
    from histodistill.selection.image_audit import audit_images
    from histodistill.selection.kernel_herding import KernelHerdingSelector
    from histodistill.selection.kernel_ridge import KernelRidgeSelector
    from histodistill.selection.quotas import community_quotas
    from histodistill.selection.registry import SELECTORS

# The module of each name that is imported on first use. `BaseSelector` comes by way of the registry, so that its
# `from_pretrained` knows every selector of this package.
_HOME_OF_NAME = {
    "BaseSelector": "registry",
    "ClassSelection": "base",
    "ClasswiseSelector": "base",
    "FacilityLocationSelector": "baselines",
    "HerdingSelector": "baselines",
    "JointSelector": "base",
    "KCenterSelector": "baselines",
    "KMeansSelector": "baselines",
    "KernelHerdingSelector": "kernel_herding",
    "KernelRidgeSelector": "kernel_ridge",
    "RandomSelector": "baselines",
    "Communities": "communities",
    "DegenerateGraphWarning": "communities",
    "find_communities": "communities",
    "Verdict": "audit_verdict",
    "audit_images": "image_audit",
    "DistillSelector": "distill_selector",
    "FixedViews": "fixed_views",
    "at_least": "filters",
    "knn_graph": "graph",
    "nearest_among": "graph",
    "nearest_neighbors": "graph",
    "recognised": "filters",
    "typical": "filters",
    "community_quotas": "quotas",
    "SELECTORS": "registry",
}

__all__ = [
    "QUOTA_RULES",
    "RANKINGS",
    "SELECTORS",
    "SELECTOR_NAMES",
    "WEIGHTINGS",
    "BaseSelector",
    "ClassSelection",
    "ClasswiseSelector",
    "Communities",
    "DegenerateGraphWarning",
    "DistillSelector",
    "FacilityLocationSelector",
    "FixedViews",
    "HerdingSelector",
    "JointSelector",
    "KCenterSelector",
    "KMeansSelector",
    "KernelHerdingSelector",
    "KernelRidgeSelector",
    "RandomSelector",
    "Verdict",
    "at_least",
    "audit_images",
    "community_quotas",
    "find_communities",
    "knn_graph",
    "nearest_among",
    "nearest_neighbors",
    "recognised",
    "typical",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF_NAME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
