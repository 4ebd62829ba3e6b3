"""What tests of trainings share: which libraries they need, and how a kill ends one."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


needs_opacus = pytest.mark.skipif(
    find_spec("opacus") is None, reason="opacus, the extra 'dp', is not installed: no accountant"
)
needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="peft, the extra 'adapters', is not installed")
#: Opacus' own code, while it is imported.
opacus_may_warn = pytest.mark.filterwarnings("default::DeprecationWarning:opacus", "default::FutureWarning:opacus")


class Killed(BaseException):
    """Ends a run as a kill would: nothing in the scripts catches it."""
