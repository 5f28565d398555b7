"""Do n partitions make the whole? ``python -m runner.merge FOLDER FOLDER ... [--output FOLDER]``.

Each folder is a finished run with ``dataset.partition=i/n``.  They make the whole if all n parts are there, of one
listing of the data set, with the same settings, weights and precision, and every file is what the journal says.  With
``--output`` the whole is put together: files named as a single run would have named them, hard links where possible.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from runner.errors import RunnerError
from runner.files import atomic, write_atomic
from runner.formats import FOLDERS, NPZ
from runner.journal import CLIP_PARTS, IDENTITY, JOURNAL, STATE, ShardEntry, damaged_shards, read_journal
from runner.output import CLIPS, totals
from runner.resume import read_plan
from runner.stores import as_path, is_url

_OWN = ("dataset.partition",)


@dataclass(frozen=True)
class Part:
    """One partition's folder: what it is of, its shards that are done, and what its numbers were made with."""

    folder: Path
    about: Mapping[str, Any]
    deciding: Mapping[str, Any]
    identity: Mapping[str, Any]
    shards: int
    done: Mapping[int, ShardEntry]


def read_part(folder: Path) -> Part:
    """A partition from its folder.

    Raises:
        RunnerError: it holds no run, or not one of a partition.
    """
    plan = read_plan(folder)
    if plan is None:
        raise RunnerError(f"{folder} holds no run: give the folders of runs with dataset.partition=i/n")
    if not plan.get("part"):
        raise RunnerError(f"{folder} is a run of the whole data set: give those of runs with dataset.partition=i/n")
    state = folder / STATE
    try:
        identity = json.loads((state / IDENTITY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        identity = {}
    deciding = {key: value for key, value in plan["deciding"].items() if key not in _OWN}
    done, _ = read_journal(state / JOURNAL)
    return Part(folder, plan["part"], deciding, identity, len(plan["shards"]), done)


def problems(parts: Sequence[Part]) -> list[str]:
    """Why the parts don't make a whole; empty where they do."""
    first = parts[0]
    found = []
    for part in parts:
        about = part.about
        for key, words in (("of", "number of partitions"), ("digest", "listing of the data set")):
            if about[key] != first.about[key]:
                found.append(f"{part.folder} is of another {words} than {first.folder}")
        differing = sorted(
            key for key in {*part.deciding, *first.deciding} if part.deciding.get(key) != first.deciding.get(key)
        )
        if differing:
            found.append(f"{part.folder} has other settings than {first.folder}: {', '.join(differing)}")
        if part.identity != first.identity:
            found.append(f"{part.folder} has other weights or another precision than {first.folder}")
        if missing := part.shards - len(part.done):
            found.append(f"{part.folder} is not finished: {missing} of its {part.shards} shards are not done")
        if damaged := damaged_shards(part.folder, part.done):
            found.append(f"{part.folder} is damaged: shards {damaged} are not what was written; run it again")
    numbers = [part.about["which"] for part in parts]
    if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
        found.append(f"parts {twice} are given more than once")
    if absent := sorted(set(range(1, first.about["of"] + 1)) - set(numbers)):
        found.append(f"parts {absent} of {first.about['of']} are not given")
    clips = sum(entry.clips for part in parts for entry in part.done.values())
    if not found and clips != first.about["clips"]:
        found.append(f"the parts hold {clips} clips, and the data set {first.about['clips']}")
    return found


def put_together(parts: Sequence[Part], target: Path) -> None:
    """Make the whole's folder: its files, named as a single run's, clips.parquet and merged.json.

    Raises:
        RunnerError: the folder is there already.
    """
    if target.exists() and any(target.iterdir()):
        raise RunnerError(f"{target} is not empty: name another folder")
    placed = sorted(
        ((part.about["shards"][local], part, entry) for part in parts for local, entry in part.done.items()),
        key=lambda each: each[0],
    )
    for folder in FOLDERS:
        if any((part.folder / folder).is_dir() for part in parts):
            (target / folder).mkdir(parents=True)
    for number, part, entry in placed:
        for name in entry.files:
            source = part.folder / name
            if source.parent.name in FOLDERS:
                _link(source, target / source.parent.name / f"part-{number:05d}{source.suffix}")
    for part in parts:
        if (part.folder / NPZ).is_dir():
            shutil.copytree(part.folder / NPZ, target / NPZ, copy_function=_link, dirs_exist_ok=True)
    for folder in FOLDERS:
        for source in (parts[0].folder / folder).glob("*.[jc]s*"):  # metadata.json, labels.csv
            _link(source, target / folder / source.name)
    parts_of_clips = [part.folder / STATE / CLIP_PARTS / f"part-{entry.shard:05d}.parquet" for _, part, entry in placed]
    with atomic(target / CLIPS) as temporary:
        schema = pq.read_schema(parts[0].folder / CLIPS)
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for path in parts_of_clips:
                writer.write_table(pq.read_table(path).cast(schema))
    metrics, skipped, noted = totals({number: entry for number, _, entry in placed})
    about = {"parts": [str(part.folder) for part in parts], "metrics": metrics, "skipped": skipped, "noted": noted}
    write_atomic(target / "merged.json", json.dumps(about | {"identity": dict(parts[0].identity)}, indent=2))


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:  # another file system
        shutil.copyfile(source, target)


def table(parts: Sequence[Part]) -> str:
    """A line a part, and their sum."""
    rows: list[tuple[str, ...]] = [("part", "clips", "embedded", "skipped", "examples", "folder")]
    everything: dict[int, ShardEntry] = {}
    for part in sorted(parts, key=lambda each: int(each.about["which"])):
        everything |= {part.about["shards"][local]: entry for local, entry in part.done.items()}
        rows.append(_row(f"{part.about['which']}/{part.about['of']}", part.done, str(part.folder)))
    rows.append(_row("all", everything, ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    )


def _row(name: str, done: Mapping[int, ShardEntry], folder: str) -> tuple[str, ...]:
    metrics, _, _ = totals(done)
    clips = sum(entry.clips for entry in done.values())
    figures = (clips, metrics["clips_embedded"], metrics["clips_skipped"], metrics["examples"])
    return (name, *(f"{int(figure):,}" for figure in figures), folder)


def _folder(text: str) -> Path:
    if is_url(text):
        raise argparse.ArgumentTypeError(f"{text} is in an object store: copy it to a folder, and give that")
    return Path(as_path(text))


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the folders given; exit status 1 if they don't make the whole."""
    parser = argparse.ArgumentParser(prog="python -m runner.merge", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folders", nargs="+", type=_folder, metavar="FOLDER", help="a partition's run (output.dir)")
    parser.add_argument("--output", type=_folder, metavar="FOLDER", help="put the whole together there")
    options = parser.parse_args(arguments)
    try:
        parts = [read_part(folder) for folder in options.folders]
        found = problems(parts)
        if not found and options.output is not None:
            put_together(parts, options.output)
    except RunnerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(parts))
    for problem in found:
        print(f"FAILED: {problem}", file=sys.stderr)
    if not found:
        print(f"the {len(parts)} parts make the whole" + (f": {options.output}" if options.output else ""))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
