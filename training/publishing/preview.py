"""Writes the cards of a run as HTML pages, to be looked at before anything is uploaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from histodistill.hub_cards.preview import render_preview, render_preview_index
from histodistill.training.running.claims import LOCK
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import write_text


if TYPE_CHECKING:
    from histodistill.training.publishing.repositories import Repository

# The page that leads to the others.
INDEX = "index.html"
# Kind of a repository → its page.
PAGES = {"pipeline": "pipeline.html", "selector": "selector.html", "dataset": "dataset.html"}


def require_preview_folder(folder: Path) -> None:
    """Checks that a folder is new, empty or holds an earlier preview and nothing else.

    Raises:
        InputError: If it is not: pages beside the files of a run would stand in the way of publishing it.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir() or {entry.name for entry in folder.iterdir()} - {LOCK, INDEX, *PAGES.values()}:
        raise InputError(f"{param('preview')}={folder} holds something else than a preview: give a new folder")


def write_preview(folder: Path, repositories: Sequence[Repository]) -> None:
    """Writes a page for each repository, and one that leads to them.

    Args:
        folder: Where they go; pages of an earlier preview are replaced or removed.
        repositories: The repositories as they are to be, those that the gate refuses as well.

    Raises:
        InputError: If the folder holds something else.
    """
    require_preview_folder(folder)
    uploads = [repository.upload for repository in repositories]
    refusals = {found.upload.repo_id: found.refusal for found in repositories if found.refusal is not None}
    try:
        for kind in PAGES.keys() - {upload.kind for upload in uploads}:
            (folder / PAGES[kind]).unlink(missing_ok=True)
        for upload in uploads:
            page = render_preview(upload, refusals.get(upload.repo_id))
            write_text(folder / PAGES[upload.kind], page)
        write_text(folder / INDEX, render_preview_index(uploads, refusals, PAGES))
    except OSError as error:
        raise InputError(
            f"{param('preview')}={folder} cannot be written ({error.strerror}): give another folder"
        ) from error
