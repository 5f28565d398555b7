"""``vggish-runner search``: the examples of a run that sound most like a query."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.cli.errors import reports_errors
from runner.core.errors import RunnerError
from runner.core.printable import print_page

if TYPE_CHECKING:
    from runner.evaluation.search import Match
    from runner.output.reader import EmbeddingReader

_DESCRIPTION = """\
Search the embeddings of a run for the examples most like a query: an audio file, which is embedded with the run's
weights, or a clip of the run (--clip). The search is exact: every example is compared.
"""


@reports_errors
def main(arguments: Sequence[str] | None) -> int:
    """Search and print; exit status 1 if the run or the query cannot be read."""
    options = _parser().parse_args(arguments)
    from runner.output.reader import EmbeddingReader

    _check(options)
    reader = EmbeddingReader(options.run, options.model_output)
    print_page(_format(options, reader, _search(options, reader)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vggish-runner search", description=_DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="the folder or URL of a run with Parquet embeddings")
    parser.add_argument("query", nargs="?", metavar="AUDIO", help="an audio file to search for")
    parser.add_argument("--clip", metavar="NAME", help="search for a clip of the run instead of an audio file")
    parser.add_argument("--start", type=float, metavar="S", help="where the query begins, in seconds")
    parser.add_argument("--end", type=float, metavar="S", help="where the query ends, in seconds")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="how many examples (default: 20)")
    parser.add_argument("--per-clip", type=int, metavar="N", help="at most N examples of a clip (default: no limit)")
    parser.add_argument("--similarity", choices=("cosine", "dot", "euclidean"), default="cosine")
    parser.add_argument(
        "--query",
        dest="pooling",
        choices=("mean", "each"),
        default="mean",
        help="compare with the mean of the query's examples, or take the best of each (default: mean)",
    )
    parser.add_argument("--model-output", metavar="NAME", help="output of the run's model (default: the first)")
    parser.add_argument("--models", type=Path, help="the folder of the released weights (default: the runner's)")
    parser.add_argument("--format", choices=("table", "csv", "raven", "audacity"), default="table")
    parser.add_argument(
        "--output", type=Path, help="a file (default: the terminal); for audacity a folder, with a track a clip"
    )
    return parser


def _check(options: argparse.Namespace) -> None:
    if (options.query is None) == (options.clip is None):
        raise RunnerError("give one query: an audio file, or --clip NAME for a clip of the run")
    for name in ("top", "per_clip"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise RunnerError(f"--{name.replace('_', '-')} {value} is not a number of examples: give 1 or more")
    if options.format == "audacity" and options.output is None:
        raise RunnerError("--format audacity writes a label track for each clip: give their folder with --output")


def _search(options: argparse.Namespace, reader: EmbeddingReader) -> list[Match]:
    """Search as the options say."""
    from runner.core.paths import default_models
    from runner.evaluation.query import query_from_clip, query_from_file
    from runner.evaluation.search import Similarity, search

    if options.clip is not None:
        query = query_from_clip(reader, options.clip, options.start, options.end)
    else:
        models = options.models or default_models()
        query = query_from_file(reader, options.query, options.start, options.end, models)
    if options.pooling == "mean":
        query = query.mean(axis=0, keepdims=True)
    return search(query, reader, options.top, Similarity(options.similarity), options.per_clip)


def _format(options: argparse.Namespace, reader: EmbeddingReader, matches: Sequence[Match]) -> str:
    """Return the matches as text, or say where they were written."""
    from runner.core.files import write_atomic
    from runner.evaluation.selections import Selection, csv_table, raven_table, text_table, write_audacity

    selections = [
        Selection(match.clip, match.start_s, match.start_s + reader.example_s, match.label or "", match.score)
        for match in matches
    ]
    if options.format == "audacity":
        paths = write_audacity(selections, options.output)
        return f"{len(paths)} label tracks in {options.output}"
    if options.format == "raven":
        text = raven_table(selections, reader.dataset_root(), reader.model.sample_rate // 2)
    else:
        text = {"table": text_table, "csv": csv_table}[options.format](selections)
    if options.output is None:
        return text.rstrip("\n")
    write_atomic(options.output, text)
    return f"{len(selections)} examples in {options.output}"
