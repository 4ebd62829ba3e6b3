"""States how much memory on the device the two trainings of a preset need, without training and without a GPU.

    python -m histodistill.training.benchmarks.memory --preset gpu --image-size 28 64 128 224 --num-classes 9

Models and one batch are made on torch's "meta" device, where tensors have shapes and no values, and the forward pass
of a training step is followed through. What the table adds up, in MiB, is

    weights and optimizer   parameters, gradients and AdamW's two moments in float32, and with mixed precision the
                            16-bit copies of the weights that autocast makes in each step; for the denoiser also the
                            two copies of its moving average, and the frozen autoencoder
    saved activations       every tensor that autograd keeps for the backward pass, counted once

It is an estimate: workspaces of kernels, fragments of the caching allocator and the peak of temporary tensors come on
top. Where latents are not kept (`--latent-cache off`, or a short training), the denoiser's tiles are encoded in each
step, and of large tiles that can need more than the saved activations.

Autocast does not apply to meta tensors, so its rules for a GPU are followed by hand. On a CPU it leaves group norms in
16 bits, and the denoiser's training saves less there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from histodistill.training.running.options import StepConfig, StepParser, config, option, run_script
from histodistill.training.running.precision import PRECISIONS
from histodistill.training.running.presets import PRESET_NAMES, load_preset


if TYPE_CHECKING:
    from histodistill.training.benchmarks.memory_estimates import MemoryEstimate

# What stands below the table.
NOTE = (
    "This is an estimate: workspaces of kernels, fragments of the caching allocator and the peak of temporary tensors "
    "come on top. Where latents are not kept, encoding large tiles can need more than the saved activations."
)


@config
class MemoryConfig(StepConfig):
    """Options of `memory`."""

    preset: str = option(
        f"{', '.join(PRESET_NAMES)} or a .toml file: the preset whose trainings are meant", default="gpu"
    )
    image_size: tuple[int, ...] = option("sides in pixels", default=(28, 64, 128, 224, 256, 512), at_least=1)
    num_classes: int = option("classes of the tiles", default=9, at_least=1)
    mixed_precision: str = option("of the trainings", default="bf16", choices=PRECISIONS)

    def check(self) -> None:
        """Checks that there is such a preset."""
        load_preset(self.preset)


def make_parser() -> StepParser[MemoryConfig]:
    """The parser of the command line."""
    return StepParser(MemoryConfig, prog="python -m histodistill.training.benchmarks.memory", description=__doc__)


def run(config: MemoryConfig) -> list[MemoryEstimate]:
    """Prints the table.

    Returns:
        Its lines: for each size the autoencoder and the denoiser.

    Raises:
        InputError: If the preset's models cannot halve tiles of a size.
    """
    from histodistill.training.benchmarks.memory_estimates import (
        estimate_autoencoder,
        estimate_denoiser,
        table_lines,
    )

    preset, precision = load_preset(config.preset), config.mixed_precision
    estimates = []
    for image_size in config.image_size:
        estimates += [
            estimate_autoencoder(preset, image_size, mixed_precision=precision),
            estimate_denoiser(preset, image_size, config.num_classes, mixed_precision=precision),
        ]
    print(f"preset {config.preset}, {config.num_classes} classes, mixed precision {precision}")
    print("\n".join(table_lines(estimates)))
    print(NOTE)
    return estimates


if __name__ == "__main__":
    run_script(make_parser, run)
