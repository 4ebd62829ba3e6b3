"""Shows what would go to the Hub, or uploads it; what the commands that publish share."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from huggingface_hub import constants

from histodistill.hub_cards import AuditError, Published, PublishError, Upload, publish
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import format_size


if TYPE_CHECKING:
    from histodistill.training.publishing.hub_config import HubConfig


# How `hub_cards`, which knows nothing of commands, writes the parameters that its errors speak of.
_PARAMETERS = re.compile("`(namespace|name|public|revision_tag|i_accept_the_risk)`")


def show_or_push(uploads: Sequence[Upload], config: HubConfig) -> list[Upload] | list[Published]:
    """Lists what would go up, and with `push` uploads it.

    Args:
        uploads: The repositories as they are to be.
        config: Whether they go up, and who will see them.

    Returns:
        What became of each; without `push`, the uploads.

    Raises:
        InputError: If something stands in the way of uploading.
    """
    seen_by = "everybody" if config.public else "those with rights in the namespace"
    print(f"{'To' if config.push else 'Would go to'} {constants.ENDPOINT}, to be seen by {seen_by}:")
    for upload in uploads:
        sizes = upload.sizes()
        files = f"{len(sizes)} file" + ("" if len(sizes) == 1 else "s")
        print(f"\n{upload.repo_type} {upload.repo_id}: {files}, {format_size(sum(sizes.values()))}")
        for name, size in sizes.items():
            print(f"  {format_size(size):>9}  {name}")
        if upload.kind == "dataset":
            print(f"  fingerprint {upload.fingerprint}: tell it to those who get the set, for histodistill verify")
    print(flush=True)
    if not config.push:
        print("Nothing was uploaded: add --push to do it.")
        return list(uploads)
    return list(_push(uploads, config))


def _push(uploads: Sequence[Upload], config: HubConfig) -> Iterator[Published]:
    """Uploads one repository after the other, and says so of each that is done."""
    try:
        for done in publish(uploads, public=config.public, tag=config.revision_tag):
            print(f"{done.status}: {done.url} at {done.commit[:10]}", flush=True)
            yield done
    except PublishError as error:
        raise as_input_error(error) from error


def as_input_error(error: AuditError | PublishError) -> InputError:
    """An error of `hub_cards` as one of `training`, which the command line can tell in its own words."""
    return InputError(_PARAMETERS.sub(lambda found: param(found[1]), str(error)))
