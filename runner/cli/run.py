"""The command: ``vggish-runner``, or ``python -m runner``."""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from runner.cli.errors import print_error
from runner.core.cleanup import cleanup
from runner.core.errors import RunnerError
from runner.core.interruption import Interrupted, begin_command, interrupt
from runner.core.printable import print_page
from runner.core.redact import without_credentials
from runner.core.stop_signals import INTERRUPTED, Requests, install_handler, leave_terminal
from runner.jobs.spawn import STANDBY

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from runner.contract.result import RunResult

COMMANDS = {
    name: f"runner.cli.{name}"
    for name in ("doctor", "duplicates", "evaluate", "export", "fad", "merge", "report", "search", "track")
}
"""Sub-commands and their modules, each with a ``main(arguments) -> exit status``; anything else is a run."""


class JobFailed(Exception):
    """A job failed, and its failure is printed already."""

    def __init__(self, exit_status: int) -> None:
        super().__init__(f"exit status {exit_status}")
        self.exit_status = exit_status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status.

    0 all finished; 1 an error or a failed run; 130 stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.
    """
    with _ending_on_signals():
        try:
            return _main(arguments)
        except (KeyboardInterrupt, RunInterrupted, Interrupted) as stopped:
            return stopped.exit_status if isinstance(stopped, RunInterrupted) else INTERRUPTED
        except RunnerError as error:  # of the cleanup
            print_error(error)
            return 1


@contextlib.contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Raise ``RunInterrupted`` on SIGTERM and SIGHUP, wherever nothing else handles them; Ctrl-C is an exception
    already."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    requests = Requests()

    def end(number: int, frame: FrameType | None) -> None:
        if number == getattr(signal, "SIGHUP", None):
            leave_terminal()
        if not requests.add(number):
            return
        interrupt()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise RunInterrupted(128 + number)

    begin_command()
    before = install_handler(end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _main(arguments: Sequence[str] | None) -> int:
    os.environ["MPLBACKEND"] = "agg"  # a notebook's own backend is none that this environment must have
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if argv and argv[0] in COMMANDS:
        status: int = importlib.import_module(COMMANDS[argv[0]]).main(argv[1:])
        return status
    if {"-h", "--help"} & set(argv):
        from runner.cli.help import help_text

        print_page(help_text(list(COMMANDS)))
        return 0
    if "--version" in argv:
        from runner import __version__

        print(f"vggish-runner {__version__}")
        return 0
    if any(argument.startswith("query=") for argument in argv):
        return _complete_shell(argv)
    return _run_hydra(argv)


def entry_point() -> None:
    """Run as the console script."""
    sys.exit(main())


def _complete_shell(argv: list[str]) -> int:
    """Print the completions of a shell's query, as Hydra does, without the schemas."""
    answer = io.StringIO()
    with contextlib.redirect_stdout(answer):
        status = _run_hydra(argv)
    print(*(word for word in answer.getvalue().split() if not word.startswith("schema")))
    return status


def _run_hydra(argv: list[str]) -> int:
    status, interrupted = 0, False
    with cleanup(), _hydra_raises() as wants_traceback:
        try:
            if all(argument in ("-m", "--multirun") or not argument.startswith("-") for argument in argv):
                STANDBY.start()  # it takes longer to be ready than the configuration
            _compose_and_run(argv)
        except JobFailed as failed:
            status = failed.exit_status
        except RunInterrupted as stopped:
            status, interrupted = stopped.exit_status, True
        except KeyboardInterrupt:
            status, interrupted = INTERRUPTED, True
        except Exception as error:
            message = None if wants_traceback else _message_of(error)
            if message is None:
                raise
            print_error(message)
            status = 1
        finally:
            from runner.jobs.sweep import finish_sweep

            if not finish_sweep(interrupted):
                status = status or 1
    return status


