"""Rows of the results table: what they are called, and what a name says of the tiles and of the recipe."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from histodistill.selection import SELECTOR_NAMES
from histodistill.training.distillation.guided_options import GUIDED, GUIDES, GuidedConfig
from histodistill.training.distillation.peer_options import PEER, PEERS, MatchingConfig
from histodistill.training.distillation.selector_options import SelectorConfig
from histodistill.training.engine.classifier_config import ClassifierConfig
from histodistill.training.models.architectures import is_probe
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.options import Kind, StepConfig
from histodistill.training.running.suggestions import did_you_mean


_Config = TypeVar("_Config", bound=StepConfig)

# Rows whose tiles are not selected, and what they are.
FIXED_ROWS = {
    "real_all": "all real training tiles",
    "pool_all": "the whole pool",
    "real_random": "random real training tiles",
}
# Those that do not depend on the number of images per class.
WHOLE_ROWS = ("real_all", "pool_all")
# The selector of the presets, whose choice stands for the distilled set.
_USUAL = "kernel_herding"
# The rows that matter most: real tiles, images drawn at random and the usual choice, each by labels and by the
# teacher's soft labels, so that soft labels are compared with soft labels.
HEADLINE_ROWS = tuple(
    f"{tiles}{recipe}"
    for recipe in ("", "@soft_label_weight=1")
    for tiles in ("real_all", "real_random", "random", _USUAL)
)
# All further rows of the whole table, which are the ConvNet's, since it is quick.
_FURTHER_ROWS = (
    "pool_all",
    *(name for name in SELECTOR_NAMES if name not in HEADLINE_ROWS),
    f"{_USUAL}@loss=joint",
    *(f"{row}@stain_strength=0" for row in ("real_all", "real_random", _USUAL)),
    *(f"{row}@normalize_stain=1" for row in ("real_all", "real_random", _USUAL)),
)
# Images per class of the whole table by classifier: fewer sizes for those that take longer.
DEFAULT_SIZES = {"convnet": (10, 50, 100), "resnet18": (10, 100), "vit": (100,)}
# The same of other classifiers: of probes, which take a moment, and of networks from elsewhere.
_PROBE_SIZES, _OTHER_SIZES = (10, 50, 100), (100,)
# Those of a table that is to be there soon.
QUICK_SIZES = (10, 100)
#: Numbers of optimizer steps that are tried one after the other, as long as more of them help.
LADDER = (600, 2000, 6000)
# Options of the recipe that no row changes, since one table has one network, one budget and one way of measuring.
FIXED_OPTIONS = (
    "architecture",
    "width",
    "max_train_steps",
    "batch_size",
    "gradient_accumulation_steps",
    "validation_steps",
    "validation_tiles",
    "seed",
)
# What a row may change of the recipe.
RECIPE_OPTIONS = tuple(
    option.name for option in dataclasses.fields(ClassifierConfig) if option.name not in FIXED_OPTIONS
)
# Options of `select` that no row takes: rows choose from the whole pool, copies of real tiles included.
_COPY_OPTIONS = ("drop_copies", "copy_embedders")
# Options of a selector that a row takes: its name stands before the colon, size and seed are those of the cell.
_SELECTOR_OPTIONS = tuple(
    option.name
    for option in dataclasses.fields(SelectorConfig)
    if option.name not in ("selector", "n_per_class", "seed", *_COPY_OPTIONS)
)
# How the value of an option of the recipe is read, by its type.
_READERS: dict[type, Callable[[str], Any]] = {
    int: int,
    float: float,
    str: str,
    bool: {"0": False, "1": True}.__getitem__,
}
# Characters of a row in a file's name: file systems take 255 bytes, and more comes before and after it.
_LONGEST_NAME = 120


@dataclass(frozen=True)
class Row:
    """What classifiers are trained on, and how.

    Attributes:
        name: The row as the user wrote it: `TILES[@OPTION=VALUE,…]`.
        tiles: One of `FIXED_ROWS`, or a selector, peer or guidance with its options: the name up to the @.
        options: The selector and its options; None for a row that is not selected.
        peer: How the images of a peer are made; None for any other row.
        guided: How the images of a guided row are sampled; None for any other row.
        recipe: What the row changes of the recipe, by name of the option.
    """

    name: str
    tiles: str
    options: SelectorConfig | None
    recipe: dict[str, Any] = field(default_factory=dict)
    peer: MatchingConfig | None = None
    guided: GuidedConfig | None = None

    @property
    def file_name(self) -> str:
        """Its tiles as part of a file's name."""
        return file_name(self.tiles)

    def selection(self, n_per_class: int, seed: int) -> SelectorConfig:
        """The options of its selector for so many images of each class; a row that is not selected has none."""
        assert self.options is not None
        return dataclasses.replace(self.options, n_per_class=n_per_class, seed=seed)


def default_rows(architecture: str) -> tuple[str, ...]:
    """The rows of the whole table for a classifier."""
    return HEADLINE_ROWS + _FURTHER_ROWS if architecture == "convnet" else HEADLINE_ROWS


def default_sizes(architecture: str) -> tuple[int, ...]:
    """Images per class of the whole table for a classifier."""
    return DEFAULT_SIZES.get(architecture) or (_PROBE_SIZES if is_probe(architecture) else _OTHER_SIZES)


