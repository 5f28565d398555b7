"""``vggish-runner fad``: distances of runs from a reference."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from runner.cli.errors import reports_errors
from runner.core.errors import RunnerError
from runner.core.printable import printable
from runner.core.redact import without_credentials

if TYPE_CHECKING:
    from runner.evaluation.fad import FadOptions, Reference, Score
    from runner.evaluation.sources import EmbeddingSet

_RESAMPLES = 200

_RANDOM = (
    "RANDOM WEIGHTS: these distances compare nothing but two sets of random numbers; no published FAD can be compared "
    "with them."
)


@reports_errors
def main(arguments: Sequence[str] | None) -> int:
    """Print the distances; exit status 1 if a limit is passed, two sets can't be compared, or one can't be read."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.self_test:
        from runner.cli.fad_selftest import self_test

        return self_test()
    if options.reference is None or not options.runs:
        parser.error("give a reference and a run")
    return _compare(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vggish-runner fad",
        description="Fréchet Audio Distance of runs from a reference, with a bootstrap interval over clips.",
    )
    kinds = "a run's folder or URL, or a file of statistics (stats.npz, fadtk's .npz, Google's .tfrecord, mu.npy and "
    parser.add_argument("reference", nargs="?", metavar="REFERENCE", help=f"{kinds}cov.npy in a folder)")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="likewise; of a sweep or a folder of runs, each of them")
    parser.add_argument(
        "--infinity",
        nargs="?",
        const="subsets",
        choices=("subsets", "fadtk"),
        help="FAD of infinitely many examples by extrapolation, from subsets drawn without replacement, or with it as "
        "fadtk does",
    )
    parser.add_argument(
        "--kad",
        nargs="?",
        const="reference",
        choices=("reference", "kadtk"),
        help="Kernel Audio Distance × 100, with the reference's median distance for a kernel width, or the run's as "
        "kadtk does",
    )
    parser.add_argument("--per-clip", metavar="FILE", type=Path, help="write each clip's own FAD to a CSV file, ranked")
    parser.add_argument(
        "--bootstrap",
        type=int,
        metavar="N",
        help=f"resamples for the interval; 0 for none (default: {_RESAMPLES}, and 0 for URLs, whose embeddings would "
        "be downloaded)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    parser.add_argument("--model-output", metavar="NAME", help="output of the runs' models (default: the first)")
    parser.add_argument("--fail-above", type=float, metavar="X", help="exit status 1 if a run's FAD is above this")
    parser.add_argument(
        "--allow-different", action="store_true", help="compare other protocols or weights all the same"
    )
    parser.add_argument("--no-log", action="store_true", help="leave the runs in MLflow as they are")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--csv", action="store_true", help="print CSV")
    parser.add_argument(
        "--self-test", action="store_true", help="check the released weights against torcheval's values"
    )
    return parser


def _compare(options: argparse.Namespace) -> int:
    os.environ.setdefault(
        "OPENBLAS_NUM_THREADS", "1"
    )  # threads slow matrices of 128 × 128 down, twentyfold if others work
    from runner.evaluation.fad import FadOptions, Reference, check_limit, differences, failures, measure, unknown
    from runner.evaluation.forms import as_csv, as_json, as_table, write_clips
    from runner.evaluation.sources import find_sets

    most = None if options.fail_above is None else check_limit(options.fail_above)
    references = find_sets(options.reference, output=options.model_output)
    if len(references) > 1:
        raise RunnerError(
            f"{options.reference} holds {len(references)} runs ({references[0].name} first): name one for a reference"
        )
    reference = Reference(references[0], options.seed)
    runs = [run for argument in options.runs for run in find_sets(argument, output=options.model_output)]
    if not options.allow_different:
        for run in runs:
            if reasons := differences(reference.embeddings, run):
                raise RunnerError(
                    f"{'; '.join(reasons)}: their distance would say nothing of the audio; embed both alike, or give "
                    "--allow-different"
                )
    fad_options = FadOptions(_RESAMPLES, options.infinity, options.kad, options.per_clip is not None, options.seed)
    scores = [measure(reference, run, _options_for(reference, run, fad_options, options.bootstrap)) for run in runs]
    form = as_json if options.json else as_csv if options.csv else as_table
    print(printable(form(reference, scores, fad_options)))
    if options.per_clip is not None:
        write_clips(options.per_clip, scores)
    warnings = [_RANDOM] if any(each.is_random for each in (reference.embeddings, *runs)) else []
    warnings += [note for note in (unknown(reference.embeddings),) if note]
    for warning in warnings:
        print(printable(warning), file=sys.stderr)
    if not options.no_log:
        for run, score in zip(runs, scores, strict=True):
            _log(reference, run, score, options.model_output)
    failed = [] if most is None else failures(scores, most)
    for line in failed:
        print(f"FAILED: {printable(line)}", file=sys.stderr)
    return int(bool(failed))


def _options_for(reference: Reference, run: EmbeddingSet, fad_options: FadOptions, resamples: int | None) -> FadOptions:
    """Return what to measure of a run: without an interval that would take a download, unless it was asked for."""
    from runner.evaluation.fad import check_pairs
    from runner.evaluation.scan import OtherClips

    if resamples is not None:
        return replace(fad_options, interval=max(0, resamples))
    is_remote = run.is_remote
    if not is_remote and reference.embeddings.is_remote:
        with contextlib.suppress(OtherClips):
            check_pairs(reference.embeddings, run)
            is_remote = True  # both sides are read for an interval in pairs
    reads = fad_options.limit or fad_options.kad or fad_options.per_clip
    return replace(fad_options, interval=0) if is_remote and not reads else fad_options


def _log(reference: Reference, run: EmbeddingSet, score: Score, output: str | None) -> None:
    """Add a run's distances, of the output that was asked for, to its MLflow run; trouble is a warning."""
    if run.tracking is None:
        return
    from runner.tracking.client import TrackingError
    from runner.tracking.late_metrics import log_late_metrics

    tags = {
        "fad.reference": without_credentials(reference.embeddings.name),
        "fad.reference_examples": str(reference.embeddings.summary.n),
        **({"fad.output": output} if output else {}),
    }
    try:
        log_late_metrics(run.tracking, score.metrics(), tags)
    except TrackingError as error:
        logging.getLogger(__name__).warning("%s", error)
