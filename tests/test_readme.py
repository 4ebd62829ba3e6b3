"""What the README shows is what there is: its snippets run, its commands parse, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path
from types import ModuleType

import datasets.config
import pytest
from accelerate.commands.launch import launch_command_parser
from diffusers import DiffusionPipeline
from diffusers.utils import dynamic_modules_utils

from histodistill.training.cli import COMMANDS, find_command
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.data.medmnist import MEDMNIST
from histodistill.training.running.presets import PRESET_NAMES


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
SNIPPETS = [text for language, text in BLOCKS if language == "python"]
SCRIPTS = ("train_autoencoder", "train_diffusion", "train_classifier", "generate", "select", "audit", "compare")
# What distill does not run.
ON_REQUEST = ("evaluate-pool", "benchmark")


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory):
    """What datasets and diffusers cache goes with the other temporary files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        patch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.syspath_prepend(dynamic_modules_utils.HF_MODULES_CACHE)
        yield


def shell_commands() -> list[list[str]]:
    """The words of every command in the bash blocks, without comments; continued lines are joined."""
    lines = "".join(text for language, text in BLOCKS if language == "bash").replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def snippet_name(text: str) -> str:
    return next(line for line in text.splitlines() if "import" not in line and line.strip())[:30]


def test_blocks_are_of_known_languages():
    # Anything else would be looked at by none of these tests.
    assert {language for language, _ in BLOCKS} == {"bash", "python"}
    assert len(SNIPPETS) >= 2 and len(shell_commands()) >= 8


@pytest.mark.parametrize("snippet", SNIPPETS, ids=snippet_name)
def test_snippets_run(snippet, tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if "demo-run" in snippet:
        # Its run has the classes of phantom, as the demo has.
        (tmp_path / "demo-run").symlink_to(tiny_run.folder)
    names: dict[str, object] = {}
    exec(compile(snippet, "README.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) >= len(re.findall(r"^print\(", snippet, re.MULTILINE)) > 0
    if "images" in names:
        assert [image.size for image in names["images"]] == [(16, 16)] * 2
    if "embeddings" in names:
        assert names["selector"].selected_indices_.shape == (20,)


def read(step: ModuleType, argv: list[str]) -> None:
    """Reads the options of a step; a preset of the user's own is not there."""
    step.make_parser().read(["cpu" if word == "my-preset.toml" else word for word in argv])


def check_launch(words: list[str]) -> None:
    """A command `accelerate launch …`."""
    launcher = launch_command_parser().parse_args(words[2:])
    assert launcher.module
    package, _, script = launcher.training_script.rpartition(".")
    assert package == "histodistill.training" and script in SCRIPTS
    # An ellipsis stands for options that are shown before.
    if launcher.training_script_args != ["…"]:
        read(import_module(launcher.training_script), launcher.training_script_args)


def check_command(words: list[str]) -> None:
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[:2] == ["pip", "install"]:
        assert words[2:] in (["-c", "constraints.txt", "."], [".[demo-app]"]) and (ROOT / "constraints.txt").is_file()
    elif words[0] == "histodistill":
        name = find_command(words[1:])
        read(import_module(f"histodistill.training.{COMMANDS[name].step}"), words[1 + len(name.split()) :])
    else:
        assert words[:2] == ["accelerate", "launch"], f"no test knows this command: {words}"
        check_launch(words)


@pytest.mark.parametrize("words", shell_commands(), ids=lambda words: " ".join(words)[:60])
def test_commands_are_understood(words):
    check_command(words)


def test_every_stage_by_hand_is_shown_in_the_order_of_the_table():
    commands = shell_commands()
    launched = {word.rpartition(".")[2] for words in commands for word in words if word.startswith("histodistill.")}
    named = {find_command(words[1:]).replace("train ", "train_") for words in commands if words[0] == "histodistill"}
    assert launched | named >= {*SCRIPTS, *ON_REQUEST}
    assert re.findall(r"^\| `([\w-]+)` \|", PROSE, re.MULTILINE) == [*SCRIPTS, *ON_REQUEST]


def help_text(name: str, capsys) -> str:
    with pytest.raises(SystemExit):
        import_module(f"histodistill.training.{name}").make_parser().read(["--help"])
    return capsys.readouterr().out


def test_options_in_the_text_exist(capsys):
    names = {word for code in re.findall(r"`([^`]+)`", PROSE) for word in re.findall(r"--[a-z][\w-]+", code)}
    assert {"--resume", "--data", "--num-processes", "--num_processes"} <= names
    known = set(launch_command_parser()._option_string_actions)
    for name in (*SCRIPTS[:3], *(command.step for command in COMMANDS.values())):
        known |= set(re.findall(r"--[a-z][\w-]+", help_text(name, capsys)))
    assert names - known == set()


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?://)([^)#]+)", README))
def test_links_lead_somewhere(target):
    assert (ROOT / target).is_file(), f"the README refers to {target}"


def test_run_leaves_what_the_table_says(tiny_run):
    rows = re.findall(r"^\| `(?!benchmark)\w+` \|.*\| ([^|]+) \|$", PROSE, re.MULTILINE)
    promised = re.findall(r"`([\w.]+)/?`", " ".join(rows))
    assert set(promised) >= {"autoencoder", "pipeline", "teacher", "pool", "selector", "distilled", "results.json"}
    assert [name for name in [*promised, "report.html"] if not (tiny_run.folder / name).exists()] == []


def test_columns_of_the_distilled_set(tiny_run):
    sentence = re.search(r"The columns of the distilled set are (.*?)\.\n", PROSE, re.DOTALL)[1]
    _, columns, _ = read_image_dataset(tiny_run.folder / "distilled")
    assert re.findall(r"`(\w+)`", sentence) == ["image", *columns]


def test_components_of_the_pipeline(tiny_run):
    sentence = re.search(r"The pipeline's components are diffusers' own \((.*?)\)", PROSE, re.DOTALL)[1]
    pipe = DiffusionPipeline.from_pretrained(tiny_run.folder / "pipeline", trust_remote_code=True)
    components = {type(component).__name__ for component in (pipe.vae, pipe.unet, pipe.scheduler)}
    assert set(re.findall(r"`(\w+)`", sentence)) == components
    assert (tiny_run.folder / "pipeline" / "pipeline.py").is_file()


def test_names_of_presets_and_of_medmnist():
    presets = re.search(r"^Presets set .*?\n\n", PROSE, re.DOTALL | re.MULTILINE)[0]
    assert re.findall(r"`([\w-]+)`", presets) == list(PRESET_NAMES)
    row = re.search(r"^\| a MedMNIST name: (.*?) \|", PROSE, re.MULTILINE)[1]
    assert set(re.findall(r"`(\w+)`", row)) == set(MEDMNIST)
