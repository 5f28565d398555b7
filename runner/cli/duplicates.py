"""``vggish-runner duplicates``: groups of clips that sound nearly the same."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.cli.errors import reports_errors
from runner.core.errors import RunnerError
from runner.core.printable import print_page, printable

if TYPE_CHECKING:
    from runner.evaluation.duplicates import DuplicateGroup

_DESCRIPTION = """\
Group the clips of a run whose mean embeddings have a cosine similarity of at least --above. Every pair is compared.
Models such as VGGish hear classes of sound rather than recordings, so that a group is a list of candidates: listen
before you delete.
"""


@reports_errors
def main(arguments: Sequence[str] | None) -> int:
    """Print the groups; exit status 1 if the run cannot be read."""
    options = _parser().parse_args(arguments)
    if not -1.0 <= options.above <= 1.0:
        raise RunnerError(f"--above {options.above:g} is not a cosine similarity: give a number from -1 to 1")
    text = _find(options)
    if options.output is not None:
        from runner.core.files import write_atomic

        write_atomic(options.output, text + "\n")
        text = f"written to {options.output}"
    print_page(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vggish-runner duplicates", description=_DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="the folder or URL of a run with Parquet embeddings")
    parser.add_argument("--above", type=float, default=0.99, help="the least cosine similarity (default: 0.99)")
    parser.add_argument("--model-output", metavar="NAME", help="output of the run's model (default: the first)")
    parser.add_argument("--format", choices=("table", "csv"), default="table", help="csv has a row a clip")
    parser.add_argument("--output", type=Path, help="a file (default: the terminal)")
    return parser


def _find(options: argparse.Namespace) -> str:
    from runner.evaluation.duplicates import clip_means, find_duplicates
    from runner.output.reader import EmbeddingReader

    clips = clip_means(EmbeddingReader(options.run, options.model_output).blocks())
    groups = find_duplicates(clips, options.above)
    return _csv(groups) if options.format == "csv" else _table(groups, len(clips.clips), options.above)


def _table(groups: Sequence[DuplicateGroup], clips: int, above: float) -> str:
    inside = sum(len(group.clips) for group in groups)
    count = f"{len(groups)} group{'s' * (len(groups) != 1)}"
    lines = [f"{count} with {inside} of {clips:,} clips: each is at least {above:g} similar to another of its group"]
    for number, group in enumerate(groups, start=1):
        lines.append(f"\ngroup {number}: {len(group.clips)} clips, similarity {group.least:.4f} to {group.most:.4f}")
        lines += [f"  {clip}" for clip in group.clips]
    return printable("\n".join(lines))


def _csv(groups: Sequence[DuplicateGroup]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("group", "clip", "least_similarity", "most_similarity"))
    for number, group in enumerate(groups, start=1):
        writer.writerows((number, clip, f"{group.least:.6f}", f"{group.most:.6f}") for clip in group.clips)
    return text.getvalue().rstrip("\n")
