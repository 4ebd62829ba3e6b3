"""Reads all cases, or some, and prints a table of kinds and what became of them.

PYTHONPATH=tests python -m hostile [--part K] [--light] [--only WORDS] [--faults FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from hostile.cases import Case, all_cases
from hostile.reading import Outcome, read_cases


def some(cases: list[Case], part: int) -> list[Case]:
    """One of so many cases, drawn anew for each number, so that each place and kind has its chance."""
    order = np.random.default_rng(0).permutation(len(cases))
    return [cases[number] for number in sorted(order[: -(-len(cases) // part)])]


def table(outcomes: list[Outcome]) -> str:
    """Kinds × outcomes, in Markdown."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    places: dict[str, set[str]] = defaultdict(set)
    for outcome in outcomes:
        counts[outcome.case.kind][outcome.result if outcome.is_right else "wrong"] += 1
        places[outcome.case.kind].add(outcome.case.place.name)
    lines = ["| kind | places | inputs | refused in a sentence | read as it is | wrong |", "|---|---|---|---|---|---|"]
    total: Counter[str] = Counter()
    for kind in sorted(counts):
        found = counts[kind]
        total += found
        lines.append(_row(kind, len(places[kind]), found))
    lines.append(_row("all", len({outcome.case.place.name for outcome in outcomes}), total))
    return "\n".join(lines)


def _row(kind: str, num_places: int, found: Counter[str]) -> str:
    numbers = (num_places, found.total(), found["refused"], found["read"], found["wrong"])
    return f"| {kind} | {' | '.join(map(str, numbers))} |"


def main() -> int:
    """0 where all ended as they should, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", type=int, default=1, help="read one of so many cases (default: 1, all)")
    parser.add_argument("--light", action="store_true", help="leave out what needs torch")
    parser.add_argument("--only", default="", help="those whose name holds these words")
    parser.add_argument("--json", type=Path, help="file for what became of each")
    options = parser.parse_args()
    cases = [case for case in some(all_cases(not options.light), options.part) if options.only in case.name]
    outcomes = []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HISTODISTILL_CACHE"] = str(Path(scratch) / "cache")
        os.environ["HF_HUB_OFFLINE"] = "1"
        for outcome in read_cases(cases, Path(scratch).resolve() / "cases"):
            outcomes.append(outcome)
            if not outcome.is_right:
                print(f"{outcome.result}: {outcome.case.name}: {outcome.text}", file=sys.stderr, flush=True)
    if options.json:
        rows = [[o.case.name, o.result, o.text, o.memory, round(o.seconds, 3)] for o in outcomes]
        options.json.write_text(json.dumps(rows, indent=0))
    print(table(outcomes))
    most = max(outcomes, key=lambda outcome: outcome.memory)
    slowest = max(outcomes, key=lambda outcome: outcome.seconds)
    print(f"most memory: {most.memory / 2**20:.0f} MiB ({most.case.name})")
    print(f"longest: {slowest.seconds:.1f} s ({slowest.case.name})")
    return 0 if all(outcome.is_right for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
