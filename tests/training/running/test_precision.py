import pytest

from histodistill.training.evaluation.compare import CompareConfig
from histodistill.training.generate import GenerateConfig, make_parser
from histodistill.training.running import precision
from histodistill.training.running.precision import processor_has_bfloat16, resolve_precision, usual_precision
from histodistill.training.train_autoencoder import TrainAutoencoderConfig


@pytest.fixture(autouse=True)
def fresh():
    usual_precision.cache_clear()
    yield
    usual_precision.cache_clear()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 sse4_2\n", True),
        ("processor\t: 0\nflags\t\t: fpu amx_tile amx_bf16\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 sve\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f\n", False),
        ("flags: notbf16 bf16x\nmodel name: bf16\n", False),
        ("processor\t: 0\nisa\t: rv64imafdc\n", None),
        ("", None),
    ],
)
def test_what_linux_says_of_its_processor(tmp_path, monkeypatch, text, expected):
    monkeypatch.setattr("sys.platform", "linux")
    (tmp_path / "cpuinfo").write_text(text)
    assert processor_has_bfloat16(tmp_path / "cpuinfo") is expected
    monkeypatch.setattr("sys.platform", "darwin")
    assert processor_has_bfloat16(tmp_path / "cpuinfo") is None


def test_a_system_that_does_not_tell(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    assert processor_has_bfloat16(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("processor", "devices", "cuda", "expected"),
    [
        (True, (), False, "bf16"),
        (None, (), False, "bf16"),
        (False, (), True, "no"),  # no device, so torch is not even asked
        (False, ("gpu",), True, "bf16"),
        (False, ("gpu",), False, "no"),
    ],
)
def test_usual_precision(tmp_path, monkeypatch, processor, devices, cuda, expected):
    (tmp_path / "gpu").touch()
    monkeypatch.setattr(precision, "processor_has_bfloat16", lambda: processor)
    monkeypatch.setattr(precision, "_GPU_DEVICES", [tmp_path / name for name in devices])
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    assert usual_precision() == resolve_precision("auto") == expected
    assert [resolve_precision(name) for name in precision.PRECISIONS] == list(precision.PRECISIONS)


@pytest.mark.parametrize("usual", ["no", "bf16"])
def test_records_hold_what_was_used(monkeypatch, usual):
    # An old record of "bf16" and a new default on a machine that has it are the same setting.
    monkeypatch.setattr(precision, "usual_precision", lambda: usual)
    assert TrainAutoencoderConfig(data="phantom", output="out").settings()["mixed_precision"] == usual
    assert CompareConfig(run="run", data="phantom").mixed_precision == usual
    argv = ["--pipeline", "p", "--output", "o"]
    assert make_parser().read(argv).mixed_precision == "no"
    assert make_parser().read([*argv, "--mixed-precision", "auto"]).mixed_precision == usual
    assert GenerateConfig(pipeline="p", output="o", mixed_precision="bf16").settings()["mixed_precision"] == "bf16"
