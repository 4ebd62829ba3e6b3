from __future__ import annotations

from dataclasses import replace

import pytest

from histodistill.training.engine.classifier_config import ClassifierConfig
from histodistill.training.tables.planned_cells import Cell, Line, Place
from histodistill.training.tables.rows import parse_row
from histodistill.training.tables.schedule import Schedule, best_steps, settling_seed


def place(steps: int | None, seed: int) -> Place:
    return Place("convnet", "random", 5, steps, seed)


def line(row: str, *rungs: int, seeds: tuple[int, ...] = (0, 1), is_headline: bool = False) -> Line:
    """A line of a ConvNet, in one size."""
    first = Cell(ClassifierConfig(), parse_row(row), 5)
    made = Line(first, rungs, seeds, is_headline)
    return replace(made, first=made.cell(rungs[0], seeds[0]))


def trained(lines: list[Line], scores: dict[tuple[str, int], float | None], known=None) -> list[tuple[str, int, int]]:
    """Trains all that a schedule gives, one after the other: row, steps and seed of each, in order.

    Args:
        lines: Of the table.
        scores: Row and steps → what each seed scores; None where it cannot be trained.
        known: Cells that are there.
    """
    schedule, order = Schedule(lines, known or {}), []
    while (cell := schedule.take()) is not None:
        place = cell.place
        assert place.steps is not None
        order.append((place.row, place.steps, place.seed))
        schedule.finish(cell, scores[place.row, place.steps])
    assert schedule.remaining() == []
    return order


@pytest.mark.parametrize(
    ("scores", "climbed", "taken"),
    [
        ((0.5, 0.6, 0.7), (6, 20, 60), 60),
        ((0.5, 0.6, 0.55), (6, 20, 60), 20),
        ((0.5, 0.4, 0.9), (6, 20), 6),  # what more than these would give is not looked at
        ((0.5, 0.5, 0.9), (6, 20), 6),
        ((0.5, None, 0.9), (6, 20), 6),  # diverged
        ((None, 0.5, 0.9), (6,), 6),
    ],
)
def test_the_first_seed_climbs_and_the_others_follow(scores, climbed, taken):
    by_steps = {("random", steps): score for steps, score in zip((6, 20, 60), scores, strict=True)}
    order = trained([line("random", 6, 20, 60, seeds=(4, 2, 3))], by_steps)
    assert order == [*(("random", steps, 4) for steps in climbed), ("random", taken, 2), ("random", taken, 3)]


def test_headline_rows_come_first_and_each_climbs_before_any_has_a_second_seed():
    lines = [line("infomap", 6, 20), line("random", 6, 20, is_headline=True), line("real_random", 6, is_headline=True)]
    scores = {
        ("infomap", 6): 0.1,
        ("infomap", 20): 0.2,
        ("random", 6): 0.3,
        ("random", 20): 0.4,
        ("real_random", 6): 0,
    }
    assert trained(lines, scores) == [
        ("random", 6, 0), ("real_random", 6, 0), ("random", 20, 0), ("real_random", 6, 1), ("random", 20, 1),
        ("infomap", 6, 0), ("infomap", 20, 0), ("infomap", 20, 1),
    ]  # fmt: skip


def test_several_can_be_trained_at_a_time():
    schedule = Schedule([line("random", 6, 20), line("infomap", 6, seeds=(0, 1, 2))], {})
    taken = [schedule.take() for _ in range(5)]
    # Where there is one number of steps, no seed waits for the first; where there are two, all do.
    assert [cell and (cell.row.name, cell.config.seed) for cell in taken] == [
        ("random", 0), ("infomap", 0), ("infomap", 1), ("infomap", 2), None,
    ]  # fmt: skip
    assert taken[0] is not None
    schedule.finish(taken[0], 0.5)
    following = schedule.take()
    assert following is not None and following.place == Place("convnet", "random", 5, 20, 0)
    assert schedule.take() is None


def test_what_is_there_is_not_trained_again():
    one = line("random", 6, 20, 60)
    known = {one.cell(6, 0).place: 0.5, one.cell(20, 0).place: 0.4, one.cell(20, 1).place: 0.9}
    assert trained([one], {("random", 6): 0.5}, known) == [("random", 6, 1)]


def test_seeds_that_are_added_take_what_was_settled():
    one = line("random", 6, 20, 60, seeds=(3, 4))
    known = {one.cell(steps, 0).place: score for steps, score in ((6, 0.5), (20, 0.6), (60, 0.4))}
    known |= {one.cell(20, seed).place: 0.1 for seed in (1, 2)}
    scores = dict.fromkeys((("random", steps) for steps in (6, 20, 60)), 0.9)
    assert [cell.place for cell in Schedule([one], known).remaining()] == [place(20, 3), place(20, 4)]
    assert trained([one], scores, known) == [("random", 20, 3), ("random", 20, 4)]


def test_a_seed_that_was_killed_climbs_on_also_where_others_are_asked_for():
    one = line("random", 6, 20, 60, seeds=(3, 4))
    schedule = Schedule([one], {one.cell(6, 0).place: 0.5})
    assert [cell.place for cell in schedule.remaining()] == [place(20, 0), place(60, 0), place(60, 3), place(60, 4)]
    scores = {("random", 20): 0.4, ("random", 6): 0.9}
    order = trained([one], scores, {one.cell(6, 0).place: 0.5})
    assert order == [("random", 20, 0), ("random", 6, 3), ("random", 6, 4)]


def test_a_single_number_of_steps_is_that_of_the_seeds_alone_that_are_asked_for():
    one = line("random", 20, seeds=(3,))
    assert trained([one], {("random", 20): 0.5}, {one.cell(6, 0).place: 0.5}) == [("random", 20, 3)]


def test_what_may_remain_is_told_by_the_longest_way():
    one = line("random", 6, 20, 60, seeds=(0, 1, 2))
    schedule = Schedule([one], {})

    def remaining() -> list[tuple[int | None, int]]:
        return [(cell.steps, cell.config.seed) for cell in schedule.remaining()]

    assert remaining() == [(6, 0), (20, 0), (60, 0), (60, 1), (60, 2)]
    schedule.finish(one.cell(6, 0), 0.5)
    schedule.finish(one.cell(20, 0), 0.4)
    assert remaining() == [(6, 1), (6, 2)]


def test_probes_know_no_steps():
    first = Cell(ClassifierConfig(architecture="probe:untrained"), parse_row("random"), 5)
    schedule = Schedule([Line(first, (None,), (0, 1))], {})
    places = [cell.place for cell in (schedule.take(), schedule.take()) if cell is not None]
    assert places == [Place("probe:untrained", "random", 5, None, seed) for seed in (0, 1)]
    assert schedule.take() is None


def test_the_steps_of_a_line_are_those_that_did_best():
    assert best_steps({place(6, 0): 0.5, place(20, 0): 0.6, place(60, 0): 0.55}) == 20
    assert best_steps({place(20, 0): 0.5, place(6, 0): 0.5}) == 6
    # The seed that tried most settles it, also where others did better with fewer.
    assert best_steps({place(6, 0): 0.9, place(6, 1): 0.5, place(20, 1): 0.6}) == 20
    assert best_steps({place(None, 3): 0.5}) is None


def test_one_seed_settles_the_steps_of_a_line():
    assert settling_seed([place(6, 0), place(6, 1), place(20, 1), place(20, 2)]) == 1
    assert settling_seed([place(6, 2), place(6, 1)]) == 1
