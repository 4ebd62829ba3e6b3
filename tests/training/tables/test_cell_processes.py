"""The processes that train cells of the results table."""

from __future__ import annotations

import os
import signal
from multiprocessing import get_context

from histodistill.training.tables.cell_processes import _Workers


def test_ctrl_c_is_left_to_the_process_that_started_them():
    with _Workers(1, mp_context=get_context("fork")) as workers:
        process = workers.submit(os.getpid).result()
        os.kill(process, signal.SIGINT)
        assert workers.submit(os.getpid).result() == process
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGINT}
