"""In which order the cells of a results table are trained, and how many steps a line takes.

One seed of a line climbs its rungs, the numbers of steps that may be tried: the next is tried where the one before
did better on the validation tiles than those below it. The other seeds take the rung that did best. It is the first
seed, or the one that has climbed before: seeds that are added later take what was settled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from histodistill.training.tables.planned_cells import Cell, Line, Place


def settling_seed(cells: Iterable[Place]) -> int:
    """The seed that settles how many steps a line takes: it was trained with most numbers; of several the smallest.

    Args:
        cells: Of the line, at least one.
    """
    tried = Counter(place.seed for place in cells)
    return min(tried, key=lambda seed: (-tried[seed], seed))


def best_steps(scores: Mapping[Place, float]) -> int | None:
    """The number of steps that a line takes: the one that did best on the validation tiles, by its `settling_seed`.

    Of equal ones the smaller number is taken.

    Args:
        scores: The cells of the line, at least one, with their accuracies on the validation tiles.
    """
    seed = settling_seed(scores)
    mine = {place.steps: score for place, score in scores.items() if place.seed == seed}
    return min(mine, key=lambda steps: (-mine[steps], steps or 0))


class Schedule:
    """What is to be trained next.

    Headline rows come first; then one seed of each line climbs before any line has a second; otherwise lines come in
    their order.

    Args:
        lines: Of the table.
        scores: Cells of these lines that are there already, and their accuracies on the validation tiles.
    """

    def __init__(self, lines: Sequence[Line], scores: Mapping[Place, float]):
        self._lines = list(lines)
        #: None for a cell that could not be trained.
        self._scores: dict[Place, float | None] = dict(scores)
        self._taken: set[Place] = set()
        # By line; what comes meanwhile changes nothing.
        self._climbers = {line.first.place.line: self._climber(line) for line in self._lines}

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
            climber, others = self._seeds(line)
            above = () if following is None else line.rungs[following:]
            places = [line.place(steps, climber) for steps in above]
            places += [line.place(above[-1] if above else line.rungs[best], seed) for seed in others]
            cells += [line.cell(place.steps, place.seed) for place in places if place not in self._scores]
        return cells

    def _ready(self, line: Line) -> Iterator[tuple[int, Place]]:
        """Where cells can be trained now that are not there, each with its turn among all of the line."""
        following, best = self._climb(line)
        climber, others = self._seeds(line)
        if following is not None:
            yield following, line.place(line.rungs[following], climber)
        if following is None or len(line.rungs) == 1:
            for turn, seed in enumerate(others, len(line.rungs)):
                place = line.place(line.rungs[best], seed)
                if place not in self._scores:
                    yield turn, place

    def _climber(self, line: Line) -> int:
        """The seed that climbs: the one that settles the steps already, also where it is not asked for any more."""
        kept = [place for place in self._scores if place.line == line.first.place.line]
        # With a single rung there is nothing to settle.
        return settling_seed(kept) if kept and len(line.rungs) > 1 else line.seeds[0]

    def _seeds(self, line: Line) -> tuple[int, list[int]]:
        """The seed that climbs, and the others."""
        climber = self._climbers[line.first.place.line]
        return climber, [seed for seed in line.seeds if seed != climber]

    def _climb(self, line: Line) -> tuple[int | None, int]:
        """Numbers of two rungs: which the climbing seed is to try next, or None, and which did best so far."""
        best, highest = 0, -1.0
        climber, _ = self._seeds(line)
        for number, steps in enumerate(line.rungs):
            place = line.place(steps, climber)
            if place not in self._scores:
                return number, best
            score = self._scores[place]
            if score is None or score <= highest:
                break
            best, highest = number, score
        return None, best
