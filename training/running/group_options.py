"""Options of all that loads real tiles: which tiles belong together, and how splits that are not there are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from histodistill.selection.names import GROUP_KINDS
from histodistill.training.running.errors import InputError
from histodistill.training.running.formats import RUN_FORMAT, check_format
from histodistill.training.running.options import StepConfig, check_values, config, option


# Title of the part of `--help` that shows them.
_GROUPS = "patients and other groups of tiles"
#: The entry of a run's settings that holds what was said.
SETTING = "groups"


@config
class GroupOptions(StepConfig):
    """What is said of the groups; the fingerprint of the tiles tells what came of it, so none of it is a setting."""

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

    def group_options(self, run: Path | None = None) -> dict[str, Any]:
        """What `load_tiles` is told of groups: what was given, or else what was said when a run was made.

        Args:
            run: Folder of the run that goes by these tiles, if there is one.

        Raises:
            InputError: If the run's record cannot be used.
        """
        values = {name: getattr(self, name) for name in GROUP_OPTIONS}
        given = {name: value for name, value in values.items() if value is not None and value is not False}
        return given or (groups_of_run(run) if run is not None else {})


#: The names of these options.
GROUP_OPTIONS = ("group_column", "group_pattern", "group_kind", "split_seed", "allow_shared_groups")


def groups_of_run(run: Path) -> dict[str, Any]:
    """What was said of groups when a run was made, as `load_tiles` takes it; nothing where it has no run.json.

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
    said = settings.get(SETTING, {}) if isinstance(settings, dict) else None
    try:
        if not isinstance(said, dict) or not said.keys() <= {*GROUP_OPTIONS}:
            raise InputError("it holds something else")
        check_values(GroupOptions, said)
    except InputError as error:
        raise InputError(f"{file} does not say which tiles belong together ({error}): restore it") from error
    return said
