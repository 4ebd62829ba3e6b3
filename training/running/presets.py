"""Presets of `histodistill distill`: the options of every step for a given machine, as TOML files.

`cpu-demo` is for trying the built-in phantom in minutes; `cpu` is for real 28-pixel tiles, in one to two hours on two
cores; `gpu` is for one modern GPU. They are written for 28-pixel tiles, and `Preset.for_image_size` makes
them fit larger ones. A preset is only a set of options: each step can be run by hand with others, and a file of your
own with the same sections is a preset, too.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from histodistill.training.running.errors import InputError, param
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
# Tiles in a batch, at least: gradients of fewer are too noisy for the learning rates of the presets.
_SMALLEST_BATCH = 16


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

    def options(self, step: str) -> dict[str, Any]:
        """The options of a step by the name of its section."""
        if step == "compare":
            return {"train": list(self.compare), **self.compare_options}
        return dict(getattr(self, step))

    def with_options(self, step: str, changes: Mapping[str, Any]) -> Preset:
        """The same with other options of a step."""
        options = {**self.options(step), **changes}
        if step == "compare":
            return replace(self, compare=tuple(options.pop("train")), compare_options=options)
        sections: dict[str, Any] = {step: options}
        return replace(self, **sections)

    def settings(self) -> dict[str, Any]:
        """All options as JSON holds them; sections that came later are there only where they say something."""
        settings = {**dataclasses.asdict(self), "compare": list(self.compare)}
        for name in ("audit", "compare_options"):
            if not settings[name]:
                del settings[name]
        return settings

    def diffusion_steps(self, num_train: int) -> int:
        """Optimizer steps of the denoiser for so many training tiles."""
        batch_size = self.diffusion["batch_size"]
        return min(self.diffusion["max_train_steps"], max(1, self.max_epochs * num_train // batch_size))

    def for_image_size(self, image_size: int) -> Preset:
        """The same for tiles of another size in pixels: latents stay small, and so do batches in memory.

        The autoencoder halves tiles of more than 32 pixels twice, and of more than 64 three times, and doubles the
        channels of the latents with each further halving. Where the latents have 16 pixels or more, the denoiser has
        one more level, with attention. Batches shrink as the area grows, down to 16, beyond 32-pixel tiles and
        16-pixel latents.
        """
        autoencoder, diffusion = dict(self.autoencoder), dict(self.diffusion)
        channels = list(autoencoder["channels"])
        while len(channels) < 2 + (image_size > 32) + (image_size > 64):
            channels.append(min(2 * channels[-1], 4 * channels[0]))
            autoencoder["latent_channels"] *= 2
        autoencoder["channels"] = channels
        autoencoder["batch_size"] = _smaller(autoencoder["batch_size"], image_size / 32)
        latent_size = image_size / 2 ** (len(channels) - 1)
        if latent_size >= 16:
            diffusion["channels"] = [*diffusion["channels"], diffusion["channels"][-1]]
            diffusion["attention_levels"] = 1
        diffusion["batch_size"] = _smaller(diffusion["batch_size"], latent_size / 16)
        return replace(self, autoencoder=autoencoder, diffusion=diffusion)

    def halvings(self, image_size: int) -> int:
        """How often the models for tiles of that size halve them: it must be divisible by 2 to that power."""
        return self.for_image_size(image_size).model_halvings

    @property
    def model_halvings(self) -> int:
        """How often autoencoder and denoiser, as they are here, halve a tile."""
        return len(self.autoencoder["channels"]) + len(self.diffusion["channels"]) - 2


def _smaller(batch_size: int, scale: float) -> int:
    """A batch of images `scale` times as wide: a power of two with as many pixels or fewer, but at least 16."""
    if scale <= 1:
        return batch_size
    return max(min(_SMALLEST_BATCH, batch_size), 2 ** int(math.log2(batch_size / scale**2)))


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
    max_epochs = sections.pop("max_epochs", Preset.max_epochs)
    if not isinstance(max_epochs, int) or isinstance(max_epochs, bool) or max_epochs < 1:
        raise InputError(f"{where}: max_epochs={max_epochs} is out of range: it must be a whole number, at least 1")
    known = [name for name in Preset.__dataclass_fields__ if name not in ("max_epochs", "compare_options")]
    for name, options in sections.items():
        if name not in known:
            meant = did_you_mean(name, known)
            raise InputError(
                f"{where}: {name!r} is no section of a preset{meant}: use max_epochs and {', '.join(known)}"
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
    return Preset(**sections, max_epochs=max_epochs).with_options("compare", compare)
