"""Options of all that loads real tiles: which tiles belong together, how splits are made, and how files are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from histodistill.selection.names import GROUP_KINDS
from histodistill.training.running.errors import InputError
from histodistill.training.running.formats import RUN_FORMAT, check_format
from histodistill.training.running.options import StepConfig, check_values, config, option


# Titles of the parts of `--help` that show them.
_GROUPS, _READING = "patients and other groups of tiles", "reading tiles"
#: Kinds of pictures that are converted where a user asks for it.
CONVERSIONS = ("grey", "16bit", "cmyk")


@config
class SourceOptions(StepConfig):
    """What is said of groups and files; the fingerprint of the tiles tells what came of it, so none is a setting."""

    group_column: str | None = option(
        "column with the group of each tile, such as its patient: of a manifest, Parquet files or a Hub dataset",
        default=None,
        group=_GROUPS,
        setting=False,
    )
    group_pattern: str | None = option(
        "regular expression with a part (?P<group>…) that finds the group in the path of a tile's file",
        default=None,
        metavar="REGEX",
        group=_GROUPS,
        setting=False,
    )
    group_kind: str | None = option(
        "what a group is, as cards and reports then say",
        default=None,
        choices=GROUP_KINDS,
        group=_GROUPS,
        setting=False,
    )
    split_seed: int | None = option(
        "seed of the validation and test splits that are made where the source has none; default: 0 with groups, and "
        "without them the last tiles of each class",
        default=None,
        at_least=0,
        group=_GROUPS,
        setting=False,
    )
    allow_shared_groups: bool = option(
        "take a source that has a group in two splits; cards and reports then say so",
        default=False,
        group=_GROUPS,
        setting=False,
    )

    convert: tuple[str, ...] = option(
        "kinds of pictures to convert that are not RGB with 8 bits a channel; what is done is told",
        default=(),
        choices=CONVERSIONS,
        group=_READING,
        setting=False,
    )
    skip_unreadable: bool = option(
        "leave out tiles whose files cannot be read, which are counted and listed",
        default=False,
        group=_READING,
        setting=False,
    )
    max_unreadable: float = option(
        "share of the tiles that may be left out so",
        default=0.05,
        at_least=0,
        at_most=1,
        group=_READING,
        setting=False,
    )
    labels: Path | None = option(
        "table with the class of each picture in a folder: a .csv, .tsv or .parquet file with the columns path and "
        "label",
        default=None,
        group=_READING,
        setting=False,
    )
    mpp: float | None = option(
        "microns per pixel to which tiles of slides are brought; default: what the places say",
        default=None,
        above=0,
        group=_READING,
        setting=False,
    )
    hub_revision: str | None = option(
        "revision of a Hub dataset: a commit, tag or branch", default=None, group=_READING, setting=False
    )
    hub_config: str | None = option(
        "configuration of a Hub dataset that has several", default=None, group=_READING, setting=False
    )
    cache_dir: Path | None = option(
        "folder for decoded tiles, which you alone can read; default: $HISTODISTILL_CACHE, or else a folder in your "
        "cache; `histodistill cache` lists and clears it",
        default=None,
        group=_READING,
        setting=False,
    )

    def source_options(self, run: Path | None = None) -> dict[str, Any]:
        """What `load_tiles` is told of groups and files: what was given, or else what was said when a run was made.

        Args:
            run: Folder of the run that goes by these tiles, if there is one.

        Raises:
            InputError: If the run's record cannot be used.
        """
        of_run = source_options_of_run(run) if run is not None else {}
        options: dict[str, Any] = {}
        for names in SETTINGS.values():
            values = {name: getattr(self, name) for name in names}
            given = {name: value for name, value in values.items() if value != _DEFAULTS[name]}
            options |= given or {name: value for name, value in of_run.items() if name in names}
        # Where tiles are kept decides nothing of what they are, and is nothing that a run remembers.
        return options if self.cache_dir is None else {**options, "cache_dir": self.cache_dir}


#: Entry of a run's settings → the names of the options that it holds.
SETTINGS = {
    "groups": ("group_column", "group_pattern", "group_kind", "split_seed", "allow_shared_groups"),
    "reading": (
        "convert",
        "skip_unreadable",
        "max_unreadable",
        "labels",
        "mpp",
        "hub_revision",
        "hub_config",
    ),
}
_DEFAULTS = {field.name: field.default for field in fields(SourceOptions)}
#: The names of all these options, with what holds where nothing is said.
SOURCE_DEFAULTS = {name: _DEFAULTS[name] for names in (*SETTINGS.values(), ("cache_dir",)) for name in names}


def settings_of(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries of a run's settings that tell of these options, as JSON can hold them."""
    entries = {
        entry: {name: _as_json(options[name]) for name in names if name in options}
        for entry, names in SETTINGS.items()
    }
    return {entry: said for entry, said in entries.items() if said}


def of_groups(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that are about groups and splits."""
    return {name: value for name, value in options.items() if name in SETTINGS["groups"]}


def _as_json(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.absolute())  # the next command may be given elsewhere
    return list(value) if isinstance(value, tuple) else value


def source_options_of_run(run: Path) -> dict[str, Any]:
    """What was said of groups and files when a run was made, as `load_tiles` takes it; nothing without a run.json.

    Raises:
        InputError: If its record is of a later format, or damaged.
    """
    from histodistill.training.running.files import read_json

    file = run / "run.json"
    if not file.is_file():
        return {}
    record = read_json(file)
    check_format(record, file, RUN_FORMAT)
    settings = record.get("settings")
    options: dict[str, Any] = {}
    try:
        for entry, names in SETTINGS.items():
            said = settings.get(entry, {}) if isinstance(settings, dict) else None
            if not isinstance(said, dict) or not said.keys() <= {*names}:
                raise InputError("it holds something else")
            check_values(SourceOptions, said)
            options |= said
    except InputError as error:
        raise InputError(f"{file} does not say how tiles are read and grouped ({error}): restore it") from error
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