def usual_seeds(architecture: str, is_headline: bool) -> range:
    """The seeds of a line of the whole table: five of the ConvNet's headlines, else three."""
    return range(5 if architecture == "convnet" and is_headline else 3)


def parse_row(name: str) -> Row:
    """Reads a row, such as `real_all`, `infomap:quota=sqrt`, `peer:dm:steps=500` or `random@loss=joint,margin=0.2`.

    Raises:
        InputError: For an unknown selector, peer, guidance or option, or a value that the option does not take.
    """
    where = f"{param('rows')} {name}"
    tiles, at, changes = name.partition("@")
    recipe = parse_recipe(changes.split(",") if at else [], where)
    if tiles in FIXED_ROWS:
        return Row(name, tiles, None, recipe)
    if tiles.startswith(PEER):
        if recipe.get("soft_label_weight"):
            raise InputError(f"{where}: a peer's images have no soft labels: leave soft_label_weight out")
        return Row(name, tiles, None, recipe, _parse_method(tiles.removeprefix(PEER), PEERS, "peer", where))
    if tiles.startswith(GUIDED):
        guided = _parse_method(tiles.removeprefix(GUIDED), GUIDES, "guidance", where)
        return Row(name, tiles, None, recipe, guided=guided)
    return Row(name, tiles, _parse_selector(tiles, where), recipe)


def _parse_selector(text: str, where: str) -> SelectorConfig:
    """Reads a row's selector with its options; `where` begins the sentence of an error."""
    selector, _, rest = text.partition(":")
    items = rest.split(",") if rest else []
    for item in items:
        if item.partition("=")[0].replace("-", "_") in _COPY_OPTIONS:
            raise InputError(f"{where}: {item!r} cannot be given, since rows choose from the whole pool: leave it out")
    return _with_options(SelectorConfig, items, _SELECTOR_OPTIONS, where, selector=selector)


def _parse_method(text: str, methods: Mapping[str, type[_Config]], kind: str, where: str) -> _Config:
    """Reads the name of a method with its options.

    Args:
        text: What follows the row's `PEER` or `GUIDED`.
        methods: Name → options of all of the kind.
        kind: In a word, for an error.
        where: What the sentence of an error begins with.
    """
    name, _, rest = text.partition(":")
    if name not in methods:
        raise InputError(
            f"{where}: there is no {kind} {name!r}{did_you_mean(name, methods)}: give one of {', '.join(methods)}"
        )
    known = tuple(option.name for option in dataclasses.fields(methods[name]))
    return _with_options(methods[name], rest.split(",") if rest else [], known, where)


def _with_options(
    config: type[_Config], items: Sequence[str], known: Sequence[str], where: str, **given: Any
) -> _Config:
    """A configuration with the options that a row gives it, as `OPTION=VALUE`."""
    texts = dict(_row_option(item, known, where) for item in items)
    try:
        options = {name: Kind.of(config, name).read_text(name, value) for name, value in texts.items()}
        return config(**given, **options)
    except InputError as error:
        # A row has options by the names of parameters, also where it stands on a command line.
        raise InputError(f"{where}: {error}") from error


def _row_option(item: str, known: Sequence[str], where: str) -> tuple[str, str]:
    """Name and value of `OPTION=VALUE`."""
    name, equals, value = item.partition("=")
    name = name.replace("-", "_")
    if not equals or name == "selector":
        raise InputError(f"{where}: {item!r} is not OPTION=VALUE: write a row as in infomap:quota=sqrt,n_neighbors=10")
    if name not in known:
        meant = did_you_mean(name, known)
        raise InputError(f"{where}: {item!r} is not OPTION=VALUE with one of {', '.join(known)}{meant}")
    return name, value


def parse_recipe(items: Sequence[str], where: str) -> dict[str, Any]:
    """Reads `OPTION=VALUE` items of the recipe.

    Args:
        items: The texts; 0 and 1 stand for False and True.
        where: What the sentence of an error begins with.

    Returns:
        The values by name of the option.

    Raises:
        InputError: For an item that is none, an option that is named twice, or a value of another type.
    """
    recipe: dict[str, Any] = {}
    for item in items:
        name, equals, value = item.partition("=")
        name = name.replace("-", "_")
        if not equals or name not in RECIPE_OPTIONS:
            known, meant = ", ".join(RECIPE_OPTIONS), did_you_mean(name, RECIPE_OPTIONS)
            raise InputError(f"{where}: {item!r} is not OPTION=VALUE with one of {known}{meant}")
        if name in recipe:
            raise InputError(f"{where} names {name} twice: name it once")
        kind = Kind.of(ClassifierConfig, name).item
        try:
            recipe[name] = _READERS[kind](value)
        except (LookupError, ValueError) as error:
            rule = "must be a number, 0 or 1" if kind is bool else "must be a number"
            raise InputError(f"{where}: {item!r} {rule}") from error
    return recipe


def file_name(row: str) -> str:
    """A row's name as part of a file's name; rows that differ have names that differ."""
    plain = re.sub(r"[^\w.]+", "-", row)[:_LONGEST_NAME]
    return plain if plain == row else f"{plain}-{hashlib.sha256(row.encode()).hexdigest()[:8]}"
