"""``vggish-runner merge``: make one output of the partitions of a data set."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.config.groups.output import OutputConfig
from runner.core.errors import RunnerError
from runner.core.paths import as_path, is_url
from runner.core.printable import printable
from runner.core.stop_signals import INTERRUPTED

if TYPE_CHECKING:
    from runner.output.merge.folders import Source, Target
    from runner.output.merge.merge import Part
    from runner.output.state.journal import ShardEntry


def table(parts: Sequence[Part]) -> str:
    """Format a row for each partition, and their sum."""
    rows: list[tuple[str, ...]] = [("part", "clips", "embedded", "skipped", "examples", "files")]
    everything: dict[int, ShardEntry] = {}
    for part in sorted(parts, key=lambda each: int(each.about["which"])):
        everything |= {part.about["shards"][local]: entry for local, entry in part.done.items()}
        rows.append(_row(f"{part.about['which']}/{part.about['of']}", part.done, part.name))
    rows.append(_row("all", everything, ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    )


def _row(name: str, done: Mapping[int, ShardEntry], place: str) -> tuple[str, ...]:
    from runner.output.writer import totals

    metrics, _, _ = totals(done)
    clips = sum(entry.clips for entry in done.values())
    figures = (clips, metrics["clips_embedded"], metrics["clips_skipped"], metrics["examples"])
    return (name, *(f"{int(figure):,}" for figure in figures), place)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Check partitions, and merge them with ``--output``; return exit status 1 if they are incomplete or differ."""
    options = _parser().parse_args(arguments)
    from runner.output.merge.merge import merge_partitions, problems, read_part

    try:
        target = target_of(options.output, options.timeout_s) if options.output is not None else None
        parts = [read_part(source_of(text, options.timeout_s)) for text in options.parts]
        found = problems(parts)
        if not found and target is not None:
            merge_partitions(parts, target)
    except (RunnerError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; rerun the same command to resume", file=sys.stderr)
        return INTERRUPTED
    print(printable(table(parts)))
    for problem in found:
        print(f"FAILED: {printable(problem)}", file=sys.stderr)
    if not found:
        count = f"{len(parts)} of {len(parts)} partitions"
        print(f"merged {count} into {target.name}" if target else f"{count} are complete, and can be merged")
    return int(bool(found))


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
