"""Makes a skip of a test of the page an error where `.ci/page-tests` runs them, which installs what they need."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


#: Environment variable that, set to 1, says that no test of this folder may be skipped.
NO_SKIPS = "HISTODISTILL_NO_SKIPPED_PAGE_TESTS"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Turns a skip into a failure that says what was skipped and why."""
    report = yield
    if report.skipped and os.environ.get(NO_SKIPS) == "1":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and with {NO_SKIPS}=1 none may be: {reason}"
    return report
