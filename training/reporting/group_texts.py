"""What a run says of the groups of its tiles, such as patients, as sentences."""

from __future__ import annotations

from typing import Any

from histodistill.hub_cards.documents import check_document
from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.group_facts import GroupFacts
from histodistill.selection.audit_verdict import SINGLE_TILES_ONLY
from histodistill.training.running.errors import InputError


def group_sentences(about: dict[str, Any]) -> list[str]:
    """What is known of the groups.

    Args:
        about: What run.json says; empty where it is not there, and then there is nothing to say.

    Raises:
        InputError: If it says something else there.
    """
    if not about:
        return []
    if (said := about.get("groups")) is None:
        return [f"The splits and the audit are of {SINGLE_TILES_ONLY}."]
    try:
        return check_document(said, GroupFacts).sentences()
    except ContentError as error:
        raise InputError(f"run.json does not say what groups there are ({error}): restore it") from error
