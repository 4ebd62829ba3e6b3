"""Takes the decoded tiles, and the latents and features of tiles, out that are kept on this machine.

    histodistill cache clear

They are made again when they are needed. Work that has them open goes on.
"""

from __future__ import annotations

from pathlib import Path

from histodistill.training.end_to_end.list_cache import CACHE_DIR_HELP
from histodistill.training.running.options import StepConfig, StepParser, config, option, run_script


@config
class ClearCacheConfig(StepConfig):
    """Options of `clear_cache`."""

    cache_dir: Path | None = option(CACHE_DIR_HELP, default=None)


def make_parser() -> StepParser[ClearCacheConfig]:
    """The parser of the command line."""
    return StepParser(ClearCacheConfig, prog="histodistill cache clear", description=__doc__)


def run(config: ClearCacheConfig) -> int:
    """Takes all tiles and latents out, and says how much that was.

    Returns:
        Bytes.

    Raises:
        InputError: If the folder is no cache.
    """
    from histodistill.training.data.tile_cache import TileCache
    from histodistill.training.running.files import format_size

    cache = TileCache(config.cache_dir)
    if cache.folder.exists():
        cache.open()  # nothing is taken out of a folder that is no cache
    cleared = cache.clear()
    print(f"{format_size(cleared)} taken out of {cache.folder}")
    return cleared


if __name__ == "__main__":
    run_script(make_parser, run)
