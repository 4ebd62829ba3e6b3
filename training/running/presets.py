"""Presets of `histodistill distill`: the options of every step for a given machine, as TOML files.

`cpu-demo` is for trying the built-in phantom in minutes; `cpu` is for real tiles on two cores, in one to two hours
where they have 28 pixels; `gpu` is for one modern GPU. What a file says holds for tiles of up to 28 pixels, and
`Preset.for_image_size` follows rules to make it fit larger ones. A preset is only a set of options: each step can be
run by hand with others, and a file of your own with the same sections is a preset, too.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

from histodistill.training.running.errors import InputError, param
from histodistill.training.running.plan_texts import split_steps
from histodistill.training.running.suggestions import did_you_mean


#: The presets that come with the package: files in `training/presets/`.
PRESET_NAMES = ("cpu-demo", "cpu", "gpu")
# What `Preset` reckons with, and so every file must have.
_NEEDED = {
    "autoencoder": ("channels", "latent_channels", "batch_size"),
    "diffusion": ("channels", "max_train_steps", "batch_size"),
    "generate": ("per_class",),
    "select": ("n_per_class",),
    "compare": ("train",),
}
# Side in pixels of the tiles that presets are written for, and the largest for which nothing is changed.
_BASE_SIZE, _LARGEST_AS_IT_IS = 28, 32
# Latents have no more positions along a side than the first number, as long as tiles need not be halved more often
# than `_HALVINGS_OF_SMALL` for that; then no more than the second.
_LATENT_SIDE, _LARGEST_LATENT_SIDE, _HALVINGS_OF_SMALL = 16, 32, 3
# Latents have no more than so many times the channels of those of small tiles: denoisers of more must be wider.
_MOST_LATENT_GROWTH = 8
# What else an autoencoder has that halves larger tiles more often, and its denoiser: with these, latents of many
# channels are learned in half of the steps.
_OF_DEEP_LATENTS = {"optimizer": "muon", "plain_finest": True, "equivariance_weight": 0.25, "posterior_std": 0.1}
_DATA = "sample"
_OF_THEIR_DENOISER: dict[str, Any] = {"prediction_type": _DATA, "skip_noise": 0.25, "noise_level_mean": 1.0}
# Its finest level has to pass on all channels of the latents: so many times as wide it is, but no wider than the next.
_WIDTH_FOR_CHANNELS = 4
# Options of the denoiser that do not go with differential privacy: see `PrivateTrainingConfig`.
_NOT_PRIVATE = ("align_weight", "class_balance", "compile", "dropout", "gradient_checkpointing")
# The denoiser has one more level, with attention, where latents have so many positions along a side or more.
_SIDE_WITH_ATTENTION = 16
# Tiles in a batch of the autoencoder and of a classifier, at least: gradients of fewer are too noisy.
_LEAST_CROPS, _LEAST_TILES = 4, 32
# Latent positions in a batch of the denoiser, at most: what it keeps of them for its backward pass then fits a GPU of
# 16 GB with room to spare.
_MOST_POSITIONS = 2**17
# Tiles in a batch of a classifier where a preset does not say it: the default of the steps.
_CLASSIFIER_BATCH = 128
# Steps of each comparison, at least, where its work shrinks.
_LEAST_STEPS = 25
# Validation tiles by which a classifier's best step is chosen, where its work shrinks.
_VALIDATION_TILES = 500
# How often the autoencoder looks at validation tiles larger than those that presets are written for, at how many of
# these as the steps' default is for those, and at how many at least.
_LOOKS, _LOOKED_AT, _LEAST_LOOKED_AT = 4, 512, 64
# Up to this side in pixels a ConvNet costs less than a fifth of a ResNet-18; above it, where the stem of that one
# quarters the side, less than half is what the ResNet-18 costs.
_LARGEST_FOR_CONVNET = 64


#: What options of steps become: step → option → value.
Changes: TypeAlias = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Preset:
    """Options of each step, by the names of its configuration's fields, as TOML and JSON hold them.

    Attributes:
        autoencoder, diffusion, teacher, generate, select, audit: Options of that step. The first must have channels,
            latent_channels and batch_size, the second channels, max_train_steps and batch_size.
        compare: What `histodistill compare --train` takes.
        compare_options: The other options of that step.
        max_epochs: A denoiser that sees few tiles too often learns them by heart, so its steps are cut where they
            would show each training tile more often than this.
        min_samples: Tiles that the denoiser is shown at least, whatever `max_epochs` says; no more than its own steps
            show.
        few_tiles: Options of the denoiser that hold where its steps are cut, such as its dropout.
        classifiers_shrink: Whether teacher and comparison do less of everything as tiles grow, as on a CPU they must.
    """

    autoencoder: dict[str, Any] = field(default_factory=dict)
    diffusion: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)
    generate: dict[str, Any] = field(default_factory=dict)
    select: dict[str, Any] = field(default_factory=dict)
    compare: tuple[str, ...] = ()
    max_epochs: int = 200
    audit: dict[str, Any] = field(default_factory=dict)
    compare_options: dict[str, Any] = field(default_factory=dict)
    min_samples: int = 0
    few_tiles: dict[str, Any] = field(default_factory=dict)
    classifiers_shrink: bool = False

    def options(self, step: str) -> dict[str, Any]:
        """The options of a step by the name of its section."""
        if step == "compare":
            return {"train": list(self.compare), **self.compare_options}
        return dict(getattr(self, step))

    def with_options(self, step: str, changes: Mapping[str, Any]) -> Preset:
        """The same with other options of a step."""
        options = {**self.options(step), **changes}
        for one, other in (("max_train_steps", "train_pixels"), ("train_pixels", "max_train_steps")):
            if one in changes and other not in changes and "train_pixels" in options:
                options.pop(other, None)  # both say how long the autoencoder is trained
        if changes.get("prediction_type", _DATA) != _DATA and "skip_noise" not in changes:
            options.pop("skip_noise", None)  # goes with the data alone
        if step == "compare":
            return replace(self, compare=tuple(options.pop("train")), compare_options=options)
        sections: dict[str, Any] = {step: options}
        return replace(self, **sections)

    def with_changes(self, changes: Changes) -> Preset:
        """The same with other options of several steps."""
        preset = self
        for step, options in changes.items():
            preset = preset.with_options(step, options)
        return preset

    def under_privacy(self) -> Preset:
        """The same with models that can be trained with differential privacy, and nothing that goes by real tiles."""
        diffusion = {name: value for name, value in self.diffusion.items() if name not in _NOT_PRIVATE}
        diffusion["batch_size"] = _tiles_of_step(diffusion)
        diffusion.pop("gradient_accumulation_steps", None)
        select = {name: value for name, value in self.select.items() if name not in ("drop_copies", "typical_share")}
        return replace(self, diffusion=diffusion, select=select)

    def settings(self) -> dict[str, Any]:
        """All options as JSON holds them; sections that came later are there only where they say something.

        What only says how a preset is fitted to tiles is not among them: the options that it is fitted to are.
        """
        settings = {**dataclasses.asdict(self), "compare": list(self.compare)}
        for name in ("min_samples", "few_tiles", "classifiers_shrink"):
            del settings[name]
        for name in ("audit", "compare_options"):
            if not settings[name]:
                del settings[name]
        return settings

    def diffusion_steps(self, num_train: int) -> int:
        """Optimizer steps of the denoiser for so many training tiles: see `max_epochs` and `min_samples`."""
        samples = max(self.max_epochs * num_train, self.min_samples)
        return min(self.diffusion["max_train_steps"], max(1, samples // _tiles_of_step(self.diffusion)))

    def for_tiles(self, image_size: int, num_train: int) -> Preset:
        """The same for so many training tiles of a size: `for_image_size`, with the steps that `max_epochs` leaves."""
        preset = self.for_image_size(image_size)
        steps = preset.diffusion_steps(num_train)
        changes = {"max_train_steps": steps}
        if steps < preset.diffusion["max_train_steps"]:
            changes |= preset.few_tiles
        return preset.with_options("diffusion", changes)

    def for_image_size(self, image_size: int) -> Preset:
        """The same for tiles of another size in pixels; up to 32, 16×16 latents only add a level.

        What is done follows the pixels and the latent positions that are shown in all, which is what time goes by:

        - The autoencoder halves tiles until latents are 16×16 or smaller, but from three halvings on 32×32 will do:
          64 px twice, 128 to 256 px three times, 512 px four times. Each further halving doubles the pixels in a
          batch, and from the second on those that are shown. With the first, latents have four times the channels, and
          so as many numbers for a tile's pixels as before; then eight times, which is fewer. The finest level, on
          which most of the time would go, has no residual blocks, and from three halvings on half the width. Latents
          bear more noise, and to be halved. Where they are larger than 16×16 it is trained on crops that make such.
          It looks at fewer validation tiles, less often.
        - The denoiser has one more level, with attention, for latents of 16×16 and more. Of tiles that are halved more
          often it gives the data in place of the velocity, with a part of what it sees, its finest level is widened to
          four times the channels of latents, up to the width of the next, and it is shown more noise. Where latents
          are larger than 16×16, it is shown as many positions in all as of these, and so fewer tiles: its time stays
          about the same.
        - Learning rates of autoencoder and denoiser go by the square root of the batch (Malladi et al. 2022,
          arXiv:2205.10287).
        - Where `classifiers_shrink`, batches of teacher and comparison shrink with the area of a tile, down to 32. The
          tiles that the teacher is shown shrink with its side; those of each comparison, of which there are several,
          by its side to the power of 1.5. Of two architectures the one that costs less is trained, up to 64 pixels a
          ConvNet, above a ResNet-18.
        """
        base_halvings = halvings = len(self.autoencoder["channels"]) - 1
        if image_size <= _LARGEST_AS_IT_IS:
            return replace(self, diffusion=_with_levels(self.diffusion, image_size / 2**halvings))
        while image_size / 2**halvings > (
            _LATENT_SIDE if halvings < _HALVINGS_OF_SMALL else _LARGEST_LATENT_SIDE
        ):  # fmt: skip
            halvings += 1
        latent_side = image_size / 2**halvings
        autoencoder = _fit_autoencoder(self.autoencoder, image_size, halvings)
        diffusion = _fit_denoiser(
            self.diffusion, latent_side, autoencoder["latent_channels"], halvings > base_halvings
        )
        fitted = replace(self, autoencoder=autoencoder, diffusion=diffusion)
        return fitted._with_small_classifiers(image_size) if self.classifiers_shrink else fitted

    def _with_small_classifiers(self, image_size: int) -> Preset:
        """The same with less work for teacher and comparison, which would take most of the time of larger tiles."""
        scale = _BASE_SIZE / image_size

        def smaller(options: Mapping[str, Any]) -> dict[str, Any]:
            batch_size = options.get("batch_size", _CLASSIFIER_BATCH)
            fitting = _power_of_two(batch_size * scale**2, min(_LEAST_TILES, batch_size))
            return {"validation_tiles": _VALIDATION_TILES, **options, "batch_size": fitting}

        def further(before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
            """Steps of the smaller batches for one before, that as many tiles are shown."""
            return before.get("batch_size", _CLASSIFIER_BATCH) / after["batch_size"]

        teacher, compare = smaller(self.teacher), self.compare
        compare_options = smaller(self.compare_options)
        if steps := teacher.get("max_train_steps"):
            teacher["max_train_steps"] = max(1, round(steps * scale * further(self.teacher, teacher)))
        dear, cheap = ("convnet", "resnet18") if image_size > _LARGEST_FOR_CONVNET else ("resnet18", "convnet")
        if teacher.get("architecture", "convnet") == dear:
            teacher = {name: value for name, value in teacher.items() if name not in ("width", "learning_rate")}
            teacher["architecture"] = cheap
        others = tuple(text for text in compare if not text.startswith(f"{dear}:"))
        compare = others or tuple(text.replace(dear, cheap, 1) for text in compare)
        shrunk = replace(self, teacher=teacher, compare=compare, compare_options=compare_options)
        return shrunk.with_compared_steps(scale**1.5 * further(self.compare_options, compare_options), _LEAST_STEPS)

    def with_compared_steps(self, scale: float, least: int = 1) -> Preset:
        """The same with other steps of all that is compared: `scale` times as many, at least `least` or as it was."""
        plan = []
        for text in self.compare:
            # A probe has no steps, and what is no plan is for who reads it to refuse.
            found = None if text.startswith("probe:") else split_steps(text)
            if found:
                architecture, steps, rows = found
                text = f"{architecture}:{max(min(steps, least), round(steps * scale))}{rows}"
            plan.append(text)
        return replace(self, compare=tuple(plan))

    @property
    def model_halvings(self) -> int:
        """How often autoencoder and denoiser, as they are here, halve a tile."""
        return len(self.autoencoder["channels"]) + len(self.diffusion["channels"]) - 2


def _fit_autoencoder(options: Mapping[str, Any], image_size: int, halvings: int) -> dict[str, Any]:
    """The autoencoder's options for tiles that it halves so often: see `Preset.for_image_size`."""
    widths, batch_size = list(options["channels"]), options["batch_size"]
    further = halvings - (len(widths) - 1)
    growth = 2**further
    fitted = {**options, "latent_channels": options["latent_channels"] * min(growth**2, _MOST_LATENT_GROWTH)}
    if further:
        fitted = {**_OF_DEEP_LATENTS, **fitted}
    # Shortcuts need widths that are multiples of 4.
    if further and halvings >= _HALVINGS_OF_SMALL and widths[0] % 8 == 0:
        widths.insert(0, widths[0] // 2)
    while len(widths) <= halvings:
        widths.append(min(2 * widths[-1], 4 * options["channels"][0]))
    fitted["channels"] = widths
    shown = image_size
    if image_size > _LATENT_SIDE * 2**halvings:
        fitted["crop_size"] = shown = _LATENT_SIDE * 2**halvings
    per_batch = growth * batch_size * _BASE_SIZE**2 / shown**2
    fitted["batch_size"] = min(batch_size, _power_of_two(per_batch, min(_LEAST_CROPS, batch_size)))
    _scale_learning_rate(fitted, fitted["batch_size"] / batch_size)
    further_shown = max(1, growth // 2)
    if "train_pixels" in options:
        fitted["train_pixels"] = further_shown * options["train_pixels"]
    elif steps := fitted.pop("max_train_steps", None):
        fitted["train_pixels"] = further_shown * steps * _tiles_of_step(options) * _BASE_SIZE**2
    if pixels := fitted.get("train_pixels"):
        fitted["validation_steps"] = max(1, pixels // (_tiles_of_step(fitted) * shown**2 * _LOOKS))
        looked_at = options.get("validation_tiles", _LOOKED_AT) * (_BASE_SIZE / image_size) ** 2
        fitted["validation_tiles"] = max(_LEAST_LOOKED_AT, round(looked_at))
    return fitted


def _with_levels(options: Mapping[str, Any], latent_side: float) -> dict[str, Any]:
    """The denoiser's options with one more level, and attention, where latents have a side for it."""
    if latent_side < _SIDE_WITH_ATTENTION:
        return dict(options)
    return {**options, "channels": [*options["channels"], options["channels"][-1]], "attention_levels": 1}


def _fit_denoiser(
    options: Mapping[str, Any], latent_side: float, latent_channels: int, is_deep: bool
) -> dict[str, Any]:
    """The denoiser's options for latents of that size, of many channels or not: see `Preset.for_image_size`."""
    fitted, batch_size = _with_levels(options, latent_side), options["batch_size"]
    if is_deep:
        widths = fitted["channels"]
        finest = max(widths[0], min(_WIDTH_FOR_CHANNELS * latent_channels, max(widths[:2])))
        usual = dict(_OF_THEIR_DENOISER)
        if fitted.get("prediction_type", _DATA) != _DATA:
            del usual["skip_noise"]  # goes with the data alone
        fitted = {**usual, **fitted, "channels": [finest, *widths[1:]]}
    fitted["batch_size"] = min(batch_size, _power_of_two(_MOST_POSITIONS / latent_side**2, 1))
    _scale_learning_rate(fitted, fitted["batch_size"] / batch_size)
    tiles = min(1.0, (_LATENT_SIDE / latent_side) ** 2)
    for name in ("max_train_steps", "validation_steps"):
        if name in options:
            fitted[name] = max(1, round(options[name] * tiles * batch_size / fitted["batch_size"]))
    return fitted


def _tiles_of_step(options: Mapping[str, Any]) -> int:
    """Tiles that an optimizer step of a training shows."""
    return int(options["batch_size"] * options.get("gradient_accumulation_steps", 1))


def _scale_learning_rate(options: dict[str, Any], batches: float) -> None:
    """Fits a learning rate, where one is given, to batches of other sizes, in three digits."""
    if "learning_rate" in options and batches != 1:
        options["learning_rate"] = float(f"{options['learning_rate'] * math.sqrt(batches):.3g}")


def _power_of_two(most: float, least: int) -> int:
    """The largest power of two up to a number, but at least `least`."""
    return max(least, 2 ** int(math.log2(most))) if most >= 1 else least


def load_preset(name_or_path: str | Path) -> Preset:
    """A built-in preset by its name, or that of a `.toml` file.

    Whether the sections' options and values are such as the steps take is for who knows the steps to check.

    Raises:
        InputError: For a name that is none, or a file that is missing, no TOML, or lacks what a preset needs.
    """
    if name_or_path in PRESET_NAMES:
        text = resources.files("histodistill.training").joinpath("presets", f"{name_or_path}.toml").read_text("utf-8")
        return _read_preset(text, str(name_or_path))
    path = Path(name_or_path)
    if path.suffix.lower() != ".toml":
        known = f"{', '.join(PRESET_NAMES)}, or a .toml file"
        meant = did_you_mean(name_or_path, PRESET_NAMES)
        raise InputError(f"{param('preset')}={name_or_path} is unknown{meant}: it must be one of {known}")
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark of its encoding
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"{param('preset')}={path} cannot be read ({reason}): give a .toml file") from error
    return _read_preset(text, str(path))


def preset_name(name_or_path: str | Path) -> str:
    """What a record calls a preset: its name, or that of its file without the folder."""
    return str(name_or_path) if name_or_path in PRESET_NAMES else Path(name_or_path).stem


def _read_preset(text: str, where: str) -> Preset:
    try:
        sections = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{param('preset')}={where} is no TOML ({error}): mend the file") from error
    single = _read_single(sections, where)
    known = [name for name in Preset.__dataclass_fields__ if name not in (*single, "compare_options")]
    for name, options in sections.items():
        if name not in known:
            meant = did_you_mean(name, known)
            raise InputError(
                f"{where}: {name!r} is no section of a preset{meant}: use {', '.join(single)}, and {', '.join(known)}"
            )
        if not isinstance(options, dict):
            raise InputError(f"{where}: {name!r} must be a section with options: write [{name}] and its options below")
        sections[name] = {option.replace("-", "_"): value for option, value in options.items()}
    for name, needed in _NEEDED.items():
        for option in needed:
            if option not in sections.get(name, {}):
                raise InputError(f"{where} lacks {option} in section [{name}]: a preset needs it")
    compare = sections.pop("compare")
    if not isinstance(compare["train"], list):
        raise InputError(f"{where}: train in section [compare] must be a list: write it in brackets")
    return Preset(**sections, **single).with_options("compare", compare)


def _read_single(sections: dict[str, Any], where: str) -> dict[str, Any]:
    """Takes the options of a preset that are in no section out of it."""
    single = {name: sections.pop(name, getattr(Preset, name)) for name in ("max_epochs", "min_samples")}
    for name, least in (("max_epochs", 1), ("min_samples", 0)):
        value = single[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{where}: {name}={value} is out of range: it must be a whole number, at least {least}")
    single["classifiers_shrink"] = shrink = sections.pop("classifiers_shrink", False)
    if not isinstance(shrink, bool):
        raise InputError(f"{where}: classifiers_shrink={shrink} cannot be read: it must be true or false")
    return single
