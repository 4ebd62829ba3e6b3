"""Looks at what this machine has for the work, and says how to mend what does not suit it.

    histodistill doctor

One line each: Python, libraries, GPU, cores and threads, precision, memory, disks, the network, the token of the Hub
and the terminal. PASS is as it should be; WARN makes the work slower, or a part of it impossible; FAIL makes it
impossible. Nothing is changed, and nothing is sent but the question whether the Hub answers and knows the token.

The exit code is 0, or 1 where there is a FAIL.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from histodistill.training.cli import machine_checks, software_checks
from histodistill.training.running.errors import reason_of
from histodistill.training.running.findings import FAIL, PASS, WARN, Finding, count_line, exit_code
from histodistill.training.running.options import StepConfig, StepParser, config, option, run_script


@config
class DoctorConfig(StepConfig):
    """Options of `doctor`."""

    json: bool = option("print one JSON object in place of lines", default=False)


def make_parser() -> StepParser[DoctorConfig]:
    """The parser of the command line."""
    return StepParser(DoctorConfig, prog="histodistill doctor", description=__doc__)


def run(config: DoctorConfig) -> list[Finding]:
    """Looks at everything and prints what it finds.

    Returns:
        The findings, in the order in which they are printed.
    """
    findings = []
    for finding in look():
        findings.append(finding)
        if not config.json:
            print(finding.line(), flush=True)
    if config.json:
        counts = {status: sum(finding.status == status for finding in findings) for status in (PASS, WARN, FAIL)}
        keys = ("name", "status", "found", "mend")
        listed = [{key: getattr(finding, key) for key in keys} for finding in findings]
        print(json.dumps({"counts": counts, "findings": listed}, indent=2))
    else:
        print(count_line(findings))
    return findings


def look() -> Iterator[Finding]:
    """Everything, one after the other; what cannot be looked at, since a library is broken, is a finding as well."""
    yield from _each("Python", software_checks.check_python)
    yield from _each("Libraries", software_checks.check_libraries)
    yield from _each("Extras", software_checks.check_extras)
    yield from _each("Compiled", software_checks.check_compiled)
    yield from _each("GPU", machine_checks.check_gpu)
    yield from _each("Cores", machine_checks.check_cores)
    yield from _each("Precision", machine_checks.check_precision)
    yield from _each("Memory", machine_checks.check_memory)
    yield from _each("Disk", machine_checks.check_disks)
    (network,) = _each("Network", software_checks.check_network)
    yield network
    yield from _each("Token", lambda: software_checks.check_token(is_online=network.status == PASS))
    yield from _each("Terminal", machine_checks.check_terminal)


def _each(name: str, check: Callable[..., Any]) -> list[Finding]:
    """What a check finds, one finding or several."""
    try:
        found = check()
    except Exception as error:  # whatever a broken library raises
        mend = "see that the libraries above are as needed"
        return [Finding(name, FAIL, f"cannot be looked at ({reason_of(error)})", mend)]
    return found if isinstance(found, list) else [found]


if __name__ == "__main__":
    run_script(make_parser, run, exit_code=exit_code)
