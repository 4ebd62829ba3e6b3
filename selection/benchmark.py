"""Measures time and peak memory of the selection, beside the dense graph of InfoDist, in one run on one machine.

    python -m histodistill.selection.benchmark --output benchmark.json

For one class of each of `--sizes` images: the graph of nearest neighbours (`knn_graph`), its communities by Infomap
(`find_communities`), and the choice of images as `DistillSelector` makes it. Beside it the dense construction of
InfoDist (Li and Kainz, MICCAI 2024, arXiv:2406.13536) for `--dense-sizes`, with the same Infomap, number of trials and
choice, so that only the graph differs: "dense", where Infomap takes all links at once, as it does for `knn_graph`, and
"dense, by link", where a loop in Python adds one after the other, as the published code does. All also for `--classes`
classes of the smallest size, each with a graph of its own.

The embeddings are a seeded mixture of Gaussians. Each measurement is a process of its own, so its peak memory is its
own; before the clock starts it makes its data and goes once through a few points, which loads the libraries. What
takes less than some seconds is done several times, and the median counts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import signal
import subprocess
import sys
import warnings
from collections import Counter
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_info
from tqdm import tqdm

from histodistill.selection.communities import LARGEST_RANDOM_STATE, DegenerateGraphWarning, find_communities
from histodistill.selection.distill_selector import round_robin
from histodistill.selection.files import write_bytes
from histodistill.selection.graph import knn_graph
from histodistill.selection.infodist_selection import dense_graph
from histodistill.selection.quotas import community_quotas
from histodistill.selection.streams import stream
from histodistill.selection.versions import installed_versions


#: The graphs that are compared; see the text at the top of this file.
METHODS = ("knn", "dense", "dense, by link")
#: What is timed, in this order: making the graph, finding communities, choosing, and all three.
PARTS = ("graph", "communities", "choice", "total")
#: A measurement is repeated until it was done so often, or has taken so many seconds in all.
MAX_REPEATS, MAX_SECONDS = 9, 5.0
#: Bytes in a mebibyte, the unit in which memory is told.
MIB = 2**20
#: Bytes of memory that the dense graph takes for each pair of images, and a little more. Measured with 1,000 to 4,000
#: images: 39 to 44 bytes, two fifths of the pairs being links.
DENSE_BYTES_PER_PAIR = 48
#: What the process of one measurement does with its task; the result is one line of JSON.
MEASURE = "import sys; from histodistill.selection import benchmark; print(benchmark.measure(sys.argv[1]))"


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads and checks the command line; ends with code 2 and one sentence where it is wrong."""
    parser = argparse.ArgumentParser("benchmark", description=__doc__, formatter_class=_HelpFormatter)
    add = parser.add_argument
    add("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000], help="images in the class")
    add("--dense-sizes", type=int, nargs="*", default=[1000], help="the same for the dense graph; none leaves it out")
    add("--classes", type=int, default=9, help="classes of the smallest size that are measured together")
    add("--dimensions", type=int, default=512, help="width of the embeddings")
    add("--n-per-class", type=int, default=100, help="images to choose of each class")
    add("--n-neighbors", type=int, default=15, help="links from each image in the kNN graph")
    add("--markov-time", type=float, default=1.0, help="larger gives fewer, larger communities")
    add("--num-trials", type=int, default=5, help="independent searches of Infomap, for both graphs")
    add("--seed", type=int, default=0, help="seed of the embeddings and of Infomap")
    add("--output", type=Path, default=None, help="JSON file with all figures")
    args = parser.parse_args(argv)

    for name in ("sizes", "dense_sizes"):
        _check(args, name, min(getattr(args, name), default=2) >= 2, "each must be at least 2")
        setattr(args, name, sorted(set(getattr(args, name))))
    for name in ("classes", "dimensions", "n_per_class", "n_neighbors", "num_trials"):
        _check(args, name, getattr(args, name) >= 1, "it must be at least 1")
    smallest = min(args.sizes + args.dense_sizes)
    _check(args, "n_per_class", args.n_per_class <= smallest, f"the smallest class has {smallest} images")
    _check(args, "markov_time", 0 < args.markov_time < math.inf, "it must be a finite number above 0")
    _check(args, "seed", 0 <= args.seed <= LARGEST_RANDOM_STATE, f"it must be 0 to {LARGEST_RANDOM_STATE}")
    if args.output is not None and args.output.is_dir():
        _fail(f"--output={args.output} is a folder: give a file, such as {args.output / 'benchmark.json'}")
    return args


def _check(args: argparse.Namespace, name: str, is_right: bool, rule: str) -> None:
    if not is_right:
        value = getattr(args, name)
        shown = " ".join(map(str, value)) if isinstance(value, list) else value
        _fail(f"--{name.replace('_', '-')}={shown} is out of range: {rule}")


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def make_embeddings(size: int, dimensions: int, seed: int, label: int = 0) -> np.ndarray:
    """Points that lie as the features of a classifier do: clusters in a subspace, and some noise in all directions.

    Args:
        size: N, number of points.
        dimensions: D; the clusters lie in a random subspace of 16 of them, or of all if there are fewer.
        seed: At least 0.
        label: Class of the points, at least 0; each class has clusters of its own.

    Returns:
        N×D float32: 50 equally likely Gaussian clusters whose centres are twice as spread as they are.
    """
    rng = stream("points of the benchmark of selectors", seed, label)
    rank = min(16, dimensions)
    basis = np.linalg.qr(rng.standard_normal((dimensions, rank)))[0].T.astype(np.float32)
    centers = 2 * rng.standard_normal((50, rank), dtype=np.float32)
    points = np.empty((size, dimensions), dtype=np.float32)
    # In chunks, so that temporary arrays do not count in the peak memory.
    for start in range(0, size, 4096):
        chunk = points[start : start + 4096]
        inside = rng.standard_normal((len(chunk), rank), dtype=np.float32)
        inside += centers[rng.integers(len(centers), size=len(chunk))]
        rng.standard_normal(out=chunk, dtype=np.float32)
        chunk *= np.float32(0.1)
        chunk += inside @ basis
    return points


def add_links_one_by_one(graph: csr_matrix) -> None:
    """Gives the links of a graph to Infomap in a loop, as the published code does, and throws them away.

    `find_communities` then gives them to it again all at once, which takes about a hundredth of that.
    """
    from infomap import Network

    network, links = Network(), graph.tocoo()
    for source, target, weight in zip(links.row.tolist(), links.col.tolist(), links.data.tolist(), strict=True):
        network.add_link(source, target, weight)


def measure(task: str) -> str:
    """Measures one task in this process.

    Args:
        task: JSON with `method`, one of `METHODS`, `classes`, `size`, and the settings of `parse_args`.

    Returns:
        JSON with `seconds` of the `PARTS`, of the repeat with the median total; `repeats`; `memory_mib`, the peak of
        this process at its `baseline`, when the data were made, and at its `peak`, after the first repeat;
        `num_links`, `num_communities` and `num_chosen` in all classes; and `threads` by kind of library.
    """
    settings = json.loads(task)
    shape = (settings["dimensions"], settings["seed"])
    runs: list[tuple[dict[str, float], Counter[str], int]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateGraphWarning)  # the result has the number of communities
        select_timed(make_embeddings(64, *shape), {**settings, "n_per_class": 1})
        classes = [make_embeddings(settings["size"], *shape, label) for label in range(settings["classes"])]
        baseline = _peak_memory()
        while len(runs) < MAX_REPEATS and sum(seconds["total"] for seconds, _, _ in runs) < MAX_SECONDS:
            seconds: Any = Counter()  # of floats, which the type of a Counter does not foresee
            counts: Counter[str] = Counter()
            for points in classes:
                chosen, seconds_of_class, counts_of_class = select_timed(points, settings)
                seconds.update(seconds_of_class)
                counts.update(counts_of_class, num_chosen=len(chosen))
            runs.append((seconds, counts, _peak_memory()))
    seconds, counts, _ = sorted(runs, key=lambda run: run[0]["total"])[len(runs) // 2]
    result = {
        **counts,
        "seconds": seconds,
        "repeats": len(runs),
        "memory_mib": {"baseline": baseline / MIB, "peak": runs[0][2] / MIB},
        "threads": {pool["user_api"]: pool["num_threads"] for pool in threadpool_info()},
    }
    return json.dumps(result)


def select_timed(embeddings: np.ndarray, task: dict[str, Any]) -> tuple[np.ndarray, dict[str, float], dict[str, int]]:
    """Chooses among the images of one class as `DistillSelector` does, by the clock.

    Args:
        embeddings: N×D float32.
        task: See `measure`; its `seed` is the `random_state` of the selector, its `n_per_class` at most N.

    Returns:
        `n_per_class` int64 indices in rank order; seconds of the `PARTS`; `num_links` and `num_communities`.
    """
    clock = [perf_counter()]
    graph = knn_graph(embeddings, task["n_neighbors"]) if task["method"] == "knn" else dense_graph(embeddings)
    if task["method"] == "dense, by link":
        add_links_one_by_one(graph)
    clock.append(perf_counter())
    found = find_communities(graph, task["markov_time"], task["num_trials"], task["seed"])
    clock.append(perf_counter())
    sizes = np.bincount(found.module_labels, minlength=found.num_modules)
    quotas = community_quotas(sizes, task["n_per_class"])
    chosen = round_robin(found.module_labels, found.modular_centrality, quotas)
    clock.append(perf_counter())
    seconds = [end - start for start, end in pairwise(clock)]
    counts = {"num_links": int(graph.nnz), "num_communities": found.num_modules}
    return chosen, dict(zip(PARTS, [*seconds, sum(seconds)], strict=True)), counts


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes on macOS, KiB elsewhere


def run_measurement(task: dict[str, Any]) -> dict[str, Any]:
    """Measures one task, see `measure`, in a process of its own, unless its dense graph does not fit.

    Returns:
        `status`, which is `"ok"`, `"skipped"` or `"failed"`, with the result of `measure` or the `reason`.
    """
    if task["method"] != "knn":
        data = 4 * task["classes"] * task["size"] * task["dimensions"]
        needed, available = DENSE_BYTES_PER_PAIR * task["size"] ** 2 + data, available_memory()
        if needed > available:
            reason = f"needs about {needed / 2**30:,.1f} GiB, available are {available / 2**30:,.1f} GiB"
            return {"status": "skipped", "reason": reason}
    command = [sys.executable, "-c", MEASURE, json.dumps(task)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if done.returncode < 0:
        # The kernel sends SIGKILL when memory runs out.
        return {"status": "failed", "reason": f"killed by {signal.Signals(-done.returncode).name}"}
    if done.returncode:
        message = done.stderr.strip().rpartition("\n")[2]  # the last line of a traceback
        return {"status": "failed", "reason": message or f"exit code {done.returncode}"}
    return {"status": "ok", **json.loads(done.stdout.splitlines()[-1])}


def available_memory() -> int:
    """Bytes of memory that are free or can be freed; all there are where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def growth_per_doubling(size: int, seconds: float, next_size: int, next_seconds: float) -> float:
    """Factor by which the time grows when the size doubles, if it grows as a power of it: 2 is linear, 4 quadratic."""
    return (next_seconds / seconds) ** (1 / math.log2(next_size / size))


def add_comparisons(rows: list[dict[str, Any]]) -> None:
    """Adds to rows what their `total` is beside that of others, where both were measured.

    `growth_per_doubling` beside the same method with one class of the next smaller size, and for the dense methods
    `times_knn`, how many times as long as the kNN graph they take for the same images.
    """
    measured = {(row["method"], row["classes"], row["size"]): row for row in rows if row["status"] == "ok"}
    total = {key: row["seconds"]["total"] for key, row in measured.items()}
    for (*before, size), (*method, next_size) in pairwise(sorted(measured)):
        if before == method:
            seconds, next_seconds = total[*method, size], total[*method, next_size]
            growth = growth_per_doubling(size, seconds, next_size, next_seconds)
            measured[*method, next_size]["growth_per_doubling"] = growth
    for method, *shape in measured:
        if method != "knn" and ("knn", *shape) in measured:
            measured[method, *shape]["times_knn"] = total[method, *shape] / total["knn", *shape]


def table_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as text."""
    header = ["", "graph s", "Infomap s", "choice s", "total s", "per doubling", "÷ knn"]
    header += ["baseline MiB", "peak MiB", "links", "communities"]
    table, notes = [header], [""]
    for row in rows:
        cells = ["–"] * (len(header) - 1)
        if row["status"] == "ok":
            cells = [f"{row['seconds'][part]:.4g}" for part in PARTS]
            cells += [f"× {row[name]:.2f}" if name in row else "" for name in ("growth_per_doubling", "times_knn")]
            cells += [f"{row['memory_mib'][name]:,.0f}" for name in ("baseline", "peak")]
            cells += [f"{row[name]:,}" for name in ("num_links", "num_communities")]
        table.append([f"{row['method']}, {_shape(row)}", *cells])
        notes.append("" if row["status"] == "ok" else f"{row['status']}: {row['reason']}")
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:]), note]).rstrip()
        for line, note in zip(table, notes, strict=True)
    ]


