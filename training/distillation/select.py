"""Selects the distilled set from the pool: embeddings, communities, and exactly N images of each class.

    histodistill select --pool runs/phantom/pool --teacher runs/phantom/teacher --output runs/phantom

Leaves `selector/` (the fitted selector, and pictures of the pool's communities) and `distilled/` (a dataset that
`load_dataset` opens) in the output folder. `selection/README.md` tells what the defaults were chosen from. Whatever
chooses, Infomap finds the communities of the pool; `--selector infomap` also chooses by them, as the paper does.
The teacher is a classifier trained on the real tiles: its probabilities become the column soft_label. Real tiles
(`--data`) are needed only by `--typical-share` and `--drop-copies`, and none of them is written anywhere.
"""

from __future__ import annotations

from pathlib import Path

from histodistill.training.distillation.selector_options import SelectConfig
from histodistill.training.running.options import StepParser, run_script


def make_parser() -> StepParser[SelectConfig]:
    """The parser of the command line."""
    return StepParser(SelectConfig, prog="histodistill select", description=__doc__)


def run(config: SelectConfig) -> Path:
    """Embeds the pool, fits the selector, and writes both results.

    Returns:
        The folder of the distilled set, which `load_dataset` opens.

    Raises:
        InputError: For a folder that holds no finished pool or classifier, for classes that differ between pool,
            teacher and real tiles, for what the selector refuses, or for an output folder of other settings.
    """
    from histodistill.training.distillation import distilled_set
    from histodistill.training.distillation.pool_selection import fit_selector, make_selector
    from histodistill.training.running.stages import Stage

    folder, selector_folder = config.output / "distilled", config.output / "selector"
    sources = distilled_set.read_sources(config)
    stage = Stage(folder, {"stage": "distilled", **sources.fingerprints(config), **config.settings()})
    stage.require_own_folder()
    if stage.complete and (selector_folder / "config.json").is_file():
        print(f"select: {folder} is already finished")
        return folder
    tiles_name = distilled_set.tiles_of(config.teacher)
    make_selector(config)  # refuses what is out of range before the embedding, which takes a while
    inputs = distilled_set.gather_inputs(config, sources)
    selection = fit_selector(config, inputs, sources.class_names)
    for note in selection.notes:
        print(f"warning: {note}")

    stage.begin()
    distilled_set.write_selector(selector_folder, selection, inputs, sources)
    features = distilled_set.write_images(folder / "data", selection, inputs, sources)
    distilled_set.write_card(folder / "README.md", config, selection, inputs, sources, features, tiles_name)
    stage.finish(**distilled_set.count_images(selection, inputs, sources.class_names, config.drop_copies))
    print(f"select: {len(selection.chosen)} of {len(sources.images)} images saved to {folder}")
    return folder


if __name__ == "__main__":
    run_script(make_parser, run)
