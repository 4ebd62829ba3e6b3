"""Versions of installed packages, as the records of a run and of a selector name them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The version of each package, in the order given.

    Args:
        packages: Names as pip knows them.

    Returns:
        Package → version, without those that aren't installed under this name: histodistill itself may run from a
        source tree, and a library may be installed as another one, such as faiss-gpu for faiss-cpu.
    """
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
