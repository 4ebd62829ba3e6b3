"""What the README and the pages of `docs/` show is what there is: snippets run, commands parse, links lead somewhere.

A block that cannot be run has a comment before it, `<!-- not run: reason -->`; its test is skipped with the reason.
"""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import datasets.config
import pytest
from accelerate.commands.launch import launch_command_parser
from diffusers import DiffusionPipeline
from diffusers.utils import dynamic_modules_utils

from histodistill.training.cli import COMMANDS, main
from histodistill.training.data.image_dataset import read_image_dataset
from histodistill.training.data.medmnist import MEDMNIST
from histodistill.training.models.latents import LATENT_MODELS
from histodistill.training.running.presets import PRESET_NAMES


ROOT = Path(__file__).parents[1]
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*ROOT.glob("*.md"), *sorted(ROOT.glob("docs/*.md")))
}
# Its blocks follow each other as one program.
ONE_PROGRAM = "docs/python.md"
# Names options that lost, and that the code no longer has.
OF_THE_PAST = "docs/trainings.md"
SCRIPTS = ("train_autoencoder", "train_classifier", "train_diffusion", "generate", "select", "compare", "audit")
# Other steps with a parser, without those of COMMANDS.
_MEASUREMENTS = (
    *("speed", "audit_speed", "disguises", "leaky_sets", "selectors", "sites_study", "dp_study", "memory"),
    *("input_path", "latent_cache", "large_pool", "stage_memory", "decoding"),
)
BENCHMARKS = tuple(f"benchmarks.{name}" for name in _MEASUREMENTS)
# Whose options in the text are not ours.
OTHER_PROGRAMS = (
    "pip ", "python -m http.server", "python -m build", "git ", "create_patches_fp.py ", "run_batch_of_slides.py ",
)  # fmt: skip
# What distill does not run.
ON_REQUEST = ("evaluate-pool", "benchmark")


@dataclass(frozen=True)
class Block:
    """A block of code: its page, its language, its text, and why it is not run where it is not."""

    page: str
    language: str
    text: str
    not_run: str


def blocks_of(page: str) -> list[Block]:
    pattern = r"^(?:<!-- not run: (.*?) -->\n)?```(\w*)\n(.*?)^```$"
    found = re.findall(pattern, TEXTS[page], re.DOTALL | re.MULTILINE)
    return [Block(page, language, text, not_run) for not_run, language, text in found]


def prose_of(page: str) -> str:
    return re.sub(r"^```.*?^```$", "", TEXTS[page], flags=re.DOTALL | re.MULTILINE)


def commands_of(block: Block) -> list[list[str]]:
    """The words of every command of a bash block, without comments; continued lines are joined."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


BLOCKS = [block for page in TEXTS for block in blocks_of(page)]
SNIPPETS = [block for block in BLOCKS if block.language == "python" and block.page != ONE_PROGRAM]
COMMAND_LINES = [(block, words) for block in BLOCKS if block.language == "bash" for words in commands_of(block)]


def skipping(block: Block, *values: object, name: str):
    """A case of a test, which is skipped for a block that is not run."""
    marks = [pytest.mark.skip(reason=f"{block.page}: {block.not_run}")] if block.not_run else []
    return pytest.param(*values, id=f"{block.page}: {name}"[:90], marks=marks)


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory):
    """What datasets and diffusers cache goes with the other temporary files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        patch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.syspath_prepend(dynamic_modules_utils.HF_MODULES_CACHE)
        yield


def test_blocks_are_of_known_languages():
    # Anything else would be looked at by none of these tests.
    assert {(block.page, block.language) for block in BLOCKS if block.language not in ("bash", "python")} == set()
    assert len(SNIPPETS) >= 3 and len(COMMAND_LINES) >= 20
    # Every comment is before a block.
    marked = sum(len(re.findall(r"^<!-- not run", text, re.MULTILINE)) for text in TEXTS.values())
    assert marked == sum(bool(block.not_run) for block in BLOCKS)


def snippet_name(block: Block) -> str:
    return next(line for line in block.text.splitlines() if "import" not in line and line.strip())[:30]


def once(cases: list) -> list:
    """What two pages show, and for the same reason run, is run once."""
    return list({repr(case.values[-1]): case for case in reversed(cases)}.values())[::-1]


