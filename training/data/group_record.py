"""Whose tiles a run was made with, in a file from which only who knows a group's name can tell it.

`RUN/groups.json` holds, for each group such as a patient, a salted hash of its name and its tiles in each split. So a
run can be found when somebody withdraws consent, though no name stands in it. Names are few and can be guessed, which
the hash makes slow and not impossible: the file is private, and is never published.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from histodistill.selection.names import GROUP_KINDS
from histodistill.training.data.names import class_name
from histodistill.training.data.tiles import HELD_OUT, SPLITS, TileSource
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json, write_json
from histodistill.training.running.formats import check_format


#: The file in the folder of a run.
GROUP_RECORD = "groups.json"
# Its layout.
_FORMAT = 1
# Bytes of the salt, and of a hash.
_SALT_BYTES, _HASH_BYTES = 32, 32
# Memory of one hash is 128 bytes by block size by cost. The cost is the highest with which all hashes of a run take
# seconds, within these bounds: 2^14 takes about 50 ms, and 2^10 about 4.
_BLOCK_SIZE, _LEAST_COST, _MOST_COST, _COST_OF_ALL = 8, 2**10, 2**14, 2**21
# What `scrypt` may use, at most.
_MAX_MEMORY = 2**28


@dataclass(frozen=True, repr=False)
class GroupRecord:
    """What `groups.json` holds.

    Attributes:
        kind: What a group is, one of `GROUP_KINDS`.
        salt: Of all hashes, 32 random bytes.
        cost: Of one hash: scrypt's N.
        whole: The hash of all names and numbers together, by which it is seen that they are the same.
        groups: Hash of a group's name → split → its tiles.
    """

    kind: str
    salt: bytes
    cost: int
    whole: str
    groups: Mapping[str, Mapping[str, int]]

    @classmethod
    def of(cls, source: TileSource, salt: bytes) -> GroupRecord:
        """The record of tiles that have groups."""
        numbers = _tiles_of_groups(source)
        cost = _LEAST_COST
        while 2 * cost * len(numbers) <= _COST_OF_ALL and cost < _MOST_COST:
            cost *= 2
        hashes = {_hash(name, salt, cost): numbers[name] for name in numbers}
        # In the order of the hashes, which tells nothing of the names.
        return cls(str(source.group_kind), salt, cost, _hash_of_all(numbers, salt, cost), dict(sorted(hashes.items())))

    def is_of(self, source: TileSource) -> bool:
        """Whether it is the record of these tiles."""
        return self.whole == _hash_of_all(_tiles_of_groups(source), self.salt, self.cost)

    def tiles_of(self, group: str) -> Mapping[str, int] | None:
        """Split → tiles of a group that the run was made with; None where the run does not know it.

        Args:
            group: Its name, as the tiles have it.
        """
        return self.groups.get(_hash(class_name(group), self.salt, self.cost))

    def to_json(self) -> dict[str, Any]:
        """The same as the file holds it."""
        return {
            "format": _FORMAT,
            "kind": self.kind,
            "salt": self.salt.hex(),
            "cost": self.cost,
            "whole": self.whole,
            "groups": self.groups,
        }


def _tiles_of_groups(source: TileSource) -> dict[str, dict[str, int]]:
    """Name of a group → split → its tiles."""
    numbers: dict[str, dict[str, int]] = {}
    for split, tiles in source.splits.items():
        if tiles.groups is not None:
            for name, count in zip(*np.unique(tiles.groups, return_counts=True), strict=True):
                numbers.setdefault(class_name(str(name)), {})[split] = int(count)
    return numbers


def _hash_of_all(numbers: Mapping[str, Mapping[str, int]], salt: bytes, cost: int) -> str:
    return _hash(json.dumps(numbers, sort_keys=True), salt, cost)


def _hash(text: str, salt: bytes, cost: int) -> str:
    digest = hashlib.scrypt(
        text.encode(), salt=salt, n=cost, r=_BLOCK_SIZE, p=1, maxmem=_MAX_MEMORY, dklen=_HASH_BYTES
    )
    return digest.hex()


def write_group_record(run: Path, source: TileSource) -> None:
    """Writes `groups.json` of a run, readable for its owner alone, unless it is there already or tiles have no groups.

    Raises:
        InputError: If one is there that is damaged, or of a later format.
    """
    if source.group_kind is None:
        return
    path = run / GROUP_RECORD
    there = read_group_record(run) if path.is_file() else None
    if there is None or not there.is_of(source):
        write_json(path, GroupRecord.of(source, secrets.token_bytes(_SALT_BYTES)).to_json(), private=True)


def read_group_record(run: Path) -> GroupRecord | None:
    """What `groups.json` of a run holds; None where it has none.

    Raises:
        InputError: If it is damaged, or of a later format.
    """
    path = run / GROUP_RECORD
    try:
        value = read_json(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): mend this first") from error
    check_format(value, path, _FORMAT)
    try:
        record = GroupRecord(
            value["kind"], bytes.fromhex(value["salt"]), value["cost"], value["whole"], value["groups"]
        )
    except (LookupError, TypeError, ValueError) as error:
        raise _damaged(path) from error
    if not _is_sound(record):
        raise _damaged(path)
    return record


def _is_sound(record: GroupRecord) -> bool:
    """Whether a record holds what one can: no cost that would take hours, and numbers of tiles."""
    return (
        record.kind in GROUP_KINDS
        and type(record.cost) is int
        and _LEAST_COST <= record.cost <= _MOST_COST
        and record.cost & (record.cost - 1) == 0
        and isinstance(record.groups, dict)
        and all(
            isinstance(numbers, dict)
            and numbers.keys() <= {*SPLITS, HELD_OUT}
            and all(type(count) is int and count > 0 for count in numbers.values())
            for numbers in record.groups.values()
        )
    )


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is damaged: delete it, and the command that made the run writes it anew")
