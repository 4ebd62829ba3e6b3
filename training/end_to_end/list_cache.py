"""Lists the decoded tiles, and the latents and features of tiles, that are kept on this machine.

    histodistill cache list

Tiles are decoded once, into a folder that you alone can read, and mapped from there by all that uses them; so are the
latents that a denoiser is trained on, from which an autoencoder makes the tiles again. What was not used for longest
makes room for others where the limit ($HISTODISTILL_CACHE_LIMIT) is reached; `histodistill cache clear` takes all of
it out. Each is made again when it is needed.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from histodistill.training.running.options import StepConfig, StepParser, config, option, run_script


if TYPE_CHECKING:
    from histodistill.training.data.tile_cache import CachedTiles

#: What the option is called in the commands that look at a cache.
CACHE_DIR_HELP = "the folder; default: $HISTODISTILL_CACHE, or else a folder in your cache"


@config
class ListCacheConfig(StepConfig):
    """Options of `list_cache`."""

    cache_dir: Path | None = option(CACHE_DIR_HELP, default=None)


def make_parser() -> StepParser[ListCacheConfig]:
    """The parser of the command line."""
    return StepParser(ListCacheConfig, prog="histodistill cache list", description=__doc__)


def run(config: ListCacheConfig) -> list[CachedTiles]:
    """Prints a line for each set of tiles, latents or features, last used first.

    Returns:
        The same.

    Raises:
        InputError: If the environment has a limit that is no size.
    """
    from histodistill.training.data.tile_cache import TileCache, limit_of_cache, size_of
    from histodistill.training.running.errors import one_line
    from histodistill.training.running.files import format_size

    cache, limit = TileCache(config.cache_dir), limit_of_cache()
    entries = cache.entries()
    for entry in entries:
        used = datetime.datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d")
        kept = "" if entry.what == "tiles" else f"{entry.what} of "
        tiles = f"{kept}{entry.count:,} tiles, {entry.side} px"
        print(f"{format_size(entry.size):>9}  {tiles:<32} used {used}  {one_line(entry.source)}")
    unfinished = size_of(cache.unfinished)
    if unfinished:
        print(f"{format_size(unfinished):>9}  unfinished")
    total = format_size(sum(entry.size for entry in entries) + unfinished)
    print(f"{total} of {format_size(limit)} in {cache.folder}")
    return entries


if __name__ == "__main__":
    run_script(make_parser, run)
