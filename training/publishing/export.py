"""Writes a distilled set in the layout of other programs.

    histodistill export runs/mine/distilled --format medmnist --output colon.npz
    histodistill export you/colon-distilled --format folder --output colon

medmnist is one .npz file as those of MedMNIST: train_images and train_labels, with class_names beside them. folder has
a folder of PNG files for each class, as torchvision and `load_dataset("imagefolder", …)` read them. Both have the
same pixels and classes; soft labels, seeds and all else that is known of an image stay behind, and a line says which.

What is there is never replaced: the same export again is nothing to do, and another one is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from histodistill.training.running.errors import InputError, param
from histodistill.training.running.options import StepConfig, StepParser, config, option, run_script


if TYPE_CHECKING:
    from histodistill.hub_cards.tables import ImageTable

#: The layouts.
FORMATS = ("medmnist", "folder")
# Words by which `datasets` takes a folder for a split, beside those of `SPLIT_ALIASES`; and what stands between words.
_MORE_SPLITS = ("eval", "evaluation")
_BETWEEN_WORDS = re.compile(r"[-._ 0-9]+")


@config
class ExportConfig(StepConfig):
    """Options of `export`."""

    set: str | Path = option("folder of a distilled set, or its id on the Hub", positional=True)
    format: str = option("layout to write", choices=FORMATS)
    output: Path = option("the .npz file, or the folder", metavar="PLACE")

    def check(self) -> None:
        """Checks that a file in the layout of MedMNIST is named as one."""
        if self.format == "medmnist" and self.output.suffix != ".npz":
            raise InputError(f"{param('output')}={self.output} is no .npz file: give it that ending")


def make_parser() -> StepParser[ExportConfig]:
    """The parser of the command line."""
    return StepParser(ExportConfig, prog="histodistill export", description=__doc__)


def run(config: ExportConfig) -> Path:
    """Writes the set, whole or not at all, and tells what of it was left out.

    Returns:
        The file or the folder.

    Raises:
        InputError: For what is no distilled set, classes that the layout cannot have, or an output that holds
            something else.
    """
    from histodistill.training.data.image_dataset import read_image_table
    from histodistill.training.models.hub_files import set_folder

    if file := next((parent for parent in config.output.parents if parent.exists() and not parent.is_dir()), None):
        raise InputError(f"{param('output')}={config.output} lies in {file}, which is no folder: give another place")
    table = read_image_table(set_folder(config.set, "set"))
    is_new = (_write_npz if config.format == "medmnist" else _write_folder)(config.output, table)
    left_out = ", ".join(name for name in table.columns if name != "label") or "nothing"
    how = "saved to" if is_new else "are already in"
    print(f"export: {len(table)} images {how} {config.output}; left out: {left_out}")
    if config.format == "folder" and table.class_names != sorted(table.class_names):
        print("export: readers of folders number classes by their sorted names, which is another order than the set's")
    return config.output


def _write_npz(path: Path, table: ImageTable) -> bool:
    """Writes a set in the layout of MedMNIST; False where it is there already."""
    import io

    import numpy as np

    from histodistill.training.running.files import write_bytes

    if len(table.class_names) > 256:
        raise InputError(
            f"{param('format')}=medmnist has labels of 8 bits, and the set has {len(table.class_names)} classes: give "
            f"{param('format')}=folder"
        )
    labels = table.columns["label"].astype(np.uint8)[:, None]
    buffer = io.BytesIO()
    np.savez(buffer, train_images=table.images, train_labels=labels, class_names=np.array(table.class_names))
    if os.path.lexists(path):
        if path.is_file() and path.read_bytes() == buffer.getvalue():
            return False
        raise _holds_something_else(path)
    write_bytes(path, buffer.getvalue())
    return True


def _write_folder(path: Path, table: ImageTable) -> bool:
    """Writes a set as a folder of PNG files for each class; False where it is there already."""
    from histodistill.training.running.files import new_folder

    _check_folder_names(table.class_names)
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        there = {file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()}
        for name, data in _pictures(table):
            if name not in there or (path / name).read_bytes() != data:
                raise _holds_something_else(path)
            there.remove(name)
        if there:
            raise _holds_something_else(path)
        return False
    with new_folder(path) as new:
        for name, data in _pictures(table):
            (new / name).parent.mkdir(exist_ok=True)
            (new / name).write_bytes(data)
    return True


def _pictures(table: ImageTable) -> Iterator[tuple[str, bytes]]:
    """The PNG file of each image and its place: its class, and its number in the set."""
    from histodistill.hub_cards.pictures import encode_png

    for number, (image, label) in enumerate(zip(table.images, table.columns["label"].tolist(), strict=True)):
        yield f"{table.class_names[label]}/{number:06d}.png", encode_png(image)


def _check_folder_names(class_names: list[str]) -> None:
    """Sees that readers of folders find each class under its own name."""
    from histodistill.training.data.folder_walk import is_like_system
    from histodistill.training.data.tiles import SPLIT_ALIASES

    seen: set[str] = set()
    for name in class_names:
        words = {*_BETWEEN_WORDS.split(name.lower())}
        fault = None
        if "/" in name or is_like_system(name):
            fault = "cannot be the name of a folder that is read"
        elif words & {*SPLIT_ALIASES, *_MORE_SPLITS}:
            fault = "would be taken for a split by readers of folders"
        elif name.casefold() in seen:
            fault = "differs from another class in capitals alone, which some systems do not tell apart"
        if fault:
            raise InputError(
                f"{param('format')}=folder does not go with the class {name!r}, which {fault}: "
                f"give {param('format')}=medmnist"
            )
        seen.add(name.casefold())


def _holds_something_else(path: Path) -> InputError:
    return InputError(f"{param('output')} {path} holds something else than this set: give another place")


if __name__ == "__main__":
    run_script(make_parser, run)
