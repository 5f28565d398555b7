"""Processes that write shards: their files are those of the worker's threads, and a failure is the worker's."""

from __future__ import annotations

import functools
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from runner.config.schema import OutputConfig
from runner.dataset.recorded_at import recorded_at_reader
from runner.output.formats import make_formats
from runner.output.rows import GROUP_EXAMPLES, ClipRow
from runner.output.spill import BatchRows, Spill
from runner.output.writer import ShardFiles
from runner.pipeline.writer_processes import WriterProcesses
from tests.writers import vggish_info

pytestmark = pytest.mark.slow

OUTPUT = OutputConfig(formats=["parquet", "npz"], pool=[4.8])


def make_files(folder: Path) -> ShardFiles:
    info = vggish_info({"model": "VGGish"})
    return ShardFiles(folder, info, make_formats(OUTPUT, folder, info, ["bird"]), recorded_at_reader("auto"))


@contextmanager
def processes(make, folder: Path) -> Iterator[WriterProcesses]:
    folder.mkdir()
    with closing(WriterProcesses(functools.partial(make, folder), 1)) as writers:
        while writers.cpu_s == 0:  # the caller writes until they have started
            writers.write(99, [], "")
        yield writers


def rows_of(examples: list[int], spill: Spill | None = None) -> list[ClipRow]:
    """Clips of so many examples, parts of one batch; one without any is skipped."""
    batch = np.random.default_rng(0).standard_normal((sum(examples), 128)).astype(np.float32)
    stored = batch if spill is None else spill.hold(batch)
    rows, first = [], 0
    for number, count in enumerate(examples):
        name = f"20230115_053000/ü{number}.wav"
        end = first + count
        if count:
            half = first + count // 2
            parts = (BatchRows(stored, first, half), BatchRows(stored, half, end)) if count > 1 else stored[first:end]
            rows.append(ClipRow(name, "embedded", None, None, count, 1.5, 16_000, 1, False, "bird", 0.0, parts))
        else:
            rows.append(ClipRow(name, "skipped", "too_short", "12 samples", 0, 0.0, 8_000, 2, False, None, 2.5, ()))
        first = end
    return rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``one_process``."""
    return tmp_path_factory.mktemp("one") / "run"


@pytest.fixture(scope="module")
def one_process(run: Path) -> Iterator[WriterProcesses]:
    """A process that has started."""
    with processes(make_files, run) as writers:
        yield writers


@pytest.mark.parametrize("examples", [[3, 0, 1, 7], [0, 0], [1]])
@pytest.mark.parametrize("is_spilled", [False, True])
def test_a_process_writes_the_bytes_that_a_thread_writes(
    examples: list[int], is_spilled: bool, one_process: WriterProcesses, tmp_path: Path
) -> None:
    rows = rows_of(examples, Spill(tmp_path, 0.0) if is_spilled else None)
    (tmp_path / "thread").mkdir()
    expected = make_files(tmp_path / "thread").write(5, rows, "digest")
    before = one_process.cpu_s
    assert one_process.write(5, rows, "digest") == expected  # with every file's SHA-256
    assert one_process.rss_peak_mib > 10
    assert one_process.cpu_s > before


def test_a_process_that_was_killed_costs_no_shard(tmp_path: Path) -> None:
    with processes(make_files, tmp_path / "run") as writers:
        first = writers.write(0, rows_of([2]), "")
        os.kill(pid_of(writers), signal.SIGKILL)
        entries = [first, *(writers.write(shard, rows_of([2]), "") for shard in (1, 2))]
    assert [entry.shard for entry in entries] == [0, 1, 2]
    for entry in entries:
        assert all((tmp_path / "run" / file).exists() for file in entry.files)


def test_files_that_cannot_be_written_are_the_error_of_the_call(tmp_path: Path) -> None:
    with processes(make_files, tmp_path / "run") as writers:
        shutil.rmtree(tmp_path / "run" / "embeddings")
        (tmp_path / "run" / "embeddings").write_bytes(b"in the way")
        with pytest.raises(OSError, match="embeddings"):
            writers.write(0, rows_of([2]), "")


def test_a_shard_too_large_for_memory_is_written_by_the_caller(one_process: WriterProcesses, run: Path) -> None:
    before = one_process.cpu_s
    entry = one_process.write(0, rows_of([GROUP_EXAMPLES, 1]), "")
    assert one_process.cpu_s == before
    (file,) = [name for name in entry.files if name.startswith("embeddings/")]
    assert pq.read_metadata(run / file).num_rows == GROUP_EXAMPLES + 1


def pid_of(writers: WriterProcesses) -> int:
    """Process id of the one that was started last."""
    import psutil

    children = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
    return int(max(children, key=lambda child: child.create_time()).pid)
