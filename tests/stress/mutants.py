"""Mistakes, put one at a time into a copy of the package: some test must catch each.

``python -m tests.stress.mutants [--list] [--only N,M] [--jobs J] [--record FILE] [--compare FILE]`` takes the
mutants of
``tests/stress/mutant_list.py``, which are of what goes on around the numbers (those have
``tests/stress/mutations.py``).  Each runs
the tests that are named for it, most likely first, until one fails; that counts only if the same test passes without
the mutant.  A record is a line a mutant, with the test that caught it or why none did; ``--compare`` takes a record and
tells what was caught then and is not now, which is exit status 1.  ``tests/stress/mutants.tsv`` is the one to
compare with.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.stress.mutant_list import MUTANTS, Mutant

PROJECT = Path(__file__).resolve().parents[2]
NOT_CAUGHT, TIMEOUT, DEATH, ERROR = "not caught", "timeout", "the tests' own process died", "error:"
COLUMNS = ("number", "mutant", "file", "caught by", "seconds", "commit")
_LEFT_OUT = shutil.ignore_patterns(".*", "outputs", "dist", "build", "__pycache__", "*.ckpt", "*.npz")
_PASSED, _FAILED, _INTERRUPTED, _NO_TESTS = 0, 1, 2, (4, 5)
"""Exit statuses of pytest: collection that fails is interrupted; what it can't find is a fault of the table."""
_UNFIT = 5
"""Tests that fail without the mutant, too, and are left out: so many at most."""


class Finding(NamedTuple):
    """What caught a mutant, a test or one of ``NOT_CAUGHT``, ``TIMEOUT`` and ``DEATH``, and how long that took.

    What begins with ``ERROR`` is a fault of the table.
    """

    mutant: Mutant
    caught_by: str
    seconds: float

    @property
    def is_caught(self) -> bool:
        """Whether anything caught it."""
        return not self.caught_by.startswith((NOT_CAUGHT, ERROR))


class TableError(Exception):
    """The table is not of the code, or of the tests, as they are now."""


def mutated(mutant: Mutant, source: str) -> str:
    """The source of the mutant's file with its mistake.

    Raises:
        TableError: the text that it replaces is not there exactly once.
    """
    if (count := source.count(mutant.old)) != 1:
        raise TableError(
            f"runner/{mutant.file} has {mutant.old!r} {count} times, not once: mend tests/stress/mutant_list.py"
        )
    return source.replace(mutant.old, mutant.new)


