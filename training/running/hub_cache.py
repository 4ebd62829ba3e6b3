"""Tells when what was to be fetched from the Hugging Face Hub has nowhere to go."""

from __future__ import annotations

import tempfile
from pathlib import Path


def cache_problem() -> str | None:
    """What is wrong with the folder where downloads are kept, with the remedy; None where it can be written.

    To be asked once something could not be fetched: what lies in a cache already can be used without writing there.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        Path(HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=HF_HUB_CACHE):
            return None
    except OSError as error:
        return f"the cache {HF_HUB_CACHE} cannot be written ({error.strerror}): set HF_HOME to a folder that can be"
