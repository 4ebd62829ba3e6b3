"""The places: what is read, how something valid of it is made, and what must be true of what is read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from small_sources import arrays, image_folder, packed, parquet

from histodistill.hub_cards.errors import ContentError
from histodistill.training.running.errors import InputError


# What selectors raise, which know nothing of the training.
_SELECTOR_ERRORS = (ValueError,)
# Files of pictures: ending → format of Pillow and its options, without loss.
PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "jpg": ("JPEG", {"quality": 95}),
    "tif": ("TIFF", {"compression": "tiff_lzw"}),
    "bmp": ("BMP", {}),
    "webp": ("WEBP", {"lossless": True}),
    "jp2": ("JPEG2000", {}),
    "ppm": ("PPM", {}),
}


@dataclass(frozen=True)
class Place:
    """A file that somebody else may have written.

    Attributes:
        name: What tables call it.
        target: The file, relative to the case's folder.
        make: Makes something valid in an empty folder.
        load: Reads it from the folder; returns what can be compared.
        errors: What a refusal is raised as.
        is_sealed: Whether checksums cover all that is read, so that damage is refused or changes nothing.
        is_heavy: Whether it needs torch, which takes seconds to import.
        is_file: Whether it is read from a file, and not from a cell of a table.
    """

    name: str
    target: str
    make: Callable[[Path], None]
    load: Callable[[Path], Any]
    errors: tuple[type[Exception], ...] = (InputError,)
    is_sealed: bool = False
    is_heavy: bool = False
    is_file: bool = True


def _tiles(source: Path) -> list[Any]:
    """The tiles of a source, which must be what `load_tiles` promises."""
    from histodistill.training.data.sources import load_tiles

    found = load_tiles(source)
    assert all(type(name) is str and name for name in found.class_names), "classes without names"
    content: list[Any] = [found.class_names]
    for split, tiles in found.splits.items():
        images = np.asarray(tiles.images)
        assert images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3, "images of another form"
        assert tiles.labels.dtype == np.int64 and len(tiles.labels) == len(images), "labels of another form"
        assert ((tiles.labels >= 0) & (tiles.labels < len(found.class_names))).all(), "labels of no class"
        assert tiles.groups is None or len(tiles.groups) == len(images), "groups of other tiles"
        content += [split, images.tobytes(), tiles.labels.tolist()]
    return content


def _table(table: Any) -> list[Any]:
    images = np.asarray(table.images[:])
    assert images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3, "images of another form"
    assert all(len(values) == len(images) for values in table.columns.values()), "columns of other images"
    return [images.tobytes(), table.class_names, *(values.tolist() for values in table.columns.values())]


# --- tiles ---


def _npz(folder: Path) -> None:
    (folder / "tiles.npz").write_bytes(packed({"class_names": np.array(["fat", "gland"])} | arrays(8)))


def noise(seed: int = 0, size: int = 16) -> Image.Image:
    """A picture of noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def encoded(image: Image.Image, ending: str = "png") -> bytes:
    """A picture as a file."""
    form, options = PICTURES[ending]
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _pictures(ending: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for number, name in enumerate(("fat", "gland")):
            (folder / "tiles" / "train" / name).mkdir(parents=True)
            for i in range(12):
                file = folder / "tiles" / "train" / name / f"{i}.{ending}"
                file.write_bytes(encoded(noise(100 * number + i), ending))

    return make


def _listed(ending: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        rows = [("path", "label", "split", "patient")]
        image_folder(folder, {"all": 12}, size=16)
        for i in range(12):
            rows.append((f"all/tile_{i:03}.png", ("fat", "gland")[i % 2], ("train", "val", "test")[i // 4], f"p{i}"))
        if ending == "parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            columns = [list(column) for column in zip(*rows[1:], strict=True)]
            pq.write_table(pa.table(dict(zip(rows[0], columns, strict=True))), folder / "set.parquet")
        else:
            separator = "\t" if ending == "tsv" else ","
            (folder / f"set.{ending}").write_text("".join(separator.join(row) + "\n" for row in rows))

    return make


def _labelled(folder: Path) -> None:
    image_folder(folder / "tiles", {"all": 12}, size=16)
    lines = [f"all/tile_{i:03}.png,{('fat', 'gland')[i % 2]}\n" for i in range(12)]
    (folder / "tiles" / "labels.csv").write_text("file_name,class\n" + "".join(lines))


def _repository(folder: Path) -> None:
    parquet(folder / "set" / "data" / "train-00000-of-00001.parquet", 12)
    header = (
        "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n"
        "dataset_info:\n  splits:\n  - name: train\n    num_examples: 12\n"
    )
    (folder / "set" / "README.md").write_text(f"---\n{header}---\nTiles.\n")


def _one_table(folder: Path) -> None:
    parquet(folder / "tiles.parquet", 12)


def _saved(folder: Path) -> None:
    """What `save_to_disk` of `datasets` leaves, without importing it."""
    import pyarrow as pa
    from small_sources import table

    place = folder / "set" / "train"
    place.mkdir(parents=True)
    rows = table(12)
    with pa.ipc.new_stream(place / "data-00000-of-00001.arrow", rows.schema) as writer:
        writer.write_table(rows)
    features = json.loads(rows.schema.metadata[b"huggingface"])["info"]["features"]
    (place / "dataset_info.json").write_text(json.dumps({"features": features}))
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_format_type": None, "_split": "train"}
    (place / "state.json").write_text(json.dumps(state))
    (folder / "set" / "dataset_dict.json").write_text('{"splits": ["train"]}')


# --- slides ---


def _slides(folder: Path) -> None:
    from slides import halved, tissue, write_slide

    rows = []
    for number, name in enumerate("abcdef"):
        pixels = tissue(96, 80, seed=number)
        write_slide(folder / f"{name}.tif", [pixels, halved(pixels)], (0.5, 0.5))
        rows += [f"{name}.tif,{8 * i},{4 * i},32,{('fat', 'gland')[number % 2]}\n" for i in range(4)]
    (folder / "set.csv").write_text("slide,x,y,size,label\n" + "".join(rows))


def _coords(folder: Path) -> None:
    from slides import tissue, write_clam, write_slide

    rows = []
    for number, name in enumerate("abcdef"):
        write_slide(folder / f"{name}.tif", [tissue(96, 80, seed=number)], (0.5, 0.5))
        write_clam(folder / f"{name}.h5", [(10 * i, 5 * i) for i in range(4)])
        rows.append(f"{name}.tif,{('fat', 'gland')[number % 2]},{name}.h5\n")
    (folder / "set.csv").write_text("slide,label,coords\n" + "".join(rows))


# --- sets of a run, and what is published ---


def _image_set(folder: Path) -> None:
    from histodistill.training.data.image_dataset import write_image_dataset

    rng = np.random.default_rng(0)
    columns = {
        "label": np.arange(9) % 3,
        "soft_label": rng.dirichlet(np.ones(3), 9).astype(np.float32),
        "seed": rng.permutation(1000)[:9],
    }
    images = rng.integers(256, size=(9, 8, 8, 3), dtype=np.uint8)
    write_image_dataset(folder / "pool" / "data", images, columns, ["fat", "gland", "mucus"])


_SHARD = "data/train-00000-of-00001.parquet"


def _read_set(folder: Path) -> Any:
    from histodistill.training.data.image_dataset import open_image_table, read_image_table

    opened = _table(open_image_table(folder / "pool"))
    assert opened == _table(read_image_table(folder / "pool")), "two ways to read a set differ"
    return opened


def _read_published_table(folder: Path) -> Any:
    from histodistill.hub_cards.table_files import read_table

    return _table(read_table(_bytes(folder / "pool" / _SHARD)))


def _read_part(folder: Path) -> Any:
    from histodistill.hub_cards.part_files import read_part

    return read_part(folder / "distilled")


def _part(folder: Path) -> None:
    (folder / "distilled" / "data").mkdir(parents=True)
    (folder / "distilled" / _SHARD).write_bytes(b"tiles")
    (folder / "distilled" / "stage.json").write_text("{}")


def _read_png(folder: Path) -> Any:
    from histodistill.hub_cards.pictures import decode_png

    pixels = decode_png((folder / "a.png").read_bytes())
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3, "pixels of another form"
    return pixels.tobytes()


def _png(folder: Path) -> None:
    from histodistill.hub_cards.pictures import encode_png

    (folder / "a.png").write_bytes(encode_png(np.asarray(noise())))


def _bytes(path: Path) -> bytes:
    """A file as the gate reads it."""
    from histodistill.hub_cards.part_files import read_file

    return read_file(path)


def _fitted() -> Any:
    from histodistill.selection import DistillSelector

    rng = np.random.default_rng(0)
    selector = DistillSelector(n_per_class=3, n_neighbors=3, num_trials=1)
    return selector.fit(rng.normal(size=(40, 3)).astype(np.float32), np.repeat([0, 1], 20))


def _selector(folder: Path) -> None:
    _fitted().save_pretrained(folder / "selector")


def _load_selector(folder: Path) -> Any:
    from histodistill.selection import BaseSelector

    loaded = BaseSelector.from_pretrained(folder / "selector")
    state = {name: value for name, value in vars(loaded).items() if name.endswith("_")}
    assert callable(loaded.fit) and isinstance(loaded, BaseSelector), "a selector of another class"
    return {name: np.asarray(value).tolist() for name, value in sorted(state.items())}


def _read_selector_config(folder: Path) -> Any:
    from histodistill.hub_cards.documents import read_selector_config, write_selector_config

    config = read_selector_config(_bytes(folder / "selector" / "config.json"))
    return write_selector_config(config, config.arrays_sha256)


def _read_selector_arrays(folder: Path) -> Any:
    from histodistill.hub_cards.documents import read_selector_config
    from histodistill.hub_cards.weights import check_selector_values, read_arrays, selector_arrays, write_arrays

    config = read_selector_config((folder / "selector" / "config.json").read_bytes())
    found = read_arrays(_bytes(folder / "selector" / "selector.safetensors"), selector_arrays(config, 2, 40), None)
    check_selector_values(found, 40)
    return write_arrays(found, None)


def _index(folder: Path) -> None:
    document = {
        "_class_name": ["pipeline", "HistologyPipeline"],
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
        "vae": ["diffusers", "AutoencoderDC"],
        "id2label": {"0": "fat", "1": "gland"},
    }
    (folder / "model_index.json").write_text(json.dumps(document))


def _read_index(folder: Path) -> Any:
    from histodistill.hub_cards.documents import read_model_index

    return read_model_index(_bytes(folder / "model_index.json")).class_names


def _audit(folder: Path) -> None:
    from audits import add_audit

    _part(folder)
    add_audit(folder)


def _read_audit(folder: Path) -> Any:
    from histodistill.hub_cards.audit_record import read_audit
    from histodistill.hub_cards.documents import parse_json

    return read_audit(parse_json(_bytes(folder / "audit.json"))).model_dump_json()


def _unet(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from histodistill.training.models.denoiser import build_denoiser

    torch.manual_seed(0)
    model = build_denoiser(8, 2, 3, [8, 16], 1, 1)
    (folder / "config.json").write_text(model.to_json_string())
    save_file(model.state_dict(), folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})


def _read_unet(folder: Path) -> Any:
    from diffusers import UNet2DModel

    from histodistill.hub_cards.documents import read_config
    from histodistill.hub_cards.weights import WEIGHTS_METADATA, model_arrays, read_arrays, write_arrays

    config = read_config(_bytes(folder / "config.json"), UNet2DModel)
    found = read_arrays(
        _bytes(folder / "diffusion_pytorch_model.safetensors"), model_arrays(UNet2DModel, config), WEIGHTS_METADATA
    )
    return [config, write_arrays(found, WEIGHTS_METADATA)]


# --- what a step keeps for itself ---


def _kept(folder: Path) -> None:
    from histodistill.training.data.kept_arrays import write_arrays

    write_arrays(folder / "kept.npz", step=3, values=np.arange(400.0).reshape(20, 20), names=np.array(["a", "b"]))


def _read_kept(folder: Path) -> Any:
    from histodistill.training.data.kept_arrays import read_kept_arrays

    found = read_kept_arrays(folder / "kept.npz", {"step", "values", "names"})
    if not found:
        raise InputError("none is kept: it is made anew")  # of which a line was told
    return {name: array.tolist() for name, array in found.items()}


def _groups(folder: Path) -> None:
    from histodistill.training.data.group_record import GROUP_RECORD, GroupRecord
    from histodistill.training.data.tiles import Tiles, TileSource

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    groups = np.array([f"p{i // 3}" for i in range(12)])
    tiles = Tiles(images, np.arange(12) % 2, groups=groups)
    source = TileSource("set", ["fat", "gland"], {"train": tiles}, 8, group_kind="patient")
    (folder / GROUP_RECORD).write_text(json.dumps(GroupRecord.of(source, bytes(32)).to_json()))


def _read_groups(folder: Path) -> Any:
    from histodistill.training.data.group_record import read_group_record

    record = read_group_record(folder)
    return None if record is None else record.to_json()


def _training() -> Any:
    import torch

    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return net, optimizer


def _checkpoint(folder: Path) -> None:
    from histodistill.training.engine.checkpoints import save_checkpoint

    net, optimizer = _training()
    save_checkpoint(folder, 7, {"data": "a"}, {"net": net}, optimizer, {"history": [1.5, 2]})


def _load_checkpoint(folder: Path) -> Any:
    from histodistill.training.engine.checkpoints import load_checkpoint

    net, optimizer = _training()
    state = load_checkpoint(folder / "checkpoint-7", {"data": "a"}, {"net": net}, optimizer)
    return [state, {name: value.tolist() for name, value in net.state_dict().items()}]


def _places() -> list[Place]:
    npz = Place("tiles.npz", "tiles.npz", _npz, lambda folder: _tiles(folder / "tiles.npz"), is_sealed=True)
    found = [npz]
    for ending in PICTURES:
        found.append(
            Place(
                f"picture .{ending}",
                f"tiles/train/fat/3.{ending}",
                _pictures(ending),
                lambda folder: _tiles(folder / "tiles"),
                is_sealed=ending == "png",
            )
        )
    for ending in ("csv", "tsv", "parquet"):
        found.append(
            Place(
                f"manifest .{ending}",
                f"set.{ending}",
                _listed(ending),
                lambda folder, ending=ending: _tiles(folder / f"set.{ending}"),
            )
        )
    found += [
        Place("labels.csv", "tiles/labels.csv", _labelled, lambda folder: _tiles(folder / "tiles")),
        Place("tiles.parquet", "tiles.parquet", _one_table, lambda folder: _tiles(folder / "tiles.parquet")),
        Place("repository's .parquet", f"set/{_SHARD}", _repository, lambda folder: _tiles(folder / "set")),
        Place("repository's README.md", "set/README.md", _repository, lambda folder: _tiles(folder / "set")),
    ]
    for file in (
        "dataset_dict.json",
        "train/state.json",
        "train/dataset_info.json",
        "train/data-00000-of-00001.arrow",
    ):
        name = f"saved {Path(file).name}".replace("data-00000-of-00001", "data")
        found.append(Place(name, f"set/{file}", _saved, lambda folder: _tiles(folder / "set")))
    found += [
        Place("slide", "a.tif", _slides, lambda folder: _tiles(folder / "set.csv")),
        Place("places on slides .csv", "set.csv", _slides, lambda folder: _tiles(folder / "set.csv")),
        Place("coordinates .h5", "a.h5", _coords, lambda folder: _tiles(folder / "set.csv")),
        Place("set of a run", f"pool/{_SHARD}", _image_set, _read_set),
        Place("table to publish", f"pool/{_SHARD}", _image_set, _read_published_table, (ContentError,)),
        Place("PNG to publish", "a.png", _png, _read_png, (ContentError,), is_sealed=True, is_file=False),
        Place("part of a run", f"distilled/{_SHARD}", _part, _read_part, (ContentError,)),
        Place("model_index.json", "model_index.json", _index, _read_index, (ContentError,)),
        Place(
            "selector's config.json to publish",
            "selector/config.json",
            _selector,
            _read_selector_config,
            (ContentError,),
        ),
        Place(
            "selector's arrays to publish",
            "selector/selector.safetensors",
            _selector,
            _read_selector_arrays,
            (ContentError,),
        ),
        Place("audit.json", "audit.json", _audit, _read_audit, (ContentError,), is_heavy=True),
        Place("selector's config.json", "selector/config.json", _selector, _load_selector, _SELECTOR_ERRORS),
        Place(
            "selector's arrays",
            "selector/selector.safetensors",
            _selector,
            _load_selector,
            _SELECTOR_ERRORS,
            is_sealed=True,
        ),
        Place("kept arrays", "kept.npz", _kept, _read_kept, is_sealed=True),
        Place("groups.json", "groups.json", _groups, _read_groups),
        Place("denoiser's config.json", "config.json", _unet, _read_unet, (ContentError,), is_heavy=True),
        Place(
            "denoiser's weights",
            "diffusion_pytorch_model.safetensors",
            _unet,
            _read_unet,
            (ContentError,),
            is_heavy=True,
        ),
    ]
    for file in ("state.json", "net.safetensors", "optimizer.safetensors"):
        found.append(
            Place(
                f"checkpoint's {file}",
                f"checkpoint-7/{file}",
                _checkpoint,
                _load_checkpoint,
                is_sealed=True,
                is_heavy=True,
            )
        )
    return found


PLACES = {place.name: place for place in _places()}
