from __future__ import annotations

import json
import os
import subprocess
import sys

import faiss
import infomap
import numpy as np
import pytest

from histodistill.selection import DistillSelector
from histodistill.selection import benchmark as script


SETTINGS = {
    "dimensions": 8,
    "n_per_class": 10,
    "n_neighbors": 5,
    "markov_time": 1.0,
    "num_trials": 2,
    "seed": 3,
}
# No machine has the memory for so many points, and none of 64 bits can even address it.
TOO_MANY = 10**15


def naive_dense_graph(points):
    """The construction as it is described, link by link."""
    n = len(points)
    weights = np.zeros((n, n))
    for i in range(n):
        powers = {j: np.exp(1 / np.linalg.norm(points[i] - points[j])) for j in range(n) if j != i}
        for j, power in powers.items():
            weight = power / sum(powers.values())
            weights[i, j] = weight if weight >= 1 / n else 0
    return weights


# The graphs.


def test_dense_graph_of_three_points_by_hand():
    # On a line at 0, 1/2 and 3/2: inverse distances 2, 2/3 and 1. The first row is e² and e^(2/3) over their sum
    # 9.3368, and the 0.2086 is below 1/3; the second e² and e over 10.1073, where 0.2689 is; the third keeps both.
    graph = script.dense_graph(np.array([[0.0], [0.5], [1.5]], dtype=np.float32))
    expected = [[0, 0.79139, 0], [0.73106, 0, 0], [0.41743, 0.58257, 0]]
    np.testing.assert_allclose(graph.toarray(), expected, atol=1e-5)


# Far apart, all inverse distances are about 0, all weights about 1/(N - 1), and so none is below 1/N.
@pytest.mark.parametrize(("scale", "drops_links"), [(0.05, True), (1.0, True), (20.0, False)])
def test_dense_graph_equals_the_naive_loop(scale, drops_links):
    points = script.make_embeddings(40, 6, seed=1) * np.float32(scale)
    graph = script.dense_graph(points)
    expected = naive_dense_graph(points.astype(np.float64))
    assert graph.format == "csr" and graph.shape == (40, 40)
    assert (graph.nnz < 40 * 39) == drops_links
    np.testing.assert_allclose(graph.toarray(), expected, rtol=1e-4)


def test_duplicates_take_all_the_weight():
    graph = script.dense_graph(np.array([[0.0], [0.0], [0.0], [5.0]], dtype=np.float32)).toarray()
    np.testing.assert_allclose(graph[0], [0, 0.5, 0.5, 0])
    np.testing.assert_allclose(graph[3], [1 / 3, 1 / 3, 1 / 3, 0], rtol=1e-6)


def test_embeddings_are_seeded_and_clustered():
    points = script.make_embeddings(5000, 24, seed=1, label=2)
    assert points.dtype == np.float32 and points.shape == (5000, 24)
    np.testing.assert_array_equal(points, script.make_embeddings(5000, 24, seed=1, label=2))
    for other in (script.make_embeddings(5000, 24, seed=2, label=2), script.make_embeddings(5000, 24, seed=1)):
        assert not np.isclose(other, points).all(axis=1).any()
    # 16 directions hold all but the noise, of standard deviation 0.1.
    spread = np.linalg.svd(points - points.mean(axis=0), compute_uv=False) / np.sqrt(5000)
    assert spread[15] > 0.5
    np.testing.assert_allclose(spread[16:], 0.1, rtol=0.1)


# One measurement.


def test_the_choice_is_that_of_the_selector():
    points = script.make_embeddings(120, 8, seed=3)
    chosen, seconds, counts = script.select_timed(points, {"method": "knn", **SETTINGS})
    selector = DistillSelector(n_per_class=10, n_neighbors=5, num_trials=2, random_state=3)
    selector.fit(points, np.zeros(120, dtype=int))
    np.testing.assert_array_equal(chosen, selector.selected_indices_)
    assert counts == {"num_links": 120 * 5, "num_communities": selector.num_communities_[0]}
    assert seconds["total"] == pytest.approx(sum(seconds[part] for part in ("graph", "communities", "choice")))


