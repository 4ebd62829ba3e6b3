"""Trains a classifier on tiles, real or distilled, and scores it once on real test tiles.

    accelerate launch -m histodistill.training.train_classifier --data phantom --output runs/phantom/classifier

Train on a distilled set, and choose the best step and score on real tiles:

    accelerate launch -m histodistill.training.train_classifier --data runs/phantom/distilled --eval-data phantom \\
        --loss joint --output runs/phantom/classifier-distilled

The output folder loads with `Classifier.from_pretrained`. It also holds `results.json`, written last: the scores on
the validation and the test split, the settings, and what they were measured with.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histodistill.selection.versions import installed_versions
from histodistill.training.engine.classifier_config import ClassifierConfig, recorded_recipe
from histodistill.training.models.architectures import is_probe, steps_of
from histodistill.training.models.encoder_licences import check_licence, encoder_records, tell_licences
from histodistill.training.models.encoder_names import architecture_label
from histodistill.training.running.claims import claiming
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.options import StepParser, config, option, run_script
from histodistill.training.running.training_options import TrainingConfig


if TYPE_CHECKING:
    from accelerate import Accelerator

    from histodistill.training.data.tiles import Tiles, TileSource
    from histodistill.training.engine.classifier_training import TrainedClassifier
    from histodistill.training.models.classifiers import Classifier
    from histodistill.training.running.stages import Stage

# A split for choosing or scoring of which this share are training tiles says nothing of others.
_LEARNED_SHARE = 0.5
# Packages that decide what the scores are, beside Python: their versions stand in results.json.
_PACKAGES = ("histodistill", "torch", "accelerate", "evaluate")


@config
class TrainClassifierConfig(ClassifierConfig, TrainingConfig):
    """Options of `train_classifier`.

    A `learning_rate` that is left out stays None among the settings of the result; `recipe` has that of the
    architecture.
    """

    eval_data: str | Path | None = option(
        "source of the validation and test tiles; default: that of --data", default=None, group="data", setting=False
    )
    n_per_class: int | None = option(
        "train on so many tiles per class, drawn at random; default: on all", default=None, at_least=1, group="data"
    )
    autoencoder: Path | None = option(
        "folder that train_autoencoder left: what the classifier says of validation tiles is compared with what it "
        "says of their reconstructions",
        default=None,
        group="data",
        setting=False,  # the classifier is the same
    )

    encoder_license: str | None = option(
        "licence of the model that is trained on or probed, such as cc-by-nc-nd-4.0; default: what its own card says",
        default=None,
        group="model",
        setting=False,  # the record has it beside the encoder
    )

    def check(self) -> None:
        """Checks what a recipe is checked for, and that a licence is one."""
        check_licence("encoder_license", self.encoder_license)
        _ = self.recipe

    @functools.cached_property
    def recipe(self) -> ClassifierConfig:
        """What decides how the classifier is trained, given the tiles."""
        names = [field.name for field in dataclasses.fields(ClassifierConfig)]
        return ClassifierConfig(**{name: getattr(self, name) for name in names})


def make_parser() -> StepParser[TrainClassifierConfig]:
    """The parser of the command line."""
    return StepParser(TrainClassifierConfig, prog="train_classifier", description=__doc__)


@claiming
def run(config: TrainClassifierConfig) -> dict[str, Any]:
    """Loads the tiles, trains, scores the best weights once on the test split, and saves.

    Returns:
        What `results.json` in the output folder holds.

    Raises:
        InputError: For tiles or options that do not fit, an output folder of another training, a damaged checkpoint,
            or a training that diverges.
    """
    from histodistill.training.running.files import new_files, read_kept, write_json
    from histodistill.training.running.stages import Stage

    # What can be wrong is found out before anything is written, and in the tiles before libraries are imported.
    source, real = load_sources(config)
    require_autoencoder(config, source)
    train, test = training_tiles(config, source), real.split("test")

    from histodistill.training.engine.accelerator import make_accelerator
    from histodistill.training.engine.checkpoints import check_resume
    from histodistill.training.engine.classifier_training import build_classifier, fit_batch_size
    from histodistill.training.engine.probes import build_probe
    from histodistill.training.engine.scoring import predict_shared, score_probabilities

    accelerator = make_accelerator(config.mixed_precision, report_to=config.report_to, project_dir=config.output)
    label = architecture_label(config.architecture)
    build = build_probe if is_probe(config.architecture) else build_classifier
    build(config.recipe, source.image_size, source.class_names)
    fit_batch_size(config.recipe, len(train), accelerator.num_processes)
    check_resume(config.resume)

    fingerprints = {"data": source.fingerprint(), "eval_data": real.fingerprint()}
    stage = Stage(config.output, {**config.settings(), "architecture": label, "stage": "classifier", **fingerprints})
    results_path = config.output / "results.json"
    # Every process has now read what an earlier run left in the folder, so the main process may overwrite it.
    accelerator.wait_for_everyone()
    if stage.complete and (kept := read_kept(results_path)):
        accelerator.print(f"classifier: {config.output} is already finished")
        return kept
    if accelerator.is_main_process:
        stage.begin()

    trained = fit(config, train, real.split("validation"), source.class_names, stage, accelerator)
    # The only look at the test tiles.
    scores = score_probabilities(predict_shared(trained.model, test.images, accelerator), test.labels)
    results = {
        "test": scores,
        "validation": trained.validation,
        "best_step": trained.best_step,
        "history": trained.history,
        "class_names": source.class_names,
        "data": {"train": source.name, "num_train": len(train), "eval": real.name, "num_test": len(test)},
        **how_trained(config, stage.settings, trained.seconds, accelerator),
    }
    if accelerator.is_main_process:
        with new_files(config.output) as folder:
            trained.model.save_pretrained(folder)
        lost = tell_what_is_lost(config, trained.model, real.split("validation"), accelerator)
        write_json(results_path, results)
        encoders = encoder_records([config.architecture], "soft_labels", config.encoder_license)
        more = {**of_pool(config, source), **({"encoders": encoders} if encoders else {})}
        stage.finish(test_accuracy=scores["accuracy"], num_processes=accelerator.num_processes, **lost, **more)
        tell_licences(encoders)
        accelerator.print(summary(results, config.output))
    accelerator.end_training()
    return results


def load_sources(config: TrainClassifierConfig) -> tuple[TileSource, TileSource]:
    """The tiles to train on, and those to validate and score on; often the same.

    Raises:
        InputError: For a source that cannot be read, classes that differ, one without validation or test tiles, or
            tiles that are trained on and scored.
    """
    from histodistill.training.data.same_tiles import tiles_also_in
    from histodistill.training.data.sources import load_tiles

    # Where other tiles are scored, what is said of groups is said of those: a distilled set has none.
    groups = config.source_options()
    load = functools.partial(load_tiles, config.data, image_size=config.image_size, audit_share=config.audit_share)
    if config.eval_data is None:
        source = real = load(**groups)
    else:
        # A set that is only trained on is used whole. One whose last tiles are those that the other source validates
        # with, since both are the same tiles, must not train on them: not the names of files tell, but what they hold.
        source = load(hold_out_validation=False)
        real = load_tiles(config.eval_data, image_size=source.image_size, **groups)
        validation = real.splits.get("validation")
        if "validation" not in source.splits and validation and tiles_also_in(validation, source.split("train")).any():
            source = load(**groups)
    if real.class_names != source.class_names:
        raise InputError(
            f"{param('data')} has the classes {', '.join(source.class_names)} and {param('eval_data')} "
            f"{', '.join(real.class_names)}: they must be the same, in the same order"
        )
    for split in ("validation", "test"):
        if split not in real.splits:
            name = param("eval_data" if config.eval_data else "data")
            raise InputError(
                f"{name}={real.name} has no {split} split: give real tiles with one as {param('eval_data')}"
            )
    if real is not source:
        check_apart(source, real)
    return source, real


def of_pool(config: TrainClassifierConfig, source: TileSource) -> dict[str, str]:
    """What the record says of a classifier that has seen generated images alone: the fingerprint of their pool."""
    from histodistill.training.running.stages import read_record

    record = read_record(config.data)
    if config.eval_data is not None or record is None or record["settings"].get("stage") != "pool":
        return {}
    is_whole = sum(map(len, source.splits.values())) == record.get("num_images")
    return {"of_pool": record["fingerprint"]} if is_whole else {}


def check_apart(source: TileSource, real: TileSource) -> None:
    """Sees that what is scored is not what was learned by heart, and warns of tiles that are.

    Args:
        source: The tiles to train on.
        real: Another source, to validate and score on.

    Raises:
        InputError: If half of the tiles of a split that is validated or scored on, or more, are training tiles.
    """
    from histodistill.training.data.same_tiles import tiles_also_in
    from histodistill.training.running.notes import warn

    for split in ("validation", "test"):
        tiles = real.split(split)
        learned = int(tiles_also_in(tiles, source.split("train")).sum())
        text = f"{learned:,} of the {len(tiles):,} {split} tiles of {real.name} are training tiles of {source.name}, "
        text += (
            "as they are or turned, so that their scores say nothing of other tiles: take them out of one of the two"
        )
        if learned >= _LEARNED_SHARE * len(tiles):
            raise InputError(f"{param('eval_data')}: {text}")
        if learned:
            warn(text)


def training_tiles(config: TrainClassifierConfig, source: TileSource) -> Tiles:
    """The training tiles, or as many of each class as `n_per_class` says.

    Raises:
        InputError: If a class has fewer.
    """
    from histodistill.training.data.tiles import sample_per_class

    train = source.split("train")
    if config.n_per_class is None:
        return train
    return train.subset(sample_per_class(train.labels, config.n_per_class, config.seed))


def fit(
    config: TrainClassifierConfig,
    train: Tiles,
    validation: Tiles,
    class_names: Sequence[str],
    stage: Stage,
    accelerator: Accelerator,
) -> TrainedClassifier:
    """Trains, with checkpoints in the output folder and what a tracker is told.

    Raises:
        InputError: As `fit_classifier` does.
    """
    from histodistill.training.engine.classifier_training import fit_classifier
    from histodistill.training.engine.probes import fit_probe

    if is_probe(config.architecture):
        return fit_probe(config.recipe, train, validation, accelerator, class_names=class_names)
    log = None
    if config.report_to:
        accelerator.init_trackers("histodistill-classifier", config=_scalars(stage.settings))

        def log(record: dict[str, Any], step: int) -> None:
            accelerator.log(_scalars(record), step=step)

    return fit_classifier(
        config.recipe,
        train,
        validation,
        accelerator,
        class_names=class_names,
        checkpoint_dir=config.output / "checkpoints",
        checkpointing_steps=config.checkpointing_steps,
        resume=config.resume,
        log=log,
        on_checkpoint=stage.save_progress,
    )


def _scalars(values: dict[str, Any]) -> dict[str, Any]:
    # Trackers take nothing else.
    return {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)}


def require_autoencoder(config: TrainClassifierConfig, source: TileSource) -> None:
    """Sees that the autoencoder whose losses are told, if one is named, is there and takes the tiles.

    Raises:
        InputError: If it is not, or does not.
    """
    from histodistill.training.running.stages import require_complete

    if config.autoencoder is None:
        return
    record = require_complete(config.autoencoder, "autoencoder", "run train_autoencoder first")
    if record.get("image_size") != source.image_size:
        raise InputError(
            f"{param('autoencoder')} {config.autoencoder} is for tiles of {record.get('image_size')} px, and these "
            f"have {source.image_size} px: give one for these, or none"
        )


def tell_what_is_lost(
    config: TrainClassifierConfig, model: Classifier, validation: Tiles, accelerator: Accelerator
) -> dict[str, float]:
    """Tells what the classifier says of validation tiles before and after the autoencoder, where one is named.

    Returns:
        What the stage's record says of it; nothing without an autoencoder.
    """
    from histodistill.training.engine.looks import telling_number
    from histodistill.training.engine.steps import spread_indices
    from histodistill.training.models.loading import load_autoencoder
    from histodistill.training.models.prediction import predict_proba
    from histodistill.training.models.reconstruction import what_is_lost
    from histodistill.training.running.notes import tell, warn

    if config.autoencoder is None:
        return {}
    tiles = validation.subset(spread_indices(len(validation), telling_number(validation.images.shape[1])))
    autoencoder = load_autoencoder(config.autoencoder).to(accelerator.device)
    lost = what_is_lost(autoencoder, tiles.images, tiles.labels, functools.partial(predict_proba, model))
    tell(f"what the autoencoder leaves of {lost.num_tiles:,} validation tiles: PSNR {lost.psnr:.2f} dB{lost.words()}")
    if warning := lost.warning():
        warn(warning)
    return {name: value for name, value in lost.record().items() if name.startswith("teacher_")}


def how_trained(
    config: TrainClassifierConfig, settings: dict[str, Any], seconds: float, accelerator: Accelerator
) -> dict[str, Any]:
    """What `results.json` tells of the way in which the scores came about."""
    return {
        "settings": settings,
        "config": recorded_recipe(config.recipe, settings["architecture"]),
        "seed": config.seed,
        "steps": steps_of(config.architecture, config.max_train_steps),
        "seconds": round(seconds, 1),
        "num_processes": accelerator.num_processes,
        "device": str(accelerator.device),
        "versions": installed_versions(_PACKAGES),
    }


def summary(results: dict[str, Any], output: Path) -> str:
    """The scores as one line of text."""
    test = results["test"]
    auc = "undefined" if test["auc"] is None else f"{test['auc']:.4f}"
    how = "a probe" if results["steps"] is None else f"best step {results['best_step']} of {results['steps']}"
    return f"classifier: test ACC {test['accuracy']:.4f}, AUC {auc}, F1 {test['f1']:.4f} ({how}), saved to {output}"


if __name__ == "__main__":
    run_script(make_parser, run)
