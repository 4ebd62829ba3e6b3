from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from diffusers.training_utils import EMAModel

from histodistill.training.benchmarks import memory as script
from histodistill.training.benchmarks import memory_estimates
from histodistill.training.benchmarks.memory_estimates import MIB, estimate_autoencoder, estimate_denoiser
from histodistill.training.engine.flow import flow_loss
from histodistill.training.models.autoencoder import VariationalAutoencoder, build_autoencoder, reconstruction_loss
from histodistill.training.models.denoiser import build_denoiser
from histodistill.training.models.denoiser_output import DenoiserOutput
from histodistill.training.running.errors import InputError
from histodistill.training.running.options import run_script
from histodistill.training.running.presets import Preset, load_preset


SIZE, BATCH, NUM_CLASSES = 32, 4, 3
TINY = Preset(
    autoencoder={"channels": [8, 16], "latent_channels": 2, "batch_size": BATCH},
    # 16-pixel latents get a third level, with attention.
    diffusion={"channels": [16, 32], "batch_size": BATCH, "layers_per_block": 1},
)


def estimates(image_size: int = SIZE, **options):
    return (
        estimate_autoencoder(TINY, image_size, **options),
        estimate_denoiser(TINY, image_size, NUM_CLASSES, **options),
    )


def real_models():
    """What the scripts build for the tiny preset."""
    autoencoder = build_autoencoder(SIZE, [8, 16], latent_channels=2, layers_per_block=1)
    return autoencoder, build_denoiser(16, 2, NUM_CLASSES, [16, 32, 32], layers_per_block=1, attention_levels=1)


def real_losses(device: str, dtype: torch.dtype | None):
    """The losses of one step with real numbers, as functions by model."""
    autoencoder, denoiser = (model.to(device) for model in real_models())
    images, noise = torch.zeros(BATCH, 3, SIZE, SIZE, device=device), torch.zeros(BATCH, 2, 16, 16, device=device)
    class_ids, levels = torch.zeros(BATCH, dtype=torch.int64, device=device), torch.full((BATCH,), 0.5, device=device)
    autocast = torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None)

    def autoencoder_loss():
        with autocast:
            reconstruction, kl = VariationalAutoencoder(autoencoder, 0.05)(images, noise)
        return reconstruction_loss(reconstruction, images, 0.1) + 1e-4 * kl

    def denoiser_loss():
        with autocast:
            return flow_loss(denoiser, noise, class_ids, noise.clone(), levels, DenoiserOutput())

    return (autoencoder, autoencoder_loss), (denoiser, denoiser_loss)


