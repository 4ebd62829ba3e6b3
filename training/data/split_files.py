"""Which split a data file belongs to, by its name, and whether all shards of a split are there."""

from __future__ import annotations

import filecmp
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, groupby
from pathlib import Path, PurePosixPath

from histodistill.training.data.tiles import SPLIT_ALIASES
from histodistill.training.running.errors import InputError


# The number of a shard and of how many, as in train-00000-of-00002.parquet.
_SHARD = re.compile(r"(?P<number>\d+)[-_. ]*of[-_. ]*(?P<count>\d+)", re.IGNORECASE)


def names_of(split: str) -> str:
    """What a split may be called: `test (or testing)`."""
    others = [alias for alias, of in SPLIT_ALIASES.items() if of == split != alias]
    return f"{split} (or {', '.join(others)})"


# How a split can be called, for messages.
_CALLED = f"train, {names_of('validation')} or test"


def split_called(name: str, where: str) -> str:
    """The split that a name means.

    Args:
        name: What a split of `where` is called, in any case of letters.
        where: What messages call the data.

    Raises:
        InputError: If it is none that is known.
    """
    split = SPLIT_ALIASES.get(name.lower())
    if split is None:
        raise InputError(f"{where} has a split {name!r}: a split must be called {_CALLED}; rename it or take it out")
    return split


def splits_in(text: str) -> list[str]:
    """The splits that the words in a text name, in order: `["validation"]` for `crc_val`."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    return [SPLIT_ALIASES[word] for word in words if word in SPLIT_ALIASES]


def splits_named(file: PurePosixPath) -> set[str]:
    """The splits that the words in a file's path name: `{"validation"}` for `crc_val/0.parquet`."""
    return {*splits_in(file.with_suffix("").as_posix())}


def splits_by_name(folder: Path, files: Sequence[PurePosixPath]) -> dict[str, list[Path]]:
    """The files of each split, as words in their paths say it: `train-0.parquet`, `data/test-00000-of-00001.parquet`.

    Files whose names differ in numbers only and name no split are train, where no other file names one.

    Args:
        folder: Where the files are.
        files: Their paths in it.

    Returns:
        Split → its files, in the order given.

    Raises:
        InputError: If a file names two splits, or some name one and others none.
    """
    splits: dict[str, list[Path]] = {}
    nameless = []
    for file in files:
        found = sorted(splits_named(file))
        if len(found) > 1:
            raise InputError(
                f"{folder / file} names the splits {' and '.join(found)}: name one of them in its path, which must be "
                f"called {_CALLED}"
            )
        if found:
            splits.setdefault(found[0], []).append(folder / file)
        else:
            nameless.append(file)
    if nameless and (splits or len({re.sub(r"\d+", "0", file.as_posix()) for file in nameless}) > 1):
        raise InputError(
            f"{folder / nameless[0]} does not say to which split it belongs: name the split at the beginning of every "
            f"file's name ({_CALLED}), or move the file away"
        )
    return splits or {"train": [folder / file for file in nameless]}


def check_shards(files: Iterable[Path]) -> None:
    """Sees that of files that are numbered as shards all are there, once.

    Raises:
        InputError: Naming the shard that is missing or there twice.
    """
    numbered = [(file, match) for file in files if (match := _SHARD.search(file.stem))]

    def series(item: tuple[Path, re.Match[str]]) -> tuple[Path, str]:
        return item[0].parent, item[1].string[: item[1].start()]

    for (folder, _), group in groupby(sorted(numbered, key=series), key=series):
        shards = list(group)
        first_file, first = shards[0]
        by_number: dict[int, Path] = {}
        for file, match in shards:
            if int(match["count"]) != int(first["count"]):
                raise InputError(
                    f"{file} and {first_file.name} are shards of different numbers: keep those of one set"
                )
            if int(match["number"]) in by_number:
                raise InputError(f"{file} and {by_number[int(match['number'])].name} are one shard: keep one of them")
            by_number[int(match["number"])] = file
        # Counted from 0, or from 1.
        begin = 0 if 0 in by_number or int(first["count"]) not in by_number else 1
        wanted = range(begin, begin + int(first["count"]))
        if strange := set(by_number) - set(wanted):
            raise InputError(f"{by_number[min(strange)]} has a number beyond that of all shards: rename it")
        if len(by_number) < len(wanted):
            number = next(number for number in wanted if number not in by_number)
            name = first_file.name
            name = (
                name[: first.start("number")] + str(number).zfill(len(first["number"])) + name[first.end("number") :]
            )
            raise InputError(
                f"{folder / name} is missing, and {len(by_number)} of {len(wanted)} shards are there: fetch or copy "
                "all of them"
            )


def is_one_series(files: Sequence[Path]) -> bool:
    """Whether the names of files differ in one number alone, which counts from 0 or 1; true for a single file."""
    if len(files) == 1:
        return True
    parts = [re.split(r"(\d+)", file.name) for file in files]
    if len({len(of_file) for of_file in parts}) > 1:
        return False
    varied = [column for column in zip(*parts, strict=True) if len({*column}) > 1]
    if len(varied) != 1 or not all(text.isdigit() for text in varied[0]):
        return False
    numbers = sorted(map(int, varied[0]))
    return numbers[0] in (0, 1) and numbers == [*range(numbers[0], numbers[0] + len(numbers))]


def check_different(splits: Mapping[str, Sequence[Path]]) -> None:
    """Sees that no file is there twice, as a copy under another name.

    Raises:
        InputError: Naming both files.
    """
    files = sorted((file.stat().st_size, file) for of_split in splits.values() for file in of_split)
    for _, group in groupby(files, key=lambda item: item[0]):
        for (_, one), (_, other) in combinations(group, 2):
            if filecmp.cmp(one, other, shallow=False):
                raise InputError(f"{one} and {other} hold the same: keep one of them")
