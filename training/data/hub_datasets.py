"""Tiles of a dataset on the Hub, by its id."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from histodistill.training.data.arrow_files import Rows, reason, whole_columns
from histodistill.training.data.grouping import Grouping
from histodistill.training.data.image_rows import open_rows
from histodistill.training.data.listing import spread
from histodistill.training.data.names import shown, some
from histodistill.training.data.opened_source import OpenedSource
from histodistill.training.data.reading import Reading
from histodistill.training.data.tiles import SPLIT_ALIASES
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.notes import tell, warn


if TYPE_CHECKING:
    from datasets import Dataset, DatasetInfo

# Rows that are read at a time.
_BATCH = 256
# The configurations that datasets names where an id has several and none is the default one, or not the one asked for.
_CONFIGURATIONS = re.compile(r"(?:Config name is missing|BuilderConfig .*? not found).*?\[(.*?)\]", re.DOTALL)
# The commit in the address of a file that was fetched from the Hub.
_COMMIT = re.compile(r"@([0-9a-f]{40})/")


def open_hub_dataset(repo_id: str, grouping: Grouping, reading: Reading) -> OpenedSource:
    """Opens a dataset of the Hub by its id `user/name`, from the Hugging Face cache when it is there.

    Splits are those of `SPLIT_ALIASES`, in any case of letters; others are told of. Columns are found as in
    `open_datasets_folder`.

    Args:
        repo_id: The id, `user/name`.
        grouping: What was said of the groups.
        reading: With revision and configuration, where downloads are kept, and what is converted.

    Returns:
        The source, named by the id.

    Raises:
        InputError: As for `open_datasets_folder`; also when there is neither a network nor a cached copy, or the
            dataset has several configurations of which none was named, or no such.
    """
    from datasets import load_dataset

    try:
        data = load_dataset(
            repo_id,
            reading.hub_config,
            revision=reading.hub_revision,
            cache_dir=None if reading.download_dir is None else os.fspath(reading.download_dir),
        )
    except Exception as error:  # of many kinds: HTTP, cache, builder
        if several := _CONFIGURATIONS.search(str(error)):
            wrong = f"{param('hub_config')}={reading.hub_config} is no configuration of {repo_id}"
            missing = f"{repo_id} has several configurations and no default one"
            raise InputError(
                f"{wrong if reading.hub_config else missing}: give {param('hub_config')} one of {shown(several[1])}"
            ) from error
        raise InputError(
            f"{repo_id} is no local folder and cannot be loaded from the Hub ({reason(error)}): check the name, "
            f"{'the revision, ' if reading.hub_revision else ''}the network, and for a private dataset `hf auth login`"
        ) from error
    splits: dict[str, list[tuple[Rows, None]]] = {}
    unknown = []
    for part, rows in data.items():
        split = SPLIT_ALIASES.get(str(part).lower())
        if split is None:
            unknown.append(str(part))
        elif split in splits:
            raise InputError(f"{repo_id} has two splits for {split} ({some([*map(str, data)])}): no id can have that")
        else:
            splits[split] = [(_rows(repo_id, rows, reading.download_dir), None)]
    if "train" not in splits:
        raise InputError(f"{repo_id} has no train split (found {some([*map(str, data)]) or 'none'}): name one train")
    _tell(repo_id, next(iter(data.values())).info, unknown)
    license = next((rows.info.license for rows in data.values() if rows.info.license), None)
    return open_rows(repo_id, repo_id, splits, grouping, license or None, reading)


def _rows(repo_id: str, data: Dataset, download_dir: str | Path | None) -> Rows:
    """The rows of a split that was loaded; a dataset of image files names them where they were fetched to."""
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    fetched = Path(HF_HUB_CACHE) / f"datasets--{repo_id.replace('/', '--')}"
    below = (fetched, Path(download_dir or config.HF_DATASETS_CACHE), Path(config.DOWNLOADED_DATASETS_PATH))

    schema = data.features.arrow_schema

    def batches(columns: list[str]) -> Iterator[pa.RecordBatch]:
        for table in data.select_columns(whole_columns(schema, columns)).with_format("arrow").iter(_BATCH):
            yield from table.combine_chunks().to_batches()

    def sample(column: str, count: int) -> Iterator[tuple[Sequence[int], pa.Array]]:
        rows = spread(len(data), count).tolist()
        yield rows, data.select_columns([column]).select(rows).with_format("arrow")[:].column(0).combine_chunks()

    files = tuple(Path(file["filename"]) for file in data.cache_files)
    return Rows(Path(repo_id), schema, len(data), data.data.nbytes, batches, sample, files, below)


def _tell(repo_id: str, info: DatasetInfo, unknown: list[str]) -> None:
    """What was loaded and what was left, in a line each."""
    commits = {match[1] for url in info.download_checksums or {} if (match := _COMMIT.search(str(url)))}
    revision = f", revision {', '.join(sorted(commits))}" if commits else ""
    tell(f"{repo_id}: configuration {shown(info.config_name or 'default')}{revision}")
    if unknown:
        warn(f"{repo_id}: splits not called train, validation or test are not used ({some(unknown)})")
