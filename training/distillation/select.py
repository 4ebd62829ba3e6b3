"""Selects the distilled set from the pool: embeddings, communities, and exactly N images of each class.

    histodistill select --pool runs/phantom/pool --teacher runs/phantom/teacher --output runs/phantom

Leaves `selector/` (the fitted selector, and pictures of the pool's communities) and `distilled/` (a dataset that
`load_dataset` opens) in the output folder. `docs/selection.md` tells what the defaults were chosen from. Whatever
chooses, Infomap finds the communities of the pool; `--selector infomap` also chooses by them, as the paper does.
The teacher is a classifier trained on the real tiles: its probabilities become the column soft_label, and with
`--soft-label-views` those of further views of each image the column soft_label_views. Real tiles (`--data`) are needed
only by `--typical-share` and `--drop-copies`, and none of them is written anywhere.

`--exclude` with what reviewers saved from the page of `histodistill review` chooses anew in the same folder, without
the images that any of them left out. Those stay out, whatever is chosen later.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from histodistill.selection.names import MAX_LABEL_VIEWS
from histodistill.training.distillation.selector_options import FILTERS, SelectorConfig
from histodistill.training.models.encoder_licences import check_licence, encoder_records, tell_licences
from histodistill.training.running.claims import claiming
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.options import StepParser, config, option, run_script
from histodistill.training.running.source_options import SourceOptions


@config
class SelectConfig(SelectorConfig, SourceOptions):
    """Options of `select`."""

    pool: Path = option("folder that generate left", setting=False)
    teacher: Path = option("folder of a classifier trained on the real tiles", setting=False)
    data: str | Path | None = option(
        "the real tiles, which --typical-share and --drop-copies go by", default=None, setting=False
    )
    embedder: str | Path = option(
        "untrained: a ConvNet with random weights; untrained_several: this and four residual networks; mean_colour or "
        "colour_histogram: colours alone; teacher: the "
        "teacher's features; the folder of a classifier or, for its latents, of an autoencoder; the folder or Hub id "
        "of a transformers vision model; timm: and a name or Hub id of timm",
        default="untrained",
        setting=False,  # its fingerprint tells it
    )
    encoder_license: str | None = option(
        "licence of the models from elsewhere that embed, such as cc-by-nc-nd-4.0; default: what their own cards say",
        default=None,
        setting=False,  # the record has it beside the encoder
    )
    output: Path = option("folder for selector/ and distilled/", setting=False, claimed=True)
    soft_label_views: int = option(
        "fixed views of each image, turned, cut out or mixed with another, of which there are soft labels; 1: the "
        "image as it is, and no column soft_label_views",
        default=1,
        at_least=1,
        at_most=MAX_LABEL_VIEWS,
        later=True,
    )
    drop_copies: bool = option(
        "drop images that are copies of a real tile, as histodistill audit finds them; needs --data",
        default=False,
        group=FILTERS,
    )
    copy_embedders: tuple[str, ...] = option(
        "embedding spaces, beside pixels, in which copies are looked for; the audit looks in untrained and "
        "RUN/autoencoder unless told otherwise, and distill drops what it finds in these",
        default=("untrained",),
        group=FILTERS,
        setting=False,  # their fingerprints tell them
    )
    exclude: tuple[Path, ...] = option(
        "files that reviewers of this set saved, of all reviews so far: what they left out is not chosen",
        default=(),
        metavar="FILE",
        group=FILTERS,
        setting=False,  # the record says what was left out
    )

    @property
    def needs_real_tiles(self) -> bool:
        """Whether an option goes by real tiles."""
        return self.typical_share is not None or self.drop_copies

    def check(self) -> None:
        """Checks that there are real tiles where an option goes by them, and that a licence is one."""
        check_licence("encoder_license", self.encoder_license)
        if self.needs_real_tiles and self.data is None:
            name = "drop_copies" if self.drop_copies else "typical_share"
            raise InputError(f"{param('data')} is missing: {param(name)} goes by the real tiles, so name them")


def make_parser() -> StepParser[SelectConfig]:
    """The parser of the command line."""
    return StepParser(SelectConfig, prog="histodistill select", description=__doc__)


@claiming
def run(config: SelectConfig) -> Path:
    """Embeds the pool, fits the selector, and writes both results.

    Returns:
        The folder of the distilled set, which `load_dataset` opens.

    Raises:
        InputError: For a folder that holds no finished pool or classifier, for classes that differ between pool,
            teacher and real tiles, for what the selector refuses, for an output folder of other settings, or for a
            file of a reviewer that is not about the set in there.
    """
    from histodistill.training.data.sources import check_source
    from histodistill.training.running.stages import Stage, read_record, require_complete

    # Before the libraries are imported, which takes seconds.
    require_complete(config.pool, "pool", "run histodistill generate first")
    require_complete(config.teacher, "classifier", "run train_classifier on the real tiles first")
    if config.data is not None and config.needs_real_tiles:
        check_source(config.data, config.source_options(config.output).get("labels"))

    from histodistill.training.distillation import distilled_set
    from histodistill.training.distillation.pool_selection import fit_selector, make_selector
    from histodistill.training.distillation.reviews import SETTING, kept_review, take_reviews
    from histodistill.training.models.embedders import resolve_embedder

    folder, selector_folder = config.output / "distilled", config.output / "selector"
    sources = distilled_set.read_sources(
        config.pool,
        config.teacher,
        config.data if config.needs_real_tiles else None,
        config.source_options(config.output),
    )
    known = sources.fingerprints(config.embedder, config.copy_embedders if config.drop_copies else None)
    made_of = {"pool": config.pool, "teacher": config.teacher}
    settings = {"stage": "distilled", **known, **config.settings()}
    # What reviewers once left out stays out, also where the command is given without their files.
    before = (read_record(folder) or {}).get("settings", {})
    settings |= {SETTING: before[SETTING]} if SETTING in before else {}
    stage = Stage(folder, settings, inputs=made_of)
    stage.require_own_folder()
    seeds = sources.columns["seed"]
    if config.exclude:
        take_reviews(config.exclude, stage, seeds, sources.images)
    review = kept_review(stage.settings)
    if stage.complete and (selector_folder / "config.json").is_file():
        print(f"select: {folder} is already finished")
        return folder
    tiles_name = distilled_set.tiles_of(config.teacher)
    make_selector(config)  # refuses what is out of range before the embedding, which takes a while
    teacher = distilled_set.load_teacher(config.teacher, sources.class_names)
    embedder = resolve_embedder(config.embedder, config.teacher)
    copies = None
    if config.drop_copies:
        copies = distilled_set.copies_in_pool(sources, config.copy_embedders, config.n_per_class, config.seed)
    left_out = None if review is None else review.mask(seeds)
    by_real_tiles = config.typical_share is not None  # nothing else goes by their embeddings
    inputs = distilled_set.gather_inputs(sources, teacher, embedder, by_real_tiles, copies, left_out)
    if review is not None:
        remedy = "generate more images, or choose fewer"
        names = sources.class_names
        distilled_set.require_enough(inputs.forbidden, inputs.labels, names, config.n_per_class, "exclude", remedy)
    selection = fit_selector(config, inputs, sources.class_names)
    for note in selection.notes:
        print(f"warning: {note}")

    encoders = used_encoders(config, sources.teacher_record)
    reviewed = None if review is None else review.facts(seeds[selection.chosen])
    stage.begin()
    distilled_set.write_selector(selector_folder, selection, inputs, sources)
    features = distilled_set.write_images(
        folder / "data", selection, inputs, sources, teacher, config.soft_label_views
    )
    distilled_set.write_card(
        folder / "README.md",
        config,
        selection,
        inputs,
        sources,
        features,
        embedder=config.embedder,
        tiles_name=tiles_name,
        encoders=encoders,
        review=reviewed,
    )
    more: dict[str, Any] = {"encoders": encoders} if encoders else {}
    more["generation"] = distilled_set.generation_of(sources.pool_record)
    if reviewed is not None:
        more["reviewed"] = reviewed.model_dump()
        print(f"select: {reviewed.sentence()}")
    stage.finish(**distilled_set.count_images(selection, inputs, sources.class_names), **more)
    tell_licences(encoders)
    print(f"select: {len(selection.chosen)} of {len(sources.images)} images saved to {folder}")
    return folder


def used_encoders(config: SelectConfig, teacher_record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the record says of the encoders from elsewhere, those of the teacher first: see `encoder_records`."""
    copies = config.copy_embedders if config.drop_copies else ()
    of_teacher = teacher_record.get("encoders", ())
    found = encoder_records([config.embedder], "selection", config.encoder_license, beside=of_teacher)
    return encoder_records(copies, "copies", config.encoder_license, beside=found)


if __name__ == "__main__":
    run_script(make_parser, run)
