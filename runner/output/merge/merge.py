"""Do n partitions make the whole? ``python -m runner merge PART PART ... [--output FOLDER]``.

Each part is the output.dir, a folder or an object store's URL, of a finished run with ``dataset.partition=i/n``.  They
make the whole if all n parts are there, of one listing of the data set, with the same settings, weights and precision,
and every file is what the journal says.  With ``--output`` the whole is put together in a folder or at a URL: files
named as a single run would have named them, by hard links or the store's own copies where possible.
"""

from __future__ import annotations

import json
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
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow.parquet as pq

from runner.core.errors import RunnerError
from runner.core.layout import CLIPS, DESCRIPTIONS, FOLDERS, NPZ, RunLayout
from runner.output.merge.folders import merge_fingerprint
from runner.output.shard_statistics import RunStatistics, read_clip_rows
from runner.output.state.journal import believed, clips_part, to_line
from runner.output.verify import npz_names
from runner.output.writer import totals

if TYPE_CHECKING:
    from runner.output.merge.folders import Source, Target
    from runner.output.state.journal import ShardEntry

T = TypeVar("T")

R = TypeVar("R")

_OWN = ("dataset.partition",)

_AT_ONCE, _AHEAD = 16, 32
"""Shards that are taken at once, and that may wait for an earlier one's rows in clips.parquet."""

_TELL_EVERY_S = 10.0


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
class MergedShard:
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


def merge_partitions(parts: Sequence[Part], target: Target) -> None:
    """Make the whole: its files, named as a single run's, clips.parquet, and last merged.json.

    A command that was stopped goes on when it is given again: what is there is not taken again.

    Raises:
        RunnerError: the target holds something else, or a store can't be read or written.
    """
    placed = [
        MergedShard(part.about["shards"][local], part, entry) for part in parts for local, entry in part.done.items()
    ]
    placed.sort(key=lambda shard: shard.number)
    names = [part.name for part in parts]
    marker = merge_fingerprint(names, (f"{shard.number} {to_line(shard.entry)}" for shard in placed))
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
            statistics = RunStatistics()
            tell_after = time.monotonic() + _TELL_EVERY_S
            for count, (shard, rows) in enumerate(zip(placed, _ahead(take, placed), strict=True), 1):
                table, sums = read_clip_rows(rows)
                clips.write_table(table.cast(schema))
                statistics.add(sums)
                _fetched(Path(scratch), shard).unlink(missing_ok=True)
                if time.monotonic() > tell_after:
                    tell_after += _TELL_EVERY_S
                    print(f"{count:,} of {len(placed):,} shards are in {target.name}", file=sys.stderr)
        if data := statistics.to_npz(schema):
            with target.writing(RunLayout.statistics) as temporary:
                temporary.write_bytes(data)
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


def _check_copies(placed: Sequence[MergedShard], parts: Sequence[Part], target: Target) -> None:
    """Whether the whole's files are what the parts have; those that are not are removed."""
    wrong = []
    for part in parts:
        shards = [shard for shard in placed if shard.part is part]
        taken = {name: (to, shard.entry.files[name]) for shard in shards for name, to in shard.files.items()}
        wrong += target.wrong(part.source, taken)
    if wrong:
        raise RunnerError(
            f"{target.name}: {len(wrong)} files, {wrong[0]} among them, were not what the parts have, and are removed: "
            "rerun the same command"
        )


def _take_shard(target: Target, there: Mapping[str, int], scratch: Path, shard: MergedShard) -> Path:
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


def _fetched(scratch: Path, shard: MergedShard) -> Path:
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
