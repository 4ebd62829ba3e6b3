"""How many of a class's `n_per_class` images each of its communities gives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from histodistill.selection.checks import check_choice, check_integer


#: The rules that `community_quotas` knows.
QUOTA_RULES = ("proportional", "uniform", "sqrt", "real")


def community_quotas(sizes: Any, n: int, rule: str = "proportional", real_counts: Any = None) -> np.ndarray:
    """Shares `n` places among communities.

    A community's ideal share is proportional to its size (`"proportional"`), to the square root of its size
    (`"sqrt"`), the same for all (`"uniform"`), or proportional to the number of real tiles in its region (`"real"`).
    Communities that would get more than they have give all they have, and the rest is shared again among the others;
    where no real tiles are left to share by, by size. Shares are then made whole by the largest remainder method
    (Hamilton's), equal remainders by lower label. All arithmetic is in whole numbers, so nothing hangs on rounding.

    Args:
        sizes: M whole numbers ≥ 0, the size of each community by label.
        n: number of places, at least 0.
        rule: one of `QUOTA_RULES`.
        real_counts: M whole numbers ≥ 0, the real tiles of each community; needed by `"real"` alone.

    Returns:
        M int64, none above its size, with the sum exactly `n`.

    Raises:
        ValueError: for sizes or counts that are not whole numbers ≥ 0, `n` above the sum of the sizes, or an unknown
            rule.
    """
    check_choice("quota", rule, QUOTA_RULES)
    check_integer("n", n, 0)
    capacities = _whole_numbers("sizes", sizes)
    if n > sum(capacities):
        raise ValueError(f"n={n} is out of range: the communities have only {sum(capacities)} images in all")
    if rule == "proportional":
        weights = capacities
    elif rule == "sqrt":
        weights = [math.isqrt(size << 40) for size in capacities]  # 20 binary places
    elif rule == "uniform":
        weights = [int(size > 0) for size in capacities]
    else:
        weights = _whole_numbers("real_counts", real_counts)
        if len(weights) != len(capacities):
            raise ValueError(f"real_counts has {len(weights)} entries: it must have one for each of the communities")

    quotas = [0] * len(capacities)
    sharing = [label for label, size in enumerate(capacities) if size > 0]
    places = int(n)
    while places:
        total = sum(weights[label] for label in sharing)
        if total == 0:
            weights = capacities
            continue
        full = [label for label in sharing if places * weights[label] >= capacities[label] * total]
        if not full:
            break
        for label in full:
            quotas[label] = capacities[label]
        places -= sum(capacities[label] for label in full)
        sharing = [label for label in sharing if quotas[label] == 0]
    if places:
        remainders = {}
        for label in sharing:
            quotas[label], remainders[label] = divmod(places * weights[label], total)
        left = places - sum(quotas[label] for label in sharing)
        for label in sorted(sharing, key=lambda label: (-remainders[label], label))[:left]:
            quotas[label] += 1
    return np.array(quotas, dtype=np.int64)


def _whole_numbers(name: str, values: Any) -> list[int]:
    array = np.asarray(values)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size) or (array < 0).any():
        raise ValueError(f"{name} is not valid: it must be one-dimensional and hold whole numbers of at least 0")
    return [int(value) for value in array]
