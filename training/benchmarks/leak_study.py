"""Measures how well the privacy audit by patient sees a leak, and how often it is wrong where there is none.

    python -m histodistill.training.benchmarks.leak_study --output runs/leaks

Each trial draws patients of the phantom, holds some of them out, and audits images in which a leak is planted or none:

    none          images of patients that nobody has seen
    looks         a share of them has looks of training patients, and shows none of their tiles
    neighbours    a share of them lies next to a training tile, and has half of its area in common

Honest trials are made once more with real tiles of which some are near copies of others. Where a leak was planted, the
same images and tiles are also audited as if nobody knew of patients, with single tiles held out. Then pairs of models
are trained, of many patients and few steps and of few patients and many steps, and attacked by their weights.

What is finished is kept, so a killed study goes on where it was. Leaves `leaks.json`, `leaks.md` and `leaks.png` in
the output folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histodistill.training.running.claims import claiming
from histodistill.training.running.options import StepConfig, StepParser, config, option, run_script


if TYPE_CHECKING:
    from histodistill.training.benchmarks.leak_models import Recipe
    from histodistill.training.benchmarks.leak_trials import Sizes, Trial

# Share of the real tiles that are near copies of others, in the trials that have some.
DUPLICATED = 0.2


@config
class LeakStudyConfig(StepConfig):
    """Options of `leak_study`."""

    output: Path = option("folder for the trials and the result", setting=False, claimed=True)
    honest: int = option("trials without a leak, and as many with near copies", default=100, at_least=1, setting=False)
    leaky: int = option("trials of each leak and strength", default=20, at_least=1, setting=False)
    strengths: tuple[float, ...] = option(
        "shares of the images that leak", default=(0.1, 0.25, 0.5, 1.0), above=0, at_most=1, setting=False
    )
    patients: int = option("patients of each trial, held-out ones included", default=48, at_least=4)
    tiles: int = option("tiles of each patient and class", default=3, at_least=1)
    audit_share: float = option("share of the patients that is held out", default=0.25, above=0, below=1)
    images: int = option("synthetic images of each class", default=60, at_least=1)
    image_size: int = option("side in pixels", default=20, at_least=16)
    pairs: int = option("pairs of trained models", default=3, at_least=0, setting=False)
    autoencoder_steps: int = option("steps of the autoencoder that all models share", default=200, at_least=1)
    honest_patients: int = option("patients of the honest models", default=64, at_least=1)
    honest_steps: int = option("steps of the honest models", default=150, at_least=1)
    leaky_patients: int = option("patients of the leaky models", default=12, at_least=1)
    leaky_steps: int = option("steps of the leaky models", default=800, at_least=1)

    @property
    def sizes(self) -> Sizes:
        """How large each trial is."""
        from histodistill.training.benchmarks.leak_trials import Sizes

        return Sizes(self.patients, self.tiles, self.audit_share, self.images, self.image_size)

    def trials(self) -> list[Trial]:
        """All trials, in the order in which they are made."""
        from histodistill.training.benchmarks.leak_trials import LEAKS, Trial

        honest = [Trial("none", 0.0, 0.0, number, by_tile=number < self.leaky) for number in range(self.honest)]
        # Of other numbers, and so of other patients: else the same would fail by chance once more.
        honest += [
            Trial("none", 0.0, DUPLICATED, self.honest + number, by_tile=False) for number in range(self.honest)
        ]
        leaky = [
            Trial(leak, share, 0.0, number, by_tile=True)
            for leak in LEAKS[1:]
            for share in self.strengths
            for number in range(self.leaky)
        ]
        return honest + leaky

    def recipes(self) -> dict[str, Recipe]:
        """How the two models of a pair are trained."""
        from histodistill.training.benchmarks.leak_models import Recipe

        return {
            "honest": Recipe(self.honest_patients, self.honest_steps, symmetries=True),
            "leaky": Recipe(self.leaky_patients, self.leaky_steps, symmetries=False),
        }


def make_parser() -> StepParser[LeakStudyConfig]:
    """The parser of the command line."""
    return StepParser(
        LeakStudyConfig, prog="python -m histodistill.training.benchmarks.leak_study", description=__doc__
    )


@claiming
def run(config: LeakStudyConfig) -> dict[str, Any]:
    """Makes what is missing of the trials and models, and writes table and figure.

    Returns:
        What leaks.json holds: the settings, and what `leak_table.summarise_leaks` returns.

    Raises:
        InputError: For sizes that cannot be audited, or a folder of another study.
    """
    from histodistill.training.benchmarks.leak_models import attack_model, train_shared_autoencoder
    from histodistill.training.benchmarks.leak_table import draw_leaks, leak_text, summarise_leaks
    from histodistill.training.benchmarks.leak_trials import run_trial
    from histodistill.training.running.errors import param
    from histodistill.training.running.files import write_bytes, write_json, write_text
    from histodistill.training.running.progress import Progress
    from histodistill.training.running.stages import Stage

    stage = Stage(
        config.output, {"stage": "leaks", **config.settings()}, remedy=f"give another {param('output')}, or delete it"
    )
    stage.begin()
    trials, models = config.trials(), []
    records = []
    with Progress(total=len(trials), name="trials", unit="trial") as progress:
        for trial in trials:
            file = config.output / "trials" / f"{trial.name}.json"
            records.append(_kept(file, lambda trial=trial: run_trial(trial, config.sizes)))
            stage.save_progress()
            progress.update()
    for number in range(config.pairs):
        autoencoder = train_shared_autoencoder(config.output / "models", config.autoencoder_steps)
        for name, recipe in config.recipes().items():
            folder = config.output / "models" / f"{name}-{number}"
            found = _kept(folder / "attack.json", lambda *of: attack_model(*of), folder, autoencoder, recipe, number)
            models.append({"model": name, "number": number, **found})
            stage.save_progress()
    results = {"settings": stage.settings, **summarise_leaks(records, models)}
    write_json(config.output / "leaks.json", results)
    write_bytes(config.output / "leaks.png", draw_leaks(results["detection"]))
    text = leak_text(results)
    write_text(config.output / "leaks.md", text)
    print(text)
    stage.finish(num_trials=len(records), num_models=len(models))
    return results


def _kept(file: Path, make: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What a file holds, made and written where it is not there."""
    from histodistill.training.running.files import read_json, write_json

    if not file.is_file():
        write_json(file, make(*arguments))
    return read_json(file)


if __name__ == "__main__":
    run_script(make_parser, run)
