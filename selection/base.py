"""The contract that every selector keeps."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator

from histodistill.selection.checks import check_candidates, check_classes, check_embeddings, check_integer
from histodistill.selection.communities import LARGEST_RANDOM_STATE
from histodistill.selection.storage import PretrainedMixin
from histodistill.selection.streams import stream


@dataclass(frozen=True)
class ClassSelection:
    """What a selector chose among the n images of one class.

    Attributes:
        ranked: int64, `n_per_class` different indices in 0 … n − 1, best first.
        per_image: Name → array of length n; `fit` gathers them into the attribute `name_` over all images, those
            that are no candidates having −1 (whole numbers) or 0 (others).
        per_class: Name → number; `fit` gathers them into the attribute `name_`, one entry per class in order.
    """

    ranked: np.ndarray
    per_image: dict[str, np.ndarray] = field(default_factory=dict)
    per_class: dict[str, float | int] = field(default_factory=dict)


#: Class name → class, of all selectors that `BaseSelector.from_pretrained` can load; see `register_selector`.
_REGISTERED: dict[str, type[BaseSelector]] = {}


class BaseSelector(PretrainedMixin, BaseEstimator, ABC):
    """Chooses exactly `n_per_class` images of each class, by their embeddings.

    A scikit-learn estimator: parameters are stored as given and checked by `fit`, what is learned ends in an
    underscore, `get_params`, `set_params` and `sklearn.base.clone` work. For every selector

    - no image is chosen twice, and each only for its own class;
    - the same input and `random_state` give the same choice, in any process and with any number of threads;
    - classes are independent: adding or removing another class changes nothing, unless the selector is a
      `JointSelector`, which looks across classes;
    - images that rank equal are taken by lower index;
    - images that are no candidates are not looked at at all: the choice is as if they were not there.

    Args:
        n_per_class: Images to choose of each class, at least 1.
        random_state: Whole number from 0 to 2³¹ − 1.

    Attributes:
        selected_indices_: int64, `n_per_class` × number of classes; grouped by class in ascending order, within a
            class in rank order, best first.
        classes_: int64 or texts, the labels that occur, ascending.
        n_features_in_: D, the width of the embeddings.

    A subclass is a `ClasswiseSelector` or a `JointSelector`, and has `check_params` if it has parameters of its own.
    """

    def __init__(self, n_per_class: int = 100, random_state: int = 0):
        self.n_per_class = n_per_class
        self.random_state = random_state

    def fit(self, embeddings: Any, labels: Any, *, candidates: Any = None) -> Self:
        """Chooses the images.

        Args:
            embeddings: N×D real numbers, finite; used as float32.
            labels: N whole numbers ≥ 0 or N texts, the class of each image.
            candidates: N truth values, False for images that must not be chosen; all may be by default. See
                `histodistill.selection.filters`.

        Returns:
            self.

        Raises:
            ValueError: For a parameter out of range, an array of the wrong shape, type or range, or a class with
                fewer than `n_per_class` candidates. The fitted attributes are then as before.
        """
        self.check_params()
        embeddings = check_embeddings(embeddings)
        labels = check_classes(labels, len(embeddings))
        candidates = check_candidates(candidates, len(embeddings))
        classes, counts = np.unique(labels, return_counts=True)
        for label, count in zip(classes, counts, strict=True):
            left = int(candidates[labels == label].sum())
            if left < self.n_per_class:
                left_of = f"{count} images" if left == count else f"{left} candidates among its {count} images"
                raise ValueError(
                    f"class {label} has {left_of} but n_per_class={self.n_per_class}: lower n_per_class or "
                    "generate more"
                )

        rows_of = [np.flatnonzero((labels == label) & candidates) for label in classes]
        selected, learned = self._select(embeddings, rows_of, classes)
        self.selected_indices_ = np.concatenate(selected).astype(np.int64)
        self.classes_ = classes
        self.n_features_in_ = embeddings.shape[1]
        for name, value in learned.items():
            setattr(self, f"{name}_", value)
        return self

    @classmethod
    def loadable_classes(cls) -> dict[str, type[Self]]:
        """What `from_pretrained` can load, by class name: `BaseSelector` all registered ones, a subclass itself."""
        # The registered ones are subclasses of `BaseSelector`, which is `Self` here.
        return dict(_REGISTERED) if cls is BaseSelector else super().loadable_classes()

    def check_params(self) -> None:
        """Checks the parameters; a subclass that has more of them checks these, too.

        Raises:
            ValueError: For a parameter that is out of range.
        """
        check_integer("n_per_class", self.n_per_class, 1)
        check_integer("random_state", self.random_state, 0, LARGEST_RANDOM_STATE)

    @abstractmethod
    def _select(
        self, embeddings: np.ndarray, rows_of: list[np.ndarray], classes: np.ndarray
    ) -> tuple[list[np.ndarray], dict[str, Any]]:
        """Chooses among the candidates of all classes.

        Args:
            embeddings: N×D float32, finite.
            rows_of: The candidates of each class, at least `n_per_class`, ascending.
            classes: int64 or texts, the label of each class.

        Returns:
            `n_per_class` of each class's candidates, best first, and what else is learned: name → value, of which
            `fit` makes the attribute `name_`.
        """


class ClasswiseSelector(BaseSelector):
    """A selector that chooses in each class by itself: adding or removing another class changes nothing.

    A subclass implements `_select_class`. Parameters and attributes are those of `BaseSelector`.
    """

    def _select(
        self, embeddings: np.ndarray, rows_of: list[np.ndarray], classes: np.ndarray
    ) -> tuple[list[np.ndarray], dict[str, Any]]:
        selected = []
        per_image: dict[str, np.ndarray] = {}
        per_class: dict[str, list[float | int]] = {}
        for label, rows in zip(classes, rows_of, strict=True):
            # Seeded by the label itself, so that the other classes do not matter.
            rng = stream("choice of a selector", int(self.random_state), _seed_of(label))
            chosen = self._select_class(embeddings[rows], rng, name=f"class {label}")
            selected.append(rows[chosen.ranked])
            for name, values in chosen.per_image.items():
                if name not in per_image:
                    missing = -1 if values.dtype.kind in "iu" else 0
                    per_image[name] = np.full(len(embeddings), missing, dtype=values.dtype)
                per_image[name][rows] = values
            for name, value in chosen.per_class.items():
                per_class.setdefault(name, []).append(value)
        return selected, {**per_image, **{name: np.array(numbers) for name, numbers in per_class.items()}}

    @abstractmethod
    def _select_class(self, embeddings: np.ndarray, rng: np.random.Generator, name: str) -> ClassSelection:
        """Chooses among the candidates of one class.

        Args:
            embeddings: n×D float32, finite, n ≥ `n_per_class`, in the order of the input.
            rng: The only source of chance.
            name: What a message calls the class, such as `"class 3"`.
        """


class JointSelector(BaseSelector):
    """A selector of the second kind, which looks across classes: what it chooses of one hangs on the others.

    A subclass implements `_select_jointly`. Parameters and attributes are those of `BaseSelector`.
    """

    def _select(
        self, embeddings: np.ndarray, rows_of: list[np.ndarray], classes: np.ndarray
    ) -> tuple[list[np.ndarray], dict[str, Any]]:
        rows = np.concatenate(rows_of)
        numbers = np.repeat(np.arange(len(classes)), [len(of) for of in rows_of])
        rng = stream("choice of a selector across classes", int(self.random_state))
        ranked, learned = self._select_jointly(embeddings[rows], numbers, rng)
        return [rows[ranked[numbers[ranked] == number]] for number in range(len(classes))], learned

    @abstractmethod
    def _select_jointly(
        self, embeddings: np.ndarray, classes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Chooses among the candidates of all classes.

        Args:
            embeddings: n×D float32, finite, class by class, at least `n_per_class` of each.
            classes: n int64, the number of each image's class: from 0 on, ascending, without gaps.
            rng: The only source of chance.

        Returns:
            int64, `n_per_class` different indices in 0 … n − 1 of each class, those of a class best first, and what
            else is learned: name → value, of which `fit` makes the attribute `name_`.
        """


def register_selector(selector: type[BaseSelector]) -> None:
    """Makes a class known to `BaseSelector.from_pretrained`, which then loads what it saved.

    The selectors of this package are registered by `histodistill.selection.registry`.

    Args:
        selector: A subclass of `BaseSelector`; one of the same name that was registered before is replaced.
    """
    _REGISTERED[selector.__name__] = selector


def _seed_of(label: np.int64 | np.str_) -> int:
    """A number for a class that depends on nothing but its label, in any process."""
    if isinstance(label, str):
        # Not Python's hash, which is another one in every process. A text may hold half of a character.
        digest = hashlib.sha256(label.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big")
    return int(label)
