"""Every selector by its name. Importing this module makes them known to `BaseSelector.from_pretrained`."""

from __future__ import annotations

from histodistill.selection.base import BaseSelector, register_selector
from histodistill.selection.baselines import (
    FacilityLocationSelector,
    HerdingSelector,
    KCenterSelector,
    KMeansSelector,
    RandomSelector,
)
from histodistill.selection.distill_selector import DistillSelector
from histodistill.selection.kernel_herding import KernelHerdingSelector
from histodistill.selection.kernel_ridge import KernelRidgeSelector


#: Name → class, in the order of `histodistill.selection.SELECTOR_NAMES`.
SELECTORS: dict[str, type[BaseSelector]] = {
    "infomap": DistillSelector,
    "random": RandomSelector,
    "kmeans": KMeansSelector,
    "herding": HerdingSelector,
    "kernel_herding": KernelHerdingSelector,
    "k_center": KCenterSelector,
    "facility_location": FacilityLocationSelector,
    "kernel_ridge": KernelRidgeSelector,
}

for _selector in SELECTORS.values():
    register_selector(_selector)
