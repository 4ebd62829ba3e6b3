"""What went wrong with something that is to be published."""

from __future__ import annotations


class ContentError(ValueError):
    """Something holds what it may not hold, or cannot be read; the message is one sentence that says what."""
