"""``vggish-runner merge``: make one output of the partitions of a data set."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.cli.errors import reports_errors
from runner.config.groups.output import OutputConfig
from runner.core.paths import as_path, is_url
from runner.core.printable import printable
from runner.core.stop_signals import INTERRUPTED

if TYPE_CHECKING:
    from runner.output.merge.locations import Source, Target
    from runner.output.merge.merge import Partition
    from runner.output.state.journal import ShardEntry


def table(partitions: Sequence[Partition]) -> str:
    """Format a row for each partition, and their sum."""
    rows: list[tuple[str, ...]] = [("partition", "clips", "embedded", "skipped", "examples", "files")]
    merged: dict[int, ShardEntry] = {}
    for partition in sorted(partitions, key=lambda partition: partition.info.index):
        info = partition.info
        merged |= {info.shards[number]: entry for number, entry in partition.committed.items()}
        rows.append(_row(f"{info.index}/{info.count}", partition.committed, partition.name))
    rows.append(_row("all", merged, ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    )


def _row(name: str, committed: Mapping[int, ShardEntry], location: str) -> tuple[str, ...]:
    from runner.output.writer import totals

    metrics = totals(committed).metrics
    clips = sum(entry.clips for entry in committed.values())
    numbers = (clips, metrics["clips_embedded"], metrics["clips_skipped"], metrics["examples"])
    return (name, *(f"{int(number):,}" for number in numbers), location)


def source_of(text: str, timeout_s: float) -> Source:
    """Open a partition that the command line names.

    Raises:
        RunnerError: a URL can't be opened, or its store does not answer.
    """
    if is_url(text):
        from runner.output.merge.stores import StoreSource

        return StoreSource(text, timeout_s)
    from runner.output.merge.folders import FolderSource

    return FolderSource(Path(as_path(text)))


def target_of(text: str, timeout_s: float) -> Target:
    """Open the output of the merge; raises as ``source_of``."""
    if is_url(text):
        from runner.output.merge.stores import StoreTarget

        return StoreTarget(text, timeout_s)
    from runner.output.merge.folders import FolderTarget

    return FolderTarget(Path(as_path(text)))


@reports_errors
def main(arguments: Sequence[str] | None) -> int:
    """Check partitions, and merge them with ``--output``; return exit status 1 if they are incomplete or differ."""
    options = _parser().parse_args(arguments)
    from runner.output.merge.merge import find_problems, merge_partitions, read_partition

    try:
        target = target_of(options.output, options.timeout_s) if options.output is not None else None
        partitions = [read_partition(source_of(text, options.timeout_s)) for text in options.parts]
        problems = find_problems(partitions)
        if not problems and target is not None:
            merge_partitions(partitions, target)
    except KeyboardInterrupt:
        print("stopped; rerun the same command to resume", file=sys.stderr)
        return INTERRUPTED
    print(printable(table(partitions)))
    for problem in problems:
        print(f"FAILED: {printable(problem)}", file=sys.stderr)
    if not problems:
        count = f"{len(partitions)} of {len(partitions)} partitions"
        print(f"merged {count} into {target.name}" if target else f"{count} are complete, and can be merged")
    return int(bool(problems))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vggish-runner merge", description="Check the partitions of a data set, and make one output of them."
    )
    parser.add_argument("parts", nargs="+", metavar="PART", help="output.dir of a partition's run: a folder or a URL")
    parser.add_argument("--output", metavar="FOLDER", help="the merged output: a folder or a URL (default: only check)")
    parser.add_argument(
        "--timeout-s",
        type=float,
        metavar="SECONDS",
        default=OutputConfig.upload_timeout_s,
        help="how long an object store may fail before the merge does (default: %(default)g)",
    )
    return parser
