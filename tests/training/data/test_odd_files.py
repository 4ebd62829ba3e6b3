"""Real files of odd kinds: every one of them is read, or refused by the sentence that belongs to it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from small_pictures import decode_image

from histodistill.training.running.errors import InputError


ODD = Path(os.environ.get("HISTODISTILL_DATA") or Path(__file__).parents[3].parent / "shared" / "data") / "odd"
pytestmark = pytest.mark.skipif(
    not ODD.is_dir(), reason=f"{ODD} is not there; set HISTODISTILL_DATA to the folder that holds it"
)

SLIDE = "is called like a whole slide, which is no tile: name places on slides in a manifest"
DICOM = "holds DICOM, which is not read: save each of its frames as PNG"
# File → the shape and the mean colour of what it is read as.
READ = {
    "GoogleCloudPlatform__EZ-WSI-DICOMweb/dcm_frame_6.j2k": ((256, 256), (177, 148, 195)),
    "TissueImageAnalytics__tiatoolbox/target_image.png": ((1000, 1000), (165, 106, 148)),
    "histolab__histolab/kidney-48-5.tif": ((901, 1493), (252, 252, 252)),
    "histolab__histolab/tcga-lung.png": ((512, 512), (191, 146, 174)),
    "jopo666__HistoPrep/slide_with_ink.jpeg": ((1000, 5600), (237, 223, 229)),
    "_not_pathology/GoogleCloudPlatform__EZ-WSI-DICOMweb__google.jpg": ((156, 454), (225, 221, 224)),
    "_not_pathology/libvips__libvips__6.jpg": ((308, 231), (115, 117, 96)),
    "_not_pathology/libvips__libvips__indexed.png": ((442, 290), (129, 118, 108)),
    "_not_pathology/libvips__libvips__ojpeg-tile.tif": ((213, 234), (58, 58, 58)),
    "_not_pathology/libvips__libvips__subsampled.tif": ((325, 250), (54, 66, 60)),
}
# File → the sentence with which it is refused.
REFUSED = {
    "GoogleCloudPlatform__EZ-WSI-DICOMweb/multiframe_camelyon_challenge_image.dcm": DICOM,
    "_not_pathology/GoogleCloudPlatform__EZ-WSI-DICOMweb__test.dcm": DICOM,
    "_not_pathology/libvips__libvips__multi-channel-z-series.ome.tif": "holds several pages of grey, as microscopes",
    "histolab__histolab/broken.svs": SLIDE,
    "histolab__histolab/diagnostic-slide-thumb-gs.png": "is grey, of one channel: tiles must be RGB with 8 bits",
    "histolab__histolab/tcga-cr-7395-01a-01-ts1.svs": SLIDE,
    "kaiko-ai__eva/ADI-SIHVHHPH.tif": "cannot be read as an image: it is a Git LFS pointer; fetch what it stands for",
    "libvips__libvips/CMU-1-Small-Region.svs": SLIDE,
}
# What is no picture, but tells of them.
TEXTS = ("LICENSE.", "SOURCE.txt")


def test_every_file_has_its_line_here():
    files = {path.relative_to(ODD).as_posix() for path in ODD.rglob("*") if path.is_file()}
    assert {file for file in files if not Path(file).name.startswith(TEXTS)} == {*READ, *REFUSED}


@pytest.mark.parametrize("file", READ)
def test_what_is_read(file):
    pixels = decode_image(file, ODD / file)
    assert pixels.dtype == np.uint8 and pixels.shape == (*READ[file][0], 3)
    np.testing.assert_allclose(pixels.mean(axis=(0, 1)), READ[file][1], atol=1)


@pytest.mark.parametrize("file", REFUSED)
def test_what_is_refused(file):
    with pytest.raises(InputError) as caught:
        decode_image(file, ODD / file)
    assert str(caught.value).startswith(f"{file} {REFUSED[file]}")


def test_grey_is_converted_if_asked_for():
    file = ODD / "histolab__histolab" / "diagnostic-slide-thumb-gs.png"
    pixels = decode_image("it", file, convert=("grey",))
    assert pixels.shape == (525, 468, 3) and np.ptp(pixels, axis=2).max() == 0 and pixels.mean() > 150


def test_the_first_page_of_a_pyramid_in_tiles_is_the_full_image(tmp_path):
    """As a TIFF of tiles, which it is, and not as a slide."""
    path = tmp_path / "tile.tif"
    path.write_bytes((ODD / "libvips__libvips" / "CMU-1-Small-Region.svs").read_bytes())
    assert decode_image("it", path).shape == (2967, 2220, 3)
