"""Shows what of a source of tiles was understood, and whether it suits a distillation, before anything is trained.

    histodistill inspect my_tiles/ --group-pattern '(?P<group>[^_/]+)_'

Tiles and groups, such as patients, of each class in each split, with those splits that would be made and held out;
then one line for each finding. PASS is as it should be; WARN makes the result worth less; FAIL is what `distill` would
refuse; both say what to do. Nothing is written, and no tile is decoded; with --pixels all of them are, which adds
colour modes, near copies, and tiles with nothing on them.

--json prints one object in place of all that, which names no group. The exit code is 0, or 1 where there is a FAIL, or
2 for a source that cannot be read at all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from histodistill.training.running.findings import count_line
from histodistill.training.running.findings import exit_code as exit_code_of
from histodistill.training.running.options import StepParser, config, option, run_script
from histodistill.training.running.source_options import SourceOptions
from histodistill.training.running.training_options import AUDIT_SHARE_HELP


if TYPE_CHECKING:
    from histodistill.training.data.inspection import Inspection


@config
class InspectTilesConfig(SourceOptions):
    """Options of `inspect_tiles`."""

    data: str | Path = option(
        "phantom, a MedMNIST name, .npz file, manifest, image folder, datasets folder or Hub dataset id",
        positional=True,
        also_named=True,
        metavar="SRC",
    )
    image_size: int | None = option(
        "side in pixels to which tiles will be brought; default: the size tiles have", default=None, at_least=8
    )
    audit_share: float = option(AUDIT_SHARE_HELP, default=0.1, at_least=0, below=1)
    pixels: bool = option("decode all tiles, and look for copies among them", default=False)
    json: bool = option("print one JSON object in place of text", default=False)


def make_parser() -> StepParser[InspectTilesConfig]:
    """The parser of the command line."""
    return StepParser(InspectTilesConfig, prog="histodistill inspect", description=__doc__)


def run(config: InspectTilesConfig) -> Inspection:
    """Looks at the tiles and prints what it finds.

    Returns:
        The same.

    Raises:
        InputError: If the source is none, or cannot be read at all.
    """
    from histodistill.training.data.sources import check_source

    check_source(config.data, config.labels)

    from histodistill.training.end_to_end.inspection_table import table_lines
    from histodistill.training.end_to_end.looking import look

    found = look(config)
    if config.json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        print("\n".join([*table_lines(found), "", *(finding.line(8) for finding in found.findings)]))
        print(count_line(found.findings))
    return found


def exit_code(found: Inspection) -> int:
    """1 where something fails, else 0."""
    return exit_code_of(found.findings)


if __name__ == "__main__":
    run_script(make_parser, run, exit_code=exit_code)