def test_a_killed_measurement_is_told(monkeypatch):
    monkeypatch.setattr(script, "MEASURE", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    result = script.run_measurement({"method": "knn", "classes": 1, "size": 60, **SETTINGS})
    assert result == {"status": "failed", "reason": "killed by SIGKILL"}


def test_available_memory_is_that_of_a_computer():
    assert 2**20 < script.available_memory() < 2**60


@pytest.mark.parametrize(
    ("size", "seconds", "next_size", "next_seconds", "growth"),
    [
        (1000, 1.0, 2000, 3.0, 3.0),
        (1000, 1.0, 4000, 16.0, 4.0),  # two doublings, × 4 each
        (1000, 2.0, 10_000, 20.0, 2.0),  # linear
        (1000, 2.0, 1414.2135623730951, 4.0, 4.0),  # half a doubling
    ],
)
def test_growth_per_doubling(size, seconds, next_size, next_seconds, growth):
    assert script.growth_per_doubling(size, seconds, next_size, next_seconds) == pytest.approx(growth)


# The command.


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """JSON file, table and progress of one run, in which a measurement fails and another does not fit."""
    file = tmp_path_factory.mktemp("benchmark") / "results" / "benchmark.json"
    sizes = ["--sizes", "120", "60", str(TOO_MANY), "--dense-sizes", "60", str(10**8), "--classes", "3"]
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    done = subprocess.run(
        [sys.executable, "-m", "histodistill.selection.benchmark", *sizes, *settings, "--output", str(file)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return file, done.stdout, done.stderr


def test_results_tell_settings_and_machine(measured):
    results = json.loads(measured[0].read_text())
    assert results.keys() == {"settings", "machine", "rows"}
    sizes = {"sizes": [60, 120, TOO_MANY], "dense_sizes": [60, 10**8], "classes": 3}
    assert results["settings"] == {**SETTINGS, **sizes}
    assert results["machine"]["cpu_count"] == os.cpu_count()
    versions = results["machine"]["versions"]
    assert versions["infomap"] == infomap.__version__
    assert versions["faiss-cpu"] == faiss.__version__
    assert versions["numpy"] == np.__version__
    assert [path.name for path in measured[0].parent.iterdir()] == ["benchmark.json"]


def test_a_failure_does_not_stop_the_others(measured):
    rows = json.loads(measured[0].read_text())["rows"]
    assert [(row["method"], row["classes"], row["size"], row["status"]) for row in rows] == [
        ("knn", 1, 60, "ok"),
        ("knn", 1, 120, "ok"),
        ("knn", 1, TOO_MANY, "failed"),
        ("dense", 1, 60, "ok"),
        ("dense", 1, 10**8, "skipped"),
        ("dense, by link", 1, 60, "ok"),
        ("dense, by link", 1, 10**8, "skipped"),
        ("knn", 3, 60, "ok"),
        ("dense", 3, 60, "ok"),
        ("dense, by link", 3, 60, "ok"),
    ]
    assert "Unable to allocate" in rows[2]["reason"]
    assert rows[4]["reason"].startswith("needs about 447,034,838.8 GiB, available are ")


def test_rows_have_times_memory_and_counts(measured):
    rows = [row for row in json.loads(measured[0].read_text())["rows"] if row["status"] == "ok"]
    for row in rows:
        assert row["seconds"].keys() == {"graph", "communities", "choice", "total"}
        assert all(value > 0 for value in row["seconds"].values())
        assert row["repeats"] >= 1
        assert 10 < row["memory_mib"]["baseline"] <= row["memory_mib"]["peak"]
        assert row["num_chosen"] == 10 * row["classes"]
        assert row["classes"] <= row["num_communities"] <= row["classes"] * row["size"]
        assert row["threads"]["openmp"] == 1
        if row["method"] == "knn":
            assert row["num_links"] == 5 * row["classes"] * row["size"]
        else:
            assert 0 < row["num_links"] < row["classes"] * row["size"] ** 2


def test_rows_are_compared(measured):
    rows = {(r["method"], r["classes"], r["size"]): r for r in json.loads(measured[0].read_text())["rows"]}
    total = {key: row["seconds"]["total"] for key, row in rows.items() if row["status"] == "ok"}
    assert {key for key, row in rows.items() if "growth_per_doubling" in row} == {("knn", 1, 120)}
    growth = total["knn", 1, 120] / total["knn", 1, 60]
    assert rows["knn", 1, 120]["growth_per_doubling"] == pytest.approx(growth)
    dense = [(method, classes, 60) for method in ("dense", "dense, by link") for classes in (1, 3)]
    assert {key for key, row in rows.items() if "times_knn" in row} == set(dense)
    for method, classes, size in dense:
        times = total[method, classes, size] / total["knn", classes, size]
        assert rows[method, classes, size]["times_knn"] == pytest.approx(times)
        assert rows[method, classes, size]["num_links"] == rows["dense", classes, size]["num_links"]


def test_the_table_has_a_line_for_each_row(measured):
    file, output, progress = measured
    results = json.loads(file.read_text())
    header, *lines, saved = output.splitlines()
    assert header.split("  ")[-1] == "communities"
    assert len(lines) == len(results["rows"])
    for row, line in zip(results["rows"], lines, strict=True):
        assert line.startswith(f"{row['method']}, {row['classes']} × {row['size']:,} ")
        if row["status"] == "ok":
            assert f"{row['seconds']['total']:.4g}" in line.split()
            assert len(line) == len(header)
        else:
            assert line.endswith(f"–  {row['status']}: {row['reason']}")
    assert saved == f"benchmark: saved to {file}"
    assert "10/10" in progress


def test_no_dense_sizes_leave_the_dense_graph_out(monkeypatch, capsys):
    result = {"status": "failed", "reason": "not measured here"}
    tasks = []
    monkeypatch.setattr(script, "run_measurement", lambda task: tasks.append(task) or result)
    script.main(["--sizes", "300", "200", "300", "--dense-sizes"])
    assert [(task["method"], task["classes"], task["size"]) for task in tasks] == [
        ("knn", 1, 200),
        ("knn", 1, 300),
        ("knn", 9, 200),
    ]
    assert capsys.readouterr().out.count("failed: not measured here") == 3


def test_help_shows_defaults_but_no_none(capsys):
    with pytest.raises(SystemExit):
        script.parse_args(["--help"])
    text = capsys.readouterr().out
    assert "(default: 512)" in text
    assert "None" not in text


def test_defaults():
    args = script.parse_args([])
    assert (args.sizes, args.dense_sizes, args.classes) == ([1000, 10_000, 100_000], [1000], 9)
    assert (args.dimensions, args.n_neighbors, args.num_trials, args.n_per_class) == (512, 15, 5, 100)
    assert (args.markov_time, args.seed, args.output) == (1.0, 0, None)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sizes=0"], "--sizes=0 is out of range: each must be at least 2"),
        (["--sizes", "1000", "1"], "--sizes=1000 1 is out of range: each must be at least 2"),
        (["--dense-sizes", "1"], "--dense-sizes=1 is out of range: each must be at least 2"),
        (["--classes", "0"], "--classes=0 is out of range: it must be at least 1"),
        (["--dimensions", "0"], "--dimensions=0 is out of range: it must be at least 1"),
        (["--n-per-class", "0"], "--n-per-class=0 is out of range: it must be at least 1"),
        (["--sizes", "50"], "--n-per-class=100 is out of range: the smallest class has 50 images"),
        (["--dense-sizes", "60"], "--n-per-class=100 is out of range: the smallest class has 60 images"),
        (["--n-neighbors", "0"], "--n-neighbors=0 is out of range: it must be at least 1"),
        (["--num-trials", "-1"], "--num-trials=-1 is out of range: it must be at least 1"),
        (["--markov-time", "0"], "--markov-time=0.0 is out of range: it must be a finite number above 0"),
        (["--markov-time", "inf"], "--markov-time=inf is out of range: it must be a finite number above 0"),
        (["--markov-time", "nan"], "--markov-time=nan is out of range: it must be a finite number above 0"),
        (["--seed", "-1"], "--seed=-1 is out of range: it must be 0 to 2147483647"),
        (["--output", "."], "--output=. is a folder: give a file, such as benchmark.json"),
    ],
)
def test_bad_options(argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(argv)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"
