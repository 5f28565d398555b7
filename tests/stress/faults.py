"""Every call that fails, and every loss of power, in small runs: ``python -m tests.stress.faults`` (``make faults``).

Each n-th call on a run's files (open, write, fsync, rename, unlink, mkdir, close) fails, once or from then on: the run
must succeed all the same, or say in one sentence what was wrong, and the same command must then give the undisturbed
result.  And what a disk may hold after a loss of power at any moment must be taken up to the undisturbed result, with
no line in the journal whose files are not whole.  Exit status 1 if anything comes out otherwise.
"""

from __future__ import annotations

import argparse
import errno
import faulthandler
import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.commands import DOUBLE, REAL, run_real
from tests.commands import run as run_double
from tests.stress.disk import FROM_THEN_ON, HALF, ONCE, Call, Watch, build, why_not
from tests.stress.power_loss import Contents, Disk, choices, restore

HANGS_AFTER_S = 60
PRELOADED = "DISK_SHIM_IS_PRELOADED"
JOURNAL_FILE = Path(".runner", "journal.jsonl")
HOW = ("once", "from then on", "half done")
ERRORS = {
    "open": (errno.EIO, errno.EMFILE, errno.ENOSPC, errno.EINTR),
    "write": (errno.ENOSPC, errno.EIO, errno.EINTR),
    "fsync": (errno.EIO, errno.ENOSPC, errno.EINTR),
    "rename": (errno.EIO, errno.ENOSPC),
    "unlink": (errno.EIO,),
    "rmdir": (errno.EIO,),
    "mkdir": (errno.ENOSPC, errno.EIO),
    "link": (errno.EIO,),
    "truncate": (errno.EIO,),
    "close": (errno.EIO,),
}
Fault = tuple[int, int, int]
"""The number of the call, its errno, and how it fails."""


@dataclass(frozen=True)
class Scenario:
    """A run at some point of its life: ``state`` is its folder's content, ``undisturbed`` what it comes to."""

    name: str
    state: Path
    undisturbed: dict[str, bytes]
    calls: list[Call]
    damaged: int | None = None
    """The shard of which a file is damaged."""


