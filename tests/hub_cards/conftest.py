from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(scope="session")
def blobs() -> tuple[np.ndarray, np.ndarray]:
    """Embeddings 40×3 of two classes, and their labels."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(40, 3)).astype(np.float32), np.repeat([0, 1], 20)
