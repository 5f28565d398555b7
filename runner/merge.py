"""Do n partitions make the whole? ``python -m runner.merge PART PART ... [--output FOLDER]``.

Each part is the output.dir, a folder or an object store's URL, of a finished run with ``dataset.partition=i/n``.  They
make the whole if all n parts are there, of one listing of the data set, with the same settings, weights and precision,
and every file is what the journal says.  With ``--output`` the whole is put together in a folder or at a URL: files
named as a single run would have named them, by hard links or the store's own copies where possible.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq

from runner.config import OutputConfig
from runner.errors import RunnerError
from runner.formats import DESCRIPTIONS, FOLDERS, NPZ
from runner.journal import ShardEntry, believed, clips_part, line_of
from runner.merge_places import FolderSource, FolderTarget, Source, Target, make_marker
from runner.output import CLIPS, npz_names, totals
from runner.printable import printable
from runner.stores import as_path, is_url

T = TypeVar("T")
R = TypeVar("R")

_OWN = ("dataset.partition",)
_AT_ONCE, _AHEAD = 16, 32
"""Shards that are taken at once, and that may wait for an earlier one's rows in clips.parquet."""
_TELL_EVERY_S = 10.0
INTERRUPTED = 130
"""Exit status after Ctrl-C."""


@dataclass(frozen=True)
class Part:
    """One partition: where it lies, what it is of, its shards that are done, and what its numbers were made with."""

    source: Source
    about: Mapping[str, Any]
    deciding: Mapping[str, Any]
    identity: Mapping[str, Any]
    shards: int
    done: Mapping[int, ShardEntry]

    @property
    def name(self) -> str:
        """What a person is told of it."""
        return self.source.name

    @property
    def formats(self) -> Sequence[str]:
        """What its embeddings are written in."""
        return list(self.deciding["output.formats"])


def read_part(source: Source) -> Part:
    """A partition from its place.

    Raises:
        RunnerError: it holds no run, or not one of a partition.
    """
    plan = source.plan()
    if plan is None:
        raise RunnerError(f"{source.name} holds no run: give the output.dir of runs with dataset.partition=i/n")
    if not plan.get("part"):
        raise RunnerError(
            f"{source.name} is a run of the whole data set: give those of runs with dataset.partition=i/n"
        )
    deciding = {key: value for key, value in plan["deciding"].items() if key not in _OWN}
    shards = len(plan["shards"])
    done = believed(source.done(), plan["rows"])
    return Part(source, plan["part"], deciding, source.identity(), shards, done)


def problems(parts: Sequence[Part]) -> list[str]:
    """Why the parts don't make a whole; empty where they do."""
    first = parts[0]
    found = []
    for part in parts:
        about = part.about
        for key, words in (("of", "number of partitions"), ("digest", "listing of the data set")):
            if about[key] != first.about[key]:
                found.append(f"{part.name} is of another {words} than {first.name}")
        differing = sorted(
            key for key in {*part.deciding, *first.deciding} if part.deciding.get(key) != first.deciding.get(key)
        )
        if differing:
            found.append(f"{part.name} has other settings than {first.name}: {', '.join(differing)}")
        if part.identity != first.identity:
            keys = {*part.identity, *first.identity}
            others = sorted(key for key in keys if part.identity.get(key) != first.identity.get(key))
            found.append(f"{part.name} was made with other numbers than {first.name}: {', '.join(others)}")
        if holder := part.source.holder():
            found.append(f"{part.name} is in use by another command ({holder}): wait for it")
        if missing := part.shards - len(part.done):
            found.append(f"{part.name} is not finished: {missing} of its {part.shards} shards are not done")
        elif reason := part.source.unfinished():
            found.append(f"{part.name} is not finished: {reason}; run its command again")
        if damaged := part.source.damaged(part.done):
            found.append(f"{part.name} is damaged: shards {damaged} are not what was written; run it again")
        whole = {number: entry for number, entry in part.done.items() if number not in damaged}
        if lacking := part.source.without_npz(whole) if NPZ in part.formats else []:
            found.append(f"{part.name} is damaged: shards {lacking} lack npz files; {part.source.redo}")
    numbers = [part.about["which"] for part in parts]
    if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
        found.append(f"parts {twice} are given more than once")
    if absent := sorted(set(range(1, first.about["of"] + 1)) - set(numbers)):
        found.append(f"parts {absent} of {first.about['of']} are not given")
    clips = sum(entry.clips for part in parts for entry in part.done.values())
    if not found and clips != first.about["clips"]:
        found.append(f"the parts hold {clips} clips, and the data set {first.about['clips']}")
    return found


