from __future__ import annotations

from importlib import metadata

from histodistill.selection.versions import installed_versions


def test_versions_are_those_that_pip_knows_and_what_is_not_installed_is_left_out():
    found = installed_versions(("scipy", "no-such-library", "numpy"))
    assert found == {"scipy": metadata.version("scipy"), "numpy": metadata.version("numpy")}
    assert list(found) == ["scipy", "numpy"]
