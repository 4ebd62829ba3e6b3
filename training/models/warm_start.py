"""Warm start: a new model takes from trained weights all that fits it, and whoever waits is told what that was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import UNet2DModel

from histodistill.training.data.names import shown, some
from histodistill.training.data.tiles import TileSource
from histodistill.training.models.denoiser_output import DenoiserOutput
from histodistill.training.models.hub_files import model_folder
from histodistill.training.models.loading import load_named_denoiser
from histodistill.training.running.errors import InputError, param
from histodistill.training.running.files import read_json, sha256_of
from histodistill.training.running.notes import warn
from histodistill.training.running.stages import fingerprint, read_record


# The share of a model's values that must fit: below it what is left of the trained model is small vectors, such as
# those of norms, which fit by chance, and to speak of a warm start would be untrue.
_LEAST_SHARE = 0.1
# The embeddings of the classes in a denoiser, of which the last is the null class.
_CLASS_EMBEDDINGS = "class_embedding.weight"
# Of a pipeline, what a denoiser begins from: the names of the classes, and the trained denoiser.
_MODEL = "diffusion_pytorch_model.safetensors"
_INDEX, _WEIGHTS = "model_index.json", f"unet/{_MODEL}"
_SCHEDULER = "scheduler/scheduler_config.json"
_PARTS = (_INDEX, "unet/config.json", _WEIGHTS, _SCHEDULER)


@dataclass(frozen=True)
class Taken:
    """What a model took from trained weights.

    Attributes:
        taken: Names of its tensors that were taken, in the order of the model.
        new: Names of those that stay as they were made, in whole or, of class embeddings, in part.
        left: Names of tensors of the trained weights that it has no place for.
        values_taken: How many numbers were taken.
        values: How many the model has.
        new_classes: Names of the classes whose embeddings are new; of a model with classes alone.
        new_begin_as: What embeddings these begin with.
    """

    taken: tuple[str, ...]
    new: tuple[str, ...]
    left: tuple[str, ...]
    values_taken: int
    values: int
    new_classes: tuple[str, ...] = ()
    new_begin_as: str = "the null class"

    @property
    def share(self) -> float:
        """The share of the model's numbers that were taken, 0 to 1."""
        return self.values_taken / max(self.values, 1)

    def sentence(self, what: str, origin: str) -> str:
        """What was taken and what is new, as a line for the user.

        Args:
            what: What the line calls the model, such as "denoiser".
            origin: Where the weights are from.
        """
        count = len(self.taken) + len(self.new)
        tensors = f"{'all' if not self.new else len(self.taken)} of {count} tensors"
        parts = [f"warm start: the {what} takes {tensors} ({_percent(self.share)} of its weights) from {origin}"]
        if others := [name for name in self.new if not (self.new_classes and name == _CLASS_EMBEDDINGS)]:
            parts.append(f"makes {some(others)} anew")
        if self.new_classes:
            parts.append(f"begins with {self.new_begin_as} for classes it has not seen ({some(self.new_classes)})")
        if self.left:
            parts.append(f"leaves {len(self.left)} that it has no place for")
        return "; ".join(parts)


