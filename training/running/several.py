"""`python -m histodistill.training.running.several`: Accelerate's launcher, which without its tracebacks.

    python -m histodistill.training.running.several [options of accelerate launch] -m MODULE [options of the module]

It is what starts several processes that share the work of a step: see `launch.run_module`.
"""

from __future__ import annotations

import logging
import signal

from histodistill.training.running.program import ERROR


def main(argv: list[str] | None = None) -> None:
    """Starts the processes, and ends when all have ended.

    Args:
        argv: What `accelerate launch` takes; None takes the words that this process was started with.

    Raises:
        SystemExit: Where one failed, with the exit code of the first that did, which has said why; with 128 and the
            signal where one was killed, or this process was told to end.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # Which process got which signal from the launcher is told in many lines, and is of no use to anybody.
    logging.disable(logging.ERROR)
    try:
        launch_command(launch_command_parser().parse_args(argv))
    except ChildFailedError as failed:
        # A process that was killed is why others fail, whoever was seen first; the launcher ends them by SIGTERM, and
        # some abort where the other one is gone.
        codes = [failure.exitcode for failure in failed.failures.values()]
        killed = [code for code in codes if code < 0 and code != -signal.SIGTERM]
        killed.sort(key=lambda code: code == -signal.SIGABRT)
        code = killed[0] if killed else failed.get_first_failure()[1].exitcode
        raise SystemExit(128 - code if code < 0 else code or ERROR) from None
    except SignalException as told:
        raise SystemExit(128 + told.sigval) from None


if __name__ == "__main__":
    main()
