"""Faults of ``tests/stress/mutation_list.py`` are caught or listed, with TensorFlow; some of them in runs of the
command.

``make mutations`` takes all of them, ``make test`` a twelfth of each kind.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from _pytest.mark import ParameterSet

from runner.core.layout import RunLayout
from tests import commands
from tests.commands import PROJECT, Done
from tests.double.session import FAULT
from tests.stress.mutation_list import FAULTS, PASSES, Fault
from tests.stress.mutations import Bench

pytestmark = pytest.mark.slow
ON_A_CPU = [fault for fault in FAULTS if "cpu" in fault.devices]
SHARE = 12


def kind_of(fault: Fault) -> tuple[object, ...]:
    """What faults have in common whose every twelfth is enough for a short form: where they are, and how looked at."""
    modules = sorted({edit.module for edit in fault.edits})
    return (type(fault.what), *modules, fault.precision, fault.conv, fault.shared, fault.inputs)


def a_twelfth_of_each_kind(faults: list[Fault]) -> list[ParameterSet]:
    """All of them; but for every twelfth of each kind, they are marked ``long``."""
    seen: Counter[tuple[object, ...]] = Counter()
    found = []
    for fault in faults:
        marks = [pytest.mark.long] if seen[kind_of(fault)] % SHARE else []
        seen[kind_of(fault)] += 1
        found.append(pytest.param(fault, marks=marks, id=fault.name))
    return found


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench("cpu")


@pytest.mark.parametrize("fault", a_twelfth_of_each_kind(ON_A_CPU))
def test_a_fault_is_caught_or_listed(bench: Bench, fault: Fault) -> None:
    found = bench.examine(fault)
    assert found.caught_by or fault.name in PASSES, f"nothing saw it; it changes embeddings by {found.effect:.1e}"
    assert not (found.caught_by and fault.name in PASSES), f"{found.caught_by} sees it: take it out of PASSES"


def test_their_texts_are_in_the_code() -> None:
    edits = {edit for fault in FAULTS for edit in fault.edits}
    sources = {edit.module: (PROJECT / f"{edit.module.replace('.', '/')}.py").read_text("utf-8") for edit in edits}
    assert [edit for edit in edits if edit.old not in sources[edit.module]] == []


def test_there_are_enough_of_them_and_the_docs_list_those_that_pass() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert sum("cpu" in fault.devices and not (fault.shared or fault.inputs) for fault in FAULTS) >= 40
    assert sum(fault.shared or fault.inputs for fault in FAULTS) >= 10
    docs = (PROJECT / "docs" / "explanation" / "numerics.md").read_text(encoding="utf-8")
    assert all(name in docs for name in PASSES)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 clips of 16-bit samples, but the second, which no look at a few of them finds, of floats."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for number in range(40):
        kind = "FLOAT" if number == 1 else "PCM_16"
        soundfile.write(folder / f"{number:02d}.wav", rng.uniform(-0.5, 0.5, 96_000), 16_000, subtype=kind)
    return folder


def run(clips: Path, folder: Path, fault: str = "") -> Done:
    """A run, in whose worker sessions lie; in batches and shards small enough that there are many."""
    return commands.run(
        *(f"dataset.root={clips}", "device=cpu", "weights=random", "tracking=none", "profile=off"),
        *("memory.batch_size=16", "memory.decode_workers=1", "output.clips_per_shard=2"),
        *(f"output.dir={folder / 'run'}", f"paths.models={clips / 'models'}", f"paths.outputs={folder}"),
        **{FAULT: fault},
    )


def rows_of(done: Done) -> list[dict]:
    return sorted(pq.read_table(done.run_dir / "embeddings").to_pylist(), key=lambda row: (row["clip"], row["example"]))


@pytest.fixture(scope="module")
def honest(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    done = run(clips, tmp_path_factory.mktemp("honest"))
    assert done.status == 0, done.err
    assert done.result["metrics"]["parity_canaries"] >= 2
    return done


def assert_failed(done: Done) -> None:
    assert done.status == 1, done.out
    assert done.result["failure"]["kind"] == "parity", done.result["failure"]


def test_a_run_whose_device_goes_wrong_fails_and_goes_on_from_what_is_good(
    clips: Path, honest: Done, tmp_path: Path
) -> None:
    done = run(clips, tmp_path, "wrong after ten calls")
    assert_failed(done)
    lines = [json.loads(line) for line in (tmp_path / "run" / RunLayout.journal).read_text().splitlines()]
    assert any(line["revoked"] for line in lines)
    again = run(clips, tmp_path)
    assert again.status == 0, again.err
    assert rows_of(again) == rows_of(honest)


@pytest.mark.parametrize("fault", ["float32 wrong, int16 right", "rows shifted by one when the batch is full"])
def test_a_run_that_shows_the_device_what_the_gate_did_not_fails(clips: Path, tmp_path: Path, fault: str) -> None:
    assert_failed(run(clips, tmp_path, fault))
