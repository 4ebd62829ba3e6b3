"""Shows what would go to the Hub, or uploads it; what the commands that publish share."""

from __future__ import annotations

import argparse

from huggingface_hub import constants

from histodistill.hub_cards import PublishError, Upload, publish
from histodistill.training.running.errors import InputError


def show_or_push(args: argparse.Namespace, uploads: list[Upload]) -> None:
    """Lists what would go up, and with `--push` uploads it.

    Raises:
        InputError: If something stands in the way of uploading.
    """
    seen_by = "everybody" if args.public else "those with rights in the namespace"
    print(f"{'To' if args.push else 'Would go to'} {constants.ENDPOINT}, to be seen by {seen_by}:")
    for upload in uploads:
        sizes = upload.sizes()
        files = f"{len(sizes)} file" + ("" if len(sizes) == 1 else "s")
        print(f"\n{upload.repo_type} {upload.repo_id}: {files}, {format_size(sum(sizes.values()))}")
        for name, size in sizes.items():
            print(f"  {format_size(size):>9}  {name}")
    print(flush=True)
    if not args.push:
        print("Nothing was uploaded: add --push to do it.")
        return
    try:
        for done in publish(uploads, public=args.public, tag=args.revision_tag):
            print(f"{done.status}: {done.url} at {done.commit[:10]}", flush=True)
    except PublishError as error:
        raise InputError(str(error)) from error


def format_size(size: int) -> str:
    """Bytes as text, such as 1.2 MB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"
