"""Presets of `histodistill distill`: the options of every stage for a given machine.

`cpu-demo` is for trying the built-in phantom in minutes; `cpu` is for real 28-pixel tiles, in one and a half to two
hours on two cores; `gpu` is for one modern GPU. A preset is only a set of options: each stage can be run by hand with
others.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Preset:
    """Options per stage, named as on the command line.

    Attributes:
        autoencoder, diffusion, teacher, generate, select: Options of that stage.
            Selection goes by small communities (few neighbours, short Markov time), which spread the choice wider.
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


PRESETS = {
    "cpu-demo": Preset(
        autoencoder={
            "channels": [16, 32],
            "latent_channels": 4,
            "max_train_steps": 400,
            "kl_weight": 1e-4,
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
        generate={"per_class": 200, "guidance_scale": 1.5, "num_inference_steps": 16, "mixed_precision": "bf16"},
        select={"n_per_class": 20, "n_neighbors": 10},
        compare=("convnet:250:real_all,real_random,distilled_ce,distilled_joint",),
    ),
    "cpu": Preset(
        autoencoder={
            "channels": [32, 64],
            "latent_channels": 4,
            "max_train_steps": 2500,
            "kl_weight": 1e-4,
            "batch_size": 32,
            "learning_rate": 1e-3,
        },
        diffusion={
            "channels": [64, 128],
            "max_train_steps": 4000,
            "batch_size": 64,
            "learning_rate": 8e-4,
            "ema_decay": 0.998,
            "validation_steps": 500,
        },
        teacher={"architecture": "convnet", "max_train_steps": 1000},
        generate={"per_class": 1000, "guidance_scale": 1.5, "num_inference_steps": 16, "mixed_precision": "bf16"},
        select={"n_per_class": 100, "n_neighbors": 5, "markov_time": 0.3},
        compare=(
            "convnet:800:real_all,real_random,distilled_ce,distilled_joint",
            "resnet18:300:real_all,distilled_joint,real_random",
        ),
    ),
    "gpu": Preset(
        autoencoder={
            "channels": [64, 128],
            "latent_channels": 4,
            "max_train_steps": 20_000,
            "kl_weight": 1e-4,
            "batch_size": 256,
            "learning_rate": 5e-4,
            "layers_per_block": 2,
        },
        diffusion={
            "channels": [128, 256],
            "max_train_steps": 60_000,
            "batch_size": 256,
            "learning_rate": 4e-4,
            "ema_decay": 0.9999,
        },
        teacher={"architecture": "resnet18", "max_train_steps": 3000},
        generate={"per_class": 1000, "guidance_scale": 1.5, "num_inference_steps": 25, "mixed_precision": "bf16"},
        select={"n_per_class": 100, "n_neighbors": 5, "markov_time": 0.3},
        compare=("convnet:3000", "resnet18:3000"),
    ),
}


def to_argv(options: dict[str, object]) -> list[str]:
    """Options as command-line words: `{"batch_size": 64}` becomes `["--batch-size", "64"]`."""
    argv = []
    for name, value in options.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        argv += [f"--{name.replace('_', '-')}", *(str(v) for v in values)]
    return argv
