"""All cases: each kind of damage at each place where it can be."""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from small_sources import arrays

from hostile import archives, damage, documents, images, tables
from hostile.documents import Change
from hostile.places import PLACES, Place


#: How often each damage is drawn that draws.
DRAWS = 4


@dataclass(frozen=True)
class Case:
    """Something bad.

    Attributes:
        kind: What was done, as rows of the table call it.
        place: Where.
        what: What exactly.
        change: Does it, in a folder in which something valid is.
        is_damage: Whether what was there is damaged, so that with checksums it is refused or unchanged.
    """

    kind: str
    place: Place
    what: str
    change: Change
    is_damage: bool = False

    @property
    def name(self) -> str:
        """How it is called on the command line."""
        return f"{self.place.name}: {self.kind}: {self.what}"


def all_cases(with_heavy: bool = True) -> list[Case]:
    """All of them, in an order that does not change.

    Args:
        with_heavy: Whether with those that need torch.
    """
    return [case for place in PLACES.values() if with_heavy or not place.is_heavy for case in _of_place(place)]


def make_valid(place: Place, folder: Path) -> None:
    """Makes what is valid at a place in a new folder."""
    folder.mkdir(parents=True)
    place.make(folder)


def _of_place(place: Place) -> Iterator[Case]:
    def to_bytes(change: damage.Change, number: int = 0) -> Change:
        def changed(folder: Path) -> None:
            # Another one for each place and number, and the same on every machine.
            rng = np.random.default_rng([zlib.crc32(place.name.encode()), number])
            file = folder / place.target
            file.write_bytes(change(file.read_bytes(), rng))

        return changed

    for kind, change in damage.TO_BYTES.items():
        yield Case(kind, place, "", to_bytes(change), is_damage=True)
    for kind, change in damage.DRAWN.items():
        for number in range(DRAWS):
            yield Case(kind, place, f"draw {number}", to_bytes(change, number), is_damage=True)
    for kind, put in damage.IN_ITS_PLACE.items() if place.is_file else ():
        yield Case(f"{kind} in its place", place, "", lambda folder, put=put: put(folder / place.target))
    for kind, what, structured in _structured(place):
        yield Case(kind, place, what, structured)


def _structured(place: Place) -> Iterator[tuple[str, str, Change]]:
    """What only files of its kind can hold."""
    target, ending = place.target, place.target.rpartition(".")[2]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "valid"
        make_valid(place, folder)
        data = (folder / target).read_bytes()
    if place.name == "tiles.npz":
        content = {"class_names": np.array(["fat", "gland"])} | arrays(8)
        yield from archives.of_archive(target, "train_labels", content)
        yield from archives.of_tiles(target, content)
    elif place.name == "kept arrays":
        content = {"step": np.array(3), "values": np.arange(400.0).reshape(20, 20), "names": np.array(["a", "b"])}
        yield from archives.of_archive(target, "values", content)
    elif place.name.startswith("picture"):
        yield from images.of_picture(target, ending)
        if ending == "png":
            yield from images.of_names()
    elif place.name == "PNG to publish":
        yield from images.of_picture(target, "png")
    elif ending in ("csv", "tsv"):
        yield from documents.of_table(target, data.decode())
    elif place.name == "manifest .parquet":
        rows = pq.read_table(pa.BufferReader(data))
        for name, cell in documents.CELLS.items():
            for column in ("path", "label"):
                values = rows[column].to_pylist()
                values[2] = cell
                changed = rows.set_column(rows.schema.get_field_index(column), column, pa.array(values))
                yield "a cell", f"{column} is {name}", lambda folder, c=changed: pq.write_table(c, folder / target)
    elif ending == "parquet" and place.name != "part of a run":
        yield from tables.of_parquet(target, pq.read_table(pa.BufferReader(data)))
    elif ending == "arrow":
        yield from tables.of_arrow(target, pa.ipc.open_stream(data).read_all())
    elif place.name == "coordinates .h5":
        yield from tables.of_coords(target)
    elif ending == "md":
        yield from documents.of_readme(target)
        yield from documents.of_repository()
    elif ending == "json":
        yield from documents.of_json(target, json.loads(data))
    elif ending == "safetensors":
        yield from documents.of_safetensors(target, data, _seal_of(place))


def _seal_of(place: Place) -> Change:
    """Mends the checksum beside arrays, so that what is in them is looked at."""
    if place.name == "selector's arrays":
        return documents.seal_selector
    return documents.seal_checkpoint if place.name.startswith("checkpoint") else lambda folder: None
