"""How many of a class's `n_per_class` images each of its communities gives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from histodistill.selection.checks import check_choice, check_integer
from histodistill.selection.names import QUOTA_RULES


def community_quotas(sizes: Any, n: int, rule: str = "proportional") -> np.ndarray:
    """Shares `n` places among communities.

    A community's ideal share is proportional to its size (`"proportional"`), to the square root of its size
    (`"sqrt"`), or the same for all (`"uniform"`). Communities that would get more than they have give all they have,
    and the rest is shared again among the others. Shares are then made whole by the largest remainder method
    (Hamilton's), equal remainders by lower label. All arithmetic is in whole numbers, so nothing hangs on rounding.

    Args:
        sizes: M whole numbers ≥ 0, the size of each community by label.
        n: Number of places, at least 0.
        rule: One of `QUOTA_RULES`.

    Returns:
        M int64, none above its size, with the sum exactly `n`.

    Raises:
        ValueError: For sizes that are not whole numbers ≥ 0, `n` above their sum, or an unknown rule.
    """
    check_choice("quota", rule, QUOTA_RULES)
    check_integer("n", n, 0)
    sizes = np.asarray(sizes)
    if sizes.ndim != 1 or (sizes.dtype.kind not in "iu" and sizes.size) or (sizes < 0).any():
        raise ValueError("sizes is not valid: it must be one-dimensional and hold whole numbers of at least 0")
    capacities = [int(size) for size in sizes]
    if n > sum(capacities):
        raise ValueError(f"n={n} is out of range: the communities have only {sum(capacities)} images in all")
    if rule == "proportional":
        weights = capacities
    elif rule == "sqrt":
        weights = [math.isqrt(size << 40) for size in capacities]  # 20 binary places
    else:
        weights = [int(size > 0) for size in capacities]

    quotas = [0] * len(capacities)
    sharing = [label for label, size in enumerate(capacities) if size > 0]
    places = int(n)
    while places:
        total = sum(weights[label] for label in sharing)
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
