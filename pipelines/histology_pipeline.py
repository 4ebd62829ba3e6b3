"""A class-conditional latent diffusion pipeline for histopathology tiles.

This file is self-contained: `save_pretrained` copies it beside the weights, so that a published pipeline loads with
`DiffusionPipeline.from_pretrained(repo, trust_remote_code=True)` where histodistill is not installed. Its components
are diffusers' own classes, so this file is the only code that has to be trusted.
"""

import contextlib
import inspect
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, DiffusionPipeline, UNet2DModel
from diffusers.schedulers import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor


#: What `output_type` can be: PIL images, arrays of NumPy, tensors, or normalised latents.
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class HistologyPipelineOutput(BaseOutput):
    """Output of [`HistologyPipeline`].

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`):
            N images: RGB PIL images; float32 N×H×W×3 in [0, 1] (`"np"`); float32 N×3×H×W in [0, 1] (`"pt"`); or
            normalised latents N×C×h×w (`"latent"`).
        class_labels (`torch.Tensor`): int64 N, the class id of each image.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor
    class_labels: torch.Tensor


def add_what_was_seen(
    output: torch.Tensor, noisy: torch.Tensor, noise_level: torch.Tensor | float, skip_noise: float
) -> torch.Tensor:
    r"""The data that a denoiser with a skip connection gives: part of what it saw, and its output.

    With c_skip of Karras et al. 2022 (arXiv:2206.00364, table 1), where their sigma_data is `skip_noise`, and c_out
    such that the network's target has unit variance for data that have it (their appendix B.6). A network that is
    narrow for its latents cannot pass on all that they hold; where there is little noise it need not with this.

    Args:
        output (`torch.Tensor`): What the denoiser gave, float N×C×h×w.
        noisy (`torch.Tensor`): What it saw, (1 - s) data + s noise, float N×C×h×w.
        noise_level (`torch.Tensor` or `float`): s in [0, 1], one number or float N×1×1×1.
        skip_noise (`float`):
            Ratio of noise to data, s / (1 - s), at which half of what was seen, divided by 1 - s, goes into the data;
            0 for none, whose output is returned as it is.

    Returns:
        The data, float N×C×h×w.
    """
    if not skip_noise:
        return output
    s, r, square = noise_level, 1 - noise_level, skip_noise**2
    # c_skip / (1 - s) and c_out, with the ratio of noise to data written out, so that they are finite without data.
    return (square * r * noisy + s * (s**2 + (square * r) ** 2) ** 0.5 * output) / (s**2 + square * r**2)


class HistologyPipeline(DiffusionPipeline):
    r"""Generates histopathology tiles of given classes.

    Args:
        vae ([`AutoencoderDC`], [`AutoencoderKL`] or [`AutoencoderTiny`]):
            Maps tiles in [-1, 1] to latents and back. Its config carries the latent scale measured on the training
            tiles: normalised latent = (latent - `shift_factor`) * `scaling_factor`, with a shift of 0 where there is
            none.
        unet ([`UNet2DModel`]):
            Class-conditional denoiser. Its last class embedding (`num_class_embeds - 1`) is the null class of
            classifier-free guidance.
        scheduler ([`SchedulerMixin`]):
            Any diffusers scheduler that agrees with what the denoiser predicts. With `skip_noise` its timesteps must
            be noise levels s of the flow, times `num_train_timesteps`.
        id2label (`dict`, *optional*): Name of each class id; ids may be strings, as JSON makes them.
        skip_noise (`float`, *optional*, defaults to 0.0):
            Above 0 for a denoiser that gives the data with a skip connection: see [`add_what_was_seen`].

    Raises:
        ValueError: For `skip_noise` with a scheduler that takes something else than the data.
    """

    model_cpu_offload_seq = "unet->vae"

    def __init__(
        self,
        vae: AutoencoderDC | AutoencoderKL | AutoencoderTiny,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        id2label: dict[str, str] | None = None,
        skip_noise: float = 0.0,
    ):
        super().__init__()
        if skip_noise and getattr(scheduler.config, "prediction_type", None) != "sample":
            raise ValueError(
                f"skip_noise={skip_noise!r} does not go with the scheduler: its prediction_type must be 'sample'"
            )
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler)
        id2label = id2label or {str(i): str(i) for i in range(unet.config.num_class_embeds - 1)}
        self.register_to_config(
            id2label={str(i): str(name) for i, name in id2label.items()}, skip_noise=float(skip_noise)
        )

    @property
    def class_names(self) -> list[str]:
        """Class names; the position is the class id."""
        return [self.config.id2label[str(i)] for i in range(self.num_classes)]

    @property
    def num_classes(self) -> int:
        """Number of real classes; the null class is not one of them."""
        return int(self.unet.config.num_class_embeds) - 1

    @property
    def null_class(self) -> int:
        """Class id that stands for "no class" in classifier-free guidance."""
        return int(self.unet.config.num_class_embeds) - 1

    def get_class_ids(self, class_labels: int | str | list[int | str] | torch.Tensor) -> torch.Tensor:
        """Turns class ids and class names, also mixed, into an int64 tensor of class ids.

        Raises:
            ValueError: If a name or id is not a class of this pipeline, or there is none at all.
        """
        if isinstance(class_labels, (int, str, np.integer)):
            class_labels = [class_labels]
        if isinstance(class_labels, (torch.Tensor, np.ndarray)):
            class_labels = class_labels.reshape(-1).tolist()
        names = self.class_names
        ids = []
        for label in class_labels:
            if isinstance(label, str):
                if label not in names:
                    raise ValueError(f"class_labels={label!r} is unknown: it must be one of {names}")
                ids.append(names.index(label))
            elif isinstance(label, bool) or int(label) != label or not 0 <= label < self.num_classes:
                raise ValueError(f"class_labels={label!r} is out of range: it must be 0 to {self.num_classes - 1}")
            else:
                ids.append(int(label))
        if not ids:
            raise ValueError("class_labels=[] is empty: give at least one class id or name")
        return torch.tensor(ids, dtype=torch.int64)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | list[int | str] | torch.Tensor,
        num_inference_steps: int = 20,
        guidance_scale: float = 1.5,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> HistologyPipelineOutput | tuple[list[PIL.Image.Image] | np.ndarray | torch.Tensor]:
        r"""Generates one image per class label.

        Args:
            class_labels (`int`, `str`, `list` or `torch.Tensor`): Class ids or class names, one per image.
            num_inference_steps (`int`, *optional*, defaults to 20): Denoising steps.
            guidance_scale (`float`, *optional*, defaults to 1.5):
                Classifier-free guidance weight w in v = v_null + w (v_class - v_null) (Ho & Salimans 2022,
                arXiv:2207.12598). 1 switches guidance off and halves the cost.
            guidance_interval (`tuple[float, float]`, *optional*, defaults to `(0.0, 1.0)`):
                Lowest and highest noise level, as shares of the scheduler's training timesteps, at which guidance is
                applied (Kynkäänniemi et al. 2024, arXiv:2404.07724). Steps outside cost half as much.
            generator (`torch.Generator` or a `list` of them, *optional*):
                With one generator per image, an image depends on its own generator alone, not on the batch around it
                (but for the rounding of kernels that add up differently for another batch size). It also gives the
                noise that a stochastic scheduler adds, where the scheduler's `step` takes a generator.
            latents (`torch.Tensor`, *optional*): Initial noise N×C×h×w; drawn from `generator` when not given.
            output_type (`str`, *optional*, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict (`bool`, *optional*, defaults to `True`): `False` returns the tuple `(images,)`.

        Returns:
            [`HistologyPipelineOutput`], or a tuple whose first element are the images.

        Raises:
            ValueError: If an argument is out of range; the message says what it must be.

        Example:
            >>> pipe = DiffusionPipeline.from_pretrained("RUN/pipeline", trust_remote_code=True)
            >>> seeds = [torch.Generator().manual_seed(i) for i in range(2)]
            >>> images = pipe(class_labels=[0, 1], generator=seeds).images
        """
        class_ids = self.get_class_ids(class_labels)
        self._check_inputs(
            len(class_ids), num_inference_steps, guidance_scale, guidance_interval, generator, output_type
        )
        class_ids = class_ids.to(self._execution_device)
        latents = self._initial_latents(len(class_ids), latents, generator)
        latents = self._denoise(latents, class_ids, num_inference_steps, guidance_scale, guidance_interval, generator)
        images = latents if output_type == "latent" else self._decode(latents, output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (images,)
        return HistologyPipelineOutput(images=images, class_labels=class_ids.cpu())

    def _initial_latents(
        self,
        num_images: int,
        latents: torch.Tensor | None,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> torch.Tensor:
        """The noise N×C×h×w that denoising begins with: `latents`, or drawn from `generator` where there are none."""
        device, dtype = self._execution_device, self.unet.dtype
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (num_images, self.unet.config.in_channels, height, width)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents of shape {tuple(latents.shape)} do not fit: the shape must be {shape}")
        return latents.to(device, dtype) * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def _denoise(
        self,
        latents: torch.Tensor,
        class_ids: torch.Tensor,
        num_inference_steps: int,
        guidance_scale: float,
        guidance_interval: tuple[float, float],
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> torch.Tensor:
        """Denoises latents N×C×h×w of these classes step by step; the other arguments are those of `__call__`."""
        self.scheduler.set_timesteps(num_inference_steps, device=latents.device)
        if hasattr(self.scheduler, "set_begin_index"):  # else it looks for the first timestep among them all
            self.scheduler.set_begin_index(0)
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        step_options = {"generator": generator} if takes_generator else {}
        both_labels = torch.cat([class_ids, torch.full_like(class_ids, self.null_class)])
        low, high = guidance_interval
        # Taken before the loop: to ask the device for its timestep in each step would make the program wait.
        levels = [t / self.scheduler.config.num_train_timesteps for t in self.scheduler.timesteps.tolist()]
        for t, level in zip(self.progress_bar(self.scheduler.timesteps), levels, strict=True):
            model_input = latents
            if hasattr(self.scheduler, "scale_model_input"):
                model_input = self.scheduler.scale_model_input(model_input, t)
            if guidance_scale != 1.0 and low <= level <= high:
                prediction = self.unet(torch.cat([model_input, model_input]), t, class_labels=both_labels).sample
                conditional, unconditional = prediction.chunk(2)
                prediction = unconditional + guidance_scale * (conditional - unconditional)
            else:
                prediction = self.unet(model_input, t, class_labels=class_ids).sample
            # A step in half precision loses the small differences that late steps consist of.
            prediction, latents = prediction.float(), latents.float()
            prediction = add_what_was_seen(prediction, latents, level, self.config.skip_noise)
            latents = self.scheduler.step(prediction, t, latents, **step_options).prev_sample
            latents = latents.to(self.unet.dtype)
        return latents

    def _check_inputs(
        self,
        num_images: int,
        num_inference_steps: int,
        guidance_scale: float,
        guidance_interval: tuple[float, float],
        generator: torch.Generator | list[torch.Generator] | None,
        output_type: str,
    ) -> None:
        """Raises ValueError, which says what it must be, for an argument of `__call__` that is out of range."""
        if not isinstance(num_inference_steps, int) or num_inference_steps < 1:
            raise ValueError(f"num_inference_steps={num_inference_steps!r} is out of range: it must be at least 1")
        if not guidance_scale >= 0:
            raise ValueError(f"guidance_scale={guidance_scale!r} is out of range: it must be at least 0")
        is_pair = isinstance(guidance_interval, (tuple, list)) and len(guidance_interval) == 2
        if not is_pair or not 0 <= guidance_interval[0] <= guidance_interval[1] <= 1:
            raise ValueError(
                f"guidance_interval={guidance_interval!r} is out of range: "
                "it must be two numbers with 0 <= low <= high <= 1"
            )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type={output_type!r} is unknown: it must be one of {OUTPUT_TYPES}")
        if isinstance(generator, list) and len(generator) != num_images:
            raise ValueError(
                f"generator has {len(generator)} entries for {num_images} images: give one per image, or just one"
            )

    def _decode(self, latents: torch.Tensor, output_type: str) -> list[PIL.Image.Image] | np.ndarray | torch.Tensor:
        """Images of normalised latents, as `output_type` says."""
        config = self.vae.config
        device = latents.device.type
        is_half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
        # An `AutoencoderKL` may overflow in float16, and then says so.
        upcast = getattr(config, "force_upcast", False) and (is_half or self.vae.dtype == torch.float16)
        if upcast:
            self.vae.to(torch.float32)
        latents = latents.to(self.vae.dtype) / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        with torch.autocast(device, enabled=False) if upcast else contextlib.nullcontext():
            decoded = self.vae.decode(latents).sample
        images: torch.Tensor = (decoded.float() / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        arrays: np.ndarray = images.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "np":
            return arrays
        return [PIL.Image.fromarray(image) for image in (arrays * 255).round().astype(np.uint8)]

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Saves weights and configs, and this file beside them, so that the folder loads without histodistill.

        Takes the arguments of [`DiffusionPipeline.save_pretrained`]. The index names the class as
        `["pipeline", "HistologyPipeline"]`: diffusers then takes it from `pipeline.py` in the same folder.

        With `push_to_hub=True`, `repo_id` (by default the name of the folder), `private`, `token`, `commit_message`
        and `create_pr` say where to. What goes up is saved anew, in shards of the default size: other files that the
        folder may hold stay here.
        """
        super().save_pretrained(save_directory, safe_serialization, variant, max_shard_size, **kwargs)
        folder = Path(save_directory)
        shutil.copyfile(__file__, folder / "pipeline.py")
        index_file = folder / "model_index.json"
        component_files = [file for name in self.components for file in (folder / name).glob("*config.json")]
        for file in (index_file, *component_files):
            config = json.loads(file.read_text())
            # The path on this machine that something was loaded from is not to be published.
            config.pop("_name_or_path", None)
            if file == index_file:
                config["_class_name"] = ["pipeline", type(self).__name__]
            file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        if push_to_hub:
            names = ("private", "token", "commit_message", "create_pr")
            self.push_to_hub(
                kwargs.get("repo_id", folder.name),
                safe_serialization=safe_serialization,
                variant=variant,
                **{name: kwargs[name] for name in names if name in kwargs},
            )
