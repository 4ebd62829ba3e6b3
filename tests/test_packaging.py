"""What an installation holds: everything that the folders of the package hold, and nothing else."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import histodistill


ROOT = Path(__file__).parents[1]
#: The top of the package, and the folders that become its parts.
TOP, FOLDERS = "histodistill", ("pipelines", "training", "selection", "hub_cards")


def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def is_installed(requirement: str) -> bool:
    wanted = Requirement(requirement)
    try:
        return wanted.specifier.contains(metadata.version(wanted.name))
    except metadata.PackageNotFoundError:
        return False


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def source_files() -> set[str]:
    """Paths of all files of the package, relative to the root; `assets` holds the README's pictures only."""
    found = (path for folder in (TOP, *FOLDERS) for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if not {"__pycache__", "assets"} & set(path.parts)}


def packaged(path: str) -> str:
    """Where a source file is in an installation, below its top: the four folders are parts of the package."""
    return path.removeprefix(f"{TOP}/")


def test_the_top_of_the_package_holds_its_names_and_nothing_else():
    assert {path for path in source_files() if path.startswith(f"{TOP}/")} == {f"{TOP}/__init__.py", f"{TOP}/py.typed"}


def test_every_package_is_listed():
    folders = {Path(path).parent.as_posix() for path in source_files() if path.endswith("/__init__.py")}
    names = {TOP: TOP} | {f"{TOP}.{folder.replace('/', '.')}": folder for folder in folders - {TOP}}
    options = setup_cfg()["options"]
    assert sorted(lines(options["packages"])) == sorted(names)
    mapping = dict(line.split(" = ") for line in lines(options["package_dir"]))
    assert mapping == names


def direct_dependencies() -> list[Requirement]:
    config = setup_cfg()
    # gradio does not take the pillow that is pinned.
    extras = [text for name, text in config["options.extras_require"].items() if name not in ("demo-app", "timm")]
    groups = [config["options"]["install_requires"], *extras]
    return [Requirement(line) for group in groups for line in lines(group)]


def pins() -> dict[str, Version]:
    requirements = [Requirement(line) for line in lines((ROOT / "constraints.txt").read_text()) if line[0] != "#"]
    for requirement in requirements:
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], str(requirement)
    return {
        canonicalize_name(requirement.name): Version(next(iter(requirement.specifier)).version)
        for requirement in requirements
    }


def test_every_direct_dependency_is_pinned():
    pinned = pins()
    missing = {r.name for r in direct_dependencies() if canonicalize_name(r.name) not in pinned}
    assert not missing


def test_pins_fit_the_bounds():
    pinned = pins()
    for requirement in direct_dependencies():
        if version := pinned.get(canonicalize_name(requirement.name)):
            assert requirement.specifier.contains(version), f"{requirement} is pinned at {version}"


