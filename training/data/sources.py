"""Where tiles come from: decides what a source is and loads it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from histodistill.selection.checks import check_integer
from histodistill.training.data.grouping import Grouping
from histodistill.training.data.listing import Listing
from histodistill.training.data.loading_notes import tell_of_tiles
from histodistill.training.data.names import can_be_hub_id, fault_of_name
from histodistill.training.data.opened_source import OpenedSource, opened_in_memory
from histodistill.training.data.reading import Reading
from histodistill.training.data.splits import hold_out_for_audit
from histodistill.training.data.tile_files import FilePixels
from histodistill.training.data.tiles import MIN_IMAGE_SIZE, TileSource
from histodistill.training.running.errors import InputError, one_line, param
from histodistill.training.running.notes import told_by_distill, warn
from histodistill.training.running.suggestions import did_you_mean


# Endings of files that can be a source.
_FILES = (".npz", ".csv", ".tsv", ".parquet")
# The built-in drawings, and those of one site each; and these with or without their seed.
_DRAWINGS = ("phantom", "phantom-east", "phantom-west", "phantom-south")
_PHANTOM = re.compile(r"phantom(-(?P<site>east|west|south))?(:(?P<seed>\d{1,9}))?", re.ASCII)


def load_tiles(
    source: str | Path,
    *,
    image_size: int | None = None,
    hold_out_validation: bool = True,
    audit_share: float = 0.0,
    group_column: str | None = None,
    group_pattern: str | None = None,
    group_kind: str | None = None,
    split_seed: int | None = None,
    allow_shared_groups: bool = False,
    convert: Sequence[str] = (),
    skip_unreadable: bool = False,
    max_unreadable: float = 0.05,
    labels: str | Path | None = None,
    mpp: float | None = None,
    hub_revision: str | None = None,
    hub_config: str | None = None,
    cache_dir: str | Path | None = None,
    download_dir: str | Path | None = None,
    download: bool = True,
    reread: bool = False,
) -> TileSource:
    """Loads labelled RGB tiles from any source.

    What `source` is, is decided in this order (only text can be a name; a `Path` always means a file or folder):

    1. `phantom`: the built-in drawings (`histodistill.training.data.phantom`); `phantom-east`, `phantom-west` and
       `phantom-south`: those of one site each. After a colon there may be their seed, `phantom:7`, for other patients;
       without it the seed is 0.
    2. A MedMNIST name: `pathmnist`, `dermamnist`, `retinamnist`, `bloodmnist`, in any case of letters. An
       `image_size` of 28, 64, 128 or 224 takes the file of that size, anything else the 28-pixel file.
       (To mean a folder with one of these names, write `./pathmnist`.)
       A path that exists is never a pattern, an address or an id, whatever it looks like.
    3. An existing file: a `.npz` in the MedMNIST layout, see `list_npz`; a `.parquet` with a column of images, see
       `open_parquet_file`; or a manifest, a `.csv`, `.tsv` or `.parquet` with the columns `path` and `label`, see
       `open_manifest`, or with `slide` in place of `path`, see `open_slide_manifest`.
    4. An existing folder with `dataset_dict.json` or `state.json`: `datasets`' `save_to_disk` layout.
    5. An existing folder with `.parquet` files in it or one level down: see `open_datasets_folder`.
    6. Any other existing folder: images of the formats that `pictures.decode_picture` reads,
       in `split/class/*.png` or `class/*.png`, see `open_image_folder`, or in any folders, with a table of their
       classes, see `open_labelled_folder`.
    7. `user/name`, where no folder `user` exists: a dataset id on the Hub.

    Every source needs a train split. Where there is no validation or test split, a tenth of the training tiles becomes
    it: whole groups where tiles have groups, and otherwise the last tiles of each class in file order, with their near
    copies (`hold_out_validation=False` makes none); see `make_missing_splits`. Odd sizes: with `image_size`, the
    shorter side is resized to it and the centre is cut out; without, all tiles must be of one square size.

    One line on standard error tells how many tiles each class has in each split. Further ones warn of tiles that two
    splits have in common, turned or mirrored ones included, and of tiles that train has with several labels.

    Args:
        source: A name, file, folder or id, as listed.
        image_size: Side of the tiles in pixels, at least 8 (phantom: 16); by default the tiles' own.
        hold_out_validation: Whether parts of train become validation and test where there are no such splits.
        audit_share: Share of the training tiles that becomes the split "held_out": see `hold_out_for_audit`.
        group_column: The column with each tile's group, such as its patient, of a source with columns.
        group_pattern: A regular expression with a named part `group`, such as `(?P<group>[^_/]+)_`, that is searched
            for in the path of each tile's file, relative to the source's folder.
        group_kind: What a group is: one of `GROUP_KINDS`, such as "patient".
        split_seed: Seed of the splits that are made.
        allow_shared_groups: Whether a group may be in two given splits.
        convert: Kinds of pictures that are converted to RGB with 8 bits a channel: "grey", "16bit", "cmyk".
        skip_unreadable: Whether tiles whose files cannot be read are left out, and told of, and not an error.
        max_unreadable: Share of the tiles that may be left out so, 0 to 1.
        labels: A table with the class of each picture in a folder, as a manifest has it; by default `labels.csv` or
            `metadata.csv` in the folder, if it has no folders of splits and classes.
        mpp: Microns per pixel to which tiles of slides are brought; by default what the places say.
        hub_revision, hub_config: Revision and configuration of a dataset of the Hub; by default the usual ones.
        cache_dir: Where decoded tiles are kept; by default `$HISTODISTILL_CACHE`, or else a folder in the user's
            cache. It must be the user's own.
        download_dir: Where downloads are kept; by default `MEDMNIST_ROOT` or `~/.medmnist` for MedMNIST, and the
            Hugging Face cache for Hub datasets.
        download: Whether a MedMNIST file that is not there may be fetched. (Hub datasets obey `HF_HUB_OFFLINE`.)
        reread: Whether tiles that were decoded before are decoded once more and compared with what was kept. Otherwise
            a source is known again by sizes, times and inodes of its files.

    Returns:
        A `TileSource`, with images uint8 N×H×W×3 and labels int64 N in every split, and groups, text N, or None.
        Images are views of a file in the cache: `images[rows]` reads some of them, `numpy.asarray(images)` all.

    Raises:
        InputError: The source is not there or cannot be used; one sentence says why and what to do.
    """
    if image_size is not None:
        check_integer(param("image_size"), image_size, MIN_IMAGE_SIZE, error=InputError)
    if split_seed is not None:
        check_integer(param("split_seed"), split_seed, 0, error=InputError)
    grouping = Grouping(group_column, group_pattern, group_kind, split_seed, allow_shared_groups)
    reading = Reading(
        cache_dir=cache_dir,
        download_dir=download_dir,
        download=download,
        convert=tuple(convert),
        skip_unreadable=skip_unreadable,
        max_unreadable=max_unreadable,
        labels=labels,
        mpp=mpp,
        hub_revision=hub_revision,
        hub_config=hub_config,
        reread=reread,
    )
    with told_by_distill():
        opened = _open(source, image_size, reading, grouping)
        found = hold_out_for_audit(opened.load(image_size, hold_out_validation, reading), audit_share)
        tell_of_tiles(found)
    return found


def list_tiles(
    source: str | Path,
    *,
    image_size: int | None = None,
    group_column: str | None = None,
    group_pattern: str | None = None,
    group_kind: str | None = None,
    convert: Sequence[str] = (),
    skip_unreadable: bool = False,
    labels: str | Path | None = None,
    mpp: float | None = None,
    hub_revision: str | None = None,
    hub_config: str | None = None,
    download_dir: str | Path | None = None,
    download: bool = True,
) -> Listing:
    """Lists what a source holds, as `load_tiles` would load it, without decoding a tile or making a split.

    Args:
        source: See `load_tiles`.
        image_size: Side of the tiles in pixels that will be asked for, by which MedMNIST's file is chosen.
        group_column, group_pattern, group_kind, convert, skip_unreadable, labels, mpp, hub_revision, hub_config,
            download_dir, download: As for `load_tiles`.

    Returns:
        The labels, groups and attributes of all tiles, and the sizes of some.

    Raises:
        InputError: As `load_tiles`, but for what is seen by decoding tiles or by comparing splits.
    """
    if image_size is not None:
        check_integer(param("image_size"), image_size, MIN_IMAGE_SIZE, error=InputError)
    grouping = Grouping(group_column, group_pattern, group_kind)
    reading = Reading(
        download_dir=download_dir,
        download=download,
        convert=tuple(convert),
        skip_unreadable=skip_unreadable,
        labels=labels,
        mpp=mpp,
        hub_revision=hub_revision,
        hub_config=hub_config,
    )
    with told_by_distill():
        return _open(source, image_size, reading, grouping).listing()


def check_source(source: str | Path, labels: str | Path | None = None) -> None:
    """Refuses a source that is not there or plainly of another layout, without reading its tiles or any library.

    Args:
        source, labels: See `load_tiles`.

    Raises:
        InputError: The source is nothing that `load_tiles` takes; one sentence says why and what to do.
    """
    found = _find(source)
    if isinstance(found, str):
        return
    if found.is_dir():
        from histodistill.training.data.datasets_folder import is_datasets_folder
        from histodistill.training.data.image_folder import check_splits

        table = _table_of(found, labels) if not is_datasets_folder(found) else None
        if table is not None:
            from histodistill.training.data.manifest import check_manifest

            check_manifest(table)
        elif not is_datasets_folder(found):
            check_splits(found)
    elif found.suffix.lower() == ".npz":
        from histodistill.training.data.npz import check_keys

        check_keys(found)
    else:
        from histodistill.training.data.manifest import check_manifest

        check_manifest(found)


def _open(source: str | Path, image_size: int | None, reading: Reading, grouping: Grouping) -> OpenedSource:
    """Opens a source, see `load_tiles`."""
    found = _find(source)
    for name in ("hub_revision", "hub_config"):
        value = getattr(reading, name)
        if value is not None and not (isinstance(found, str) and "/" in found):
            raise InputError(f"{param(name)}={value} is for a dataset of the Hub, and {found} is none: leave it out")
    opened = _open_what_is_found(found, image_size, reading, grouping)
    if reading.labels is not None and not (isinstance(found, Path) and isinstance(opened.pixels, FilePixels)):
        raise InputError(
            f"{param('labels')}={reading.labels} is for a folder of images, and {found} is none: leave it out"
        )
    if reading.mpp is not None:
        from histodistill.training.data.slide_pixels import SlidePixels

        if not isinstance(opened.pixels, SlidePixels):
            asked = f"{param('mpp')}={reading.mpp:g}"
            raise InputError(f"{asked} is for places on slides, and {opened.name} holds pictures: leave it out")
    return opened


def _open_what_is_found(
    found: str | Path, image_size: int | None, reading: Reading, grouping: Grouping
) -> OpenedSource:
    """Opens what `_find` found."""
    if isinstance(found, str) and "/" not in found:
        return _open_by_name(found, image_size, reading, grouping)
    if isinstance(found, str):
        from histodistill.training.data.hub_datasets import open_hub_dataset

        return open_hub_dataset(found, grouping, reading)
    return _own_name((_open_folder if found.is_dir() else _open_file)(found, reading, grouping))


def _open_folder(path: Path, reading: Reading, grouping: Grouping) -> OpenedSource:
    """Opens a folder of one of the kinds that there are."""
    from histodistill.training.data.datasets_folder import is_datasets_folder, open_datasets_folder
    from histodistill.training.data.image_folder import open_image_folder
    from histodistill.training.data.labelled_folder import open_labelled_folder

    if is_datasets_folder(path):
        return open_datasets_folder(path, grouping, reading)
    table = _table_of(path, reading.labels)
    if table is not None:
        return open_labelled_folder(path, table, grouping, reading)
    return open_image_folder(path, grouping, reading)


def _table_of(folder: Path, labels: str | Path | None) -> Path | None:
    """The table that says the classes of the images in a folder; None where its folders say them."""
    from histodistill.training.data.image_folder import has_split_folders
    from histodistill.training.data.labelled_folder import table_in

    if labels is not None:
        return Path(labels)
    return None if has_split_folders(folder) else table_in(folder)


def _open_file(path: Path, reading: Reading, grouping: Grouping) -> OpenedSource:
    """Opens a file of one of the kinds that there are."""
    if path.suffix.lower() == ".npz":
        from histodistill.training.data.medmnist import open_npz

        return open_npz(path, grouping)
    if path.suffix.lower() == ".parquet":
        from histodistill.training.data.datasets_folder import holds_images, open_parquet_file

        if holds_images(path):
            return open_parquet_file(path, grouping, reading)
    from histodistill.training.data.manifest import open_manifest, read_table

    table = read_table(path)
    if table.is_of_slides:
        from histodistill.training.data.slide_manifest import open_slide_manifest

        return open_slide_manifest(table, grouping, reading.mpp)
    return open_manifest(table, grouping, reading)


def _find(source: str | Path) -> str | Path:
    """What a source is: the name of a data set or an id on the Hub, or the path of a folder or file.

    Raises:
        InputError: It is none of these.
    """
    text = os.fspath(source)
    fault = fault_of_name(text)
    if fault:
        raise InputError(f"the source {one_line(text)} has {fault} in its name: name it in letters of UTF-8")
    is_text = isinstance(source, str)
    # The drawings are written as they are here alone, the names of MedMNIST in any case of letters.
    if is_text and (_PHANTOM.fullmatch(text) or text.lower() in _data_sets()[len(_DRAWINGS) :]):
        return text
    if not text:
        raise InputError(f"the source is empty: {_what_a_source_is()}")
    path = _existing(text)
    if path:
        if not os.path.isdir(path) and not (path.suffix.lower() in _FILES and os.path.isfile(path)):
            raise InputError(
                f"{path} is neither a folder nor a {', '.join(_FILES[:-1])} or {_FILES[-1]} file: "
                f"{_what_a_source_is()}"
            )
        return path
    if is_text and _is_hub_id(text):
        return text
    meant = did_you_mean(text, _data_sets()) if is_text and "/" not in text else ""
    if is_text and "/" not in text and text.lower().removesuffix("3d").endswith("mnist"):
        raise InputError(f"{text} is not a MedMNIST name that can be used{meant}: {_what_a_source_is()}")
    raise InputError(f"{text} does not exist{meant}: {_what_a_source_is()}")


def _data_sets() -> tuple[str, ...]:
    """The sources that go by a name of their own."""
    from histodistill.training.data.medmnist import MEDMNIST

    return (*_DRAWINGS, *MEDMNIST)


def _open_by_name(name: str, image_size: int | None, reading: Reading, grouping: Grouping) -> OpenedSource:
    """The data set of this name. Warns where a file or folder is called so, too."""
    if os.path.lexists(name):
        warn(
            f"{name} is taken for the data set of this name, not for what is called so here: for that, write ./{name}"
        )
    if drawn := _PHANTOM.fullmatch(name):
        from histodistill.training.data.phantom import phantom_source

        source = phantom_source(
            image_size=image_size or 28, seed=int(drawn["seed"] or 0), grouping=grouping, site=drawn["site"]
        )
        return opened_in_memory(source, grouping)
    from histodistill.training.data.medmnist import open_medmnist

    return open_medmnist(name.lower(), image_size, reading.download_dir, reading.download, grouping)


def _own_name(source: OpenedSource) -> OpenedSource:
    """A source from a path, not called as a data set that everybody knows unless it is that data set.

    What a source is called decides whether cards may name it, and whom they credit.
    """
    is_known = source.attribution is not None  # of the files of MedMNIST alone
    if is_known or source.name.lower() not in _data_sets():
        return source
    return replace(source, name=f"./{source.name}")


def _existing(text: str) -> Path | None:
    """The file or folder of this name as it is written, else with `~` replaced; None if there is neither.

    A link that leads nowhere is there, too: it is no id on the Hub.
    """
    paths = [Path(text)]
    if text.startswith("~"):
        with suppress(RuntimeError):  # no such user
            paths.append(paths[0].expanduser())
    return next((path for path in paths if os.path.lexists(path)), None)


def _is_hub_id(text: str) -> bool:
    """Whether a name of nothing on disk is that of a dataset on the Hub."""
    path = Path(text)
    return can_be_hub_id(text) and not path.parent.is_dir() and path.suffix not in _FILES


def _what_a_source_is() -> str:
    """All that can be given as a source, for the end of a message."""
    names = ", ".join(_data_sets()[len(_DRAWINGS) :])
    return (
        f"a source is phantom, one of {names}, a .npz in the MedMNIST layout, a folder of "
        "images (split/class/*.png, class/*.png, or with labels.csv), a manifest (a .csv, .tsv or .parquet file with "
        "the columns path and label), a datasets folder, a Parquet file with images, or a Hub dataset id (user/name)"
    )