@dataclass(frozen=True)
class Placed:
    """A part's shard, and its number in the whole."""

    number: int
    part: Part
    entry: ShardEntry

    @property
    def clips(self) -> str:
        """Its part of clips.parquet."""
        return clips_part(self.entry)

    @property
    def files(self) -> dict[str, str]:
        """Its files of embeddings, and what they are called in the whole."""
        names = [Path(name) for name in self.entry.files if name.startswith(tuple(f"{folder}/" for folder in FOLDERS))]
        return {name.as_posix(): f"{name.parent.name}/part-{self.number:05d}{name.suffix}" for name in names}


def put_together(parts: Sequence[Part], target: Target) -> None:
    """Make the whole: its files, named as a single run's, clips.parquet, and last merged.json.

    A command that was stopped goes on when it is given again: what is there is not taken again.

    Raises:
        RunnerError: the target holds something else, or a store can't be read or written.
    """
    placed = [Placed(part.about["shards"][local], part, entry) for part in parts for local, entry in part.done.items()]
    placed.sort(key=lambda shard: shard.number)
    names = [part.name for part in parts]
    marker = make_marker(names, (f"{shard.number} {line_of(shard.entry)}" for shard in placed))
    scratch_folder = tempfile.TemporaryDirectory(prefix="vggish-merge-", ignore_cleanup_errors=True)
    target.check(marker)
    with scratch_folder as scratch, _held(parts), target.under_way(marker):
        first, there = parts[0].source, target.sizes()
        for name in DESCRIPTIONS:
            if name.partition("/")[0] in parts[0].formats:
                target.take(first, name, name)
        schema = pq.read_schema(first.path(CLIPS, Path(scratch) / CLIPS))
        take = partial(_take_shard, target, there, Path(scratch))
        with target.writing(CLIPS) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as clips:
            tell_after = time.monotonic() + _TELL_EVERY_S
            for count, (shard, rows) in enumerate(zip(placed, _ahead(take, placed), strict=True), 1):
                clips.write_table(pq.read_table(rows).cast(schema))
                _fetched(Path(scratch), shard).unlink(missing_ok=True)
                if time.monotonic() > tell_after:
                    tell_after += _TELL_EVERY_S
                    print(f"{count:,} of {len(placed):,} shards are in {target.name}", file=sys.stderr)
        _check_unchanged(parts)
        _check_copies(placed, parts, target)
        metrics, skipped, noted = totals({shard.number: shard.entry for shard in placed})
        about = {"parts": names, "metrics": metrics, "skipped": skipped, "noted": noted}
        target.finish(json.dumps(about | {"identity": dict(parts[0].identity)}, indent=2))


@contextmanager
def _held(parts: Sequence[Part]) -> Iterator[None]:
    """Have the parts for this command, as they were when they were looked at."""
    with ExitStack() as holds:
        for part in parts:
            holds.enter_context(part.source.held())
        _check_unchanged(parts)
        yield


def _check_unchanged(parts: Sequence[Part]) -> None:
    for part in parts:
        if changed := part.source.changed():
            raise RunnerError(
                f"{part.name} changed while it was merged ({changed[0]} and {len(changed) - 1} more): see to it that "
                "no command writes there, and merge the parts anew in another place"
            )


