"""Small slides and files of coordinates for tests, as OpenSlide, CLAM and TRIDENT know them."""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from pathlib import Path

import h5py
import numpy as np


# TIFF's types SHORT, LONG and RATIONAL.
_SHORT, _LONG, _RATIONAL = 3, 4, 5
# Pixels along a block of a slide.
BLOCK = 64


def tissue(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Pixels of pink noise in blotches of 8, uint8 H×W×3, which no two places share."""
    rng = np.random.default_rng(seed)
    low = rng.integers(90, 180, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, axis=0).repeat(8, axis=1)
    noise = rng.integers(-10, 11, low.shape)
    return (low + noise + [60, 0, 40])[:height, :width].astype(np.uint8)


def halved(pixels: np.ndarray) -> np.ndarray:
    """The same at half the resolution."""
    height, width = (side // 2 for side in pixels.shape[:2])
    return pixels[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3).mean(axis=(1, 3)).astype(np.uint8)


def write_slide(
    path: Path,
    levels: Sequence[np.ndarray],
    mpp: tuple[float, float] | None = None,
    missing: Collection[int] = (),
    damaged: Collection[int] = (),
) -> Path:
    """Writes a tiled TIFF with a directory for each level.

    Args:
        path: The file.
        levels: Pixels of each level, uint8 H×W×3, the largest first.
        mpp: Microns along a pixel of level 0, across and down.
        missing: Blocks of level 0 that were not scanned, by their number.
        damaged: Blocks of level 0 that point behind the end of the file.
    """
    out = bytearray(b"II*\0\0\0\0\0")
    link = 4  # where the address of the next directory goes
    for number, pixels in enumerate(levels):
        height, width = pixels.shape[:2]
        across, down = -(-width // BLOCK), -(-height // BLOCK)
        padded = np.zeros((down * BLOCK, across * BLOCK, 3), np.uint8)
        padded[:height, :width] = pixels
        offsets, sizes = [], []
        for i in range(across * down):
            top, left = i // across * BLOCK, i % across * BLOCK
            is_missing, is_damaged = number == 0 and i in missing, number == 0 and i in damaged
            offsets.append(0 if is_missing else 2**31 if is_damaged else len(out))
            sizes.append(0 if is_missing else BLOCK * BLOCK * 3)
            out += padded[top : top + BLOCK, left : left + BLOCK].tobytes()
        tags = [
            (254, _LONG, [int(number > 0)]), (256, _LONG, [width]), (257, _LONG, [height]), (258, _SHORT, [8, 8, 8]),
            (259, _SHORT, [1]), (262, _SHORT, [2]), (277, _SHORT, [3]),
            *([(282 + i, _RATIONAL, [round(1e7 / each), 1000]) for i, each in enumerate(mpp)] if mpp else []),
            (284, _SHORT, [1]), *([(296, _SHORT, [3])] if mpp else []), (322, _LONG, [BLOCK]), (323, _LONG, [BLOCK]),
            (324, _LONG, offsets), (325, _LONG, sizes),
        ]  # fmt: skip
        entries = b""
        for tag, kind, values in tags:
            data = struct.pack(f"<{len(values)}{'H' if kind == _SHORT else 'I'}", *values)
            count = len(values) // (2 if kind == _RATIONAL else 1)
            if len(data) > 4:
                data, address = b"", struct.pack("<I", _appended(out, data))
            else:
                address = data.ljust(4, b"\0")
            entries += struct.pack("<HHI", tag, kind, count) + address
        start = _appended(out, struct.pack("<H", len(tags)) + entries)
        struct.pack_into("<I", out, link, start)
        link = len(out)
        out += bytes(4)
    path.write_bytes(out)
    return path


def _appended(out: bytearray, data: bytes) -> int:
    """Where the data begins that is appended."""
    start = len(out)
    out += data
    return start


def write_clam(
    path: Path, corners: Sequence[tuple[int, int]], size: int = 32, level: int = 0, **changes: object
) -> Path:
    """Writes coordinates as `create_patches_fp.py` of CLAM does."""
    attributes = {
        "patch_size": size, "patch_level": level, "downsample": (2.0**level,) * 2, "downsampled_level_dim": (9, 9),
        "level_dim": (9, 9), "name": path.stem, "save_path": "RESULTS/patches",
    }  # fmt: skip
    return _write_coords(path, corners, {**attributes, **changes})


def write_trident(
    path: Path, corners: Sequence[tuple[int, int]], size: int = 32, level0: int = 32, **changes: object
) -> Path:
    """Writes coordinates as TRIDENT does."""
    attributes = {
        "patch_size": size, "patch_size_level0": level0, "level0_magnification": 20 * level0 // size,
        "target_magnification": 20, "overlap": 0, "name": path.stem.removesuffix("_patches"), "savetodir": "JOB",
        "level0_width": 9, "level0_height": 9,
    }  # fmt: skip
    return _write_coords(path, corners, {**attributes, **changes})


def _write_coords(path: Path, corners: Sequence[tuple[int, int]], attributes: dict[str, object]) -> Path:
    """Both write a chunk for each tile. An attribute that is None is left out."""
    values = np.array(corners, dtype=np.int64).reshape(-1, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        coords = file.create_dataset("coords", values.shape, values.dtype, maxshape=(None, 2), chunks=(1, 2))
        coords[:] = values
        for name, value in attributes.items():
            if value is not None:
                coords.attrs[name] = value
    return path
