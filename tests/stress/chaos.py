"""Kills a run again and again, and resumes it: ``python -m tests.stress.chaos --kills 200`` (``make chaos``).

Each round runs the command on the same clips into a folder of its own; at random moments the worker, a decode process
or the command itself gets SIGKILL; the same command is run again until it is finished.  Then rows, order and bits must
be those of an undisturbed run, with no clip twice, none missing, and nothing left behind: no temporary file, no shared
memory, no process.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import soundfile

from tests.commands import PROJECT, environment
from tests.fork_server import Forked

TARGETS = ("worker", "decode", "command")
SETTINGS = (
    "weights=random",
    "device=cpu",
    "output.clips_per_shard=16",
    "memory=conservative",
    "memory.decode_workers=2",
)
FINISHED = 0
_WORKERS = {"runner.engines.worker", "tests.double.worker"}


def make_clips(folder: Path, clips: int, seed: int = 0) -> Path:
    """Short clips in three encodings, some too short or broken."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(clips):
        seconds = rng.choice([0.3, 2.0, 3.5, 8.0])
        kind, rate, channels = [("wav", 16_000, 1), ("flac", 44_100, 2), ("wav", 22_050, 1)][number % 3]
        wave = rng.uniform(-0.5, 0.5, (int(seconds * rate), channels))
        path = folder / f"{number % 7}" / f"{number:05d}.{kind}"
        path.parent.mkdir(exist_ok=True)
        if number % 50 == 49:
            path.write_bytes(b"RIFF no audio at all")
        else:
            soundfile.write(path, wave, rate)
    return folder


def start(clips: Path, out: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """The command, in the background; its output goes to a file beside ``out``."""
    command = [sys.executable, "-m", "runner", f"dataset.root={clips}", f"output.dir={out}", *SETTINGS, *arguments]
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=PROJECT, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def victims(command: subprocess.Popen[bytes] | Forked, target: str) -> list[psutil.Process]:
    """The processes of a command that are its target."""
    try:
        itself = psutil.Process(command.pid)
        if target == "command":
            return [itself]
        workers = [child for child in itself.children() if _WORKERS & set(child.cmdline())]
        if target == "worker":
            return workers
        return [child for worker in workers for child in worker.children() if "spawn_main" in " ".join(child.cmdline())]
    except psutil.Error:
        return []


def disturb(
    start: Callable[[], subprocess.Popen[bytes] | Forked],
    out: Path,
    rng: random.Random,
    most: int,
    killed: collections.Counter[str],
    longest_s: float = 12.0,
) -> int:
    """Run, kill and resume until the run is finished.

    Args:
        start: starts the command, whose run is in ``out``.
        out: the run's folder.
        rng: chooses whom to kill, and when.
        most: kills.
        killed: counts them.
        longest_s: before the first kill of a session; the next one comes in half the time.

    Returns:
        How many sessions it took.
    """
    sessions = 0
    while True:
        sessions += 1
        before = killed.total()
        command = start()
        ends_at = time.monotonic() + rng.uniform(longest_s / 24, longest_s)
        while command.poll() is None and killed.total() < most:
            if time.monotonic() < ends_at:
                time.sleep(0.02)
                continue
            target = rng.choice(TARGETS)
            if found := victims(command, target):
                rng.choice(found).kill()
                killed[target] += 1
            ends_at = time.monotonic() + rng.uniform(longest_s / 24, longest_s / 2)
        if command.wait() == FINISHED:
            return sessions
        if killed.total() == before:
            raise SystemExit(f"{out}: a session failed that nobody killed: see {out.with_suffix('.log')}")


def differences(run: Path, undisturbed: Path) -> list[str]:
    """What is wrong with a run beside an undisturbed one; empty if nothing is."""
    found = []
    for name in ("clips.parquet", "embeddings"):
        one, other = (pq.read_table(folder / name) for folder in (run, undisturbed))
        if not one.equals(other):
            found.append(f"{name}: {one.num_rows} rows, {other.num_rows} undisturbed, or other values")
    found += [f"left behind: {path}" for path in run.rglob(".*.tmp")]
    found += [f"left behind: {path}" for path in Path("/dev/shm").glob("psm_*")]
    if json.loads((run / "result.json").read_text())["status"] != "finished":
        found.append("result.json does not say finished")
    return found


def left_over(out: Path, within_s: float = 10.0) -> list[psutil.Process]:
    """Processes that still work on a run."""
    deadline = time.monotonic() + within_s
    while True:
        alive = [
            process
            for process in psutil.process_iter(["cmdline"])
            if str(out) in " ".join(process.info["cmdline"] or []) and process.pid != psutil.Process().pid
        ]
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.1)


def main() -> int:
    """Kill as often as asked for; exit status 1 if a run came out different."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--clips", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=PROJECT / "outputs" / "chaos")
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    clips = make_clips(folder / "data", options.clips)
    undisturbed = folder / "undisturbed"
    if start(clips, undisturbed, "tracking=none").wait() != FINISHED:
        raise SystemExit(f"the undisturbed run failed: see {undisturbed.with_suffix('.log')}")
    rng = random.Random(options.seed)
    killed: collections.Counter[str] = collections.Counter()
    rounds = bad = 0
    while killed.total() < options.kills:
        run = folder / f"run-{rounds:03d}"
        sessions = disturb(partial(start, clips, run, "tracking=none"), run, rng, options.kills, killed)
        wrong = differences(run, undisturbed) + [f"still alive: {process}" for process in left_over(run)]
        rounds += 1
        bad += bool(wrong)
        print(
            f"round {rounds}: {sessions} sessions, {killed.total()} kills so far, {'; '.join(wrong) or 'equal'}",
            flush=True,
        )
        if not wrong:
            subprocess.run(["rm", "-rf", str(run)], check=True)
    told = ", ".join(f"{number} {name}" for name, number in killed.items())
    print(f"{killed.total()} kills ({told}) in {rounds} rounds: {bad} came out different")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