class Workbench:
    """Where runs are disturbed, one after the other.

    Args:
        folder: to work in.
    """

    def __init__(self, folder: Path) -> None:
        from tests import whole_run

        self._runs = whole_run
        self.disk = folder / "disk"
        self.disk.mkdir()
        self.run = self.disk / "run"
        self._folder = folder
        self._data = whole_run.make_data(folder / "data")
        self._config = whole_run.make_config(self._data, self.run)
        self._watch = Watch(self.disk, folder / "calls")
        self._first_session()
        self._clear()

    def scenarios(self) -> Iterator[Scenario]:
        """A new run; one that lost a shard while a clip changed and another one came; a finished one."""
        yield self._scenario("new")
        self._clear()
        clip, old = self._data / "b" / "5.wav", self._data / "a" / "2.wav"
        shutil.move(clip, self._folder / "5.wav")
        os.utime(old, ns=(10**18 - 1, 10**18 - 1))
        self._session()
        shutil.move(self._folder / "5.wav", clip)
        os.utime(old, ns=(10**18, 10**18))
        part = self.run / "embeddings" / "part-00000.parquet"
        part.write_bytes(b"x" + part.read_bytes()[1:])
        yield self._scenario("taken up", damaged=0)
        self._session()
        yield self._scenario("finished")

    def _scenario(self, name: str, damaged: int | None = None) -> Scenario:
        state = self._folder / name.replace(" ", "-")
        shutil.copytree(self.disk, state)
        self._watch.begin()
        result = self._session()
        calls = self._watch.end()
        undisturbed = self._runs.tree(self.run)
        if wrong := self._wrong(undisturbed, result):
            raise SystemExit(f"{name}, undisturbed: {wrong}")
        self._begin(state)
        self._watch.begin()
        self._session()
        for one, other in zip(counted(calls), counted(self._watch.end()), strict=True):
            if (one.kind, one.path) != (other.kind, other.path):
                raise SystemExit(f"{name}: calls are not the same each time: {one}, {other}")
        return Scenario(name, state, undisturbed, calls, damaged)

    def with_fault(self, scenario: Scenario, fault: Fault) -> list[str]:
        """What is wrong if a call fails and the command is then given again; nothing if all is as it should be."""
        self._begin(scenario.state)
        self._watch.begin(fault)
        try:
            result = self._session()
        except Exception as error:
            result, wrong = "", [f"raises {type(error).__name__}: {error}"]
        else:
            wrong = self._untold(result)
        finally:
            self._watch.end()
        wrong += self._lies(scenario)
        if not isinstance(result, str) and result["status"] == "finished":
            wrong += self._wrong(scenario.undisturbed, result)
        return wrong + [f"then: {each}" for each in self._again(scenario)]

    def with_power_loss(self, scenario: Scenario, contents: Contents) -> list[str]:
        """What is wrong if the run is taken up from there; nothing if all is as it should be."""
        self._clear()
        restore(contents, self.disk)
        return self._lies(scenario) + self._again(scenario)

    def _again(self, scenario: Scenario) -> list[str]:
        try:
            return self._wrong(scenario.undisturbed, self._session())
        except Exception as error:
            return [f"raises {type(error).__name__}: {error}"]

    def _session(self) -> dict[str, Any] | str:
        faulthandler.dump_traceback_later(HANGS_AFTER_S, exit=True)
        try:
            return self._carry_out()
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _first_session(self) -> None:
        """What is imported late is there from then on."""
        self._session()

    def _carry_out(self) -> dict[str, Any] | str:
        """The command; see ``whole_run.session``."""
        return self._runs.session(self._config, self.run)

    def _wrong(self, undisturbed: dict[str, bytes], result: dict[str, Any] | str) -> list[str]:
        """What is wrong with a run that should be as the undisturbed one."""
        return self._runs.wrong_with(self.run, undisturbed, result)

    def _begin(self, state: Path) -> None:
        self._clear()
        shutil.copytree(state, self.disk, dirs_exist_ok=True)

    def _clear(self) -> None:
        shutil.rmtree(self.disk)
        self.disk.mkdir()

    @staticmethod
    def _untold(result: dict[str, Any] | str) -> list[str]:
        """What is wrong with how a failure was told."""
        if isinstance(result, str):
            told = result
        elif result["status"] == "finished":
            return []
        else:
            told = result["failure"]["message"]
        is_told = told and "\n" not in told and "exit status 1 and left no result" not in told
        return [] if is_told else [f"told so: {told!r}"]

    def _lies(self, scenario: Scenario) -> list[str]:
        """Lines of the journal whose files are not all there, whole."""
        from runner.output.state.journal import read_journal
        from runner.output.verify import damaged_shards, shards_with_damaged_npz

        done, _ = read_journal(self.run / JOURNAL_FILE)
        damaged = set(damaged_shards(self.run, done)) - self._damaged_before(scenario)
        whole = {number: entry for number, entry in done.items() if number not in damaged}
        lost = sorted(damaged.union(shards_with_damaged_npz(self.run, whole)))
        return [f"the journal has shards {lost}, which are not whole"] if lost else []

    def _damaged_before(self, scenario: Scenario) -> set[int]:
        """The shard that the scenario begins with damaged, while the journal says no more of it."""
        if scenario.damaged is None:
            return set()
        line = f'"shard": {scenario.damaged}}}'.encode()
        before, now = (folder / JOURNAL_FILE for folder in (scenario.state / "run", self.run))
        return {scenario.damaged} if before.read_bytes().count(line) == now.read_bytes().count(line) else set()