@pytest.mark.parametrize("text", once([skipping(b, b.text, name=snippet_name(b)) for b in SNIPPETS]))
def test_snippets_run(text, tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if "demo-run" in text:
        # Its run has the classes of phantom, as the demo has.
        (tmp_path / "demo-run").symlink_to(tiny_run.folder)
    names: dict[str, object] = {}
    exec(compile(text, "snippet", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) >= len(re.findall(r"^print\(", text, re.MULTILINE)) > 0
    if "images" in names:
        assert [image.size for image in names["images"]] == [(16, 16)] * 2
    if "embeddings" in names:
        assert names["selector"].selected_indices_.shape == (20,)


@pytest.mark.parametrize("block", [block for block in SNIPPETS if block.not_run], ids=snippet_name)
def test_snippets_that_are_not_run_are_python(block):
    compile(block.text, block.page, "exec")


def test_the_python_page_runs(tmp_path, offline_environment):
    program = "\n".join(block.text for block in blocks_of(ONE_PROGRAM))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=offline_environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "per_class=0 is out of range: it must be at least 1\n" in done.stdout
    assert "(60, 16, 16, 3)" in done.stdout  # the pool: 12 images of each of five classes
    assert (tmp_path / "runs" / "small" / "student" / "results.json").is_file()
    # Nothing that is printed dumps pixels.
    # But for what an audit did not look for, which is named in full.
    assert max(len(line) for line in done.stdout.splitlines() if "not looked for" not in line) < 300


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


def check_pip(words: list[str]) -> None:
    """A command `pip …`: what it installs of this project is there."""
    assert words[0] in ("install", "download"), words
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word in ("-c", "--constraint"):
            assert (ROOT / following).is_file(), following
        if extras := re.fullmatch(r"(?:\.|histodistill)\[(.*)\]", word):
            assert set(extras[1].split(",")) <= set(config["options.extras_require"])


def check_command(words: list[str]) -> None:
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "pip":
        check_pip(words[1:])
    elif words == ["histodistill", "--version"]:
        with pytest.raises(SystemExit, match=r"^0$"):
            main(words[1:])
    elif words[0] == "histodistill":
        # A command can be two words.
        name = " ".join(words[1:3]) if " ".join(words[1:3]) in COMMANDS else words[1]
        assert name in COMMANDS
        read(import_module(f"histodistill.training.{COMMANDS[name].step}"), words[1 + len(name.split()) :])
    elif words[:2] == ["python", "-m"]:
        assert words[2].startswith("histodistill.")
        read(import_module(words[2]), words[3:])
    else:
        assert words[:2] == ["accelerate", "launch"], f"no test knows this command: {words}"
        check_launch(words)


@pytest.mark.parametrize(
    "words", once([skipping(block, words, name=" ".join(words)) for block, words in COMMAND_LINES])
)
def test_commands_are_understood(words):
    check_command(words)


def test_every_stage_by_hand_is_shown_in_the_order_of_the_table():
    page = "docs/how-it-works.md"
    commands = [words for block in blocks_of(page) for words in commands_of(block)]
    shown = [f"train_{words[2]}" if words[1] == "train" else words[1] for words in commands]
    assert shown == [*SCRIPTS, *ON_REQUEST]
    assert re.findall(r"^\| `([\w-]+)` \|", prose_of(page), re.MULTILINE) == [*SCRIPTS, *ON_REQUEST]


def test_options_in_the_text_exist():
    texts = [prose_of(page) for page in TEXTS if page not in (OF_THE_PAST, "CHANGELOG.md")]
    code = [code for text in texts for code in re.findall(r"`([^`]+)`", text)]
    ours = [words for words in code if not words.startswith(OTHER_PROGRAMS)]
    names = {word for words in ours for word in re.findall(r"(?<![\w-])--[a-z][\w-]+", words)}
    assert {"--resume", "--data", "--num-processes", "--num_processes"} <= names
    known = set(launch_command_parser()._option_string_actions)
    for name in (*SCRIPTS[:3], *(command.step for command in COMMANDS.values()), *BENCHMARKS):
        known |= set(import_module(f"histodistill.training.{name}").make_parser()._option_string_actions)
    assert names - known == set()


def anchors_of(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs both make them."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKS = [(page, link) for page in TEXTS for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", prose_of(page))]


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_links_lead_somewhere(page, target):
    name, _, anchor = target.partition("#")
    path = (ROOT / page).parent / name if name else ROOT / page
    assert path.is_file(), f"{page} refers to {target}"
    if anchor:
        assert anchor in anchors_of(path.resolve().relative_to(ROOT).as_posix()), f"{page} refers to {target}"


def test_run_leaves_what_the_table_says(tiny_run):
    rows = re.findall(r"^\| `(?!benchmark)\w+` \|.*\| ([^|]+) \|$", prose_of("docs/how-it-works.md"), re.MULTILINE)
    promised = re.findall(r"`([\w.]+)/?`", " ".join(rows))
    assert set(promised) >= {"autoencoder", "pipeline", "teacher", "pool", "selector", "distilled", "results.json"}
    table = re.search(r"^## What a run leaves\n(.*?)\n```", TEXTS["docs/own-tiles.md"], re.DOTALL | re.MULTILINE)[1]
    promised += re.findall(r"`([\w.]+)/?`", " ".join(re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)))
    assert {"report.html", "audit", "comparison"} <= set(promised)
    # All but what `review` makes, which nobody has called.
    assert [name for name in promised if not (tiny_run.folder / name).exists()] == ["review"]


def test_columns_of_the_distilled_set(tiny_run):
    text = TEXTS["docs/own-tiles.md"]
    sentence = re.search(r"The columns of the distilled set are (.*?)\.\n", text, re.DOTALL)[1]
    _, columns, _ = read_image_dataset(tiny_run.folder / "distilled")
    assert re.findall(r"`(\w+)`", sentence) == ["image", *columns]


def test_components_of_the_pipeline(tiny_run):
    text = TEXTS["docs/own-tiles.md"]
    sentence = re.search(r"The pipeline's components are diffusers' own \((.*?)\)", text, re.DOTALL)[1]
    pipe = DiffusionPipeline.from_pretrained(tiny_run.folder / "pipeline", trust_remote_code=True)
    components = {type(component).__name__ for component in (pipe.vae, pipe.unet, pipe.scheduler)}
    assert set(re.findall(r"`(\w+)`", sentence)) == components | {model.__name__ for model in LATENT_MODELS.values()}
    assert (tiny_run.folder / "pipeline" / "pipeline.py").is_file()


def test_names_of_presets_and_of_medmnist():
    text = TEXTS["docs/own-tiles.md"]
    presets = re.search(r"^\| preset \|.*?\n\n", text, re.DOTALL | re.MULTILINE)[0]
    assert re.findall(r"^\| `([\w-]+)` \|", presets, re.MULTILINE) == list(PRESET_NAMES)
    row = re.search(r"^\| a MedMNIST name: (.*?) \|", text, re.MULTILINE)[1]
    assert set(re.findall(r"`(\w+)`", row)) == set(MEDMNIST)
