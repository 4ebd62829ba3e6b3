from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from histodistill.hub_cards import pictures
from histodistill.hub_cards.errors import ContentError
from histodistill.hub_cards.pictures import decode_png, encode_png


BEGINNING = b"\x89PNG\r\n\x1a\n"
IMAGE = np.random.default_rng(0).integers(256, size=(5, 7, 3), dtype=np.uint8)
ROWS = b"".join(b"\0" + row.tobytes() for row in IMAGE)


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def header(width: int = 7, height: int = 5, about: bytes = b"\x08\x02\0\0\0") -> bytes:
    return chunk(b"IHDR", struct.pack(">II", width, height) + about)


END = chunk(b"IEND")
PIXELS = chunk(b"IDAT", zlib.compress(ROWS))


def png(*parts: bytes) -> bytes:
    return BEGINNING + b"".join(parts)


def saved(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def refusal(data: bytes) -> str:
    with pytest.raises(ContentError) as error:
        decode_png(data)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("shape", [(5, 7, 3), (1, 1, 3), (300, 200, 3)])
def test_pixels_come_back(shape):
    image = np.random.default_rng(1).integers(256, size=shape, dtype=np.uint8)
    data = encode_png(image)
    np.testing.assert_array_equal(decode_png(data), image)
    assert encode_png(image) == data
    with Image.open(io.BytesIO(data)) as opened:
        assert (opened.mode, opened.info) == ("RGB", {})


def test_pixels_of_any_encoder_are_encoded_alike():
    """What a count of parts, a level of packing or the choice of filters could tell is gone."""
    packed = zlib.compress(ROWS, 1)
    ways = [
        png(header(), PIXELS, END),
        png(header(), chunk(b"IDAT", packed), END),
        png(header(), *(chunk(b"IDAT", packed[place : place + 1]) for place in range(len(packed))), END),
        png(header(), chunk(b"IDAT"), PIXELS, *[chunk(b"IDAT")] * 40, END),
        saved(Image.fromarray(IMAGE), compress_level=0),
    ]
    assert {encode_png(decode_png(data)) for data in ways} == {encode_png(IMAGE)}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"tEXt", b"Comment\0slide 17"), (b"iTXt", b"a\0\0\0\0\0b"), (b"zTXt", b"a\0\0" + zlib.compress(b"b")),
        (b"eXIf", b"MM\0*\0\0\0\x08\0\0"), (b"iCCP", b"a\0\0" + zlib.compress(b"profile")), (b"gAMA", b"\0\0\xb1\x8f"),
        (b"sBIT", b"\x08\x08\x08"), (b"sBIT", ROWS), (b"tRNS", b"\0\0\0\0\0\0"), (b"bKGD", b"\0\0\0\0\0\0"),
        (b"PLTE", b"\1\2\3" * 200), (b"pHYs", b"\0\0\0\1\0\0\0\1\0"), (b"tIME", b"\x07\xe8\1\1\1\1\1"),
        (b"cHRM", bytes(32)), (b"sRGB", b"\0"), (b"hIST", b"\0\1"), (b"acTL", b"\0\0\0\1\0\0\0\0"),
        (b"fcTL", bytes(26)),
        (b"fdAT", bytes(4) + zlib.compress(ROWS)), (b"IHDR", bytes(13)), (b"prVt", b"mine"), (b"\xff\0\n\r", b""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", [1, 2])
def test_nothing_stands_beside_the_pixels(kind, body, place):
    parts = [header(), PIXELS, END]
    parts.insert(place, chunk(kind, body))
    assert "that is not pixels: it must be a PNG file of 8-bit RGB pixels and nothing else" in refusal(png(*parts))


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "1", "I;16"])
def test_other_kinds_of_pixels_are_refused(mode):
    image = Image.fromarray(IMAGE)
    refusal(saved(Image.new("I;16", image.size) if mode == "I;16" else image.convert(mode)))


