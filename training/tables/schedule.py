"""In which order the cells of a results table are trained, and how many steps a line takes.

The first seed of a line climbs its rungs, the numbers of steps that may be tried: the next is tried where the one
before did better on the validation tiles than those below it. The other seeds take the rung that did best.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from histodistill.training.tables.planned_cells import Cell, Line, Place


def best_steps(scores: Iterable[tuple[Place, float]]) -> int | None:
    """The number of steps that a line takes: the one that did best on the validation tiles.

    It is settled by one seed, that which was trained with most of the numbers (of several the smallest); of equal ones
    the smaller number is taken.

    Args:
        scores: The cells of the line, at least one, with their accuracies on the validation tiles.
    """
    by_seed: dict[int, dict[int | None, float]] = {}
    for place, score in scores:
        by_seed.setdefault(place.seed, {})[place.steps] = score
    seed = min(by_seed, key=lambda seed: (-len(by_seed[seed]), seed))
    return min(by_seed[seed], key=lambda steps: (-by_seed[seed][steps], steps or 0))


class Schedule:
    """What is to be trained next.

    Headline rows come first; then the first seed of each line climbs before any line has a second; otherwise lines
    come in their order.

    Args:
        lines: Of the table.
        scores: Cells that are there already, and their accuracies on the validation tiles.
    """

    def __init__(self, lines: Sequence[Line], scores: Mapping[Place, float]):
        self._lines = list(lines)
        #: None for a cell that could not be trained.
        self._scores: dict[Place, float | None] = dict(scores)
        self._taken: set[Place] = set()

    def take(self) -> Cell | None:
        """The next cell, for the caller to train; None where there is none as long as others are trained."""
        found = [
            ((not line.is_headline, turn, number), place)
            for number, line in enumerate(self._lines)
            for turn, place in self._ready(line)
            if place not in self._taken
        ]
        if not found:
            return None
        (_, _, number), place = min(found, key=lambda item: item[0])
        self._taken.add(place)
        return self._lines[number].cell(place.steps, place.seed)

    def finish(self, cell: Cell, score: float | None) -> None:
        """Says how a cell did on the validation tiles; None where it could not be trained."""
        self._scores[cell.place] = score

    def remaining(self) -> list[Cell]:
        """All cells that are not there and may still be trained, at most: if each line climbed as far as it can."""
        cells = []
        for line in self._lines:
            following, best = self._climb(line)
            first, *others = line.seeds
            above = () if following is None else line.rungs[following:]
            places = [line.place(steps, first) for steps in above]
            places += [line.place(above[-1] if above else line.rungs[best], seed) for seed in others]
            cells += [line.cell(place.steps, place.seed) for place in places if place not in self._scores]
        return cells

    def _ready(self, line: Line) -> Iterator[tuple[int, Place]]:
        """Where cells can be trained now that are not there, each with its turn among all of the line."""
        following, best = self._climb(line)
        first, *others = line.seeds
        if following is not None:
            yield following, line.place(line.rungs[following], first)
        if following is None or len(line.rungs) == 1:
            for turn, seed in enumerate(others, len(line.rungs)):
                place = line.place(line.rungs[best], seed)
                if place not in self._scores:
                    yield turn, place

    def _climb(self, line: Line) -> tuple[int | None, int]:
        """Numbers of two rungs: which the first seed is to try next, or None, and which did best so far."""
        best, highest = 0, -1.0
        for number, steps in enumerate(line.rungs):
            place = line.place(steps, line.seeds[0])
            if place not in self._scores:
                return number, best
            score = self._scores[place]
            if score is None or score <= highest:
                break
            best, highest = number, score
        return None, best
