"""Presets of `histodistill distill`: the options of every stage for a given machine.

`cpu-demo` is for trying the built-in phantom in minutes; `cpu` is for real 28-pixel tiles, in one to two hours on two
cores; `gpu` is for one modern GPU. They are written for 28-pixel tiles, and `Preset.for_image_size` makes
them fit larger ones. A preset is only a set of options: each stage can be run by hand with others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Preset:
    """Options per stage, named as on the command line.

    Attributes:
        autoencoder, diffusion, teacher, generate, select: Options of that stage. The first must have channels,
            latent_channels and batch_size, the second channels, max_train_steps and batch_size.
        compare: The values of `histodistill compare --train`.
        max_epochs: A denoiser that sees few tiles too often learns them by heart, so its steps are cut where they
            would show each training tile more often than this.
    """

    autoencoder: dict[str, object] = field(default_factory=dict)
    diffusion: dict[str, object] = field(default_factory=dict)
    teacher: dict[str, object] = field(default_factory=dict)
    generate: dict[str, object] = field(default_factory=dict)
    select: dict[str, object] = field(default_factory=dict)
    compare: tuple[str, ...] = ()
    max_epochs: int = 200

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
        preset = self.for_image_size(image_size)
        return len(preset.autoencoder["channels"]) + len(preset.diffusion["channels"]) - 2


def _smaller(batch_size: int, scale: float) -> int:
    """A batch of images `scale` times as wide: a power of two with as many pixels or fewer, but at least 16."""
    if scale <= 1:
        return batch_size
    return max(min(16, batch_size), 2 ** int(math.log2(batch_size / scale**2)))


# Guided at medium noise levels alone, tiles come nearer to real ones and cost less: see README.md beside this file.
_GUIDANCE = {"guidance_scale": 1.5, "guidance_interval": [0.3, 0.9]}

PRESETS = {
    "cpu-demo": Preset(
        autoencoder={
            "channels": [16, 32],
            "latent_channels": 8,
            "max_train_steps": 400,
            "batch_size": 32,
            "learning_rate": 2e-3,
        },
        diffusion={
            "channels": [32, 96],
            "max_train_steps": 1200,
            "batch_size": 32,
            "learning_rate": 1e-3,
            "ema_decay": 0.995,
            "validation_steps": 300,
        },
        teacher={"architecture": "convnet", "width": 64, "max_train_steps": 300},
        generate={"per_class": 200, "num_inference_steps": 16, "mixed_precision": "bf16", **_GUIDANCE},
        select={"n_per_class": 20, "n_neighbors": 10},
        compare=("convnet:250:real_all,real_random,distilled_ce,distilled_joint,distilled_soft",),
    ),
    "cpu": Preset(
        autoencoder={
            "channels": [32, 64],
            "latent_channels": 8,
            "max_train_steps": 2000,
            "batch_size": 32,
            "learning_rate": 2e-3,
        },
        diffusion={
            "channels": [64, 128],
            "max_train_steps": 14_000,
            "batch_size": 32,
            "learning_rate": 8e-4,
            "ema_decay": 0.999,
            "validation_steps": 2000,
        },
        teacher={"architecture": "convnet", "max_train_steps": 1000},
        generate={"per_class": 1000, "num_inference_steps": 16, "mixed_precision": "bf16", **_GUIDANCE},
        select={"n_per_class": 100},
        compare=(
            "convnet:800:real_all,real_random,distilled_ce,distilled_joint,distilled_soft",
            "resnet18:300:real_all,real_random,distilled_ce,distilled_soft",
        ),
    ),
    "gpu": Preset(
        autoencoder={
            "channels": [64, 128],
            "latent_channels": 8,
            "max_train_steps": 10_000,
            "batch_size": 256,
            "learning_rate": 2e-3,
        },
        diffusion={
            "channels": [128, 256],
            "max_train_steps": 60_000,
            "batch_size": 256,
            "learning_rate": 4e-4,
            "ema_decay": 0.9999,
        },
        teacher={"architecture": "resnet18", "max_train_steps": 3000},
        generate={"per_class": 1000, "num_inference_steps": 25, "mixed_precision": "bf16", **_GUIDANCE},
        select={"n_per_class": 100},
        compare=("convnet:3000", "resnet18:3000"),
    ),
}


def to_argv(options: dict[str, object]) -> list[str]:
    """Options as command-line words: `{"steps": 64, "symmetries": False}` becomes `--steps 64 --no-symmetries`."""
    argv = []
    for name, value in options.items():
        if isinstance(value, bool):
            argv.append(f"--{'' if value else 'no-'}{name.replace('_', '-')}")
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        argv += [f"--{name.replace('_', '-')}", *(str(v) for v in values)]
    return argv
