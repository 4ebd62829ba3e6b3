"""Goes through a folder that a user gives, and keeps account of what lies in it and is not taken.

Nothing is passed over in silence: what is no image is counted, and what is or ought to be an image and cannot be used
stops the loading.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from histodistill.selection.summaries import counted
from histodistill.training.data.names import fault_of_name
from histodistill.training.data.picture_kinds import (
    SIGNATURE_BYTES,
    SLIDE_REMEDY,
    SLIDE_SUFFIXES,
    SUFFIXES,
    kind_of_picture,
    placeholder,
)
from histodistill.training.data.split_files import splits_named
from histodistill.training.running.errors import InputError, one_line


#: Endings of the names of files that are taken for images, in any case of letters: those of the formats that
#: `decode_picture` reads.
IMAGE_SUFFIXES = tuple(SUFFIXES)
# Endings of images that are not read. Most others are known by their first bytes.
_OTHER_IMAGE_SUFFIXES = (
    ".gif", ".heic", ".heif", ".avif", ".jxl", ".psd", ".tga", ".exr", ".ico", ".pgm", ".pbm", ".svg",
    ".lif", ".lsm", ".nd2", ".oib", ".oif", ".dcm", ".dicom",
    ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2",
)  # fmt: skip
# Names of folders, in lower case, that systems, storages and programs leave among a user's own. Names that begin with
# a dot need not be here.
_SYSTEM_FOLDERS = {
    "__macosx", "__pycache__", "lost+found", "system volume information", "recycler", "$recycle.bin", "found.000",
    "network trash folder", "temporary items", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "@__thumb",
    "#recycle", "#snapshot", "~snapshot",
}  # fmt: skip
# How such names begin, and a user's own seldom do.
_LIKE_SYSTEM = ("@", "#", "$", "~")
# Endings of files of which it is known that no tile is in them.
_TEXT_SUFFIXES = {
    ".txt", ".md", ".rst", ".csv", ".tsv", ".xls", ".xlsx", ".ods", ".doc", ".docx", ".odt", ".rtf", ".pdf", ".html",
    ".xml", ".json", ".jsonl", ".geojson", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".log", ".py", ".ipynb", ".r",
    ".sh", ".bat", ".bib", ".tex", ".db",
}  # fmt: skip
# Endings of files that may hold, or lead to, the folder of a split: archives, arrays, links of Windows, and none, as
# has the text that Git for Windows leaves in place of a link.
_PACKED_SUFFIXES = {
    ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".npz", ".h5", ".hdf5", ".lnk", ".url", "",
}  # fmt: skip
# Suffixes that a line names.
_SUFFIXES_SHOWN = 5

# What stops the loading: kind → (what one is called, its plural, what to do).
_NAMES, _TARGETS, _PLACES, _SPECIAL, _EMPTY, _SLIDES, _KINDS, _SYSTEM, _NO_CLASS = range(9)
_REFUSED = {
    _NAMES: (
        "name with bytes or characters that are no text",
        "names with bytes or characters that are no text",
        "rename them in letters of UTF-8",
    ),
    _TARGETS: (
        "link without a target",
        "links without a target",
        "fetch what they stand for (as with `git annex get` or `dvc pull`), or take them out",
    ),
    _PLACES: (
        "placeholder for content that was not fetched",
        "placeholders for content that was not fetched",
        "fetch it (as with `git lfs pull`, `git annex get` or `dvc pull`), or take them out",
    ),
    _SPECIAL: ("entry that is no file", "entries that are no files", "take them out"),
    _EMPTY: ("empty image file", "empty image files", "copy them again, or take them out"),
    _SLIDES: ("whole slide", "whole slides", f"{SLIDE_REMEDY}, or move them away"),
    _KINDS: (
        "image of a kind or name that is not read",
        "images of kinds or names that are not read",
        f"save them as PNG, give them their suffix ({', '.join(IMAGE_SUFFIXES)}), or move them away",
    ),
    _SYSTEM: (
        "folder of images that is named as systems name their own",
        "folders of images that are named as systems name their own",
        "rename them if they are yours, or move them away",
    ),
    _NO_CLASS: (
        "image beside the class folders",
        "images beside the class folders",
        "move them into the folder of their class, or away",
    ),
}


def is_like_system(name: str) -> bool:
    """Whether a folder is called as systems and programs call their own, so that none of its images is a tile."""
    return name.startswith((".", *_LIKE_SYSTEM)) or name.lower() in _SYSTEM_FOLDERS


class FolderWalk:
    """Lists the folders and images that a user put into a folder, and remembers what else is there.

    Links are followed. Names that begin with a dot, and those that systems, storages and programs give to folders of
    their own (`@eaDir`, `__MACOSX`, `lost+found` and the like), are never the user's.

    Args:
        root: The folder.
        takes_unreadable: Whether images that are empty, or were not fetched, are listed with the others.
    """

    def __init__(self, root: Path, takes_unreadable: bool = False):
        self.root = root
        self._takes_unreadable = takes_unreadable
        self._real = root.resolve()
        self._seen = {_identity(folder): folder for folder in (self._real, *self._real.parents)}
        self._refused: dict[int, list[Path]] = {}
        self._others: list[Path] = []
        self._unused_images: list[Path] = []
        self._unnamed: list[Path] = []
        self._hidden_images: list[Path] = []
        self._system_folders: list[Path] = []
        self._no_images: list[Path] = []
        self._links_out: list[Path] = []
        self._merged: list[Path] = []

    def folders(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """What lies directly in a folder: the user's own folders, by name, and the images.

        Raises:
            InputError: If it cannot be listed, or a link leads to a folder that is there already.
        """
        found: tuple[list[Path], list[Path]] = ([], [])
        for path, status in self._entries(folder):
            if stat.S_ISDIR(status.st_mode):
                if self._is_own(path):
                    self._enter(path)
                    found[0].append(path)
            elif self._is_image(path, status):
                found[1].append(path)
        return found

    def images(self, folder: Path) -> list[Path]:
        """All images under a folder, by path.

        Raises:
            InputError: As `folders`.
        """
        images: list[Path] = []
        waiting = [folder]
        while waiting:
            below, found = self.folders(waiting.pop())
            images += found
            waiting += below
        return sorted(images, key=Path.as_posix)

    def leave_unnamed(self, images: list[Path]) -> None:
        """Keeps account of images that a table of labels does not name."""
        self._unnamed += images

    def leave_out(self, images: list[Path]) -> None:
        """Keeps account of images that are not taken; those seen so far that cannot be read are not taken either."""
        self._unused_images += images
        for kind in (_SLIDES, _KINDS, _EMPTY):
            self._unused_images += self._refused.pop(kind, [])

    def passed_over(self, folder: Path) -> bool:
        """Whether a folder beside the splits holds nothing that could be a tile; if so, keeps account of it."""
        if _may_hold_tiles(folder):
            return False
        self._no_images.append(folder)
        return True

    def refuse_packed(self, splits: set[str]) -> None:
        """Sees that no file beside the folders of splits may hold one of those that have no folder.

        Raises:
            InputError: Naming the file.
        """
        for path in self._others:
            if path.parent == self.root and path.suffix.lower() in _PACKED_SUFFIXES:
                for split in sorted(splits & splits_named(PurePosixPath(path.name))):
                    raise InputError(
                        f"{one_line(str(path))} seems to be the {split} split, which has no folder: unpack or copy it "
                        f"to {self.root / split}, or move it away"
                    )

    def put_together(self, folder: Path) -> None:
        """Keeps account of a folder whose images go with those of another, since both names are one class."""
        self._merged.append(folder)

    def refuse_beside_classes(self, images: list[Path]) -> None:
        """Keeps account of images that have no class, for `check`."""
        self._refused.setdefault(_NO_CLASS, []).extend(images)

    def check(self) -> None:
        """Sees that nothing was found that is an image, or ought to be one, and cannot be used.

        Raises:
            InputError: With the number and the first of them, and what to do.
        """
        for kind, (noun, plural, remedy) in _REFUSED.items():
            paths = sorted(self._refused.get(kind, []))
            if paths:
                which = f"{_by_suffix(paths)}, " if kind == _KINDS else ""
                which += f"such as {one_line(str(paths[0]))}"
                raise InputError(f"{self.root} holds {counted(len(paths), noun, plural)} ({which}): {remedy}")

    def account(self) -> str | None:
        """What was left out and why, and what links led elsewhere, in one line; None if there is nothing to tell."""
        parts = []
        if self._others:
            what = counted(len(self._others), "file that is no image", "files that are no images")
            parts.append(f"{what} ({_by_suffix(self._others)}, such as {self._example(self._others)})")
        for paths, noun, plural in (
            (self._unused_images, "image beside the split folders", "images beside the split folders"),
            (self._unnamed, "image without a label", "images without a label"),
            (self._hidden_images, "hidden image", "hidden images"),
            (self._system_folders, "hidden or system folder with images", "hidden or system folders with images"),
            (self._no_images, "folder without images", "folders without images"),
        ):
            if paths:
                parts.append(f"{counted(len(paths), noun, plural)} (such as {self._example(paths)})")
        lines = [f"left out of {self.root}: {'; '.join(parts)}"] if parts else []
        if self._links_out:
            links = counted(len(self._links_out), "link that leads", "links that lead")
            lines.append(f"followed {links} out of {self.root} (such as {self._example(self._links_out)})")
        if self._merged:
            folders = counted(len(self._merged), "folder")
            lines.append(
                f"put {folders} together with others of the same name in another spelling (such as "
                f"{self._example(self._merged)})"
            )
        return "; ".join(lines) or None

    def _entries(self, folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
        """Path and status of each entry of a folder, by name, but for those whose name or target is bad."""
        try:
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(
                f"{folder} cannot be listed ({error.strerror}): make it readable, or move it away"
            ) from error
        for entry in entries:
            path = folder / entry.name
            if fault_of_name(entry.name):
                self._refuse(_NAMES, path)
                continue
            try:
                status = entry.stat()
            except OSError:  # no target, or links in a circle
                # A link of the system's own, as editors leave them to lock a file, is nobody's tile.
                if not entry.name.startswith("."):
                    self._refuse(_TARGETS, path)
                continue
            if entry.is_symlink() and not path.resolve().is_relative_to(self._real):
                self._links_out.append(path)
            yield path, status

    def _is_own(self, folder: Path) -> bool:
        """Whether a folder is one of the user's own, and not the system's."""
        if not is_like_system(folder.name):
            return True
        if _holds_images(folder):
            if folder.name.startswith(".") or folder.name.lower() in _SYSTEM_FOLDERS:
                self._system_folders.append(folder)
            else:
                self._refuse(_SYSTEM, folder)
        return False

    def _enter(self, folder: Path) -> None:
        """Sees that a folder was not entered before, by another path."""
        before = self._seen.setdefault(_identity(folder), folder)
        if before != folder:
            raise InputError(
                f"{folder} leads to {before}: its tiles would be loaded twice, or without end; take the link out"
            )

    def _is_image(self, path: Path, status: os.stat_result) -> bool:
        """Whether what is no folder is an image that can be read; if not, keeps account of it."""
        suffix = path.suffix.lower()
        if suffix == ".icloud" or (suffix == ".dvc" and not path.with_suffix("").exists()):
            self._refuse(_PLACES, path)
        elif path.name.startswith("."):
            (self._hidden_images if suffix in IMAGE_SUFFIXES else self._others).append(path)
        elif not stat.S_ISREG(status.st_mode):
            self._refuse(_SPECIAL, path)
        elif suffix in SLIDE_SUFFIXES:
            self._refuse(_SLIDES, path)
        elif suffix not in IMAGE_SUFFIXES:
            if suffix in _OTHER_IMAGE_SUFFIXES or kind_of_picture(_head(path, SIGNATURE_BYTES)):
                self._refuse(_KINDS, path)
            else:
                self._others.append(path)
        elif self._takes_unreadable:
            return True
        elif not status.st_size:
            self._refuse(_EMPTY, path)
        elif placeholder(_head(path, SIGNATURE_BYTES), status.st_size):
            self._refuse(_PLACES, path)
        else:
            return True
        return False

    def _refuse(self, kind: int, path: Path) -> None:
        self._refused.setdefault(kind, []).append(path)

    def _example(self, paths: list[Path]) -> str:
        return one_line(min(paths).relative_to(self.root).as_posix())


def _identity(folder: Path) -> tuple[int, int]:
    """What a folder has in common with all links to it."""
    status = folder.stat()  # that of `os.scandir` lacks these numbers on Windows
    return status.st_dev, status.st_ino


def _holds_images(folder: Path) -> bool:
    """Whether there is a file with an image's suffix under a folder; links in it are not followed."""
    return any(name.lower().endswith(IMAGE_SUFFIXES) for _, _, names in os.walk(folder) for name in names)


def _may_hold_tiles(folder: Path) -> bool:
    """Whether there is anything under a folder that is no text or table, or that cannot be looked into."""
    unread: list[OSError] = []
    for parent, folders, names in os.walk(folder, onerror=unread.append):
        if any(os.path.islink(os.path.join(parent, name)) for name in [*folders, *names]):
            return True
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            # iCloud hides what stands for a file that was not fetched.
            if suffix == ".icloud" or not (name.startswith(".") or suffix in _TEXT_SUFFIXES):
                return True
    return bool(unread)


def _head(path: Path, count: int) -> bytes:
    """The first bytes of a file; none if it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return stream.read(count)
    except OSError:
        return b""


def _by_suffix(paths: list[Path]) -> str:
    """How many files there are of each of the commonest suffixes: `20 .gif, 3 .svs`."""
    counts = Counter(path.suffix.lower() or "without suffix" for path in paths)
    numbers = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{number:,} {one_line(suffix)}" for suffix, number in numbers[:_SUFFIXES_SHOWN]]
    return ", ".join([*shown, *(["…"] if len(numbers) > _SUFFIXES_SHOWN else [])])