def _compose_and_run(argv: list[str]) -> None:
    """Have Hydra compose the configuration and call ``task`` with it, or with each of a sweep's."""
    import hydra

    from runner.config.arguments import check_arguments
    from runner.config.composition import CONFIG_NAME, register, translate_hydra_errors
    from runner.core.paths import conf_dir

    register()
    before, sys.argv = sys.argv, [sys.argv[0], *argv]
    try:
        sys.argv[1:] = check_arguments(argv)
        with translate_hydra_errors():
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=CONFIG_NAME)(task)()
    finally:
        sys.argv = before


@contextlib.contextmanager
def _hydra_raises() -> Iterator[bool]:
    """Have Hydra raise its errors, which the command prints in one message; yield whether the user wants tracebacks."""
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield wants_traceback
    finally:
        if not wants_traceback:
            del os.environ["HYDRA_FULL_ERROR"]


def _message_of(error: Exception) -> str | None:
    """Return the message for an error that has a known cause; None for one that is a fault of the program."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from runner.config.composition import format_hydra_error

    if isinstance(error, HydraException | OmegaConfBaseException | RunnerError):
        return format_hydra_error(error)
    if isinstance(error, MemoryError):
        return "out of memory: close other programs, or use a machine with more"
    if isinstance(error, OSError):  # a folder that can't be written, a full disk
        return without_credentials(str(error))
    if type(error).__name__ == "UncompletedJobError":  # Submitit's, which need not be installed
        return (
            "a job of the sweep was stopped or killed before it had a result: its log is in .submitit in the sweep's "
            "folder; rerun the same command to resume"
        )
    return None


class RunInterrupted(BaseException):
    """The user stopped a job, which unlike a failed one ends its sweep, so that this is no ``Exception``."""

    def __init__(self, exit_status: int) -> None:
        super().__init__(exit_status)
        self.exit_status = exit_status


def task(config: DictConfig) -> RunResult | float:
    """Run one job, as Hydra's task function; return its result, or for a sweeper that optimizes the objective."""
    from hydra.core.hydra_config import HydraConfig

    from runner.config.composition import to_run_config, typed_words
    from runner.jobs.job import run_job
    from runner.jobs.spec import Job
    from runner.jobs.sweep import SWEEP_ENVIRONMENT, has_next_job, register_job, with_job_output_dir
    from runner.jobs.terminal import say

    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    os.chdir(hydra_config.runtime.cwd)  # paths are as they were typed, also with hydra.job.chdir
    run = to_run_config(config)
    in_sweep = SWEEP_ENVIRONMENT in os.environ
    if in_sweep:
        overrides = without_credentials(" ".join(hydra_config.overrides.task))
        say(f"\njob {hydra_config.job.num}: {overrides}", style="bold")
    job = Job(
        config=with_job_output_dir(run, run_dir, Path(hydra_config.sweep.dir)) if in_sweep else run,
        run_dir=run_dir,
        overrides=typed_words(hydra_config),
        in_sweep=in_sweep,
        sweep_run_id=register_job(run_dir) if in_sweep else None,
        has_next=has_next_job(),
    )
    with cleanup():
        result = run_job(job)
    if result.status == "interrupted":
        raise RunInterrupted(result.exit_status)
    if result.status != "finished":
        raise JobFailed(result.exit_status)
    if "direction" in hydra_config.sweeper:  # it optimizes what jobs return, as Optuna's does
        return objective(result)
    return result


def objective(result: RunResult) -> float:
    """Return the objective of ``experiment=tune``: × realtime, or 0 if parity failed or memory exceeded its limit."""
    from runner.devices.detection import DeviceType
    from runner.inference.memory import ceiling_mib
    from runner.reporting.advice import configuration_label

    metrics = result.metrics
    ceiling = ceiling_mib(result.info.config.memory, DeviceType(configuration_label(result)[0]))
    parity = result.startup.parity
    if (parity is not None and not parity.passed) or metrics["rss_peak_mib"] > (ceiling or math.inf):
        return 0.0
    # trials all repeat their passes, or none does
    return float(metrics.get("repeat_realtime_factor_mean", metrics.get("realtime_factor", 0.0)))
