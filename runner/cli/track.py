"""``vggish-runner track``: log finished runs to MLflow later."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.core.errors import RunnerError
from runner.core.paths import as_path, is_url
from runner.core.printable import printable
from runner.core.redact import without_credentials
from runner.core.stop_signals import INTERRUPTED


def main(arguments: Sequence[str] | None = None) -> int:
    """Log runs; return exit status 1 if one could not be logged, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="vggish-runner track", description="Log runs or sweeps to MLflow that could not be logged at the time."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="the folder of a run or a sweep, or its URL")
    parser.add_argument("--uri", help="the MLflow store (default: the run's own tracking settings)")
    options = parser.parse_args(arguments)
    failed = False
    for run in options.runs:
        try:
            print(printable(f"{without_credentials(run)}: {_track(run, options.uri)}"))
        except RunnerError as error:
            failed = True
            print(printable(f"{without_credentials(run)}: error: {error}"), file=sys.stderr)
        except KeyboardInterrupt:
            print("stopped; rerun the same command to log the rest", file=sys.stderr)
            return INTERRUPTED
    return int(failed)


def _track(run: str, uri: str | None) -> str:
    if not is_url(run):
        from runner.tracking.relog import track

        return track(Path(as_path(run)).resolve(), uri)
    from runner.tracking.relog_remote import track_url

    return track_url(run.rstrip("/"), uri)
