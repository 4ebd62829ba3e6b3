from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from histodistill.training.tables.results_summary import BASELINES, markdown_table, paired_margin, row_title, summarise


# Margins.


def test_margin_against_numbers_from_a_book():
    # Student's own data (1908): the additional sleep of ten patients with two drugs; t = 4.062, p = 0.00283.
    first = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
    second = np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])
    margin = paired_margin(second, first)
    assert margin["mean"] == pytest.approx(1.58)
    assert (margin["low"], margin["high"]) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    assert margin["p_value"] == pytest.approx(0.002833, abs=1e-6)
    other_way = paired_margin(first, second)
    assert (other_way["mean"], other_way["low"]) == pytest.approx((-margin["mean"], -margin["high"]))


def test_margin_of_two_seeds_by_hand():
    # Differences 0.1 and 0.2: standard error 0.05, and 12.706 of them to each side with one degree of freedom.
    margin = paired_margin(np.array([0.6, 0.9]), np.array([0.5, 0.7]))
    reach = 0.05 * stats.t.ppf(0.975, 1)
    assert (margin["mean"], margin["low"], margin["high"]) == pytest.approx((0.15, 0.15 - reach, 0.15 + reach))
    assert margin["p_value"] == pytest.approx(2 * stats.t.sf(3, 1))


@pytest.mark.parametrize(
    ("scores", "baseline", "mean"),
    [([0.75], [0.5], 0.25), ([0.5, 0.75], [0.5, 0.75], 0.0), ([0.5, 0.75, 1], [0.25, 0.5, 0.75], 0.25)],
)
def test_one_seed_and_equal_differences_leave_the_interval_open(scores, baseline, mean):
    margin = paired_margin(np.array(scores), np.array(baseline))
    assert margin == {"mean": mean, "low": None, "high": None, "p_value": None}


def test_differences_equal_but_for_rounding_leave_the_interval_open():
    margin = paired_margin(np.array([0.8, 0.9]), np.array([0.7, 0.8]))
    assert margin == {"mean": pytest.approx(0.1), "low": None, "high": None, "p_value": None}


# Rows.


def scored(
    architecture: str, row: str, size: int | None, seed: int, accuracy: float, auc: float | None = 0.5, steps: int = 7
) -> dict:
    scores = {"accuracy": accuracy, "auc": auc, "f1": accuracy / 2}
    return {
        "architecture": architecture, "row": row, "size": size, "seed": seed,
        "num_train": 5 * (size or 9), "config": {"max_train_steps": steps, "batch_size": 32},
        "validation": {**scores, "accuracy": 1 - accuracy}, "test": scores,
    }  # fmt: skip


def test_each_row_is_at_its_best_number_of_steps():
    # Validation accuracy is 1 - that of the test tiles here: the best steps are those that do worst on these.
    rows = summarise([
        scored("convnet", "infomap", 2, 0, 0.7, steps=6), scored("convnet", "infomap", 2, 0, 0.4, steps=20),
        scored("convnet", "infomap", 2, 1, 0.5, steps=20), scored("convnet", "random", 2, 0, 0.3, steps=6),
        scored("convnet", "random", 2, 0, 0.6, steps=20), scored("convnet", "random", 2, 1, 0.2, steps=6),
        scored("convnet", "real_all", None, 0, 0.8, steps=60), scored("convnet", "real_all", None, 1, 0.8, steps=60),
    ])  # fmt: skip
    infomap, random, ceiling = rows
    assert [(row["steps"], row["batch_size"], row["seeds"]) for row in rows] == [
        (20, 32, [0, 1]), (6, 32, [0, 1]), (60, 32, [0, 1]),
    ]  # fmt: skip
    assert infomap["test"]["accuracy"]["values"] == [0.4, 0.5] and random["test"]["accuracy"]["values"] == [0.3, 0.2]
    assert infomap["test"]["accuracy"]["margins"]["random"]["mean"] == pytest.approx(0.2)
    assert infomap["test"]["recovery"] == pytest.approx(0.9 / 1.6) and ceiling["test"]["recovery"] == 1
    assert infomap["ladder"] == [
        {"steps": 6, "seeds": [0], "validation": pytest.approx(0.3)},
        # That of the seed that settles it.
        {"steps": 20, "seeds": [0, 1], "validation": pytest.approx(0.6)},
    ]
    lines = markdown_table(rows, "test").splitlines()
    assert "| classifier | images per class | trained on | steps | ACC |" in lines[0]
    assert lines[2].startswith("| convnet | all | all real training tiles | 60 of 32 |")


