"""How a source's tiles are read: what a user says of files and pixels, beside which tiles belong together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from histodistill.training.data.colour_forms import DecodingRules


@dataclass(frozen=True)
class Reading:
    """What was said of how tiles are read.

    Attributes:
        cache_dir: The cache of decoded tiles; None for the usual one.
        download_dir: Where downloads are kept; None for the usual places.
        download: Whether a MedMNIST file that is not there may be fetched.
        convert: Kinds of pictures that are not RGB with 8 bits a channel and are converted, of `CONVERSIONS`.
        skip_unreadable: Whether tiles that cannot be read are left out, and not an error.
        max_unreadable: Share of the tiles that may be left out so, 0 to 1.
        labels: A table with the class of each picture in a folder; None where folders or nothing say it.
        mpp: Microns per pixel to which tiles of slides are brought; None for what the places say.
        hub_revision, hub_config: Revision and configuration of a dataset of the Hub; None for the usual ones.
        reread: Whether tiles that are in the cache are decoded once more and compared.
    """

    cache_dir: str | Path | None = None
    download_dir: str | Path | None = None
    download: bool = True
    convert: tuple[str, ...] = ()
    skip_unreadable: bool = False
    max_unreadable: float = 0.05
    labels: str | Path | None = None
    mpp: float | None = None
    hub_revision: str | None = None
    hub_config: str | None = None
    reread: bool = False

    @property
    def rules(self) -> DecodingRules:
        """What is done to pictures that are not RGB with 8 bits a channel."""
        return DecodingRules(self.convert)


#: How tiles are read where nothing was said.
AS_USUAL = Reading()
