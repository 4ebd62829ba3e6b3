"""Removes from a finished run what is private and no longer needed, and says what is left.

    histodistill clean runs/mine --dry-run

Checkpoints, pictures of trainings, pictures of real tiles, and what was kept for work that is done. What remains still
publishes, and can be audited again and looked at. Only files that the steps are known to write are removed; others,
and links, stay. --dry-run shows what would go, and removes nothing.

A run that is not finished goes on from its checkpoints, and is refused without --force.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from histodistill.training.running.claims import LOCK, claiming
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.options import StepConfig, StepParser, config, option, run_script


if TYPE_CHECKING:
    from histodistill.training.end_to_end.leavings import Leaving

# The steps of a run that `distill` began, by their folders; others may be there besides.
_STEPS = ("autoencoder", "pipeline", "teacher", "pool", "distilled", "comparison", "audit")
_MORE_STEPS = ("evaluation", "benchmark", "benchmark/infodist")


@config
class CleanConfig(StepConfig):
    """Options of `clean`."""

    run: Path = option("folder that histodistill distill left", positional=True)
    dry_run: bool = option("only show what would be removed", default=False)
    force: bool = option("clean a run that is not finished, which then begins again", default=False)

    def claims(self) -> Path | None:
        """The run, where anything is to be removed."""
        return None if self.dry_run else self.run


def make_parser() -> StepParser[CleanConfig]:
    """The parser of the command line."""
    return StepParser(CleanConfig, prog="histodistill clean", description=__doc__)


@claiming
def run(config: CleanConfig) -> list[Path]:
    """Shows what can go, removes it, and says what is left.

    Returns:
        The files that went, or would go.

    Raises:
        InputError: For a folder that is no run, and for a run that is not finished.
    """
    from histodistill.training.end_to_end.leavings import find_leavings, remove_files
    from histodistill.training.running.stages import is_run

    if not is_run(config.run):
        raise InputError(f"{config.run} is no run: give the folder that histodistill distill left")
    if not config.force:
        _require_finished(config.run)
    found = find_leavings(config.run)
    for line in _lines_of(found, config.dry_run):
        print(line, flush=True)
    paths = [path for files in found.values() for path in files]
    if not config.dry_run:
        remove_files(config.run, paths)
    for line in _lines_of_rest(config.run):
        print(line)
    return [config.run / path for path in paths]


def _require_finished(run: Path) -> None:
    """Sees that nothing is left to do in a run that needs what would be removed."""
    from histodistill.training.running.stages import is_complete, read_record

    steps = [*_STEPS] if (run / "run.json").is_file() else [step for step in _STEPS if read_record(run / step)]
    steps += [step for step in _MORE_STEPS if read_record(run / step)]
    for step in steps:
        if not is_complete(run / step):
            raise InputError(
                f"{run} is not finished ({step} is not) and goes on from what would be removed: finish it first, or "
                f"give {param('force')}"
            )


def _lines_of(found: Mapping[Leaving, Mapping[str, int]], dry_run: bool) -> Iterator[str]:
    """What goes, and what cannot be done without it."""
    from histodistill.selection.summaries import counted
    from histodistill.training.running.files import format_size

    total = sum(sum(files.values()) for files in found.values())
    if not found:
        yield "nothing to remove"
        return
    yield f"{'would remove' if dry_run else 'removes'} {format_size(total)}:"
    for leaving, files in found.items():
        lost = f"; without them, {leaving.lost}" if leaving.lost else ""
        yield f"  {leaving.title}: {counted(len(files), 'file')}, {format_size(sum(files.values()))}{lost}"


def _lines_of_rest(run: Path) -> Iterator[str]:
    """What is left, and who may see it."""
    from histodistill.training.data.names import shown
    from histodistill.training.data.tile_cache import TileCache
    from histodistill.training.end_to_end.leavings import PRIVATE, PUBLISHABLE
    from histodistill.training.running.files import format_size

    there = sorted(entry.name for entry in run.iterdir() if entry.name != LOCK)
    private = [name for name in PRIVATE if name in there]
    if private:
        yield "left, and private:"
        width = max(map(len, private))
        yield from (f"  {name:<{width}}  {PRIVATE[name]}" for name in private)
    if may_leave := [name for name in PUBLISHABLE if name in there]:
        yield f"left, and may leave the house if the audit passes and you decide so: {', '.join(may_leave)}"
    if unknown := [shown(name) for name in there if name not in (*PRIVATE, *PUBLISHABLE)]:
        yield f"left, since no step is known to write it: {', '.join(unknown)}"
    if kept := TileCache().entries():
        size = format_size(sum(entry.size for entry in kept))
        yield f"decoded tiles of all your sources, {size}, are elsewhere: histodistill cache list shows them"


if __name__ == "__main__":
    run_script(make_parser, run)