def command_with_fault(
    run: Path, arguments: Sequence[str], library: Path, process: str, fault: Fault, command: str
) -> list[str]:
    """What is wrong if a call fails in the real command, or in its worker; nothing if all is told.

    Args:
        run: the run's folder.
        arguments: the command's.
        library: that is preloaded.
        process: words of the command line of the process in which the call fails.
        fault: the call.
        command: its module.
    """
    call, error, how = map(str, fault)
    run.mkdir(parents=True, exist_ok=True)
    disk = {"DISK_FOLDER": str(run), "DISK_PROCESS": process, "DISK_CALL": call, "DISK_ERRNO": error, "DISK_HOW": how}
    done = run_real(*arguments, f"output.dir={run}", command=command, LD_PRELOAD=str(library), **disk)
    told = done.out + done.err
    wrong = ["a traceback is told"] if "Traceback" in told else []
    if done.status not in (0, 1) or (done.status == 1) == ("error: " not in told and "failed" not in told):
        wrong.append(f"exit status {done.status}, told so: {told[-500:]!r}")
    return wrong


def check_commands(folder: Path, times: int, seed: int, command: str = REAL) -> int:
    """The same with the real command in its process, a few times at random; how often something came out otherwise.

    Args:
        folder: to work in.
        times: how often.
        seed: of the choice.
        command: its module: the one with TensorFlow, or that of the double.
    """
    from tests.whole_run import command_arguments, make_data, tree

    library = build(folder)
    arguments = command_arguments(make_data(folder / "data"), folder)
    undisturbed, rng, bad = folder / "undisturbed", random.Random(seed), 0
    run = partial(run_double, *arguments) if command == DOUBLE else partial(run_real, *arguments, command=command)
    worker = "tests.double.worker" if command == DOUBLE else "runner.engines.worker"
    assert run(f"output.dir={undisturbed}").status == 0
    for number in range(times):
        process = (f"-m {worker}", f"-m {command} dataset.root")[number % 2]
        kind = rng.choice(["open", "write", "fsync"])
        fault = (
            rng.randrange(1, 400 if number % 2 == 0 else 80),
            rng.choice(ERRORS[kind]),
            rng.choice([ONCE, FROM_THEN_ON]),
        )
        out = folder / f"run-{number}"
        wrong = command_with_fault(out, arguments, library, process, fault, command)
        again = run(f"output.dir={out}")
        if again.status:
            wrong.append(f"then: exit status {again.status}, {again.err[-500:]!r}")
        found, expected = tree(out), tree(undisturbed)
        wrong += [f"then: {name} is other" for name in expected.keys() | found if expected.get(name) != found.get(name)]
        bad += bool(wrong)
        told = f"call {fault[0]}: {errno.errorcode[fault[1]]} {HOW[fault[2]]}"
        print(f"{process}: {told}: {'; '.join(wrong) or 'as it should be'}", flush=True)
    return bad


def counted(calls: list[Call]) -> list[Call]:
    """Those that may fail."""
    return [call for call in calls if call.is_counted]


def faults_of(calls: list[Call], quick: bool) -> Iterator[Fault]:
    """The faults to try: every call with every error; ``quick``: with one of them, and fewer writes of many to a file.

    A disk that is full stays so: from a call on, all fail.  A write may also end half done.
    """
    calls = counted(calls)
    for number, call in enumerate(calls, 1):
        among_many = number > 1 and {each.kind for each in calls[number - 2 : number + 1]} == {"write"}
        if quick and among_many:
            continue
        errors = ERRORS[call.kind]
        for error in errors[number % len(errors) :][:1] if quick else errors:
            yield number, error, ONCE
        if call.kind in ("open", "write", "fsync") and (number % 4 == 0 or not quick):
            yield number, errno.ENOSPC, FROM_THEN_ON
        if call.kind == "write" and (number % 4 == 1 or not quick):
            yield number, errno.ENOSPC, HALF


def losses_of(scenario: Scenario, root: Path, quick: bool) -> Iterator[tuple[str, Contents]]:
    """What a disk may hold, and when: after each change of it; each once."""
    disk = Disk(root, scenario.state)
    known: set[bytes] = set()
    for number, call in enumerate(scenario.calls, 1):
        if not disk.apply(call) or (quick and call.kind == "write" and number % 8):
            continue
        for name, choice in choices(number).items():
            contents = disk.after_power_loss(choice)
            digest = hashlib.sha256()
            for path, data in sorted(contents.items()):
                digest.update(f"{path}\0{'folder' if data is None else len(data)}\0".encode())
                digest.update(data or b"")
            if digest.digest() not in known:
                known.add(digest.digest())
                yield f"call {number} ({call.kind} {Path(call.path).name}), kept: {name}", contents


