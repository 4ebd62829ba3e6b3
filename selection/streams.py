"""Streams of random numbers, each with a purpose of its own.

Two draws that are to be independent must not share their numbers. Seeds alone don't see to that: `default_rng(0)` and
`default_rng([0, 0])` are one stream, since NumPy fills up a short key with zeros. So the key of a stream is a hash of
what it is for, in words, and of its numbers: streams of two purposes never meet, and every number counts, zeros too.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np


def stream(purpose: str, *numbers: int) -> np.random.Generator:
    """A generator of its own for a purpose and numbers; the same in any process and on any machine.

    Args:
        purpose: What is drawn, in words. One place in the code has a purpose, so that no other draws the same numbers.
        numbers: What keeps several streams of the purpose apart, such as the seed of a run, a step or a class.
    """
    return np.random.default_rng(np.frombuffer(_key(purpose, numbers), dtype="<u4").astype(np.uint32))


def torch_seed(purpose: str, *numbers: int) -> int:
    """A seed in [0, 2⁶³) for a generator of PyTorch: see `stream`.

    Args:
        purpose, numbers: See `stream`.
    """
    return int.from_bytes(_key(purpose, numbers)[:8], "little") >> 1


def _key(purpose: str, numbers: tuple[int, ...]) -> bytes:
    """256 bits that only this purpose has with these numbers."""
    return hashlib.sha256(json.dumps([purpose, *map(int, numbers)]).encode()).digest()
