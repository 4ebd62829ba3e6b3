"""Which columns of typed rows, as `datasets` writes them, are images, labels, groups and sites."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from histodistill.training.data.arrow_files import Rows
from histodistill.training.data.names import some
from histodistill.training.data.text_columns import is_text_column
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.suggestions import did_you_mean


#: What the columns are, by their name: `datasets`' features in the form in which it writes them to JSON.
Features = Mapping[str, Any]


@dataclass(frozen=True)
class NameColumn:
    """A column of names.

    Attributes:
        column: What it is called.
        stands_for: What its numbers stand for, where it is of type ClassLabel.
    """

    column: str
    stands_for: tuple[str, ...] | None


@dataclass(frozen=True)
class Columns:
    """Which columns of some rows are used.

    Attributes:
        image, label: Their names.
        class_names: The name of each label.
        soft_label: Whether there is a column of a teacher's probabilities.
        views: Whether there are columns of those of further views, and of ranks, by which the views can be made.
        group, site: The columns of each tile's group and site, if there are such.
        unused: Names of all other columns.
    """

    image: str
    label: str
    class_names: tuple[str, ...]
    soft_label: bool
    views: bool
    group: NameColumn | None
    site: NameColumn | None
    unused: tuple[str, ...]

    @property
    def listed(self) -> list[str]:
        """The names of the columns that are read before the images."""
        of_names = [names.column for names in (self.group, self.site) if names is not None]
        return [*dict.fromkeys([self.label, *_soft_columns(self.soft_label, self.views), *of_names])]

    def without_site(self) -> Columns:
        """The same without a column of sites, of which not every file has the same."""
        return self if self.site is None else replace(self, site=None, unused=(*self.unused, self.site.column))


def features_of_schema(schema: pa.Schema, where: str) -> Features:
    """What `datasets` wrote about the columns into a file's schema; nothing where it did not.

    Raises:
        InputError: If what is there cannot be understood.
    """
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
        if features is None or isinstance(features, dict):
            return features or {}
    except (KeyError, TypeError, ValueError, RecursionError):
        pass
    raise InputError(f"{where} has a schema whose entry 'huggingface' cannot be understood: save it again")


def columns_of_split(files: Sequence[tuple[Rows, Features | None]], where: str, group: str | None = None) -> Columns:
    """The columns of a split's files, which must be the same in all; `group` is that of the groups."""
    found: Columns | None = None
    for rows, features in files:
        own = features_of_schema(rows.schema, str(rows.path))
        columns = _find_columns(rows.schema, features or own, where, group)
        if features and own and _find_columns(rows.schema, own, where, group).class_names != columns.class_names:
            raise InputError(f"{rows.path} has other class names than are written beside it: correct one of them")
        found = found or columns
        if columns.site != found.site:
            columns, found = columns.without_site(), found.without_site()
        if replace(columns, unused=()) != replace(found, unused=()):
            raise InputError(
                f"{rows.path} has other columns or class names than {files[0][0].path}: all files of a split must "
                "have the same"
            )
    assert found is not None  # a split has files
    return found


def _find_columns(schema: pa.Schema, features: Features, where: str, group: str | None) -> Columns:
    """Finds the columns of images and of labels by their type, and those of groups and sites by their name."""
    kinds = {
        "Image": ("image", "cast_column('image', datasets.Image())", is_image),
        "ClassLabel": ("label", "cast_column('label', datasets.ClassLabel(names=[...]))", pa.types.is_integer),
    }
    chosen: dict[str, str] = {}
    for kind, (usual, remedy, is_stored_so) in kinds.items():
        found = [
            field.name
            for field in schema
            if isinstance(feature := features.get(field.name), dict)
            and feature.get("_type") == kind
            and is_stored_so(field.type)
        ]
        if usual in found:
            found = [usual]
        if len(found) != 1:
            what = f"no column of type {kind}" if not found else f"several columns of type {kind}"
            raise InputError(f"{where} has {what}: it needs one, called {usual!r} if there are more; use {remedy}")
        chosen[kind] = found[0]
    image, label = chosen["Image"], chosen["ClassLabel"]
    class_names = names_of_labels(features[label])
    if class_names is None:
        raise InputError(
            f"{where} has no names for the labels in column {label!r}: cast it to ClassLabel(names=[...])"
        )
    soft_label = "soft_label" in schema.names and _is_list_of_numbers(schema.field("soft_label").type)
    views = (
        soft_label
        and {"soft_label_views", "rank"} <= set(schema.names)
        and _is_list_of_codes(schema.field("soft_label_views").type)
        and pa.types.is_integer(schema.field("rank").type)
        and group != "rank"
    )
    used = {image, label, *_soft_columns(soft_label, views)}
    of_groups = of_sites = None
    if group is not None:
        _check_group_column(schema, group, used, where)
        of_groups = NameColumn(group, names_of_labels(features.get(group)))
    if "site" in schema.names and "site" not in used:
        names = names_of_labels(features.get("site"))
        if names is not None or is_text_column(schema.field("site").type):
            of_sites = NameColumn("site", names)
    used |= {names.column for names in (of_groups, of_sites) if names is not None}
    unused = tuple(name for name in schema.names if name not in used)
    return Columns(image, label, class_names, soft_label, views, of_groups, of_sites, unused)


def names_of_labels(feature: object) -> tuple[str, ...] | None:
    """What the numbers of a column of type ClassLabel stand for; None where that is not said."""
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def _check_group_column(schema: pa.Schema, group: str, used: Set[str], where: str) -> None:
    """Sees that there is a column `group` that can hold groups, and that it is none of those `used` otherwise."""
    asked = f"{param('group_column')}={group}"
    others = [name for name in schema.names if name not in used]
    if group in used:
        raise InputError(f"{asked} is the column of images or labels in {where}: name the one with each tile's group")
    if group not in schema.names:
        meant = did_you_mean(group, others)
        raise InputError(f"{asked} is no column of {where}{meant}: it has {some(others) or 'no other column'}")
    kind = schema.field(group).type
    if not is_text_column(kind) and not pa.types.is_integer(kind):
        raise InputError(f"{asked} of {where} is of type {kind}: groups must be text, whole numbers or a ClassLabel")


def is_image(kind: pa.DataType) -> bool:
    """Whether a column can hold images: their bytes, or a struct of bytes and file name."""
    if pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        is_alone = len(fields) == kind.num_fields
        return is_alone and "bytes" in fields and fields.keys() <= {"bytes", "path"} and _is_bytes(fields["bytes"])
    return _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    """Whether values are bytes of any number."""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _soft_columns(soft_label: bool, views: bool) -> list[str]:
    """Names of the columns of soft labels that there are."""
    return [*(["soft_label"] if soft_label else []), *(["soft_label_views", "rank"] if views else [])]


def _is_list_of_numbers(kind: pa.DataType) -> bool:
    """Whether values are lists of numbers."""
    return _is_list(kind) and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def _is_list_of_codes(kind: pa.DataType) -> bool:
    """Whether values are lists of numbers of 8 bits."""
    return _is_list(kind) and pa.types.is_uint8(kind.value_type)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
