"""The command line: ``python -m runner``."""

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
from typing import TYPE_CHECKING, Any

from runner.core.errors import RunnerError
from runner.core.printable import printable
from runner.core.redact import without_credentials
from runner.core.stop_signals import Requests, leave_terminal, take
from runner.reporting.advice import setting

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from runner.reporting.advice import Result

_INTERRUPTED = 130

COMMANDS = {
    name: f"runner.cli.{name}"
    for name in ("doctor", "duplicates", "evaluate", "export", "fad", "merge", "report", "search", "track")
}
"""Sub-commands and their modules, each with a ``main(arguments) -> exit status``; anything else is a run."""


class JobFailed(Exception):
    """A job did not finish; its story has been told."""

    def __init__(self, exit_status: int) -> None:
        super().__init__(f"exit status {exit_status}")
        self.exit_status = exit_status


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line and return its exit status.

    0 all finished; 1 an error or a failed run; 130 stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.
    """
    with _ending_on_signals():
        try:
            return _main(arguments)
        except (KeyboardInterrupt, RunInterrupted) as stopped:
            return stopped.exit_status if isinstance(stopped, RunInterrupted) else _INTERRUPTED
        except RunnerError as error:  # of what is tidied up at the end
            print(f"error: {printable(without_credentials(str(error)))}", file=sys.stderr)
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
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise RunInterrupted(128 + number)

    before = take(end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _main(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in COMMANDS:
        status: int = importlib.import_module(COMMANDS[given[0]]).main(given[1:])
        if status == _INTERRUPTED and given[0] == "merge":
            sys.stderr.flush()
            os._exit(status)  # threads may be waiting for a store
        return status
    if {"-h", "--help"} & set(given):
        from runner.cli.help import help_text

        print(help_text())
        return 0
    if "--version" in given:
        from runner import __version__

        print(f"vggish-runner {__version__}")
        return 0
    if any(argument.startswith("query=") for argument in given):
        return _complete(given)
    return _run_hydra(given)


def entry_point() -> None:
    """What the console script calls."""
    sys.exit(main())


def _complete(given: list[str]) -> int:
    """Answer the shell's question for completions, as Hydra does, without the schemas."""
    answer = io.StringIO()
    with contextlib.redirect_stdout(answer):
        status = _run_hydra(given)
    print(*(word for word in answer.getvalue().split() if not word.startswith("schema")))
    return status


def _run_hydra(given: list[str]) -> int:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from runner.config.arguments import check_arguments
    from runner.config.composition import CONFIG_NAME, format_hydra_error, register, translate_hydra_errors
    from runner.core.paths import conf_dir

    register()
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises, and the error is told here, in one message
    interrupted = False
    status = 0
    before, sys.argv = sys.argv, [sys.argv[0], *given]
    try:
        sys.argv[1:] = check_arguments(given)
        with translate_hydra_errors():
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=CONFIG_NAME)(task)()
    except (HydraException, OmegaConfBaseException, RunnerError) as error:
        if wants_traceback:
            raise
        print(f"error: {printable(format_hydra_error(error))}", file=sys.stderr)
        status = 1
    except MemoryError:
        if wants_traceback:
            raise
        print("error: the command got no more memory: see which other programs have it", file=sys.stderr)
        status = 1
    except OSError as error:  # a folder that can't be written, a full disk
        if wants_traceback:
            raise
        print(f"error: {printable(without_credentials(str(error)))}", file=sys.stderr)
        status = 1
    except JobFailed as failed:
        status = failed.exit_status
    except Exception as error:
        if wants_traceback or type(error).__name__ != "UncompletedJobError":  # Submitit's
            raise
        print(
            "error: a job of the sweep was stopped or killed before it had a result: its log is in .submitit in the "
            "sweep's folder; rerun the same command to resume",
            file=sys.stderr,
        )
        status = 1
    except RunInterrupted as stopped:
        status, interrupted = stopped.exit_status, True
    except KeyboardInterrupt:
        status, interrupted = _INTERRUPTED, True
    finally:
        sys.argv = before
        if not wants_traceback:
            del os.environ["HYDRA_FULL_ERROR"]
        try:
            if "runner.jobs.sweep" in sys.modules:
                from runner.jobs.sweep import finish_sweep

                if not finish_sweep(interrupted):
                    status = status or 1
        finally:
            _release("runner.output.remote.run")
            _release("runner.output.remote.sweep")
    return status


def _release(module: str) -> None:
    """Give up the outputs in object stores that a module has taken, if it was ever needed."""
    if module in sys.modules:
        sys.modules[module].release_all()


class RunInterrupted(BaseException):
    """A job was stopped by the user: unlike a failed one, it ends its sweep (so it is no ``Exception``)."""

    def __init__(self, exit_status: int) -> None:
        super().__init__(exit_status)
        self.exit_status = exit_status


def task(config: DictConfig) -> dict[str, Any] | float:
    """What Hydra calls with each composed configuration: one job; gives its result, or what a sweeper maximises."""
    from hydra.core.hydra_config import HydraConfig

    from runner.config.composition import to_run_config, typed_words
    from runner.jobs.job import run_job
    from runner.jobs.spec import Job
    from runner.jobs.sweep import SWEEP_ENVIRONMENT, register_job, with_job_output_dir
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
    )
    try:
        result = run_job(job)
    finally:
        _release("runner.output.remote.run")
    if result["status"] == "killed":
        raise RunInterrupted(result["exit_status"])
    if result["status"] != "finished":
        raise JobFailed(result["exit_status"])
    if str(hydra_config.sweeper.get("_target_")).endswith("OptunaSweeper"):
        return objective(result)
    return result


def objective(result: Result) -> float:
    """What ``experiment=tune`` maximises: × realtime; 0 where parity failed or the host's memory ceiling was passed."""
    from runner.devices.detection import DeviceType
    from runner.inference.memory import ceiling_mib

    ceiling = ceiling_mib(result["config"]["memory"]["host_limit_mib"], DeviceType(setting(result)[0]))
    parity = result.get("parity")
    if (parity is not None and not parity["passed"]) or result["metrics"]["rss_peak_mib"] > (ceiling or math.inf):
        return 0.0
    metrics = result["metrics"]  # trials all repeat their passes, or none does
    return float(metrics.get("repeat_realtime_factor_mean", metrics.get("realtime_factor", 0.0)))