@pytest.mark.parametrize(
    ("about", "rows"),
    [
        (b"\x10\x02\0\0\0", b"".join(b"\0" + row.repeat(2).tobytes() for row in IMAGE)),  # 16 bits
        (b"\x08\x02\0\0\1", ROWS),  # interlaced
        (b"\x08\x02\0\1\0", ROWS),
        (b"\x08\x02\1\0\0", ROWS),
        (b"\x08\x06\0\0\0", ROWS),
    ],
)
def test_other_headers_are_refused(about, rows):
    data = png(header(about=about), chunk(b"IDAT", zlib.compress(rows)), END)
    assert "the image is of another kind" in refusal(data)


@pytest.mark.parametrize(
    "data",
    [
        png(header(), chunk(b"IDAT", zlib.compress(ROWS + ROWS[:22])), END),  # a row that no viewer shows
        png(header(), chunk(b"IDAT", zlib.compress(ROWS + b"\0")), END),
        png(header(), chunk(b"IDAT", zlib.compress(ROWS[:-1])), END),
        png(header(), chunk(b"IDAT", zlib.compress(ROWS) + b"tail"), END),
        png(header(), PIXELS, PIXELS, END),
        png(header(), PIXELS, chunk(b"IDAT", b"tail"), END),
        png(header(), chunk(b"IDAT", zlib.compress(ROWS)[:-2]), END),
        png(header(), chunk(b"IDAT", zlib.compress(ROWS)[:-4] + b"tail"), END),  # a wrong checksum of the rows
        png(header(), chunk(b"IDAT", ROWS), END),
        png(header(), END),
        png(header(), chunk(b"IDAT", zlib.compress(b"\7" + ROWS[1:])), END),  # a filter that there is not
    ],
)
def test_the_packed_rows_are_the_pixels_and_no_more(data):
    refusal(data)


@pytest.mark.parametrize(
    "data",
    [
        png(header(), PIXELS, END, b"x"),
        png(header(), PIXELS, END, END),
        png(header(), PIXELS, END, png(header(), PIXELS, END)),
        png(header(), PIXELS, chunk(b"IEND", b"x")),
        png(header(), PIXELS),
        png(header(), PIXELS)[:-3],
        png(header(), PIXELS[:-1] + b"\0", END),
        png(header(), PIXELS, END[:-1] + b"\0"),
        png(PIXELS, header(), END),
        png(header(), header(), PIXELS, END),
        png(END),
        png(chunk(b"IHDR", bytes(12)), PIXELS, END),
        png(header(), struct.pack(">I", 2**31) + PIXELS[4:], END),
        b"x" + png(header(), PIXELS, END),
        b"\xff\xd8\xff\xe0 a JPEG file",
        b"",
    ],
)
def test_the_parts_are_a_header_pixels_and_an_end(data):
    refusal(data)


def test_text_that_a_library_writes_is_refused():
    text, exif = PngInfo(), Image.Exif()
    text.add_text("Comment", "slide 17")
    exif[0x010E] = "slide 17"
    assert "'tEXt'" in refusal(saved(Image.fromarray(IMAGE), pnginfo=text))
    assert "'eXIf'" in refusal(saved(Image.fromarray(IMAGE), exif=exif))


@pytest.mark.parametrize("size", [(0, 5), (7, 0), (2**31 - 1, 2**31 - 1), (4097, 4096)])
def test_sizes_out_of_range_are_refused_before_anything_is_unpacked(size, monkeypatch):
    monkeypatch.setattr(pictures.zlib, "decompressobj", lambda: pytest.fail("it was unpacked"))
    assert f"the image has {size[0]}x{size[1]} pixels" in refusal(png(header(*size), PIXELS, END))


def test_no_more_is_unpacked_than_the_pixels_need(monkeypatch):
    asked = []

    class Unpacker:
        eof, unused_data = True, b""

        def decompress(self, data, most):
            asked.append(most)
            return b"\0" * most

    monkeypatch.setattr(pictures.zlib, "decompressobj", Unpacker)
    refusal(png(header(), chunk(b"IDAT", zlib.compress(bytes(10**6))), END))
    assert asked == [len(ROWS) + 1]


@pytest.mark.parametrize("image", [IMAGE.astype(np.float32), IMAGE[..., 0], IMAGE[..., :2]])
def test_only_pixels_are_encoded(image):
    with pytest.raises(ValueError, match="an image must be uint8 H x W x 3"):
        encode_png(image)