@dataclass(frozen=True)
class Case:
    """Something to try: its name, what it is one of (to which file what happens, and how), and what tries it."""

    name: str
    kind: tuple[str, ...]
    wrong: Callable[[], list[str]]


def few_of_many(cases: Sequence[Case], known: set[tuple[str, ...]]) -> list[Case]:
    """Return the middle one of every fourth kind, and of every 24th that an earlier scenario had; add all to those."""
    kinds: dict[tuple[str, ...], list[Case]] = {}
    for case in cases:
        kinds.setdefault(case.kind, []).append(case)
    chosen = [kind for kind in kinds if kind not in known][1::4] + [kind for kind in kinds if kind in known][::24]
    known.update(kinds)
    return [kinds[kind][len(kinds[kind]) // 2] for kind in chosen]


def check(bench: Workbench, only: str | None, share: tuple[int, int], quick: bool, short: bool) -> int:
    """Try everything; how much came out otherwise."""
    bad = 0
    known: set[tuple[str, ...]] = set()
    for scenario in bench.scenarios():
        cases: list[Case] = []
        if only != "power-loss":
            for fault in faults_of(scenario.calls, quick):
                call = counted(scenario.calls)[fault[0] - 1]
                name, how = Path(call.path).name, HOW[fault[2]]
                told = f"call {fault[0]}, {call.kind} {name}: {errno.errorcode[fault[1]]} {how}"
                kind = (call.kind, re.sub(r"\d+", "N", name), how)
                cases.append(Case(told, kind, partial(bench.with_fault, scenario, fault)))
        if only != "calls":
            for told, contents in losses_of(scenario, bench.disk, quick):
                kind = (re.sub(r"\d+", "N", told),)
                cases.append(Case(f"power lost after {told}", kind, partial(bench.with_power_loss, scenario, contents)))
        if short:
            cases = few_of_many(cases, known)
        own = cases[share[0] :: share[1]]
        for case in own:
            if wrong := case.wrong():
                bad += 1
                print(f"{scenario.name}: {case.name}: {'; '.join(wrong)}", flush=True)
        print(f"{scenario.name}: {len(scenario.calls)} calls, {len(own)} cases of {len(cases)}", flush=True)
    return bad


def main() -> int:
    """Try everything; exit status 1 if something came out otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one error a call, fewer writes")
    parser.add_argument("--short", action="store_true", help="of what is tried, one of every fourth kind")
    parser.add_argument("--only", choices=["calls", "power-loss"])
    parser.add_argument("--share", default="0/1", help="I/N: every N-th case, from the I-th on")
    parser.add_argument("--commands", type=int, default=0, help="so many times with the real command instead")
    parser.add_argument("--double", action="store_true", help="--commands with tests.double in TensorFlow's place")
    parser.add_argument("--seed", type=int, default=0, help="of --commands")
    options = parser.parse_args()
    from tests.merges import MergeBench  # it takes the workbench from here

    if reason := why_not():
        raise SystemExit(reason)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # nothing waits for a disk there
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        if options.commands:
            command = DOUBLE if options.double else REAL
            return int(check_commands(Path(folder), options.commands, options.seed, command) > 0)
        if PRELOADED not in os.environ:
            library = build(Path(folder))
            environment = {**os.environ, "LD_PRELOAD": str(library), PRELOADED: "yes"}
            return subprocess.run(
                [sys.executable, "-m", "tests.stress.faults", *sys.argv[1:]], env=environment
            ).returncode
        first, of = map(int, options.share.split("/"))
        bad = 0
        for name, bench in (("runs", Workbench), ("merges", MergeBench)):
            (Path(folder) / name).mkdir()
            bad += check(bench(Path(folder) / name), options.only, (first, of), options.quick, options.short)
    print(f"{bad} came out otherwise")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