class Copies:
    """Copies of the tree in temporary folders, and pytest in them.

    Args:
        folder: where they are made.
        limit_s: how long one run of pytest may take.
    """

    def __init__(self, folder: Path, limit_s: float) -> None:
        self._folder, self._limit_s = folder, limit_s
        self._fit: dict[str, bool] = {}
        self._made = 0
        self._lock = threading.Lock()

    def examine(self, mutant: Mutant) -> Finding:
        """Run a mutant's tests until one that passes without it fails with it."""
        start = time.monotonic()
        try:
            caught_by = self._catch(mutant)
        except TableError as error:
            caught_by = f"{ERROR} {error}"
        return Finding(mutant, caught_by, time.monotonic() - start)

    def _catch(self, mutant: Mutant) -> str:
        tests, unfit = mutant.tests.split(), list[str]()
        while len(unfit) < _UNFIT:
            caught_by = self._run(mutant, tests, unfit)
            if caught_by == TIMEOUT and self._run(None, tests, unfit) == TIMEOUT:
                raise TableError("its tests take longer without it, too: give more of --limit-s")
            if caught_by in (NOT_CAUGHT, TIMEOUT, DEATH) or self._passes_without(caught_by):
                return caught_by
            unfit.append(caught_by)
        raise TableError(f"{_UNFIT} of its tests fail without it, too ({', '.join(unfit)}): mend them first")

    def _passes_without(self, test: str) -> bool:
        with self._lock:
            known = self._fit.get(test)
        if known is None:
            known = self._fit[test] = self._run(None, [test], []) == NOT_CAUGHT
        return known

    def _run(self, mutant: Mutant | None, tests: Sequence[str], left_out: Sequence[str]) -> str:
        with self._lock:
            self._made += 1
            above = self._folder / str(self._made)
        tree = above / "tree"
        shutil.copytree(PROJECT, tree, ignore=_LEFT_OUT)
        if (shared := PROJECT.parent / "shared").is_dir():
            (above / "shared").symlink_to(shared)
        if mutant is not None:
            path = tree / "runner" / mutant.file
            path.write_text(mutated(mutant, path.read_text(encoding="utf-8")), encoding="utf-8")
        try:
            return self._pytest(above, tests, left_out)
        finally:
            shutil.rmtree(above, ignore_errors=True)

    def _pytest(self, above: Path, tests: Sequence[str], left_out: Sequence[str]) -> str:
        """The first of the tests that fails in ``above``/tree."""
        tree = above / "tree"
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=short", f"--basetemp={above / 'tmp'}"]
        command += [f"--timeout={self._limit_s:g}", *(f"--deselect={test}" for test in left_out), *tests]
        path = os.pathsep.join([str(tree), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path}
        with (above / "said").open("w+") as said:
            process = subprocess.Popen(
                command,
                cwd=tree,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = process.wait(self._limit_s)
            except subprocess.TimeoutExpired:
                return TIMEOUT
            finally:
                with_group(process)
            said.seek(0)
            return verdict_of(status, tree / ".pytest_cache" / "v" / "cache" / "lastfailed", said.read())


def with_group(process: subprocess.Popen[bytes]) -> None:
    """Have a process and what it has started end."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def verdict_of(status: int, last_failed: Path, said: str) -> str:
    """What pytest's exit status and its note of failures come to.

    Raises:
        TableError: it did not find the tests.
    """
    if status == _PASSED:
        return NOT_CAUGHT
    if status in _NO_TESTS:
        raise TableError(f"{' '.join(said.split())[-300:]}: mend tests/stress/mutant_list.py")
    if status in (_FAILED, _INTERRUPTED) and last_failed.exists():
        found: dict[str, bool] = json.loads(last_failed.read_text(encoding="utf-8"))
        return next(iter(found))
    return DEATH


def examine_all(mutants: Sequence[Mutant], jobs: int, limit_s: float, tell: Callable[[Finding], None]) -> list[Finding]:
    """Examine mutants, so many at once, each told of when it is done; in their order."""
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as folder:
        copies = Copies(Path(folder), limit_s)

        def examine(mutant: Mutant) -> Finding:
            found = copies.examine(mutant)
            tell(found)
            return found

        with ThreadPoolExecutor(jobs) as threads:
            return list(threads.map(examine, mutants))


def read_record(path: Path) -> dict[str, str]:
    """What caught each mutant, by its name, as a record says."""
    with path.open(encoding="utf-8", newline="") as file:
        return {row["mutant"]: row["caught by"] for row in csv.DictReader(file, delimiter="\t")}


def write_record(path: Path, found: Mapping[int, Finding], commit: str) -> None:
    """Write a record: a line a mutant."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(COLUMNS)
        for number, (mutant, caught_by, seconds) in sorted(found.items()):
            writer.writerow((number, mutant.name, f"runner/{mutant.file}", caught_by, f"{seconds:.0f}", commit))


def lost(before: Mapping[str, str], found: Sequence[Finding]) -> list[str]:
    """The mutants that were caught by a record, and are not now."""
    return [
        f"{each.mutant.name} (was caught by {before[each.mutant.name]})"
        for each in found
        if not each.is_caught and not before.get(each.mutant.name, NOT_CAUGHT).startswith((NOT_CAUGHT, ERROR))
    ]


def _commit() -> str:
    asked = subprocess.run(
        ["git", "-C", str(PROJECT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or "unknown"


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine the mutants asked for; exit status 1 if one is not caught that a record has as caught (or any, alone)."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="tell of the mutants and do nothing")
    parser.add_argument("--only", default="", metavar="N,M", help="numbers of mutants, or of the first and last: 3-9")
    parser.add_argument("--jobs", type=int, default=1, help="how many at once")
    parser.add_argument("--limit-s", type=float, default=600.0, help="how long one run of tests may take")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write what caught each")
    parser.add_argument("--commit", help="what the record says of the code (default: git's)")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="an earlier record")
    options = parser.parse_args(arguments)
    chosen = _chosen(options.only)
    if options.list:
        for number, mutant in chosen.items():
            print(f"{number:>3}  runner/{mutant.file}: {mutant.name}")
        return 0
    commit = options.commit or _commit()
    before = read_record(options.compare) if options.compare else {}
    found: dict[int, Finding] = {}
    numbers = {mutant.name: number for number, mutant in chosen.items()}
    telling = threading.Lock()

    def tell(finding: Finding) -> None:
        with telling:
            number = numbers[finding.mutant.name]
            found[number] = finding
            print(f"{number:>3}  {finding.seconds:4.0f} s  {finding.mutant.name}: {finding.caught_by}", flush=True)
            if options.record:
                write_record(options.record, found, commit)

    findings = examine_all(list(chosen.values()), options.jobs, options.limit_s, tell)
    missed = [each.mutant.name for each in findings if not each.is_caught]
    print(f"{len(findings) - len(missed)} of {len(findings)} caught; not: {'; '.join(missed) or 'none'}")
    gone = lost(before, findings) if options.compare else missed
    for each in gone if options.compare else ():
        print(f"LOST: {each}", file=sys.stderr)
    return int(bool(gone))


def _chosen(only: str) -> dict[int, Mutant]:
    """The mutants by number, from 1."""
    numbered = dict(enumerate(MUTANTS, 1))
    if not only:
        return numbered
    ends = [part.partition("-") for part in only.split(",")]
    wanted = {number for first, _, last in ends for number in range(int(first), int(last or first) + 1)}
    return {number: mutant for number, mutant in numbered.items() if number in wanted}


if __name__ == "__main__":
    sys.exit(main())
