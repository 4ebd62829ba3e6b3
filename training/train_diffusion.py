"""Trains the class-conditional denoiser in the latent space of an autoencoder, and writes the pipeline.

    accelerate launch -m histodistill.training.train_diffusion \\
        --data phantom --autoencoder runs/phantom/autoencoder --output runs/phantom/pipeline

The denoiser learns rectified flow (Liu et al. 2023, arXiv:2209.03003; Lipman et al. 2023, arXiv:2210.02747): between
data x and noise e it sees z = (1 - s) x + s e and predicts the velocity e - x, or x itself. Noise levels s are
logit-normal (Esser et al. 2024, arXiv:2403.03206). The output folder loads as a `HistologyPipeline`.

With `--align` its middle is drawn to the features of a classifier: see `engine/alignment.py`.

With `--init-from` it begins with all weights of a trained pipeline that fit: see `models/warm_start.py`. With
`--trained-weights embeddings` all of these stay but the embeddings of the classes and what scales and shifts norms;
with `--trained-weights adapters` matrices of a low rank are trained, too, and added to the others: see
`models/adapters.py`.

With `--dp-epsilon` it trains with differential privacy: see `engine/privacy.py`. With `--dp-central-share` it then
begins with central images: see `engine/central_images.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from histodistill.selection.streams import torch_seed
from histodistill.training.models.denoiser_output import DATA, PREDICTION_TYPES, DenoiserOutput
from histodistill.training.running.claims import claiming
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.notes import suggest, tell, warn
from histodistill.training.running.options import StepParser, config, like, option, require, run_script
from histodistill.training.running.training_options import PrivateTrainingConfig, not_covered


if TYPE_CHECKING:
    from accelerate import Accelerator

    from histodistill.training.data.tiles import TileSource
    from histodistill.training.engine.diffusion_training import DiffusionTraining
    from histodistill.training.engine.privacy import PrivacyPlan
    from histodistill.training.models.classifiers import Classifier
    from histodistill.training.models.warm_start import Start
    from histodistill.training.running.stages import Stage


#: What latents of training tiles are kept as.
LATENT_CACHES = ("float16", "bfloat16", "off")
#: What can be trained of a denoiser.
TRAINED_WEIGHTS = ("all", "embeddings", "adapters")
# Found by trying: see docs/trainings.md. With that of AdamW a training falls apart after about a thousand steps.
_MUON_WEIGHT_DECAY = 0.3


@config
class TrainDiffusionConfig(PrivateTrainingConfig):
    """Options of `train_diffusion`."""

    max_train_steps: int = like(PrivateTrainingConfig, "max_train_steps", default=5000)
    batch_size: int = like(PrivateTrainingConfig, "batch_size", default=64)
    learning_rate: float = like(PrivateTrainingConfig, "learning_rate", default=8e-4)
    weight_decay: float | None = like(  # type: ignore[assignment]  # `check` chooses one
        PrivateTrainingConfig,
        "weight_decay",
        default=None,
        help=f"weight decay; default: {PrivateTrainingConfig.weight_decay:g}, and {_MUON_WEIGHT_DECAY:g} of "
        "matrices with --optimizer muon, which would else grow until the training falls apart",
    )
    autoencoder: Path = option("folder that train_autoencoder left", group="model", setting=False)
    init_from: str | Path | None = option(
        "pipeline to begin from, a folder or an id on the Hub: all its denoiser's weights that fit are taken, and the "
        "embeddings of classes that it has, too; give the options of the model, and the autoencoder, that it has",
        default=None,
        metavar="PIPELINE",
        group="model",
        setting=False,  # the record holds a hash of what was taken
    )
    trained_weights: str = option(
        "what is trained of a denoiser that begins from another: all; or the embeddings of the classes and the scales "
        "and shifts of norms alone, a small share of the weights; or these and adapters, low-rank matrices that are "
        "added to the weights of convolutions and linear layers in the end, which needs peft",
        default=TRAINED_WEIGHTS[0],
        choices=TRAINED_WEIGHTS,
        group="model",
        later=True,
    )
    channels: tuple[int, ...] = option(
        "width of each resolution level of the U-Net; each level after the first halves the size",
        default=(64, 128),
        at_least=1,
        group="model",
    )
    layers_per_block: int = option("residual blocks per level", default=2, at_least=1, group="model")
    attention_levels: int = option(
        "how many of the lowest levels have attention; the middle always has it", default=0, at_least=0, group="model"
    )
    dropout: float = option("dropout in the residual blocks", default=0.0, at_least=0, below=1, group="model")
    prediction_type: str = option(
        "what the denoiser gives: flow_prediction, the velocity, or sample, the tile without noise, by which latents "
        "with many channels are learned sooner",
        default=PREDICTION_TYPES[0],
        choices=PREDICTION_TYPES,
        group="loss and averaging",
        later=True,
    )
    skip_noise: float = option(
        "with sample: part of what the denoiser sees goes straight into what it gives, half of it where there is so "
        "much noise, relative to the tile, and more where there is less; 0 for none",
        default=0.0,
        at_least=0,
        at_most=100,
        group="loss and averaging",
        later=True,
    )
    noise_level_mean: float = option(
        "mean of the logits of the noise levels that are trained on: above 0 there is more noise, which teaches more "
        "of what is large in a tile",
        default=0.0,
        group="loss and averaging",
        later=True,
    )
    noise_level_range: tuple[float, float] = option(
        "noise levels, 0 to 1, outside of which none is trained on",
        default=(0.0, 1.0),
        metavar=("LOW", "HIGH"),
        group="loss and averaging",
        later=True,
    )
    class_dropout: float = option(
        "share of tiles shown with the null class, for classifier-free guidance",
        default=0.1,
        at_least=0,
        below=1,
        group="loss and averaging",
    )
    symmetries: bool = option(
        "show each tile in the square's eight symmetries; without them few tiles are soon learned by heart",
        default=True,
        group="loss and averaging",
    )
    align: Path | None = option(
        "folder of a classifier, a convnet or a resnet18 that train_classifier left: the middle of the denoiser is "
        "drawn to its features, which teaches more in the same time",
        default=None,
        group="loss and averaging",
        setting=False,  # the record holds its fingerprint
    )
    align_weight: float = option("weight of what draws it there", default=0.5, at_least=0, group="loss and averaging")
    ema_decay: float = option(
        "decay of the moving average of the weights", default=0.998, at_least=0, below=1, group="loss and averaging"
    )
    latent_cache: str = option(
        "latents of training tiles are encoded once, and kept in the cache of tiles as numbers of this type; off "
        "encodes them anew in each step, where the disk is short",
        default=LATENT_CACHES[0],
        choices=LATENT_CACHES,
        group="loss and averaging",
        later=True,
    )
    dp_public_autoencoder: bool = option(
        "states that the autoencoder was trained on public tiles, so that it costs nothing of the budget",
        default=False,
        group="differential privacy",
    )
    dp_public_init: bool = option(
        "states that the pipeline of --init-from was trained on public tiles, so that it costs nothing of the budget",
        default=False,
        group="differential privacy",
    )
    dp_central_share: float = option(
        "before its steps the denoiser learns noisy mean latents of each class, for which this share of ε would be "
        "spent alone; 0 for none",
        default=0.0,
        at_least=0,
        below=1,
        group="differential privacy",
        later=True,
    )

    def check(self) -> None:
        """Chooses the weight decay, and checks the options that do not go with one another."""
        super().check()
        if self.weight_decay is None:
            chosen = _MUON_WEIGHT_DECAY if self.optimizer == "muon" else PrivateTrainingConfig.weight_decay
            object.__setattr__(self, "weight_decay", chosen)
        rule = f"with {param('prediction_type')} {self.prediction_type} it must be 0"
        require(self.skip_noise == 0 or self.prediction_type == DATA, "skip_noise", self.skip_noise, rule)
        low, high = self.noise_level_range
        rule = "it must be LOW HIGH with 0 <= LOW < HIGH <= 1"
        require(0 <= low < high <= 1, "noise_level_range", self.noise_level_range, rule)
        if self.align is not None:
            rule = f"with {param('align')} it must be above 0"
            require(self.align_weight > 0, "align_weight", self.align_weight, rule)
        rule = f"without {param('init_from')} it must be all, since what stays must have been trained before"
        is_all = self.trained_weights == TRAINED_WEIGHTS[0]
        require(is_all or self.init_from is not None, "trained_weights", self.trained_weights, rule)
        if self.dp_epsilon is None:
            rule = f"without {param('dp_epsilon')} it must be 0"
            require(self.dp_central_share == 0, "dp_central_share", self.dp_central_share, rule)
            return
        require(self.dropout == 0, "dropout", self.dropout, f"with {param('dp_epsilon')} it must be 0")
        if self.init_from is not None and not self.dp_public_init:
            raise not_covered("init_from", "pipeline")
        rule = f"with {param('dp_epsilon')} it must be left out, since its features of the tiles are not covered"
        require(self.align is None, "align", self.align, rule)

    def settings(self) -> dict[str, Any]:
        """The options that decide the result, but those that earlier stages have not, at their defaults."""
        settings = super().settings()
        if self.align is None:
            del settings["align_weight"]
        if self.init_from is None:
            settings.pop("dp_public_init", None)
        return settings

    @property
    def denoiser_output(self) -> DenoiserOutput:
        """What the denoiser gives."""
        return DenoiserOutput(self.prediction_type, self.skip_noise)


class Aligned(NamedTuple):
    """The classifier that a denoiser is aligned with, on the CPU, and what stands for it in a record."""

    classifier: Classifier
    fingerprint: str


def make_parser() -> StepParser[TrainDiffusionConfig]:
    """The parser of the command line."""
    return StepParser(TrainDiffusionConfig, prog="train_diffusion", description=__doc__)


@claiming
def run(config: TrainDiffusionConfig) -> Path:
    """Trains, validates the averaged weights, draws sample grids, and saves the pipeline.

    Returns:
        The folder, which loads as a `HistologyPipeline`.

    Raises:
        InputError: For an autoencoder, tiles or options that do not fit, an output folder of another training, a
            damaged checkpoint, or a training that diverges.
    """
    from histodistill.training.data.sources import load_tiles
    from histodistill.training.running.stages import Stage, require_complete

    remedy = f"run train_autoencoder first, with {param('autoencoder')} for one from elsewhere"
    autoencoder_record = require_complete(config.autoencoder, "autoencoder", remedy)
    source = load_tiles(
        config.data, image_size=config.image_size, audit_share=config.audit_share, **config.source_options()
    )
    check_autoencoder(config, autoencoder_record, source)
    source.split("validation")  # tiles without any are refused before anything is written
    start = find_start(config, source)
    aligned = find_classifier(config, source)
    settings = {
        "stage": "diffusion",
        "data": source.fingerprint(),
        "autoencoder": autoencoder_record["fingerprint"],
        **config.settings(),
        **config.unit_settings(source.split("train").groups is not None),
        **({"init_from": start.fingerprint()} if start else {}),
        **({"align": aligned.fingerprint} if aligned else {}),
    }
    inputs = {"autoencoder": config.autoencoder, **({"align": config.align} if config.align else {})}
    stage = Stage(config.output, settings, inputs=inputs)

    from histodistill.training.engine.diffusion_training import training_warning
    from histodistill.training.engine.loop import fit, open_training
    from histodistill.training.engine.privacy import plan_privacy

    accelerator = open_training(config, stage, "diffusion")
    if accelerator is None:
        return config.output

    plan = plan_privacy(config, source, accelerator.num_processes, config.dp_central_share)
    spent = privacy_spent(config, plan, autoencoder_record, source)
    training = make_training(config, source, accelerator, plan, start, aligned.classifier if aligned else None)
    fit(training, stage)

    if accelerator.is_main_process:
        save(training, stage, source.class_names, spent)
        loss = training.history[-1]["validation_loss"]
        accelerator.print(f"diffusion: validation loss {loss:.4f}, saved to {config.output}")
        if warning := training_warning(training.history):
            accelerator.print(f"diffusion: warning: {warning}")
        suggest("histodistill", "generate", "--pipeline", config.output, "--output", "FOLDER")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return config.output


def make_training(
    config: TrainDiffusionConfig,
    source: TileSource,
    accelerator: Accelerator,
    plan: PrivacyPlan | None,
    start: Start | None = None,
    classifier: Classifier | None = None,
) -> DiffusionTraining:
    """The trained autoencoder, a new denoiser for its latents, and all that the denoiser's training needs.

    A denoiser that has a `start` is filled with its weights, which a checkpoint to go on from then replaces. With a
    `classifier` it is aligned.

    Raises:
        InputError: For latents whose size the denoiser cannot halve that often, a start of which nothing fits, or not
            all that is not trained, adapters without peft, and a classifier without maps of features.
    """
    import torch

    from histodistill.training.data.names import shown
    from histodistill.training.engine.alignment import Alignment
    from histodistill.training.engine.diffusion_training import DiffusionTraining
    from histodistill.training.models.adapters import add_adapters
    from histodistill.training.models.denoiser import build_denoiser
    from histodistill.training.models.latents import shape_of_latent
    from histodistill.training.models.loading import load_autoencoder
    from histodistill.training.models.warm_start import freeze_all_but_embeddings

    autoencoder = load_autoencoder(config.autoencoder).requires_grad_(False)
    latent_channels, latent_size, _ = shape_of_latent(autoencoder, source.image_size)
    torch.manual_seed(torch_seed("weights of the denoiser", config.seed))
    denoiser = build_denoiser(
        latent_size,
        latent_channels,
        len(source.class_names),
        list(config.channels),
        config.layers_per_block,
        config.attention_levels,
        config.dropout,
    )
    if start:
        taken = start.fill(denoiser, source.class_names)
        tell(taken.sentence("denoiser", shown(start.name)))
        if config.trained_weights != TRAINED_WEIGHTS[0]:
            tell(freeze_all_but_embeddings(denoiser, taken))
        if config.trained_weights == "adapters":
            torch.manual_seed(torch_seed("weights of the adapters", config.seed))
            tell(add_adapters(denoiser))
    alignment = None
    if classifier is not None:
        alignment = Alignment(classifier, config.align_weight, latent_size // 2 ** (len(config.channels) - 1))
    return DiffusionTraining(
        config,
        source,
        accelerator,
        plan,
        autoencoder,
        denoiser,
        ema_decay=config.ema_decay,
        class_dropout=config.class_dropout,
        symmetries=config.symmetries,
        latent_cache=config.latent_cache,
        alignment=alignment,
        output=config.denoiser_output,
        noise_level_mean=config.noise_level_mean,
        noise_level_range=config.noise_level_range,
    )


def save(training: DiffusionTraining, stage: Stage, class_names: list[str], spent: dict[str, Any]) -> None:
    """Writes the pipeline, and finishes the stage.

    Args:
        training: Whose last step is done.
        stage: The stage that it makes.
        class_names: In the order of their ids.
        spent: See `privacy_spent`.
    """
    from histodistill.training.engine.accelerator import device_record
    from histodistill.training.engine.privacy import forget_key
    from histodistill.training.running.files import new_files, write_json

    with new_files(stage.folder) as folder:
        training.pipeline(class_names).save_pretrained(folder)
    write_json(stage.folder / "history.json", training.history)
    seen = training.tiles_seen
    stage.finish(
        validation_loss=training.history[-1]["validation_loss"],
        # Since the last resumption, where any step was left; without the time of validations.
        images_per_second=round(seen / training.training_seconds, 1) if seen else None,
        num_processes=training.accelerator.num_processes,
        **device_record(training.accelerator),
        latents=training.latents,
        **spent,
    )
    if training.plan:
        forget_key(stage.folder)


def check_autoencoder(config: TrainDiffusionConfig, record: dict[str, Any], source: TileSource) -> None:
    """Refuses an autoencoder that is not for these tiles.

    Raises:
        InputError: If it is of an earlier version, or for tiles of another size.
    """
    if "image_size" not in record:
        raise InputError(
            f"{config.autoencoder} holds an autoencoder of an earlier version: train one anew, in another folder"
        )
    if source.image_size != record["image_size"]:
        raise InputError(
            f"the tiles are {source.image_size} px, but the autoencoder is for {record['image_size']} px: "
            f"give {param('image_size')} {record['image_size']}"
        )


def find_start(config: TrainDiffusionConfig, source: TileSource) -> Start | None:
    """The pipeline that the denoiser begins from, if there is one.

    Warns where the tiles that are held out for the audit may be known to it.

    Raises:
        InputError: If it cannot be found, or is said to be public and was trained on these very tiles.
    """
    if config.init_from is None:
        return None
    from histodistill.training.models.warm_start import Start, knows_tiles, warn_of_held_out

    start = Start.find(config.init_from)
    start.require_output(config.denoiser_output)
    knows_these = knows_tiles(start.name, start.folder, source, said_public=config.dp_epsilon is not None)
    if start.has_other_latents(config.autoencoder):
        warn(
            f"the autoencoder of {config.init_from} is another than {config.autoencoder}, so its denoiser learned "
            "other latents and helps less: train with the autoencoder that it has"
        )
    if config.audit_share and not knows_these:
        warn_of_held_out(start.name)
    return start


def find_classifier(config: TrainDiffusionConfig, source: TileSource) -> Aligned | None:
    """The classifier that the denoiser is aligned with, if there is one.

    Warns where it may know the tiles that are held out for the audit.

    Raises:
        InputError: If its training is not finished, or it is for tiles of another size.
    """
    if config.align is None:
        return None
    from histodistill.training.models.loading import load_classifier
    from histodistill.training.models.warm_start import knows_tiles, warn_of_held_out
    from histodistill.training.running.stages import require_complete

    record = require_complete(config.align, "classifier", "run train_classifier first")
    classifier = load_classifier(config.align)
    if classifier.image_size != source.image_size:
        raise InputError(
            f"the tiles are {source.image_size} px, but the classifier of {param('align')} is for "
            f"{classifier.image_size} px: give one that was trained on such tiles"
        )
    name = str(config.align)
    if config.audit_share and not knows_tiles(name, config.align, source, said_public=False):
        warn_of_held_out(name)
    return Aligned(classifier, record["fingerprint"])


def privacy_spent(
    config: TrainDiffusionConfig, plan: PrivacyPlan | None, autoencoder_record: dict[str, Any], source: TileSource
) -> dict[str, Any]:
    """What the stage's record says of differential privacy: of the denoiser, the autoencoder, and both together.

    Raises:
        InputError: If the autoencoder was trained in a way that leaves the budget without meaning.
    """
    from histodistill.training.engine.privacy import autoencoder_privacy, compose, privacy_record

    if plan is None:
        return {}
    of_autoencoder = autoencoder_privacy(
        autoencoder_record, source.fingerprint(), config.dp_public_autoencoder, plan.unit
    )
    own = privacy_record(plan)
    total = compose(own, of_autoencoder) if of_autoencoder else compose(own)
    init = {} if config.init_from is None else {"init": "public"}
    return {"privacy": {**own, "autoencoder": of_autoencoder or "public", **init, "total": total}}


if __name__ == "__main__":
    run_script(make_parser, run)
