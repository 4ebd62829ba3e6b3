"""What the README.md of a local `datasets` folder says of its files; it never leads out of the folder."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml
from huggingface_hub import metadata_load
from pydantic import ValidationError

from histodistill.hub_cards.documents import Known
from histodistill.training.data.image_columns import Features
from histodistill.training.data.names import shown, some
from histodistill.training.running.errors import InputError


# Bytes that a README.md may have to be read.
_MAX_BYTES = 2**22


class _DataFiles(Known):
    split: str
    path: str | list[str]


class _Configuration(Known):
    config_name: str
    data_files: str | list[str] | list[_DataFiles] | None = None
    data_dir: str | None = None
    default: bool = False


class _Split(Known):
    name: str
    num_examples: int


class _Info(Known):
    config_name: str = "default"
    features: list[dict[str, Any]] | None = None
    splits: list[_Split] | None = None


class _Header(Known):
    configs: list[_Configuration] | None = None
    dataset_info: _Info | list[_Info] | None = None


@dataclass(frozen=True)
class FolderCard:
    """What a README.md says.

    Attributes:
        path: The README.md.
        patterns: Split → patterns of its files, None where it names none.
        data_dir: The only folder, in the dataset's, whose files count.
        features: Column → its feature, of images and class labels.
        num_examples: Split → number of its rows.
    """

    path: Path
    patterns: dict[str, list[str]] | None = None
    data_dir: str = ""
    features: Features = field(default_factory=dict)
    num_examples: Mapping[str, int] = field(default_factory=dict)

    def files_of_splits(self, files: Sequence[PurePosixPath]) -> dict[str, list[PurePosixPath]] | None:
        """The files that are named for each split, None where none are.

        Args:
            files: All data files of the folder, relative to it. Nothing else can be named.

        Raises:
            InputError: If a pattern matches no file, or could match one outside the folder.
        """
        if self.patterns is None:
            return None
        splits: dict[str, list[PurePosixPath]] = {}
        for split, patterns in self.patterns.items():
            for pattern in patterns:
                found = [file for file in files if _matches(file, pattern)]
                if not found:
                    raise InputError(
                        f"{self.path} says that the split {shown(split)} is in {shown(pattern)}, and no Parquet file "
                        "there is so called: fetch it, or correct README.md"
                    )
                splits.setdefault(split, []).extend(file for file in found if file not in splits.get(split, []))
        return splits


def read_folder_card(folder: Path) -> FolderCard:
    """Reads `folder/README.md`.

    Raises:
        InputError: If its header is damaged, has several configurations and no default one, or names files that may
            be outside the folder.
    """
    path = folder / "README.md"
    if not path.is_file():
        return FolderCard(path)
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"{path} is too large to be a dataset's card: take it out of the folder")
    try:
        header = _Header.model_validate(metadata_load(path) or {})
        configuration = _configuration(path, header.configs or [])
        info = _info(header, configuration)
        features = _features(info.features or [])
    except InputError:
        raise
    except (ValidationError, ValueError, TypeError, KeyError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path} has a header that cannot be understood: correct it, or take the file out") from error
    return FolderCard(
        path,
        _patterns(path, configuration),
        _inside(path, configuration.data_dir) if configuration.data_dir else "",
        features,
        {split.name: split.num_examples for split in info.splits or []},
    )


def _configuration(path: Path, configurations: list[_Configuration]) -> _Configuration:
    """The one that is loaded: the only one, or the default one."""
    if len(configurations) < 2:
        return configurations[0] if configurations else _Configuration(config_name="default")
    chosen = [one for one in configurations if one.default or one.config_name == "default"]
    if len(chosen) != 1:
        names = some([one.config_name for one in configurations])
        raise InputError(
            f"{path} has several configurations ({names}) and no default one: set `default: true` in the one to load"
        )
    return chosen[0]


def _info(header: _Header, configuration: _Configuration) -> _Info:
    """What is said of a configuration's columns and splits."""
    infos = header.dataset_info or []
    if isinstance(infos, _Info):
        return infos if not header.configs or len(header.configs) == 1 else _Info()
    return next((info for info in infos if info.config_name == configuration.config_name), _Info())


def _features(columns: list[dict[str, Any]]) -> dict[str, Any]:
    """The columns of images and class labels, in the form that `datasets` writes to files."""
    features: dict[str, Any] = {}
    for column in columns:
        kind = column.get("dtype")
        if kind == "image" or (isinstance(kind, dict) and "image" in kind):
            features[column["name"]] = {"_type": "Image"}
        elif isinstance(kind, dict) and "class_label" in kind:
            names = kind["class_label"]["names"]
            if isinstance(names, dict):
                names = [names[str(i)] for i in range(len(names))]
            features[column["name"]] = {"_type": "ClassLabel", "names": names}
    return features


def _patterns(path: Path, configuration: _Configuration) -> dict[str, list[str]] | None:
    """Split → patterns of files that cannot lead out of the folder."""
    named = configuration.data_files
    if named is None:
        return None
    patterns: dict[str, list[str]] = {}
    for item in [named] if isinstance(named, str) else named:
        split, of_split = ("train", item) if isinstance(item, str) else (item.split, item.path)
        patterns.setdefault(split, []).extend(
            _inside(path, pattern) for pattern in ([of_split] if isinstance(of_split, str) else of_split)
        )
    return patterns


def _inside(path: Path, name: str) -> str:
    """A path or pattern that a card names, which must be below the folder of the card."""
    parts = PurePosixPath(name).parts
    is_plain = not {"..", "~"} & {*parts} and not PurePosixPath(name).is_absolute()
    if not is_plain or PureWindowsPath(name).anchor or re.search(r"::|://|\\|^[\w-]+:", name):
        raise InputError(
            f"{path} names {shown(name)}, which may be outside the folder: only files in the folder itself are read; "
            "correct README.md"
        )
    return PurePosixPath(name).as_posix()


def _matches(file: PurePosixPath, pattern: str) -> bool:
    """Whether a file's path is a name or matches a pattern, in which ** stands for any number of folders."""

    def match(parts: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
        if not patterns:
            return not parts
        if patterns[0] == "**":
            # At the end it stands for files too.
            return (len(patterns) == 1 and bool(parts)) or any(
                match(parts[skipped:], patterns[1:]) for skipped in range(len(parts))
            )
        return bool(parts) and fnmatch.fnmatchcase(parts[0], patterns[0]) and match(parts[1:], patterns[1:])

    return file.as_posix() == pattern or match(file.parts, PurePosixPath(pattern).parts)
