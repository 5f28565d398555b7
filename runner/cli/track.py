"""``vggish-runner track``: logs finished runs to MLflow later."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.core.errors import RunnerError
from runner.core.paths import as_path, is_url
from runner.core.printable import printable
from runner.core.redact import without_credentials
from runner.tracking.relog import _INTERRUPTED, track


def main(arguments: Sequence[str] | None = None) -> int:
    """Log the runs given; exit status 1 if one could not be logged, 130 if Ctrl-C ended it."""
    parser = argparse.ArgumentParser(
        prog="vggish-runner track", description="Log runs or sweeps to MLflow that could not be logged at the time."
    )
    parser.add_argument("places", nargs="+", metavar="RUN_DIR", help="a run's or a sweep's folder, or its URL")
    parser.add_argument("--uri", help="the MLflow store (default: the run's own tracking settings)")
    options = parser.parse_args(arguments)
    failed = False
    for place in options.places:
        try:
            print(printable(f"{without_credentials(place)}: {_track(place, options.uri)}"))
        except RunnerError as error:
            failed = True
            print(printable(f"{without_credentials(place)}: error: {error}"), file=sys.stderr)
        except KeyboardInterrupt:
            print("stopped: the same command logs what is left", file=sys.stderr)
            return _INTERRUPTED
    return int(failed)


def _track(place: str, uri: str | None) -> str:
    if not is_url(place):
        return track(Path(as_path(place)).resolve(), uri)
    from runner.tracking.relog_remote import track_url

    return track_url(place.rstrip("/"), uri)