def test_a_ladder_says_why_a_row_takes_its_steps():
    # Of all seeds together, 6 steps would have done better: the one that tried both settles it.
    [row] = summarise([
        scored("convnet", "random", 2, 0, 0.5, steps=6), scored("convnet", "random", 2, 0, 0.4, steps=20),
        scored("convnet", "random", 2, 1, 0.1, steps=6), scored("convnet", "random", 2, 2, 0.9, steps=20),
        scored("convnet", "random", 2, 3, 0.2, steps=60),
    ])  # fmt: skip
    assert (row["steps"], row["seeds"]) == (20, [0, 2])
    assert row["ladder"] == [
        {"steps": 6, "seeds": [0, 1], "validation": 0.5}, {"steps": 20, "seeds": [0, 2], "validation": 0.6},
    ]  # fmt: skip


def test_margins_are_paired_by_seed():
    rows = summarise([
        scored("convnet", "infomap", 2, 1, 0.7), scored("convnet", "infomap", 2, 0, 0.9),
        scored("convnet", "infomap", 2, 2, 0.3),
        # Seed 0 is not there yet, and neither another size nor another classifier is a baseline.
        scored("convnet", "random", 2, 2, 0.2), scored("convnet", "random", 2, 1, 0.5),
        scored("convnet", "random", 1, 0, 0.1), scored("vit", "infomap", 2, 0, 0.4),
        scored("convnet", "real_random", 2, 0, 0.6), scored("convnet", "real_random", 1, 0, 0.3),
    ])  # fmt: skip
    assert [(row["architecture"], row["row"], row["size"]) for row in rows] == [
        ("convnet", "infomap", 2), ("convnet", "random", 2), ("convnet", "random", 1), ("vit", "infomap", 2),
        ("convnet", "real_random", 2), ("convnet", "real_random", 1),
    ]  # fmt: skip
    first = rows[0]
    assert (first["num_train"], first["steps"], first["seeds"]) == (10, 7, [0, 1, 2])
    one_seed = {"low": None, "high": None, "p_value": None}
    assert first["test"]["accuracy"] == {
        "mean": pytest.approx(1.9 / 3),
        "std": pytest.approx(np.std([0.9, 0.7, 0.3], ddof=1)),
        "values": [0.9, 0.7, 0.3],
        "margins": {
            "random": paired_margin(np.array([0.7, 0.3]), np.array([0.5, 0.2])),
            "real_random": {"mean": pytest.approx(0.3), **one_seed},
        },
    }
    assert first["test"]["accuracy"]["margins"]["random"]["mean"] == pytest.approx(0.15)
    assert first["test"]["auc"]["margins"] == {name: {"mean": 0.0, **one_seed} for name in BASELINES}
    assert first["validation"]["accuracy"]["margins"]["random"]["mean"] == pytest.approx(-0.15)
    # The baselines themselves: one is measured against the other, where they have a size and a seed in common.
    margins = [row["test"]["accuracy"]["margins"] for row in rows[1:]]
    assert margins == [
        {"real_random": None},
        {"real_random": {"mean": pytest.approx(-0.2), **one_seed}},
        {"random": None, "real_random": None},
        {"random": None},
        {"random": {"mean": pytest.approx(0.2), **one_seed}},
    ]


