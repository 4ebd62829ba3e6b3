"""Fits a selector to a pool, as the options of `histodistill select` say."""

from __future__ import annotations

import argparse
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
from histodistill.training.running.errors import InputError


# What decides the communities.
GRAPH_OPTIONS = ("n_neighbors", "weighting", "markov_time", "num_trials")


@dataclass(frozen=True)
class SelectionInputs:
    """What a selection goes by.

    Attributes:
        embeddings: float32 N×D, of the pool.
        labels: int64 N.
        probabilities: float32 N×C, what the teacher says of the pool.
        real_embeddings: float32 M×D of the real training tiles, or None where no option goes by them.
        real_labels: int64 M, or None.
        copies: bool N, True for images that are copies of a real tile and must not be chosen; None for no such image.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    real_embeddings: np.ndarray | None = None
    real_labels: np.ndarray | None = None
    copies: np.ndarray | None = None


@dataclass(frozen=True)
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


def make_selector(args: argparse.Namespace) -> BaseSelector:
    """The selector that the options describe, not yet fitted.

    Raises:
        InputError: For a parameter out of range.
    """
    options = {"n_per_class": args.n_per_class, "random_state": args.seed}
    if args.selector == "infomap":
        options |= {name: getattr(args, name) for name in (*GRAPH_OPTIONS, "quota", "ranking")}
    selector = SELECTORS[args.selector](**options)
    try:
        selector.check_params()
    except ValueError as error:
        raise InputError(str(error)) from error
    return selector


def fit_selector(args: argparse.Namespace, inputs: SelectionInputs, class_names: list[str]) -> Selection:
    """Filters the pool and fits the selector to what is left.

    Where a filter leaves fewer images of a class than are to be chosen, those that the teacher recognises best are
    taken back, and a note says so. Copies of real tiles are never taken back.

    Raises:
        InputError: For options or a pool that the selector refuses.
    """
    selector = make_selector(args)
    try:
        passes = recognised(inputs.probabilities, inputs.labels, args.min_probability)
        if args.typical_share is not None:
            passes &= typical(
                inputs.embeddings, inputs.labels, inputs.real_embeddings, inputs.real_labels, args.typical_share
            )
        own = own_probability(inputs.probabilities, inputs.labels)
        copies = np.zeros(len(passes), dtype=bool) if inputs.copies is None else inputs.copies
        passes &= ~copies
        candidates = at_least(passes, np.where(copies, -1, own), inputs.labels, args.n_per_class) & ~copies
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DegenerateGraphWarning)
            selector.fit(inputs.embeddings, inputs.labels, candidates=candidates)
        communities = selector
        if not isinstance(selector, DistillSelector):
            graph = {name: getattr(args, name) for name in GRAPH_OPTIONS}
            communities = DistillSelector(n_per_class=1, random_state=args.seed, **graph)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DegenerateGraphWarning)  # nothing is chosen by these
                communities.fit(inputs.embeddings, inputs.labels, candidates=candidates)
    except ValueError as error:
        raise InputError(str(error)) from error
    notes = []
    for caught_warning in caught:
        if issubclass(caught_warning.category, DegenerateGraphWarning):
            notes.append(str(caught_warning.message))
        else:
            warnings.warn(caught_warning.message, caught_warning.category, stacklevel=2)
    for label in np.unique(inputs.labels[candidates & ~passes]):
        mine = passes[inputs.labels == label]
        notes.append(
            f"class {label} ({class_names[label]}): {mine.sum()} of {len(mine)} images pass the filter, so those that "
            f"the teacher recognises best fill the {args.n_per_class} places: lower the filter or generate more"
        )
    return Selection(selector, communities, candidates, notes)