def _shape(row: dict[str, Any]) -> str:
    return f"{row['classes']} × {row['size']:,}"


def main(argv: list[str] | None = None) -> None:
    """Measures everything, prints the table and writes the JSON file."""
    args = parse_args(argv)
    settings = {name: value for name, value in vars(args).items() if name != "output"}
    shapes = [
        (method, 1, size) for method in METHODS for size in (args.sizes if method == "knn" else args.dense_sizes)
    ]
    if args.classes > 1:
        methods = METHODS if args.dense_sizes else METHODS[:1]
        shapes += [(method, args.classes, args.sizes[0]) for method in methods]
    rows = []
    is_terminal = sys.stderr.isatty()
    progress = tqdm(shapes, unit="measurement", mininterval=0.1 if is_terminal else 60)
    for method, classes, size in progress:
        row = {"method": method, "classes": classes, "size": size}
        progress.set_postfix_str(f"{method}, {_shape(row)}", refresh=is_terminal)
        rows.append({**row, **run_measurement({**settings, **row})})
    add_comparisons(rows)
    packages = ("histodistill", "infomap", "faiss-cpu", "numpy", "scipy", "scikit-learn")
    versions = {"python": platform.python_version(), **installed_versions(packages)}
    machine = {"cpu_count": os.cpu_count(), "versions": versions}
    results = {"settings": settings, "machine": machine, "rows": rows}
    print("\n".join(table_lines(rows)))
    if args.output is not None:
        write_bytes(args.output, (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())
        print(f"benchmark: saved to {args.output}")


if __name__ == "__main__":
    main()
