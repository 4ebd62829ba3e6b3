"""What `histodistill doctor` looks at of Python, its libraries and the Hub."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import TYPE_CHECKING, TypeVar

from histodistill.training.running.findings import FAIL, PASS, WARN, Finding


if TYPE_CHECKING:
    from packaging.requirements import Requirement

_Answer = TypeVar("_Answer")
# The extras that a user may want, and what for; the others are for development.
_EXTRAS = {"dp": "--dp-epsilon", "demo-app": "histodistill demo-app"}
# Libraries of which users ask which one they have.
_NAMED = ("torch", "diffusers", "transformers", "datasets", "accelerate")
# Libraries in C++ that the selection needs. A processor may lack what they were built for: that ends a process.
_COMPILED = ("infomap", "faiss")
# Seconds that a library has to be imported, and the Hub to answer.
_IMPORT_SECONDS, _NETWORK_SECONDS = 60, 2


def check_python() -> Finding:
    """Whether this Python is new enough, by what the installed package says."""
    from packaging.specifiers import SpecifierSet

    needed = metadata.metadata("histodistill")["Requires-Python"] or ""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if SpecifierSet(needed).contains(platform.python_version(), prereleases=True):
        return Finding("Python", PASS, found)
    return Finding("Python", FAIL, found, f"install Python {needed} and make a new environment with it")


def check_libraries() -> Finding:
    """Whether every library that histodistill needs is there in a version that it takes."""
    needed = list(_requirements())
    missing = _not_met(needed)
    if missing:
        wanted = " ".join(f"'{_plain(each)}'" for each, _ in missing)
        found = ", ".join(f"{each.name} {version or 'is missing'}" for each, version in missing)
        return Finding("Libraries", FAIL, found, f"run pip install {wanted}")
    named = ", ".join(f"{name} {metadata.version(name)}" for name in _NAMED)
    return Finding("Libraries", PASS, f"all {len(needed)} as needed ({named})")


def check_extras() -> Finding:
    """Which of the optional parts are there; only one of which something else is there is worth a warning."""
    words, wrong = [], []
    for extra, purpose in _EXTRAS.items():
        missing = _not_met(_requirements(extra))
        wrong += [f"'{_plain(each)}'" for each, version in missing if version]
        state = "not installed" if missing else "installed"
        words.append(f"{extra} for {purpose} {state}")
    found = ", ".join(words)
    if wrong:
        return Finding("Extras", WARN, found, f"run pip install {' '.join(wrong)}")
    return Finding("Extras", PASS, found)


def check_compiled() -> Finding:
    """Whether the libraries in C++ can be imported, each in a process of its own, which it may end."""
    broken = {name: error for name in _COMPILED if (error := _import_error(name))}
    if broken:
        found = ", ".join(f"{name} cannot be imported ({error})" for name, error in broken.items())
        packages = " ".join("faiss-cpu" if name == "faiss" else name for name in broken)
        return Finding("Compiled", FAIL, found, f"run pip install --force-reinstall --no-cache-dir {packages}")
    return Finding("Compiled", PASS, f"{' and '.join(_COMPILED)} can be imported")


def check_network() -> Finding:
    """Whether the Hub answers within seconds; being offline is no fault, since only some sources need it."""
    from huggingface_hub import constants

    endpoint = constants.ENDPOINT
    needed = "needed for Hub datasets, MedMNIST files that are not there yet, and to publish"
    if constants.HF_HUB_OFFLINE:
        return Finding("Network", WARN, f"offline by HF_HUB_OFFLINE, and {needed}", "unset HF_HUB_OFFLINE for these")
    if _within(_NETWORK_SECONDS, lambda: _answers(endpoint)):
        return Finding("Network", PASS, f"{endpoint} answers")
    return Finding(
        "Network",
        WARN,
        f"{endpoint} does not answer within {_NETWORK_SECONDS} seconds, and is {needed}",
        "see to the connection or HTTPS_PROXY, or set HF_HUB_OFFLINE=1 to work without",
    )


def check_token(is_online: bool) -> Finding:
    """Whether there is a token of the Hub, and whether the Hub takes it; it is never shown.

    Args:
        is_online: Whether the Hub answers, and can be asked.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    token = get_token()
    if not token:
        return Finding("Token", WARN, "none, which publish --push and private datasets need", "run hf auth login")
    if not is_online:
        return Finding("Token", PASS, "there is one; the Hub was not asked about it")

    def owner() -> str | None:
        try:
            return HfApi().whoami(token)["name"]
        except HfHubHTTPError as error:
            return "" if error.response is not None and error.response.status_code == 401 else None

    name = _within(_NETWORK_SECONDS, owner)
    if name == "":
        return Finding("Token", WARN, "the Hub does not know it any more", "run hf auth login")
    return Finding("Token", PASS, f"that of {name}" if name else "there is one; the Hub said nothing about it")


def _requirements(extra: str = "") -> list[Requirement]:
    """What the installed package needs: always, or for an extra alone."""
    from packaging.requirements import Requirement

    needed = [Requirement(line) for line in metadata.requires("histodistill") or ()]
    with_extra = [each for each in needed if not each.marker or each.marker.evaluate({"extra": extra})]
    if not extra:
        return with_extra
    always = {str(each) for each in _requirements()}
    return [each for each in with_extra if str(each) not in always]


def _not_met(needed: Iterable[Requirement]) -> list[tuple[Requirement, str]]:
    """The requirements that are not met, each with the version that is there, or with nothing."""
    found = [(each, _version(each.name)) for each in needed]
    return [(each, version) for each, version in found if not version or not each.specifier.contains(version, True)]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _plain(requirement: Requirement) -> str:
    """A requirement as pip takes it, without the condition that it is for an extra."""
    return f"{requirement.name}{requirement.specifier}"


def _import_error(name: str) -> str:
    """Why a library cannot be imported; empty where it can."""
    command = [sys.executable, "-c", f"import {name}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"not within {_IMPORT_SECONDS} seconds"
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}"
    lines = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else (lines[-1] if lines else f"exit code {done.returncode}")


def _answers(address: str) -> bool:
    import requests

    # Any answer will do, also one that refuses.
    requests.head(address, timeout=_NETWORK_SECONDS)
    return True


def _within(seconds: float, ask: Callable[[], _Answer]) -> _Answer | None:
    """What a function returns, or None where it raises an error of the system, or takes longer.

    Libraries bound the time for an answer, but not that for the address of a name.
    """
    answers: list[_Answer] = []

    def run() -> None:
        with contextlib.suppress(OSError):  # those of requests are, too
            answers.append(ask())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None
