"""Selection of the images from which kernel ridge regression predicts the labels of all others best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from histodistill.selection.base import JointSelector
from histodistill.selection.checks import check_integer, check_positive
from histodistill.selection.distances import first_equal_rows, median_squared_distance
from histodistill.selection.kernel_herding import screen


# Images chosen of each class after which those chosen so far are exchanged: all that the first of them will be.
_STAGES = (1, 2, 5, 10, 20, 50, 100, 200, 500)
# An exchange must lower the error by this share: what is less may be rounding.
_LEAST_GAIN = 1e-6
# float32 values of features held at once, in blocks.
_BLOCK_VALUES = 2**24


class KernelRidgeSelector(JointSelector):
    """Chooses the images from which kernel ridge regression predicts the classes of all images best.

    With k(x, y) = exp(−‖x − y‖² / m), m being the median of ‖x − y‖² over pairs of images times `width`, the images
    chosen, S, are a training set of kernel ridge regression: an image x is given k(x, S) (k(S, S) + ridge · 1)⁻¹ Y(S),
    where Y holds the classes, one-hot, less their mean. S is chosen so that the squared error of this on `n_targets`
    images (as many of each class as can be; all where there are no more) is small: one image of each class in turn,
    each the one that lowers the error most; then, in `sweeps` rounds, each image is exchanged for the best of its
    class where that lowers the error. Exchanges come when 1, 2, 5, 10, 20, 50, … of each class are chosen, and only
    among those that came after the stage before. So the first 10 images of each class are by themselves the choice of
    10, and so on.

    It is the objective of kernel inducing points (Nguyen, Chen and Lee, ICLR 2021, arXiv:2011.00050) as a choice
    among images that are there. It looks across classes: which images are chosen of one class hangs on the others.
    Memory and time grow with the number of candidates times `n_targets`; of a class with more than `max_candidates`,
    so many are taken that are distributed as all of its images are, by kernel herding in blocks, and the rest is not
    looked at.

    Args:
        n_per_class: Images to choose of each class, at least 1.
        ridge: Above 0; an image's kernel with itself is 1.
        width: Above 0; factor of the kernel's width.
        n_targets: Images whose classes are to be predicted, at least 1.
        sweeps: Rounds of exchanges at each stage, at least 0.
        max_candidates: Images of each class that are looked at, at least 1, or ten times `n_per_class` where that is
            more.
        random_state: Whole number from 0 to 2³¹ − 1.

    Attributes:
        selected_indices_: int64, `n_per_class` × number of classes; grouped by class in ascending order, within a
            class in the order of stages, and within a stage in that of choosing.
        error_: float64 per class, the squared error of its targets, summed over the C values that are predicted of
            each, and averaged.
        classes_: int64 or texts, the labels that occur, ascending.
        n_features_in_: D, the width of the embeddings.
    """

    def __init__(
        self,
        n_per_class: int = 100,
        ridge: float = 0.01,
        width: float = 1.0,
        n_targets: int = 2500,
        sweeps: int = 2,
        max_candidates: int = 4000,
        random_state: int = 0,
    ):
        super().__init__(n_per_class=n_per_class, random_state=random_state)
        self.ridge = ridge
        self.width = width
        self.n_targets = n_targets
        self.sweeps = sweeps
        self.max_candidates = max_candidates

    def check_params(self) -> None:
        super().check_params()
        check_positive("ridge", self.ridge)
        check_positive("width", self.width)
        check_integer("n_targets", self.n_targets, 1)
        check_integer("sweeps", self.sweeps, 0)
        check_integer("max_candidates", self.max_candidates, 1)

    def _select_jointly(
        self, embeddings: np.ndarray, classes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, dict[str, Any]]:
        rows = self._screened(embeddings, classes, rng)
        embeddings, classes = embeddings[rows], classes[rows]
        # Sums over several threads are rounded differently from run to run.
        with threadpool_limits(limits=1):
            choice = _Choice(embeddings, classes, self._targets(classes, rng), self.ridge, self.width, rng)
            done = 0
            for stage in [*(stage for stage in _STAGES if stage < self.n_per_class), self.n_per_class]:
                for _ in range(done, stage):
                    for label in range(len(choice.members)):
                        choice.add(label)
                for _ in range(self.sweeps):
                    if not choice.exchange(done):
                        break
                done = stage
            return rows[choice.chosen], {"error": choice.error_by_class()}

    def _screened(self, embeddings: np.ndarray, classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Rows of the images that are looked at, ascending."""
        most, looked_at = max(self.max_candidates, 10 * self.n_per_class), []
        for label in range(1 + int(classes[-1])):
            rows = np.flatnonzero(classes == label)
            if len(rows) > most:
                rows = rows[screen(embeddings[rows], most, rng)]
            looked_at.append(rows)
        return np.concatenate(looked_at)

    def _targets(self, classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Rows of the images whose classes are to be predicted, ascending."""
        if len(classes) <= self.n_targets:
            return np.arange(len(classes))
        each = max(1, self.n_targets // (1 + int(classes[-1])))
        rows = rng.permutation(len(classes))
        return np.sort(np.concatenate([rows[classes[rows] == label][:each] for label in range(1 + int(classes[-1]))]))


@dataclass(frozen=True, repr=False)
class _Change:
    """What putting an image among those chosen, or taking it out, changes: see `_Choice`.

    Attributes:
        image: Its row.
        rest: n float32, whose outer product with itself, times `factor`, is added to R.
        factor: Below 0 where an image is put.
        step: C float64, whose outer product with `rest` is added to the predictions.
    """

    image: int
    rest: np.ndarray
    factor: float
    step: np.ndarray


class _Choice:
    """Images chosen so far, and what each further one, or one less, would do to the error.

    With A = (k(S, S) + ridge · 1)⁻¹ and R(x, y) = k(x, y) − k(x, S) A k(S, y), what S leaves unexplained of the
    kernel, a further image j changes the prediction of x by R(x, j) (Y(j) − P(j)) / (R(j, j) + ridge), and R(x, y)
    by −R(x, j) R(j, y) / (R(j, j) + ridge). With a the column of A of an image of S, α its diagonal entry and
    b = k(·, S) a, taking that image out changes the predictions by −b (aᵀ Y(S)) / α, and R by b bᵀ / α. So R between
    candidates and targets is kept; what changes it is applied to the candidates of a class, all at once, when that
    class is next asked.

    Args:
        embeddings: n×D float32, of the candidates, class by class.
        classes: n int64, ascending from 0 on without gaps.
        targets: Rows of the targets.
        ridge, width: See `KernelRidgeSelector`.
        rng: Draws the pairs of images that give the kernel its width.
    """

    def __init__(
        self,
        embeddings: np.ndarray,
        classes: np.ndarray,
        targets: np.ndarray,
        ridge: float,
        width: float,
        rng: np.random.Generator,
    ):
        self.classes, self.targets, self.ridge = classes, targets, ridge
        # Distances do not change where all is moved and scaled, and single precision holds them better.
        self.features = (embeddings - embeddings.mean(axis=0, dtype=np.float64)).astype(np.float64)
        self.features /= np.abs(self.features).max() or 1.0
        self.features = self.features.astype(np.float32)
        self.norms = np.einsum("ij,ij->i", self.features, self.features, dtype=np.float64)
        self.scale = width * median_squared_distance(self.features, rng)
        ends = np.cumsum(np.bincount(classes)).tolist()
        self.members = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        # Among equal images rounding must not choose.
        self.group = np.empty(len(embeddings), dtype=np.int64)
        for rows in self.members:
            self.group[rows] = first_equal_rows(embeddings[rows])
        labels = np.eye(len(self.members))[classes]
        # Of a single class nothing is to be told apart; its images are then to stand for one another.
        self.labels = labels - labels.mean(axis=0) if len(self.members) > 1 else labels
        self.chosen: list[int] = []
        self.is_free = np.ones(len(embeddings), dtype=bool)
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Reckons everything from the images that are chosen, without the rounding of all that came before."""
        chosen = np.array(self.chosen, dtype=np.int64)
        self.columns = self._kernel(chosen)
        self.inverse = np.linalg.inv(self.columns[chosen].astype(np.float64) + self.ridge * np.eye(len(chosen)))
        weights = self.inverse @ self.columns.T.astype(np.float64)
        self.predictions = weights.T @ self.labels[chosen]
        self.left = 1.0 - np.einsum("ij,ji->i", self.columns, weights)
        self.rest = self._kernel(self.targets)
        self.rest -= self.columns @ weights[:, self.targets].astype(np.float32)
        # Changes of R that are not applied to a class yet: pairs of vectors whose outer products are to be added.
        self.pending: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in self.members]

    def error(self) -> float:
        """The squared error of the targets, summed over them and over classes."""
        return float(np.square(self.predictions[self.targets] - self.labels[self.targets]).sum())

    def error_by_class(self) -> np.ndarray:
        """The squared error of a target, summed over classes: the mean over the targets of each class."""
        wrong = np.square(self.predictions[self.targets] - self.labels[self.targets]).sum(axis=1)
        numbers = self.classes[self.targets]
        return np.bincount(numbers, wrong) / np.bincount(numbers)

    def add(self, label: int) -> None:
        """Chooses the image of a class that lowers the error most."""
        best, _ = self._best(label)
        place = len(self.chosen)
        self.chosen.append(-1)
        if place == self.columns.shape[1]:  # twice as much room
            room = max(16, place)
            self.columns = np.pad(self.columns, ((0, 0), (0, room)))
            self.inverse = np.pad(self.inverse, (0, room))
        self._put(best, place)

    def exchange(self, fixed: int) -> bool:
        """Exchanges each image, but the first `fixed` of each class, for the best of its class where that is better.

        Returns:
            Whether any was exchanged. The error is never above that before.
        """
        before, begun = list(self.chosen), self.error()
        exchanged = False
        by_class = sorted(range(fixed * len(self.members), len(before)), key=lambda place: self.classes[before[place]])
        for place in by_class:
            image, error = self.chosen[place], self.error()
            without = self._without(place)
            best, reached = self._best(int(self.classes[image]), without)
            if best != image and reached < error * (1 - _LEAST_GAIN):
                self._take_out(place, without)
                self._put(best, place)
                exchanged = True
        if exchanged:
            self._begin_anew()
            if self.error() > begun:  # by rounding
                self.chosen, exchanged = before, False
                self.is_free[:] = True
                self.is_free[before] = False
                self._begin_anew()
        return exchanged

    def _best(self, label: int, without: _Change | None = None) -> tuple[int, float]:
        """The image of a class after which the error is least, and that error; of equal ones the first.

        Args:
            label: The class.
            without: What taking an image of the class out will change; it may be chosen again.
        """
        rows = self._up_to_date(label)
        rest, left, predictions, free = self.rest[rows], self.left[rows], self.predictions, self.is_free[rows]
        if without is not None:
            rest = rest + np.outer(*self._parts(without, rows))
            left = left + without.factor * np.square(without.rest[rows])
            predictions = predictions + np.outer(without.rest, without.step)
            free = free.copy()
            free[without.image - rows.start] = True
        step = 1.0 / (np.maximum(left, 0.0) + self.ridge)
        missing = self.labels[rows] - predictions[rows]
        wrong = predictions[self.targets] - self.labels[self.targets]
        along = np.einsum("ij,ij->i", rest @ wrong.astype(np.float32), missing)
        size = np.einsum("ij,ij->i", rest, rest) * np.square(missing).sum(axis=1)
        errors = np.where(free, np.square(wrong).sum() + step * (2 * along + step * size), np.inf)
        best = int(np.argmin(errors))
        first_equal = np.argmax((self.group[rows] == self.group[rows][best]) & free)
        return rows.start + int(first_equal), float(errors[best])

    def _put(self, image: int, place: int) -> None:
        """Chooses an image for an empty place."""
        column = self._kernel(np.array([image]))[:, 0]
        weights = self.inverse @ self.columns[image]
        rest = column - self.columns @ weights.astype(np.float32)
        factor = 1.0 / (max(float(rest[image]), 0.0) + self.ridge)
        step = factor * (self.labels[image] - self.predictions[image])
        self._apply(_Change(image, rest, -factor, step))
        self.inverse += factor * np.outer(weights, weights)
        self.inverse[place] = self.inverse[:, place] = -factor * weights
        self.inverse[place, place] = factor
        self.columns[:, place] = column
        self.chosen[place] = image
        self.is_free[image] = False

    def _without(self, place: int) -> _Change:
        """What taking out the image at a place changes."""
        weights, diagonal = self.inverse[:, place], self.inverse[place, place]
        step = -(weights[: len(self.chosen)] @ self.labels[self.chosen]) / diagonal
        return _Change(self.chosen[place], self.columns @ weights.astype(np.float32), 1.0 / diagonal, step)

    def _take_out(self, place: int, change: _Change) -> None:
        """Takes out the image at a place, which is then empty."""
        self._apply(change)
        weights = self.inverse[:, place].copy()
        self.inverse -= np.outer(weights, weights) / weights[place]
        # Nothing counts what stands at an empty place.
        self.inverse[place] = self.inverse[:, place] = 0.0
        self.columns[:, place] = 0.0
        self.is_free[change.image] = True

    def _apply(self, change: _Change) -> None:
        self.predictions += np.outer(change.rest, change.step)
        self.left += change.factor * np.square(change.rest)
        for label, changes in enumerate(self.pending):
            changes.append(self._parts(change, self.members[label]))

    def _parts(self, change: _Change, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """Two vectors, the outer product of which is added to R between these rows and the targets."""
        return change.rest[rows], np.float32(change.factor) * change.rest[self.targets]

    def _up_to_date(self, label: int) -> slice:
        """Applies what is pending to the rows of a class, and returns these."""
        rows, changes = self.members[label], self.pending[label]
        if changes:
            own, of_targets = (np.stack(parts) for parts in zip(*changes, strict=True))
            self.rest[rows] += own.T @ of_targets
            changes.clear()
        return rows

    def _kernel(self, rows: np.ndarray) -> np.ndarray:
        """k between all images and those of some rows: n×R float32."""
        kernel = np.empty((len(self.features), len(rows)), dtype=np.float32)
        step = max(1, _BLOCK_VALUES // max(1, self.features.shape[1], len(rows)))
        others = self.features[rows]
        for start in range(0, len(kernel), step):
            block = slice(start, start + step)
            squared = self.norms[block, None] + self.norms[rows] - 2.0 * (self.features[block] @ others.T)
            kernel[block] = np.exp(np.maximum(squared, 0.0) / -self.scale)
        kernel[rows, np.arange(len(rows))] = 1.0
        return kernel
