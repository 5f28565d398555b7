"""The double, and the processes that tests start it in: what the tests that take them may rely on."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from runner.config.composition import compose_config
from runner.config.schema import ToleranceConfig
from runner.inference.parity import compare
from runner.models.answers import Answers
from runner.models.signals import as_int16, fixed_signals
from tests.commands import DOUBLE, PROJECT, run, run_module, run_real, start, wait_until
from tests.configs import make_config
from tests.double.session import draw_arrays, embed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of two seconds."""
    folder = tmp_path_factory.mktemp("double") / "clips"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(4):
        soundfile.write(folder / f"{number}.wav", random.uniform(-0.5, 0.5, 32_000), 16_000)
    return folder


@pytest.mark.slow
def test_a_run_is_a_real_one_but_imports_no_tensorflow(clips: Path, tmp_path: Path) -> None:
    done = run_real(
        f"dataset.root={clips}", "weights=random", "tracking=none", "profile=off", f"output.dir={tmp_path}/run",
        f"paths.models={tmp_path}", command=DOUBLE, PYTHONPROFILEIMPORTTIME="1",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert done.result["parity"]["passed"] is True
    assert done.result["metrics"]["parity_canaries"] > 0
    assert pq.read_table(tmp_path / "run/embeddings").num_rows == 8
    assert not (tmp_path / ".cache/calibration.json").exists(), "real runs would find the double's figures"
    imported = {line.rpartition("|")[2].strip() for line in (tmp_path / "run/runner.log").read_text().splitlines()}
    assert "runner.engines.local" in imported
    assert not [name for name in imported if name.partition(".")[0] in {"tensorflow", "mlflow", "hydra"}]


def test_embeddings_are_the_same_bits_in_any_batch_and_as_integers() -> None:
    arrays, signals = draw_arrays(3), fixed_signals()
    whole = embed(arrays, signals)
    assert np.array_equal(np.concatenate([embed(arrays, signals[n : n + 1]) for n in range(16)]), whole)
    assert np.array_equal(embed(arrays, signals[::-1])[::-1], whole)
    assert np.array_equal(embed(arrays, as_int16(signals[:13])), whole[:13])
    assert len(np.unique(whole, axis=0)) == len(signals)


def test_every_sample_its_place_and_the_seed_matter() -> None:
    arrays, window = draw_arrays(3), fixed_signals()[3:4]
    found = embed(arrays, window)
    for place in (0, 7_800, 15_599):
        louder = window.copy()
        louder[0, place] += np.float32(1e-4)
        assert not np.array_equal(embed(arrays, louder), found)
    assert not np.array_equal(embed(arrays, np.roll(window, 1, axis=1)), found)
    assert not np.array_equal(embed(draw_arrays(4), window), found)


def test_what_is_no_waveform_has_an_embedding_of_nan() -> None:
    windows = fixed_signals()[:4].copy()
    windows[1, 5], windows[3, 9] = np.nan, 1e18
    assert np.isnan(embed(draw_arrays(0), windows)).all(axis=1).tolist() == [False, True, False, True]


def test_bfloat16_is_off_by_more_than_float32_may_be_and_by_no_more_than_its_own() -> None:
    arrays, signals = draw_arrays(0), fixed_signals()
    coarse = embed(arrays, signals, "bfloat16")
    found = compare(coarse, Answers(embed(arrays, signals), coarse))
    fine, own = ToleranceConfig(rel_err=2e-5, min_cosine=0.999999, scale_err=1e-5), ToleranceConfig(rel_err=0.02)
    assert found.misses(fine)
    assert 2e-5 < found.rel_err < own.rel_err


@pytest.mark.slow
def test_a_forked_command_has_arguments_folder_environment_output_and_exit_status_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text(
        "import os, sys\n"
        "print(sys.argv[1:], os.getcwd(), os.environ['TOLD'], sys.stdin.read())\n"
        "sys.exit('a word of farewell')\n"
    )
    done = run_module("told", "a b", "ü", cwd=tmp_path, TOLD="x", PYTHONPATH=str(tmp_path))
    assert done.out == f"['a b', 'ü'] {tmp_path} x \n"
    assert (done.status, done.err) == (1, "a word of farewell\n")


@pytest.mark.slow
def test_a_forked_command_gets_signals(clips: Path, tmp_path: Path) -> None:
    process = start(f"dataset.root={clips}", "weights=random", "tracking=none", f"output.dir={tmp_path}/run")
    wait_until((tmp_path / "run/.runner/spec.json").exists, lambda: process.err)
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    assert process.poll() == -signal.SIGKILL


@pytest.mark.slow
def test_the_command_in_a_fork_is_the_command_in_a_fresh_process() -> None:
    import subprocess
    import sys

    fresh = subprocess.run(
        [sys.executable, "-m", "tests.double.command", "--cfg", "job", "memory=greedy"], cwd=PROJECT,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    forked = run("--cfg", "job", "memory=greedy")
    assert (forked.status, forked.out) == (0, fresh.stdout)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        (
            "precision=auto",
            "output.formats=[parquet,npz]",
            "output.dir=file:///a/b",
            "weights=random",
            "weights.seed=3",
        ),
        ("memory=greedy", "parity.tolerances.bfloat16={rel_err:2e-5,min_cosine:0.9,scale_err:1e-5}", "engine=ray"),
        ("dataset=demo", "frontend.hop_s=0.48", "paths.outputs='a b'", "memory.default_batch_size.cpu=7"),
    ],
)
def test_configurations_for_tests_are_those_that_hydra_composes(overrides: tuple[str, ...]) -> None:
    assert make_config(overrides) == compose_config(overrides)
    assert make_config(overrides) == compose_config(overrides), "the second comes from a copy"