def test_a_row_is_compared_with_baselines_of_its_recipe():
    rows = summarise([
        scored("convnet", "kmeans@stain_strength=0", 2, 0, 0.7), scored("convnet", "kmeans@loss=joint", 2, 0, 0.7),
        scored("convnet", "real_random", 2, 0, 0.5), scored("convnet", "real_random@stain_strength=0", 2, 0, 0.6),
        # Of this one no seed is there that the other row has, but it was trained.
        scored("convnet", "random", 2, 0, 0.4), scored("convnet", "random@stain_strength=0", 2, 1, 0.3),
        # The same recipe of another size or of another classifier is not.
        scored("convnet", "random@loss=joint", 1, 0, 0.1), scored("vit", "random@loss=joint", 2, 0, 0.1),
    ])  # fmt: skip
    margins = {
        (row["row"], row["size"]): {
            name: margin and round(margin["mean"], 6) for name, margin in row["test"]["accuracy"]["margins"].items()
        }
        for row in rows
        if row["architecture"] == "convnet"
    }
    assert margins == {
        ("kmeans@stain_strength=0", 2): {"random": None, "real_random": 0.1},
        ("kmeans@loss=joint", 2): {"random": 0.3, "real_random": 0.2},
        # A baseline of another recipe has no margin over itself.
        ("real_random", 2): {"random": 0.1},
        ("real_random@stain_strength=0", 2): {"random": None},
        ("random", 2): {"real_random": -0.1},
        ("random@stain_strength=0", 2): {"real_random": None},
        ("random@loss=joint", 1): {"real_random": None},
    }
    assert [row["against"] for row in rows[:3]] == [
        {"random": "random@stain_strength=0", "real_random": "real_random@stain_strength=0", "real_all": None},
        {"random": "random", "real_random": "real_random", "real_all": None},
        {"random": "random", "real_all": None},
    ]


def test_recovery_is_the_share_of_what_all_real_tiles_give():
    rows = summarise([
        scored("convnet", "real_all", None, 0, 0.9), scored("convnet", "real_all", None, 1, 0.7),
        scored("convnet", "infomap", 2, 0, 0.6), scored("convnet", "infomap", 2, 1, 0.5),
        # Where there is no ceiling with soft labels, the plain one counts; another classifier's does not.
        scored("convnet", "infomap@loss=joint", 2, 0, 0.6),
        scored("convnet", "infomap@soft_label_weight=1", 2, 0, 0.6),
        scored("convnet", "real_all@loss=joint", None, 0, 0.5), scored("vit", "infomap", 2, 0, 0.6),
    ])  # fmt: skip
    found = [row["test"]["recovery"] for row in rows]
    assert found == [1.0, *map(pytest.approx, (1.1 / 1.6, 0.6 / 0.5, 0.6 / 0.9, 1.0)), None]
    # Validation accuracies are one minus those of the test tiles here.
    assert rows[1]["validation"]["recovery"] == pytest.approx(0.9 / 0.4)


def test_recovery_goes_by_the_seeds_that_row_and_ceiling_have():
    rows = summarise([
        scored("convnet", "real_all", None, 0, 0.9), scored("convnet", "real_all", None, 1, 0.7),
        scored("convnet", "infomap", 2, 1, 0.6), scored("convnet", "infomap", 2, 2, 0.3),
        scored("convnet", "pool_all", None, 5, 0.88),
    ])  # fmt: skip
    assert [row["test"]["recovery"] for row in rows] == [1.0, pytest.approx(0.6 / 0.7), None]


def test_one_seed_has_neither_spread_nor_interval():
    [row, _] = summarise([scored("convnet", "infomap", 2, 3, 0.75), scored("convnet", "random", 2, 3, 0.5)])
    margin = {"mean": 0.25, "low": None, "high": None, "p_value": None}
    assert row["test"]["accuracy"] == {
        "mean": 0.75, "std": None, "values": [0.75], "margins": {"random": margin, "real_random": None},
    }  # fmt: skip


def test_an_auc_that_is_undefined_once_has_no_mean():
    row, other = summarise([
        scored("convnet", "random", 2, 0, 0.5, auc=None), scored("convnet", "random", 2, 1, 0.5),
        scored("convnet", "infomap", 2, 0, 0.5), scored("convnet", "infomap", 2, 1, 0.5),
    ])  # fmt: skip
    assert row["test"]["auc"] == {"mean": None, "std": None, "values": [None, 0.5], "margins": {"real_random": None}}
    assert other["test"]["auc"]["margins"]["random"] is None
    assert other["test"]["accuracy"]["margins"]["random"]["mean"] == 0
    assert "| 0.500 ± 0.000 | – |" in markdown_table([row], "test")


