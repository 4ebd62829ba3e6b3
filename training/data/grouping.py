"""Groups of tiles: what a user says of them, and which splits may be made of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from histodistill.selection.names import GROUP_KINDS
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.findings import Finding


@dataclass(frozen=True)
class Grouping:
    """What was said of a source's groups, and how splits that are not there are made.

    Attributes:
        column: The column with each tile's group, of a source that has columns.
        pattern: A regular expression with a named part `group`, which finds the group in a file's path, relative to
            the source's folder, with `/` between its parts.
        kind: What a group is, one of `GROUP_KINDS`; None where nobody said so.
        split_seed: Seed of the splits that are made; None takes the last tiles of each class, in file order, where
            there are no groups, and 0 where there are.
        allow_shared: Whether a group may be in two given splits.
        hint: What could be said of the groups of this source, and was not.
    """

    column: str | None = None
    pattern: str | None = None
    kind: str | None = None
    split_seed: int | None = None
    allow_shared: bool = False
    hint: Finding | None = None

    def __post_init__(self) -> None:
        if self.column is not None and self.pattern is not None:
            raise InputError(f"{param('group_column')} and {param('group_pattern')} are both given: give one of them")
        if self.kind is not None and self.kind not in GROUP_KINDS:
            raise InputError(
                f"{param('group_kind')}={self.kind} is unknown: it must be one of {', '.join(GROUP_KINDS)}"
            )
        if self.pattern is not None:
            try:
                names = re.compile(self.pattern).groupindex
            except re.error as error:
                raise InputError(
                    f"{param('group_pattern')}={self.pattern} is no regular expression ({error}): write it as in "
                    "'(?P<group>[^_/]+)_'"
                ) from error
            if "group" not in names:
                raise InputError(
                    f"{param('group_pattern')}={self.pattern} has no part named group: write it as in "
                    "'(?P<group>[^_/]+)_'"
                )

    @classmethod
    def of(
        cls,
        group_column: str | None = None,
        group_pattern: str | None = None,
        group_kind: str | None = None,
        split_seed: int | None = None,
        allow_shared_groups: bool = False,
    ) -> Grouping:
        """What options say, see `SourceOptions.source_options`."""
        return cls(group_column, group_pattern, group_kind, split_seed, allow_shared_groups)

    @property
    def was_asked_for(self) -> bool:
        """Whether the user said where the groups are, so that a source without them is an error."""
        return self.column is not None or self.pattern is not None

    @property
    def asked(self) -> str:
        """Where the user said that the groups are, as messages call it."""
        if self.column is not None:
            return f"{param('group_column')}={self.column}"
        return f"{param('group_pattern')}={self.pattern}"

    def usual(self, kind: str) -> Grouping:
        """The same with this kind where none was said."""
        return self if self.kind is not None else replace(self, kind=kind)