def count_saved(model: torch.nn.Module, loss) -> int:
    """Bytes of the memory blocks that the graph of the loss keeps, without the model's own."""
    blocks, kept = {}, []

    def pack(tensor):
        kept.append(tensor)  # no address is used twice
        if tensor.dim():
            blocks[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(size for address, size in blocks.items() if address not in own)


def test_saved_activations_are_those_of_a_real_step():
    for estimate, real in zip(estimates(mixed_precision="no"), real_losses("cpu", None), strict=True):
        assert estimate.activation_bytes == count_saved(*real) > 0


def check_mixed_precision(stated, real, tolerance: float) -> None:
    """Compares estimates with what real steps keep, which has the 16-bit copies of the weights among the rest."""
    for estimate, single, model_and_loss in zip(stated, estimates(mixed_precision="no"), real, strict=True):
        copies = estimate.weight_bytes - single.weight_bytes
        assert estimate.activation_bytes + copies == pytest.approx(count_saved(*model_and_loss), rel=tolerance)


def test_rules_of_autocast_are_followed(monkeypatch):
    with monkeypatch.context() as patch:
        # Here only a CPU can be asked, whose autocast runs group norms in 16 bits.
        patch.setattr(memory_estimates.GpuAutocast, "_FLOAT32", ())
        on_cpu = estimates()
        check_mixed_precision(on_cpu, real_losses("cpu", torch.bfloat16), 0.01)
    for cpu, gpu, single in zip(on_cpu, estimates(), estimates(mixed_precision="no"), strict=True):
        # Only the denoiser has group norms.
        assert (cpu.activation_bytes < gpu.activation_bytes) == (cpu.model == "denoiser")
        assert cpu.activation_bytes <= gpu.activation_bytes < single.activation_bytes
        # Two bytes for each parameter but those of the norms.
        copies = gpu.weight_bytes - single.weight_bytes
        assert 1.8 * gpu.num_parameters < copies < 2 * gpu.num_parameters


def test_other_rules_of_autocast_change_nothing(monkeypatch):
    expected = estimates()
    # Of the functions that a GPU's autocast runs in float32, these occur besides group norms, as methods or not.
    functions = [getattr(place, name) for place in (torch, torch.Tensor) for name in ("exp", "pow", "rsqrt")]
    called = set()

    class Watched(memory_estimates.GpuAutocast):
        _FLOAT32 = (*memory_estimates.GpuAutocast._FLOAT32, *functions)

        def __torch_function__(self, func, types, args=(), kwargs=None):
            called.add(func)
            return super().__torch_function__(func, types, args, kwargs)

    monkeypatch.setattr(memory_estimates, "GpuAutocast", Watched)
    assert estimates() == expected
    assert called & set(functions) == {torch.exp, torch.Tensor.pow, torch.rsqrt}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_gpu_keeps_what_is_stated(precision):
    stated, real = estimates(mixed_precision=precision), real_losses("cuda", memory_estimates.DTYPES[precision])
    check_mixed_precision(stated, real, 0.05)


def test_weights_and_optimizer_are_those_of_a_real_step():
    held = []
    for model, loss in real_losses("cpu", None):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        loss().backward()
        optimizer.step()
        moments = [v for state in optimizer.state.values() for name, v in state.items() if name.startswith("exp_avg")]
        held.append([*model.parameters(), *(p.grad for p in model.parameters()), *moments])
    autoencoder, denoiser = real_models()
    average = build_denoiser(16, 2, NUM_CLASSES, [16, 32, 32], layers_per_block=1, attention_levels=1)
    held[1] += [*EMAModel(denoiser.parameters()).shadow_params, *average.parameters(), *autoencoder.parameters()]
    for estimate, model, tensors in zip(estimates(mixed_precision="no"), real_models(), held, strict=True):
        assert estimate.num_parameters == sum(p.numel() for p in model.parameters())
        assert estimate.weight_bytes == sum(t.untyped_storage().nbytes() for t in tensors)


@pytest.mark.parametrize("precision", memory_estimates.DTYPES)
def test_activations_are_in_proportion_to_the_batch(precision):
    small, large = (estimates(mixed_precision=precision, batch_size=size) for size in (2, 6))
    for one, three in zip(small, large, strict=True):
        assert (one.batch_size, three.batch_size) == (2, 6)
        assert three.activation_bytes == 3 * one.activation_bytes > 0
        assert three.weight_bytes == one.weight_bytes
        assert three.total_bytes == three.weight_bytes + three.activation_bytes


def test_larger_tiles_need_more():
    by_size = [estimates(size, batch_size=2) for size in (16, 32, 64, 128)]
    for smaller, larger in pairwise(by_size):
        assert smaller[0].activation_bytes < larger[0].activation_bytes
        # Latents can be as large as those of smaller tiles, but the frozen autoencoder then has more levels.
        assert smaller[1].activation_bytes <= larger[1].activation_bytes
        assert smaller[1].total_bytes < larger[1].total_bytes


def test_preset_is_fitted_to_the_image_size():
    gpu = load_preset("gpu")
    preset = gpu.for_image_size(64)
    autoencoder, denoiser = estimate_autoencoder(gpu, 64), estimate_denoiser(gpu, 64, 9)
    assert (autoencoder.model, denoiser.model) == ("autoencoder", "denoiser")
    assert autoencoder.latent_shape == denoiser.latent_shape == (32, 16, 16)
    assert autoencoder.image_size == denoiser.image_size == 64
    assert (autoencoder.batch_size, denoiser.batch_size) == (64, 256)
    assert (preset.autoencoder["batch_size"], preset.diffusion["batch_size"]) == (64, 256)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_each_storage_counts_once_and_numbers_not_at_all(device):
    a, weight = (torch.ones(shape, device=device, requires_grad=True) for shape in ((2, 8), (4,)))
    tripled = a.detach() * 3

    def step():
        # Kept are `tripled`, by two views, the right product, the weight, and the number 2.
        return (tripled[:, :4] * a[:, :4]).sum() + (tripled[:, 4:] * a[:, 4:] * weight / 2).sum()

    assert memory_estimates.saved_bytes(step, lambda: [weight]) == 4 * (16 + 8)
    assert memory_estimates.saved_bytes(step, list) == 4 * (16 + 8 + 4)


def test_table(capsys):
    run_script(script.make_parser, script.run, ["--preset", "cpu-demo", "--image-size", "28", "64"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "preset cpu-demo, 9 classes, mixed precision bf16"
    assert [line.split()[:3] for line in lines[2:-1]] == [
        [size, "px", model] for size in ("28", "64") for model in ("autoencoder", "denoiser")
    ]
    estimate = estimate_denoiser(load_preset("cpu-demo"), 28, 9)
    million, shape = f"{estimate.num_parameters / 1e6:.2f} M", "8×14×14"
    parts = (estimate.weight_bytes, estimate.activation_bytes, estimate.total_bytes)
    expected = f"28 px denoiser {million} {shape} 32 " + " ".join(f"{part / MIB:,.0f} MiB" for part in parts)
    assert " ".join(lines[3].split()) == expected
    assert lines[-1] == script.NOTE and "estimate" in script.NOTE
    assert len({len(line) for line in lines[1:-1]}) == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--image-size", "28", "0"], "--image-size=28 0 is out of range: each must be at least 1"),
        (["--num-classes", "0"], "--num-classes=0 is out of range: it must be at least 1"),
        (
            ["--image-size", "28", "30"],
            "tiles of 30 px do not suit this preset, whose models halve them 2 times: give --image-size 28",
        ),
    ],
)
def test_bad_options_end_with_one_sentence(argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_script(script.make_parser, script.run, argv)
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {message}\n"
    assert captured.out == ""


def test_sizes_that_the_models_cannot_halve():
    for estimate in (lambda: estimate_autoencoder(TINY, 30), lambda: estimate_denoiser(TINY, 30, NUM_CLASSES)):
        with pytest.raises(InputError, match="give image_size"):
            estimate()
