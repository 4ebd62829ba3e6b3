"""Pictures that are no tiles: those that unpack to very much, and forms that no tile has."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hostile.documents import Change
from hostile.places import encoded, noise


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def flat_png(width: int, height: int, claimed: tuple[int, int] | None = None, before: bytes = b"") -> bytes:
    """A PNG of one colour; its header may claim another size, and further chunks stand before the pixels."""
    packer = zlib.compressobj(1)
    row = bytes(1 + 3 * width)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", *(claimed or (width, height)), 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + before + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def flat_tiff(width: int, height: int, packed: bytes, rows: int, compression: int = 8, **changes: Any) -> bytes:
    """A TIFF of equal strips; `changes` are further tags or other values, `tag_256=5`."""
    strips = -(-height // rows)
    tags = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [8, 8, 8]), 259: (3, [compression]), 262: (3, [2]),
        273: (4, [8] * strips), 277: (3, [3]), 278: (4, [rows]), 279: (4, [len(packed)] * strips), 284: (3, [1]),
    }  # fmt: skip
    tags |= {int(name.removeprefix("tag_")): value for name, value in changes.items() if name != "link"}
    start = 8 + len(packed) + len(packed) % 2
    tail = start + 2 + 12 * len(tags) + 4
    entries, more = b"", b""
    for tag, (kind, values) in sorted(tags.items()):
        data = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(data) > 4:
            entries += struct.pack("<HHII", tag, kind, len(values), tail + len(more))
            more += data
        else:
            entries += struct.pack("<HHI", tag, kind, len(values)) + data.ljust(4, b"\0")
    link = struct.pack("<I", changes.get("link", 0))
    head = b"II*\0" + struct.pack("<I", start) + packed.ljust(start - 8, b"\0")
    return head + struct.pack("<H", len(tags)) + entries + link + more


def _flat(ending: str, side: int, mode: str = "L") -> bytes:
    """A large flat picture, as Pillow writes it; one channel, so that making it takes little."""
    return encoded(Image.new(mode, (side, side)), ending)


def _resized(data: bytes, ending: str, width: int, height: int) -> bytes:
    """A picture whose header claims another size."""
    changed = bytearray(data)
    if ending == "png":
        return flat_png(16, 16, (width, height))
    if ending == "bmp":
        struct.pack_into("<ii", changed, 18, width, height)
    elif ending == "jpg":
        place = data.index(b"\xff\xc0") + 5
        struct.pack_into(">HH", changed, place, min(height, 65535), min(width, 65535))
    elif ending == "ppm":
        return data.replace(b"16 16", f"{width} {height}".encode(), 1)
    elif ending == "jp2":
        place = data.index(b"ihdr") + 4
        struct.pack_into(">II", changed, place, height, width)
        place = data.index(b"\xff\x51") + 6
        struct.pack_into(">II", changed, place, width, height)
    elif ending == "webp":
        place = data.index(b"VP8L") + 9
        struct.pack_into("<I", changed, place, (width - 1) % 2**14 | (height - 1) % 2**14 << 14)
    elif ending == "tif":
        return flat_tiff(width, height, zlib.compress(bytes(16 * 16 * 3)), 16)
    return bytes(changed)


def of_picture(target: str, ending: str) -> Iterator[tuple[str, str, Change]]:
    """Kind, what is changed, and the change, for a picture."""

    def put(make: Any) -> Change:
        return lambda folder: (folder / target).write_bytes(make())

    good = encoded(noise(), ending)
    for width, height in (
        (20_000, 20_000),
        (2**31 - 1, 2**31 - 1),
        (2**16, 1),
        (1, 2**16),
        (0, 0),
        (16, 15),
        (15, 16),
        (4096, 4096),
    ):
        yield (
            "a size that is claimed",
            f"{width}x{height}",
            put(lambda w=width, h=height: _resized(good, ending, w, h)),
        )
    for side in (1, 2, 7):
        yield "a small picture", f"{side}x{side}", put(lambda s=side: encoded(noise(1, s), ending))
    yield "a picture of another size", "17x16", put(lambda: encoded(noise(1, 17).crop((0, 0, 17, 16)), ending))
    modes = {
        "png": ("1", "L", "LA", "P", "RGBA", "I;16"), "jpg": ("L", "CMYK"), "bmp": ("1", "L", "P", "RGBA"),
        "webp": ("RGBA", "L"),
        "tif": ("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "F", "I"), "jp2": ("L", "LA", "RGBA"),
        "ppm": ("1", "L", "I", "RGBA"),
    }[ending]  # fmt: skip
    for mode in modes:
        pixels = noise(2).convert("L") if mode in ("I;16", "I", "F") else noise(2)
        form = {} if ending != "tif" else {"compression": "raw"}

        def make(mode: str = mode, pixels: Image.Image = pixels, form: dict[str, Any] = form) -> bytes:
            buffer = io.BytesIO()
            converted = (
                pixels.convert(mode) if mode != "I;16" else Image.fromarray(np.asarray(pixels).astype(np.uint16))
            )
            if mode in ("RGBA", "LA"):
                converted.putalpha(100)
            converted.save(buffer, {"jpg": "JPEG", "jp2": "JPEG2000", "tif": "TIFF"}.get(ending, ending), **form)
            return buffer.getvalue()

        yield "a picture of another form", mode, put(make)
    for other in ("png", "jpg", "tif", "bmp", "webp", "jp2", "ppm"):
        if other != ending:
            yield "a picture of another kind", other, put(lambda o=other: encoded(noise(3), o))
    for form in ("GIF", "ICO", "TGA", "PCX", "DDS", "SGI", "IM"):

        def make_other(form: str = form) -> bytes:
            buffer = io.BytesIO()
            noise(3).save(buffer, form)
            return buffer.getvalue()

        yield "a picture of another kind", form, put(make_other)
    for side in (5000, 12_000):
        if ending in ("png", "tif", "webp", "jpg", "jp2"):
            yield (
                "a bomb",
                f"{side}x{side} of one colour",
                put(lambda s=side: _flat(ending, min(s, 16_000 if ending == "webp" else s))),
            )
    if ending == "png":
        yield "a bomb", "20,000x20,000 of one colour", put(lambda: flat_png(20_000, 20_000))
        yield "a bomb", "rows below the last", put(lambda: flat_png(16, 20_000, (16, 16)))
        for kind, before in ((b"zTXt", b"a\0\0"), (b"iCCP", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0")):

            def swollen(kind: bytes = kind, before: bytes = before) -> bytes:
                return flat_png(16, 16, before=_chunk(kind, before + zlib.compress(bytes(2**28), 1)))

            yield "a bomb", f"256 MB in {kind.decode()}", put(swollen)
        yield "a bomb", "100,000 texts", put(lambda: flat_png(16, 16, before=_chunk(b"tEXt", b"a\0b") * 100_000))
        yield (
            "metadata that lies",
            "a chunk of 2 GB",
            put(lambda: flat_png(16, 16, before=struct.pack(">I", 2**31 - 1) + b"tEXt")),
        )
        yield "metadata that lies", "EXIF of zeros", put(lambda: flat_png(16, 16, before=_chunk(b"eXIf", bytes(100))))
        yield "metadata that lies", "no pixels", put(lambda: flat_png(16, 0, (16, 16)))
        yield "several pictures", "APNG", put(lambda: _animated("PNG"))
    if ending == "webp":
        yield "several pictures", "animated", put(lambda: _animated("WEBP"))
    if ending == "jpg":
        yield "several pictures", "MPO", put(lambda: _animated("MPO"))
        exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + struct.pack("<HHII", 0x112, 3, 2**32 - 1, 2**32 - 1)
        segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
        yield "metadata that lies", "EXIF of 4 billion values", put(lambda: good[:2] + segment + good[2:])
        loop = (
            b"Exif\0\0II*\0\x08\0\0\0"
            + struct.pack("<H", 1)
            + struct.pack("<HHII", 0x8769, 4, 1, 8)
            + struct.pack("<I", 8)
        )
        segment = b"\xff\xe1" + struct.pack(">H", len(loop) + 2) + loop
        yield "metadata that lies", "EXIF that points to itself", put(lambda: good[:2] + segment + good[2:])
        yield "metadata that lies", "10,000 segments", put(lambda: good[:2] + b"\xff\xfe\0\x04ab" * 10_000 + good[2:])
    if ending == "tif":
        for name, side, rows, unpacked in (
            ("20,000x20,000 of equal strips", 20_000, 100, 20_000 * 100 * 3),
            ("a strip that is too large", 16, 16, 2**26),
        ):  # fmt: skip
            yield "a bomb", name, put(lambda s=side, r=rows, u=unpacked: flat_tiff(s, s, zlib.compress(bytes(u)), r))
        small = zlib.compress(bytes(16 * 16 * 3))
        for name, changes in {
            "a loop of pages": {"link": 8 + len(small) + len(small) % 2}, "a link behind the end": {"link": 2**31},
            "no samples": {"tag_277": (3, [0])}, "65,535 samples": {"tag_277": (3, [65535])},
            "no rows in a strip": {"tag_278": (4, [0])},
            "no strips": {"tag_273": (4, []), "tag_279": (4, [])}, "a strip of 4 GB": {"tag_279": (4, [2**32 - 1])},
            "a strip behind the end": {"tag_273": (4, [2**31])}, "an unknown compression": {"tag_259": (3, [60000])},
            "17 bits": {"tag_258": (3, [17, 17, 17])}, "a predictor of 9": {"tag_317": (3, [9])},
            "planes": {"tag_284": (3, [2])},
            "a tile of no width": {"tag_322": (4, [0]), "tag_323": (4, [0]), "tag_324": (4, [8]), "tag_325": (4, [9])},
            "orientation 9": {"tag_274": (3, [9])}, "a million values": {"tag_65000": (4, [7] * 10**6)},
            "a colour space of 99": {"tag_262": (3, [99])},
        }.items():  # fmt: skip
            yield "tags that lie", name, put(lambda c=changes: flat_tiff(16, 16, small, 16, **c))
        yield "several pictures", "1,000 pages", put(lambda: _pages(1000))
    if ending == "ppm":
        for name, data in {
            "a size that does not end": b"P6 " + b"9" * 10_000, "a negative size": b"P6 -16 16 255\n",
            "a largest value of 0": b"P6 16 16 0\n" + bytes(768),
            "16 bits": b"P6 16 16 65535\n" + bytes(1536), "text": b"P3 16 16 255\n" + b"7 " * 768,
            "a comment that does not end": b"P6 #" + b"x" * 10**6,
            "a float map": b"PF 16 16 -1.0\n" + bytes(3072),
            "any map": b"P7\nWIDTH 16\nHEIGHT 16\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + bytes(768),
        }.items():  # fmt: skip
            yield "tags that lie", name, put(lambda d=data: d)
    if ending == "bmp":
        for offset, form, value, name in (
            (10, "<I", 2**32 - 1, "pixels behind the end"), (14, "<I", 7, "a header of 7 bytes"), (14, "<I", 2**31,
            "a header of 2 GB"),
            (28, "<H", 33, "33 bits"), (30, "<I", 9, "compression 9"), (46, "<I", 2**31, "2 billion colours"), (22,
            "<i", -16, "upside down"),
            (22, "<i", -(2**31), "the least height"),
        ):  # fmt: skip

            def lie(offset: int = offset, form: str = form, value: int = value) -> bytes:
                data = bytearray(good)
                struct.pack_into(form, data, offset, value)
                return bytes(data)

            yield "tags that lie", name, put(lie)


def _animated(form: str) -> bytes:
    buffer = io.BytesIO()
    noise(1).save(buffer, form, save_all=True, append_images=[noise(2), noise(3)])
    return buffer.getvalue()


def _pages(count: int) -> bytes:
    buffer = io.BytesIO()
    noise(1).save(buffer, "TIFF", save_all=True, append_images=[noise(2)] * (count - 1))
    return buffer.getvalue()


#: Names that files, folders and sources may have on Linux.
NAMES = (
    "a[1]", "[!a]*", "a*b", "what?", "{a,b}", "~", "$HOME", "`id`", "$(touch executed)", ";touch executed;", "-rf",
    "--help", "a b", " a ", "a\tb", "a\nb",
    "a\rb", "\x1b[2J", "\u202egnp", "x" * 200, "é", "e\u0301", "ムチン", "🙂", "a%2fb", "a\\b", "a:b", "a::b", "hf:",
    "con", "a.", "..a", "a..", "'a'", '"a"',
    "<b>", "&amp;", "a\x7f", b"\xff\xfe".decode("utf-8", "surrogateescape"),
)  # fmt: skip


def of_names() -> Iterator[tuple[str, str, Change]]:
    """Kind, what is changed, and the change, for names in a folder of pictures."""
    for name in NAMES:
        yield (
            "an odd name",
            f"of a class: {name[:20]!a}",
            lambda folder, n=name: (folder / "tiles/train/fat").rename(folder / "tiles/train" / n),
        )
        yield (
            "an odd name",
            f"of a file: {name[:20]!a}",
            lambda folder, n=name: (folder / "tiles/train/fat/3.png").rename(folder / "tiles/train/fat" / f"{n}.png"),
        )
        yield (
            "an odd name",
            f"of a split: {name[:20]!a}",
            lambda folder, n=name: (folder / "tiles/train").rename(folder / "tiles" / n),
        )

    def link(name: str, to: str) -> Change:
        return lambda folder: (folder / "tiles/train/fat" / name).symlink_to(to)

    for name, to in (
        ("up", ".."),
        ("up.png", "../.."),
        ("root", "/"),
        ("self", "self"),
        ("here", "."),
        ("proc", "/proc/self/fd"),
        ("etc.png", "/etc/passwd"),
        ("dev.png", "/dev/zero"),
    ):
        yield "a link in a folder", f"{name} to {to}", link(name, to)

    def deep(folder: Path) -> None:
        path = folder / "tiles/train/fat"
        for _ in range(300):
            path = path / "d"
            path.mkdir()
        (path / "0.png").write_bytes(encoded(noise(5)))

    yield "a folder of another form", "300 folders deep", deep
    yield "a folder of another form", "an empty class", lambda folder: (folder / "tiles/train/empty").mkdir()

    def classes(folder: Path) -> None:
        for i in range(2000):
            (folder / f"tiles/train/c{i}").mkdir()
            (folder / f"tiles/train/c{i}/0.png").write_bytes(encoded(noise(i, 8)))

    yield "a folder of another form", "2,000 classes of another size", classes
    yield (
        "a folder of another form",
        "2,000 empty classes",
        lambda folder: [(folder / f"tiles/train/c{i}").mkdir() for i in range(2000)],
    )
    yield "a folder of another form", "one class", lambda folder: (folder / "tiles/train/fat").rename(folder / "gone")
    yield "a folder of another form", "no class", lambda folder: (folder / "tiles/train").rename(folder / "gone")
