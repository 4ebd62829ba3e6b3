"""Fits a selector to a pool: filters, the selector itself, and the communities that describe the pool."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from histodistill.selection import (
    SELECTORS,
    BaseSelector,
    DegenerateGraphWarning,
    DistillSelector,
    at_least,
    recognised,
    typical,
)
from histodistill.selection.filters import own_probability
from histodistill.training.distillation.selector_options import SelectorConfig
from histodistill.training.running.errors import InputError


# Options of a selection that decide the communities of the pool.
GRAPH_OPTIONS = ("n_neighbors", "weighting", "markov_time", "num_trials")


@dataclass(frozen=True, repr=False)
class SelectionInputs:
    """What a selection goes by.

    Attributes:
        embeddings: float32 N×D, of the pool.
        labels: int64 N.
        probabilities: float32 N×C, what the teacher says of the pool.
        real_embeddings: float32 M×D of the real training tiles, or None where no option goes by them.
        real_labels: int64 M, or None.
        copies: bool N, True for images that are copies of a real tile and must not be chosen; None for no such image.
        left_out: bool N, True for images that a reviewer left out, and that must not be chosen either; None likewise.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    real_embeddings: np.ndarray | None = None
    real_labels: np.ndarray | None = None
    copies: np.ndarray | None = None
    left_out: np.ndarray | None = None

    @property
    def forbidden(self) -> np.ndarray:
        """bool N, True for images that must not be chosen."""
        forbidden = np.zeros(len(self.labels), dtype=bool)
        for images in (self.copies, self.left_out):
            if images is not None:
                forbidden |= images
        return forbidden


@dataclass(frozen=True, repr=False)
class Selection:
    """What came out.

    Attributes:
        selector: Fitted.
        communities: The selector itself where it finds communities, and otherwise a `DistillSelector` fitted to the
            same candidates: communities describe a pool, whatever chooses from it.
        candidates: bool N, False for images that a filter dropped.
        notes: Sentences that a user should read.
    """

    selector: BaseSelector
    communities: DistillSelector
    candidates: np.ndarray
    notes: list[str]

    @property
    def chosen(self) -> np.ndarray:
        """int64 K, the indices of the chosen images: grouped by class, best first."""
        return self.selector.selected_indices_


def make_selector(config: SelectorConfig) -> BaseSelector:
    """The selector that the options describe, not yet fitted.

    Raises:
        InputError: For a parameter out of range.
    """
    options = {"n_per_class": config.n_per_class, "random_state": config.seed}
    if config.selector == "infomap":
        options |= {name: getattr(config, name) for name in (*GRAPH_OPTIONS, "quota", "ranking")}
    selector = SELECTORS[config.selector](**options)
    try:
        selector.check_params()
    except ValueError as error:
        raise InputError(str(error)) from error
    return selector


def fit_selector(config: SelectorConfig, inputs: SelectionInputs, class_names: list[str]) -> Selection:
    """Filters the pool and fits the selector to what is left.

    Where a filter leaves fewer images of a class than are to be chosen, those that the teacher recognises best are
    taken back, and a note says so. Copies of real tiles and what reviewers left out are never taken back.

    Raises:
        InputError: For options or a pool that the selector refuses.
    """
    selector = make_selector(config)
    try:
        passes, candidates = _find_candidates(config, inputs)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DegenerateGraphWarning)
            selector.fit(inputs.embeddings, inputs.labels, candidates=candidates)
        communities = selector
        if not isinstance(selector, DistillSelector):
            communities = _find_communities(config, inputs, candidates)
    except ValueError as error:
        raise InputError(str(error)) from error
    notes = []
    for caught_warning in caught:
        if issubclass(caught_warning.category, DegenerateGraphWarning):
            notes.append(str(caught_warning.message))
        else:
            warnings.warn(caught_warning.message, caught_warning.category, stacklevel=2)
    notes += _filled_notes(passes, candidates, inputs.labels, class_names, config.n_per_class)
    return Selection(selector, communities, candidates, notes)


def _find_candidates(config: SelectorConfig, inputs: SelectionInputs) -> tuple[np.ndarray, np.ndarray]:
    """Which images pass every filter, and which may be chosen since a class must be filled: N bool each."""
    passes = recognised(inputs.probabilities, inputs.labels, config.min_probability)
    if config.typical_share is not None:
        passes &= typical(
            inputs.embeddings, inputs.labels, inputs.real_embeddings, inputs.real_labels, config.typical_share
        )
    own = own_probability(inputs.probabilities, inputs.labels)
    forbidden = inputs.forbidden
    passes &= ~forbidden
    return passes, at_least(passes, np.where(forbidden, -1, own), inputs.labels, config.n_per_class) & ~forbidden


def _find_communities(config: SelectorConfig, inputs: SelectionInputs, candidates: np.ndarray) -> DistillSelector:
    """A fitted selector of which only the communities count."""
    graph = {name: getattr(config, name) for name in GRAPH_OPTIONS}
    communities = DistillSelector(n_per_class=1, random_state=config.seed, **graph)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateGraphWarning)  # nothing is chosen by these
        return communities.fit(inputs.embeddings, inputs.labels, candidates=candidates)


def _filled_notes(
    passes: np.ndarray, candidates: np.ndarray, labels: np.ndarray, class_names: list[str], n_per_class: int
) -> list[str]:
    """A sentence for each class in which images were taken back that a filter had dropped."""
    notes = []
    for label in np.unique(labels[candidates & ~passes]):
        mine = passes[labels == label]
        notes.append(
            f"class {label} ({class_names[label]}): {mine.sum()} of {len(mine)} images pass the filter, so those that "
            f"the teacher recognises best fill the {n_per_class} places: lower the filter or generate more"
        )
    return notes