@dataclass(frozen=True)
class Start:
    """A trained pipeline whose denoiser a new one begins from.

    Attributes:
        name: What the user calls it: a folder or an id on the Hub.
        folder: Where its files lie.
    """

    name: str
    folder: Path

    @classmethod
    def find(cls, name_or_path: str | Path) -> Start:
        """A pipeline by its folder, or from the Hub by its id: configurations and weights alone are fetched.

        Raises:
            InputError: If there is none.
        """
        return cls(str(name_or_path), model_folder(name_or_path, "init_from", "pipeline", _PARTS))

    def fingerprint(self) -> str:
        """What stands for it in a record, in place of where it lies: a hash of weights and names of classes.

        Raises:
            InputError: If it lacks one of them.
        """
        try:
            return fingerprint({name: sha256_of(self.folder / name) for name in (_INDEX, _WEIGHTS)})
        except OSError as error:
            raise InputError(
                f"{param('init_from')} {shown(self.name)} has no {_INDEX} or no {_WEIGHTS}: give a pipeline as "
                "train_diffusion leaves it"
            ) from error

    def require_output(self, output: DenoiserOutput) -> None:
        """Sees that the trained denoiser gives what the new one is to give; not where its files do not say it.

        Raises:
            InputError: If it gives something else.
        """
        for name, path, wanted, unsaid in (
            ("prediction_type", _SCHEDULER, output.prediction_type, output.prediction_type),
            ("skip_noise", _INDEX, output.skip_noise, 0.0),
        ):
            try:
                found = read_json(self.folder / path).get(name, unsaid)
            except (OSError, ValueError, AttributeError):
                continue
            if found != wanted:
                raise InputError(
                    f"{param('init_from')} {shown(self.name)} has the {param(name)} {shown(str(found))}, and here it "
                    f"is {wanted}: give the one that it has, or begin from another"
                )

    def has_other_latents(self, autoencoder: str | Path) -> bool:
        """Whether an autoencoder is another than that of the pipeline; False where that is not there, as from the Hub.

        Args:
            autoencoder: Folder of the autoencoder.
        """
        own, other = (Path(folder) / _MODEL for folder in (self.folder / "vae", autoencoder))
        return own.is_file() and other.is_file() and sha256_of(own) != sha256_of(other)

    def fill(self, denoiser: UNet2DModel, class_names: Sequence[str]) -> Taken:
        """Fills a new denoiser, in place, with all that fits it: see `take_denoiser`.

        Raises:
            InputError: If the pipeline is damaged, or next to nothing of it fits.
        """
        trained, old_classes = load_named_denoiser(self.folder)
        taken = take_denoiser(denoiser, trained.state_dict(), old_classes, class_names)
        widths, levels = list(trained.config.block_out_channels), trained.config.down_block_types
        with_attention = sum(level.startswith("Attn") for level in levels)
        require_fit(
            taken,
            shown(self.name),
            f"give {param('channels')} {' '.join(map(str, widths))}, {param('layers_per_block')} "
            f"{trained.config.layers_per_block} and {param('attention_levels')} {with_attention}, as it has, or begin "
            f"without {param('init_from')}",
        )
        return taken


def knows_tiles(name: str, folder: str | Path, source: TileSource, *, said_public: bool) -> bool:
    """Whether trained weights are of these very tiles, by the record beside them, where there is one.

    Args:
        name: What the user calls where they are from.
        folder: Where they lie.
        source: The tiles.
        said_public: Whether they are said to be of public tiles.

    Raises:
        InputError: If they are said to be, and the record says otherwise.
    """
    # That of a pipeline tells of the autoencoder in it, too.
    records = [record for place in (Path(folder), Path(folder).parent) if (record := read_record(place))]
    same = any(record["settings"].get("data") == source.fingerprint() for record in records)
    if said_public and same:
        raise InputError(
            f"{param('dp_public_init')} contradicts the record of {shown(name)}, by which it was trained on these "
            "very tiles: begin from one that was trained on public tiles"
        )
    return same


def warn_of_held_out(name: str) -> None:
    """Warns that trained weights may know the tiles that are held out for the audit."""
    warn(
        f"whoever trained {shown(name)} must not have had the tiles that are held out here for the audit: it would "
        "not see then what the weights tell of training tiles"
    )


def take_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> Taken:
    """Copies into a model, in place, all tensors whose name and shape fit; the others stay as they were made.

    Args:
        model: On any device, of any type of numbers.
        weights: Tensors by the names that the model's `state_dict` has for them.

    Raises:
        InputError: If weights that fit are not finite. The model may then be half filled.
    """
    own = model.state_dict()
    fitting = [name for name, value in own.items() if name in weights and weights[name].shape == value.shape]
    with torch.no_grad():
        for name in fitting:
            if not torch.isfinite(weights[name]).all():
                raise InputError(f"the weights of {some([name])} are not finite: begin from others")
            own[name].copy_(weights[name])
    return Taken(
        taken=tuple(fitting),
        new=tuple(name for name in own if name not in set(fitting)),
        left=tuple(name for name in weights if name not in set(fitting)),
        values_taken=sum(own[name].numel() for name in fitting),
        values=sum(value.numel() for value in own.values()),
    )


