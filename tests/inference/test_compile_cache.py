"""The cache of programs that XLA compiled; on a CPU, for which TensorFlow caches them in the same way."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from runner.devices.nvml import NvidiaGpu
from runner.inference.compile_cache import CompileCache
from tests.fresh_tensorflow import run_fresh

GPUS = [NvidiaGpu("a GPU", memory_mib=1, driver="1", compute_capability="9.0")]


@pytest.fixture(autouse=True)
def flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_XLA_FLAGS", "")


def make_cache(folder: Path, flags: str = "") -> CompileCache:
    os.environ["TF_XLA_FLAGS"] = flags  # those of a new process
    cache = CompileCache(folder, GPUS)
    cache.use()
    return cache


COMPILE = """
    from pathlib import Path
    from runner.devices.nvml import NvidiaGpu
    from runner.inference.compile_cache import CompileCache
    import tensorflow as tf
    cache = CompileCache(Path({folder!r}), {gpus!r})
    cache.use()
    tf.config.list_physical_devices("GPU")
    program = tf.function(lambda x: tf.tanh(x @ x) + 1.0, jit_compile=True)
    print(program(tf.eye(3)).numpy().tolist())
    cache.commit()
    (entry,) = cache.folder.iterdir()
    print(entry.stat().st_ino, entry.stat().st_mtime_ns)
    print(entry.stat().st_size)
"""
DAMAGE = """
    from pathlib import Path
    from runner.devices.nvml import NvidiaGpu
    from runner.inference.compile_cache import CompileCache
    (entry,) = CompileCache(Path({folder!r}), {gpus!r}).folder.iterdir()
    entry.write_bytes(entry.read_bytes()[:-100])
"""


@pytest.mark.slow
def test_tensorflow_uses_an_entry_and_compiles_a_damaged_one_again(tmp_path: Path) -> None:
    compiles, damages = (code.format(folder=str(tmp_path), gpus=GPUS) for code in (COMPILE, DAMAGE))
    printed = run_fresh(compiles, compiles, damages, compiles)
    (result, entry, size), used, _, (again, _, same_size) = (each.splitlines() for each in printed)
    assert used == [result, entry, size]
    assert (again, same_size) == (result, size)


def test_only_whole_entries_of_runs_that_passed_the_gate_stay(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    for name in ("whole", "damaged", "gone"):
        (cache.folder / name).write_bytes(b"a program")
    cache.commit()
    (cache.folder / "damaged").write_bytes(b"A program")
    (cache.folder / "gone").unlink()
    (cache.folder / "of a run that did not come to its gate").write_bytes(b"a program")
    assert [entry.name for entry in make_cache(tmp_path).folder.iterdir()] == ["whole"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"whole": 1}', "null"])
def test_a_damaged_list_of_digests_is_an_empty_one(tmp_path: Path, text: str) -> None:
    cache = make_cache(tmp_path)
    (cache.folder / "whole").write_bytes(b"a program")
    cache.folder.with_suffix(".json").write_text(text)
    assert not list(make_cache(tmp_path).folder.iterdir())


def test_after_wrong_numbers_nothing_stays(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    (cache.folder / "entry").write_bytes(b"a program")
    cache.commit()
    cache.clear()
    assert not list(cache.folder.iterdir())


def test_another_driver_has_other_entries(tmp_path: Path) -> None:
    assert CompileCache(tmp_path, [replace(GPUS[0], driver="2")]).folder != CompileCache(tmp_path, GPUS).folder


def test_flags_of_the_user_stay(tmp_path: Path) -> None:
    make_cache(tmp_path, "--tf_xla_clustering_debug")
    assert os.environ["TF_XLA_FLAGS"].startswith("--tf_xla_clustering_debug --tf_xla_persistent_cache_directory=")
    make_cache(tmp_path, own := "--tf_xla_persistent_cache_directory=/mine")
    assert os.environ["TF_XLA_FLAGS"] == own


@pytest.mark.parametrize(("name", "gpus"), [("models", []), ("file", GPUS), ("no flag/can hold a space", GPUS)])
def test_without_gpus_or_a_usable_folder_there_is_no_cache(tmp_path: Path, name: str, gpus: list[NvidiaGpu]) -> None:
    (tmp_path / "file").touch()
    cache = CompileCache(tmp_path / name, gpus)
    cache.use()
    cache.commit()
    cache.clear()
    assert os.environ["TF_XLA_FLAGS"] == ""
