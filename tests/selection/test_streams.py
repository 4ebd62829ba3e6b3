from __future__ import annotations

import ast
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

import histodistill.selection
import histodistill.training
from histodistill.selection.streams import stream, torch_seed


# Their first argument is the purpose.
TAKE_A_PURPOSE = {"stream", "torch_seed", "step_generator"}
# A draw that keeps the numbers it had: of the tiles that are held out for an audit.
WITHOUT_PURPOSE = {"splits.py"}


def calls() -> list[tuple[Path, str, ast.Call]]:
    """Every call of a name or attribute in the code of `selection` and `training`."""
    found = []
    for package in (histodistill.selection, histodistill.training):
        for file in sorted(Path(package.__file__).parent.rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call):
                    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                    found.append((file, name, node))
    return found


def purposes() -> list[str]:
    """The purposes in the code; what a training puts into one stands as `{}`."""
    found = []
    for file, name, node in calls():
        # `steps.py` passes purposes on, but for its two of its own.
        taking = {"steps.py": {"stream"}, "streams.py": set()}.get(file.name, TAKE_A_PURPOSE)
        if name in taking:
            found.append(_text(node.args[0]))
    return found


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    assert isinstance(node, ast.Constant), f"line {node.lineno}: a purpose is to be read where it is used"
    return node.value


def test_every_stream_has_a_purpose_of_its_own():
    found = purposes()
    assert len(found) > 20
    assert len(set(found)) == len(found)


def test_no_other_stream_is_opened():
    places = {file.name for file, name, _ in calls() if name in ("default_rng", "SeedSequence", "RandomState")}
    assert places == {"streams.py", *WITHOUT_PURPOSE}


def test_streams_of_a_run_with_seed_0_are_distinct():
    # What a run uses: every purpose with as many zeros as it may have numbers, and the draws that have no purpose.
    draws = [stream(purpose, *[0] * zeros) for purpose in purposes() for zeros in range(5)]
    draws += [np.random.default_rng(label) for label in range(20)]
    first = [rng.integers(2**63, size=2).tobytes() for rng in draws]
    assert len(set(first)) == len(first)
    seeds = [torch_seed(purpose, *[0] * zeros) for purpose in purposes() for zeros in range(5)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_first_baseline_is_no_longer_what_was_held_out():
    from histodistill.training.data.tiles import sample_per_class

    # NumPy's keys are filled up with zeros, which is what made them one.
    held_out = np.random.default_rng(0).permutation(40)[:10]
    np.testing.assert_array_equal(held_out, np.random.default_rng([0, 0]).permutation(40)[:10])
    assert sample_per_class(np.zeros(40, dtype=int), 10, seed=0).tolist() != sorted(held_out.tolist())


@pytest.mark.parametrize("numbers", [(), (0,), (1,), (0, 1), (1, 0), (7, 0, 0)])
def test_trailing_zeros_matter(numbers):
    longer = [(*numbers, *[0] * zeros) for zeros in range(4)]
    for one, other in itertools.combinations(longer, 2):
        assert stream("a", *one).random() != stream("a", *other).random()
        assert torch_seed("a", *one) != torch_seed("a", *other)


def test_purpose_and_numbers_do_not_run_into_each_other():
    keys = [("a", 1, 2), ("a", 12), ("a1", 2), ("a, 1", 2), ("a 1 2",), ('a", 1, "', 2), ("a", -1, 2)]
    assert len({stream(*key).random() for key in keys}) == len(keys)


def test_streams_are_the_same_everywhere():
    # Of this version: when these change, so does every result.
    assert stream("a test", 3, 0).integers(1000, size=3).tolist() == GOLDEN
    assert torch_seed("a test", 3, 0) == GOLDEN_SEED
    assert stream("a test", np.int64(3), np.uint8(0)).integers(1000, size=3).tolist() == GOLDEN
    assert torch.Generator().manual_seed(torch_seed("a test", 3, 0)).initial_seed() == GOLDEN_SEED


GOLDEN = [384, 305, 453]
GOLDEN_SEED = 8_698_330_326_307_280_200