def take_denoiser(
    denoiser: UNet2DModel, weights: Mapping[str, torch.Tensor], old_classes: Sequence[str], class_names: Sequence[str]
) -> Taken:
    """`take_weights` for a denoiser, whose class embeddings are taken by the names of the classes.

    A class that the trained denoiser did not know begins as its null class: that embedding was trained with tiles of
    every class, so with it the denoiser at once predicts what it would of a tile of any class, and what sets the new
    class apart is learned from there. A random embedding would be one that the trained layers have never seen.

    Where none is known, they begin as different known ones, in their order: classes that are all alike to the denoiser
    teach it for long only what a tile of any class is like. Which of the known ones each is says nothing.

    Args:
        denoiser: Made for `class_names`, in their order, and the null class.
        weights: Of a trained denoiser for `old_classes`, in their order, and the null class.
        old_classes, class_names: Names of classes, each once.

    Raises:
        InputError: As `take_weights` does.
    """
    old, own = weights.get(_CLASS_EMBEDDINGS), denoiser.state_dict()[_CLASS_EMBEDDINGS]
    if old is None or old.shape != (len(old_classes) + 1, own.shape[1]):
        return take_weights(denoiser, {name: value for name, value in weights.items() if name != _CLASS_EMBEDDINGS})
    row_of = {name: row for row, name in enumerate(old_classes)}
    null = len(old_classes)
    new_classes = tuple(name for name in class_names if name not in row_of)
    if len(new_classes) < len(class_names):
        begin_as, rows = "the null class", [row_of.get(name, null) for name in class_names]
    else:
        begin_as, rows = "those of others", [min(number, null) for number in range(len(class_names))]
    taken = take_weights(denoiser, {**weights, _CLASS_EMBEDDINGS: old[[*rows, null]]})
    if not new_classes:
        return taken
    return replace(
        taken,
        taken=tuple(name for name in taken.taken if name != _CLASS_EMBEDDINGS),
        new=(*taken.new, _CLASS_EMBEDDINGS),
        values_taken=taken.values_taken - len(new_classes) * own.shape[1],
        new_classes=new_classes,
        new_begin_as=begin_as,
    )


def freeze_all_but_embeddings(denoiser: UNet2DModel, taken: Taken) -> str:
    """Leaves to a training the embeddings of the classes, and the scales and shifts of norms; all else stays.

    Args:
        denoiser: Filled from trained weights.
        taken: What it took of them.

    Returns:
        How many weights are trained, as a line for the user.

    Raises:
        InputError: If something that would stay was not trained before.
    """
    norms = {name for name, module in denoiser.named_modules() if isinstance(module, torch.nn.GroupNorm)}
    for name, weight in denoiser.named_parameters():
        weight.requires_grad_(name == _CLASS_EMBEDDINGS or name.rpartition(".")[0] in norms)
    weights = dict(denoiser.named_parameters())
    if unfit := [name for name in taken.new if name in weights and not weights[name].requires_grad]:
        raise InputError(
            f"{some(unfit)} would stay as they were made, since none that fit were trained before: give the "
            f"options of the model that the pipeline has, or leave {param('trained_weights')} out"
        )
    trained = sum(weight.numel() for weight in weights.values() if weight.requires_grad)
    return (
        f"warm start: {trained:,} of {sum(weight.numel() for weight in weights.values()):,} weights are trained, the "
        "embeddings of classes and the scales and shifts of norms; all others stay"
    )


def require_fit(taken: Taken, origin: str, remedy: str) -> None:
    """Sees that enough was taken for the start to be a warm one.

    Args:
        taken: What was taken.
        origin: What messages call where the weights are from.
        remedy: What to do otherwise: the end of the error's sentence.

    Raises:
        InputError: If less than a tenth of the model's weights fits.
    """
    if taken.share < _LEAST_SHARE:
        raise InputError(f"only {_percent(taken.share)} of the weights of {origin} fit this model: {remedy}")


def _percent(share: float) -> str:
    """A share in per cent, which is 100 only where nothing is missing."""
    return f"{int(share * 1000) / 10:g} %"
