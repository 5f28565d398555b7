"""``vggish-runner export FORMAT RUN FOLDER``: a run's embeddings in the layouts of other programs."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.cli.errors import reports_errors
from runner.core.errors import RunnerError
from runner.core.printable import printable

FORMATS = {
    "hoplite": "a Perch Hoplite database (pip install perch-hoplite): hoplite.sqlite and usearch.index",
    "npy": "PATH/STEM_MODEL.npy for each clip (a_vggish.npy), float32 [n, d]",
    "raven": "a Raven selection table for each recording, with the clips' labels or clusters",
    "audacity": "an Audacity label track for each recording, likewise",
    "youtube8m": "a TFRecord of SequenceExamples in YouTube-8M's frame-level layout",
}


@reports_errors
def main(arguments: Sequence[str] | None) -> int:
    """Convert; exit status 1 if the run cannot be read or the folder cannot be written."""
    options = _parser().parse_args(arguments)
    print(printable(_convert(options)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vggish-runner export",
        description="Write a run's embeddings in the layout of another program.\n\n"
        + "\n".join(f"  {name:<10} {meaning}" for name, meaning in FORMATS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("run", metavar="RUN", help="the folder or URL of a run with Parquet embeddings")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where the files go")
    parser.add_argument("--model-output", metavar="NAME", help="output of the run's model (default: the first)")
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument(
        "--clusters", type=int, metavar="K", help="raven, audacity: label examples by K clusters of the run's sounds"
    )
    labels.add_argument(
        "--classes",
        type=float,
        nargs="?",
        const=math.nan,
        metavar="SCORE",
        help="raven, audacity: label examples by their best class, or by all classes of at least this score",
    )
    return parser


def _convert(options: argparse.Namespace) -> str:
    """Return a sentence that says what was written."""
    from runner.output.reader import EmbeddingReader

    for name in ("clusters", "classes"):
        if getattr(options, name) is not None and options.format not in ("raven", "audacity"):
            raise RunnerError(f"--{name} is for raven and audacity, not for {options.format}: leave it out")
    reader = EmbeddingReader(options.run, options.model_output)
    if options.format == "hoplite":
        from runner.converters.hoplite import export_hoplite

        count = export_hoplite(reader, options.folder, _progress)
        return f"{options.folder}: a Hoplite database of {count:,} windows"
    if options.format == "npy":
        from runner.converters.npy import export_npy

        count = export_npy(reader, options.folder)
        return f"{options.folder}: {count:,} files *_{reader.model.title.lower()}.npy"
    if options.format == "youtube8m":
        from runner.converters.youtube8m import export_youtube8m

        return f"{options.folder}: {export_youtube8m(reader, options.folder):,} records"
    from runner.converters.timelines import Classes, export_timelines

    labels = options.clusters
    if options.classes is not None:
        labels = Classes(None if math.isnan(options.classes) else options.classes)
    count = export_timelines(reader, options.folder, options.format, labels)
    return f"{options.folder}: {count:,} tables for {options.format.capitalize()}"


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done:,} of {total:,} windows", end="\n" if done == total else "", file=sys.stderr, flush=True)
