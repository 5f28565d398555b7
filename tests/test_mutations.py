"""Every fault of ``tests/mutation_list.py`` is caught or listed; some of them in runs of the command."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from runner.journal import JOURNAL, STATE
from tests.conftest import PROJECT, Done, run_command
from tests.mutation_list import FAULTS, PASSES, Fault
from tests.mutations import Bench

pytestmark = pytest.mark.slow
ON_A_CPU = [fault for fault in FAULTS if "cpu" in fault.devices]


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench("cpu")


@pytest.mark.parametrize("fault", ON_A_CPU, ids=lambda fault: fault.name)
def test_a_fault_is_caught_or_listed(bench: Bench, fault: Fault) -> None:
    found = bench.examine(fault)
    assert found.caught_by or fault.name in PASSES, f"nothing saw it; it changes embeddings by {found.effect:.1e}"
    assert not (found.caught_by and fault.name in PASSES), f"{found.caught_by} sees it: take it out of PASSES"


def test_there_are_enough_of_them_and_the_docs_list_those_that_pass() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert sum("cpu" in fault.devices and not (fault.shared or fault.inputs) for fault in FAULTS) >= 40
    assert sum(fault.shared or fault.inputs for fault in FAULTS) >= 10
    docs = (PROJECT / "docs" / "numerics.md").read_text(encoding="utf-8")
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
    (folder / "site").mkdir(parents=True, exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(
        "import sys\n"
        f"if {fault!r} and 'runner.worker' in sys.orig_argv:\n"
        "    from tests.mutations import install\n"
        f"    install({fault!r})\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder / "site"), prepend=os.pathsep)
        return _command(clips, folder)


def _command(clips: Path, folder: Path) -> Done:
    return run_command(
        *(f"dataset.root={clips}", "device=cpu", "weights=random", "tracking=none", "profile=off"),
        *("memory.batch_size=16", "memory.decode_workers=1", "output.shard_clips=2"),
        *(f"output.dir={folder / 'run'}", f"paths.models={clips / 'models'}", f"paths.outputs={folder}"),
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
    lines = [json.loads(line) for line in (tmp_path / "run" / STATE / JOURNAL).read_text().splitlines()]
    assert any(line["undone"] for line in lines)
    again = run(clips, tmp_path)
    assert again.status == 0, again.err
    assert rows_of(again) == rows_of(honest)


@pytest.mark.parametrize("fault", ["float32 wrong, int16 right", "rows shifted by one when the batch is full"])
def test_a_run_that_shows_the_device_what_the_gate_did_not_fails(clips: Path, tmp_path: Path, fault: str) -> None:
    assert_failed(run(clips, tmp_path, fault))