def test_every_dependency_has_a_lower_bound():
    for requirement in direct_dependencies():
        assert any(specifier.operator in (">=", "==", "~=") for specifier in requirement.specifier), str(requirement)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The folder of an unpacked wheel, built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in (TOP, *FOLDERS):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    shutil.copytree(ROOT / "tests", source / "tests", ignore=ignore)
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--wheel-dir", str(folder), "--quiet"]
    if all(is_installed(requirement) for requirement in pyproject()["build-system"]["requires"]):
        command.append("--no-build-isolation")  # needs no network
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    (file,) = folder.glob("histodistill-*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_wheel_holds_every_file_and_no_tests(wheel):
    found = {path.relative_to(wheel) for path in wheel.rglob("*") if path.is_file()}
    (info,) = {path.parts[0] for path in found if path.parts[0] != "histodistill"}
    assert info.endswith(".dist-info")
    inside = {path.relative_to(TOP).as_posix() for path in found if path.parts[0] == TOP}
    assert inside == {packaged(path) for path in source_files()}


def test_wheel_has_the_licence_and_the_command(wheel):
    (info,) = wheel.glob("*.dist-info")
    assert (info / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert "histodistill = histodistill.training.cli:main" in (info / "entry_points.txt").read_text()
    text = (info / "METADATA").read_text()
    assert "\nLicense-Expression: Apache-2.0\n" in text
    assert "\nDescription-Content-Type: text/markdown\n" in text


def wheel_version(wheel: Path) -> str:
    (info,) = wheel.glob("*.dist-info")
    return info.name.removesuffix(".dist-info").split("-")[1]


def test_sources_without_git_have_the_version_of_the_last_release(wheel):
    assert wheel_version(wheel) == pyproject()["tool"]["setuptools_scm"]["fallback_version"]


USE_THE_WHEEL = """
import contextlib, importlib, io, json, runpy, sys

modules = sys.argv.pop().split(",")
sys.argv[1:] = ["--help"]
output = io.StringIO()
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(output):
    runpy.run_module("histodistill.training.train_autoencoder", run_name="__main__", alter_sys=True)
files = {name: importlib.import_module(name).__file__ for name in modules}

import histodistill
from histodistill.training.cli import main

for name in histodistill.__all__:
    getattr(histodistill, name)
version = io.StringIO()
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(version):
    main(["--version"])
print(json.dumps({"help": output.getvalue(), "files": files, "version": version.getvalue()}))
"""


def test_wheel_works_by_itself(wheel, tmp_path):
    modules = [
        f"{TOP}.{packaged(path).removesuffix('.py').removesuffix('__init__').rstrip('/').replace('/', '.')}".rstrip(
            "."
        )
        for path in sorted(source_files())
        # Metrics are loaded as files, each from its own folder; the demo page needs gradio, which is an extra.
        if path.endswith(".py") and not path.startswith("training/metrics/") and path != "training/demo_app/page.py"
    ]
    # The interpreter below the virtual environment finds the libraries, but not an editable install of histodistill:
    # the .pth file that leads there counts in a site folder only.
    environment = {**os.environ, "PYTHONPATH": f"{wheel}{os.pathsep}{sysconfig.get_path('purelib')}"}
    command = [sys._base_executable, "-c", USE_THE_WHEEL, ",".join(modules)]
    finished = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    result = json.loads(finished.stdout.splitlines()[-1])
    assert "--latent-channels" in result["help"]
    assert result["version"] == f"histodistill {wheel_version(wheel)}\n"
    outside = {name: file for name, file in result["files"].items() if not file.startswith(str(wheel))}
    assert not outside


def test_metrics_are_beside_the_code():
    from histodistill.training import metrics

    folder = Path(metrics.__file__).parent
    assert folder == ROOT / "training" / "metrics"  # an editable install points here
    assert (folder / "accuracy" / "accuracy.py").is_file()


def test_console_script():
    (script,) = metadata.entry_points(group="console_scripts", name="histodistill")
    assert script.load() is import_module("histodistill.training.cli").main


def test_the_last_release_is_the_same_everywhere():
    """What a release sets by hand; the version of a build comes from the tag, which `.ci/wheel` compares."""
    last = pyproject()["tool"]["setuptools_scm"]["fallback_version"]
    released = re.findall(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == last
    assert f"\nversion: {last}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_version_is_that_of_the_installation(monkeypatch):
    assert histodistill.__version__ == metadata.version("histodistill")

    def not_installed(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.delattr(histodistill, "__version__", raising=False)
    monkeypatch.setattr(metadata, "version", not_installed)
    assert histodistill.__version__ == "0+unknown"
    monkeypatch.delattr(histodistill, "__version__")


@pytest.mark.launch
def test_accelerate_launches_a_module():
    accelerate = Path(sys.executable).with_name("accelerate")
    command = [accelerate, "launch", "--num_processes", "1", "-m", "histodistill.training.train_autoencoder", "--help"]
    finished = subprocess.run(
        command, env={**os.environ, "ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "--latent-channels" in finished.stdout