def test_nothing_is_an_empty_table():
    assert summarise([]) == []
    assert len(markdown_table([], "test").splitlines()) == 2 + 2


def test_table_of_one_split():
    rows = summarise([
        scored("convnet", "infomap:quota=sqrt", 10, 0, 0.75), scored("convnet", "infomap:quota=sqrt", 10, 1, 0.5),
        scored("convnet", "random", 10, 0, 0.5), scored("convnet", "random", 10, 1, 0.375),
        scored("convnet", "real_random", 10, 0, 0.8), scored("convnet", "real_random", 10, 1, 0.7),
        scored("convnet", "infomap:quota=sqrt", 2, 0, 0.5), scored("convnet", "random", 2, 0, 0.5),
        scored("convnet", "real_all", None, 0, 1.0), scored("vit", "real_random", 2, 0, 0.25),
    ])  # fmt: skip
    table = markdown_table(rows, "test")
    assert "†" not in table.split("\n\n")[0] and table.endswith("was trained.\n")
    *table_lines, empty, _ = table.splitlines()
    assert empty == ""
    header, rule, *lines = [[text.strip() for text in line.split("|")[1:-1]] for line in table_lines]
    assert {len(line) for line in (header, rule, *lines)} == {12}
    assert header[8:] == [
        "ACC over random pool images, 95 % interval", "p", "ACC over random real tiles, 95 % interval", "p",
    ]  # fmt: skip
    assert [line[:3] for line in lines] == [
        ["convnet", "all", "all real training tiles"],
        ["convnet", "2", "`infomap:quota=sqrt`"],
        ["convnet", "2", "`random`"],
        ["convnet", "10", "`infomap:quota=sqrt`"],
        ["convnet", "10", "`random`"],
        ["convnet", "10", "random real training tiles"],
        ["vit", "2", "random real training tiles"],
    ]

    def margin(*baseline: float) -> list[str]:
        found = paired_margin(np.array([0.75, 0.5]), np.array(baseline))
        return [f"{found['mean']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})", f"{found['p_value']:.3f}"]

    assert {line[3] for line in lines} == {"7 of 32"}
    assert lines[3][4:] == [
        "0.625 ± 0.177", "0.500 ± 0.000", "0.312 ± 0.088", "75.0 %", *margin(0.5, 0.375), *margin(0.8, 0.7),
    ]  # fmt: skip
    assert lines[1][4:] == ["0.500", "0.500", "0.250", "50.0 %", "+0.000", "", "", ""]
    assert lines[0][4:] == ["1.000", "0.500", "0.500", "100.0 %", "", "", "", ""]
    assert lines[6][7] == "–"
    # The other split has its own numbers, and nobody is measured against an accuracy of 0.
    validation = markdown_table(rows, "validation").splitlines()[2]
    assert "| 0.000 |" in validation and "| – |" in validation


def test_table_marks_baselines_of_another_recipe():
    rows = summarise([
        scored("convnet", "real_all", None, 0, 1.0), scored("convnet", "kmeans@loss=joint", 2, 0, 0.75),
        scored("convnet", "random", 2, 0, 0.5), scored("convnet", "real_random@loss=joint", 2, 0, 0.25),
        scored("convnet", "random", 2, 1, 0.25), scored("convnet", "kmeans@loss=joint", 2, 1, 0.75),
    ])  # fmt: skip
    lines = [line for line in markdown_table(rows, "test").splitlines() if line.startswith("| convnet")]
    low, high, p_value = (paired_margin(np.array([0.75, 0.75]), np.array([0.5, 0.25]))[name] for name in
                          ("low", "high", "p_value"))  # fmt: skip
    assert "100.0 % |" in lines[0]
    assert lines[1].endswith(f"| 75.0 %† | +0.375 ({low:+.3f} to {high:+.3f})† | {p_value:.3f} | +0.500 |  |")


def test_titles_of_rows():
    assert row_title("real_all") == "all real training tiles"
    assert row_title("real_all@loss=joint,margin=0.2") == "all real training tiles, `loss=joint,margin=0.2`"
    assert row_title("infomap:quota=sqrt") == "`infomap:quota=sqrt`"
    assert row_title("random@mixup=0.2") == "`random`, `mixup=0.2`"