def _check_copies(placed: Sequence[Placed], parts: Sequence[Part], target: Target) -> None:
    """Whether the whole's files are what the parts have; those that are not are removed."""
    wrong = []
    for part in parts:
        shards = [shard for shard in placed if shard.part is part]
        taken = {name: (to, shard.entry.files[name]) for shard in shards for name, to in shard.files.items()}
        wrong += target.wrong(part.source, taken)
    if wrong:
        raise RunnerError(
            f"{target.name}: {len(wrong)} files, {wrong[0]} among them, were not what the parts have, and are removed: "
            "run the same command again"
        )


def _take_shard(target: Target, there: Mapping[str, int], scratch: Path, shard: Placed) -> Path:
    """Have a shard's files in the whole, npz first: where its others are, it is there.  Its part of clips.parquet."""
    source, described = shard.part.source, shard.entry.files
    rows = source.path(shard.clips, _fetched(scratch, shard), described[shard.clips])
    files = shard.files
    if not files or any(there.get(to) != described[name][0] for name, to in files.items()):
        names = npz_names(rows) if NPZ in shard.part.formats else []
        for name in names:
            target.take(source, name, name)
        target.settle(names)
        for name, to in files.items():
            target.take(source, name, to, described[name])
    return rows


def _fetched(scratch: Path, shard: Placed) -> Path:
    return scratch / f"part-{shard.number:05d}.parquet"


def _ahead(call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """As ``map``, several at once; no more than ``_AHEAD`` are begun before the first of them is asked for."""
    left = iter(items)
    threads = ThreadPoolExecutor(_AT_ONCE)
    wait = True
    try:
        begun: deque[Future[R]] = deque(threads.submit(call, item) for item in islice(left, _AHEAD))
        while begun:
            result = begun.popleft().result()
            begun.extend(threads.submit(call, item) for item in islice(left, 1))
            yield result
    except KeyboardInterrupt:
        wait = False  # a store that is away would be waited for
        raise
    finally:
        threads.shutdown(wait, cancel_futures=True)


def table(parts: Sequence[Part]) -> str:
    """A line a part, and their sum."""
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
    metrics, _, _ = totals(done)
    clips = sum(entry.clips for entry in done.values())
    figures = (clips, metrics["clips_embedded"], metrics["clips_skipped"], metrics["examples"])
    return (name, *(f"{int(figure):,}" for figure in figures), place)


def source_of(text: str, timeout_s: float) -> Source:
    """The place of a part that the command line names.

    Raises:
        RunnerError: a URL can't be opened, or its store does not answer.
    """
    if is_url(text):
        from runner.merge_store import StoreSource

        return StoreSource(text, timeout_s)
    return FolderSource(Path(as_path(text)))


def target_of(text: str, timeout_s: float) -> Target:
    """The place of the whole; raises as ``source_of``."""
    if is_url(text):
        from runner.merge_store import StoreTarget

        return StoreTarget(text, timeout_s)
    return FolderTarget(Path(as_path(text)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the parts given; exit status 1 if they don't make the whole."""
    parser = argparse.ArgumentParser(prog="python -m runner.merge", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("parts", nargs="+", metavar="PART", help="a partition's run (output.dir): a folder or a URL")
    parser.add_argument("--output", metavar="FOLDER", help="put the whole together there: in a folder or at a URL")
    parser.add_argument(
        "--timeout-s",
        type=float,
        metavar="SECONDS",
        default=OutputConfig.put_timeout_s,
        help="how long an object store may fail before the merge does (%(default)g)",
    )
    options = parser.parse_args(arguments)
    try:
        target = target_of(options.output, options.timeout_s) if options.output is not None else None
        parts = [read_part(source_of(text, options.timeout_s)) for text in options.parts]
        found = problems(parts)
        if not found and target is not None:
            put_together(parts, target)
    except (RunnerError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: the same command goes on", file=sys.stderr)
        return INTERRUPTED
    print(printable(table(parts)))
    for problem in found:
        print(f"FAILED: {printable(problem)}", file=sys.stderr)
    if not found:
        print(f"the {len(parts)} parts make the whole" + (f": {target.name}" if target else ""))
    return int(bool(found))


if __name__ == "__main__":
    status = main()
    if status == INTERRUPTED:
        sys.stderr.flush()
        os._exit(status)  # threads may be waiting for a store
    sys.exit(status)
