"""Decode pool and engine with a session that is plain arithmetic: every clip's rows come back to it, in any setting."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from runner.audio.framing import scaled
from runner.config.schema import OutputConfig
from runner.core.errors import EngineError
from runner.dataset.clips import Clip
from runner.dataset.shards import plan_shards
from runner.output.formats import make_formats
from runner.output.spill import Spill
from runner.output.state.journal import read_journal
from runner.output.writer import ShardWriter, clips_table
from runner.pipeline import decode_process
from runner.pipeline.assembler import ClipAssembler
from runner.pipeline.decode_pool import DecodePool
from runner.pipeline.messages import Replica
from runner.pipeline.pipeline import EmbeddingPipeline, ShardedClips
from tests.vggish_clips import FRAMING, OPTIONS
from tests.writers import journaled_writer, vggish_info

pytestmark = pytest.mark.slow

LENGTHS = [100, 15_600, 160_000, 15_599, 31_000, 1_100_000, 0, 48_000, 30_960, 7] * 3


def fake_embed(windows: np.ndarray) -> np.ndarray:
    """An embedding that says which clip and which example it is of: the clip's constant level, and its sum."""
    windows = scaled(windows)
    out = np.zeros((len(windows), 128), np.float32)
    out[:, 0] = windows[:, 0]
    out[:, 1] = windows.sum(axis=1)
    return out


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("clips")
    clips = []
    for index, samples in enumerate(LENGTHS):
        path = folder / f"{index:03d}.wav"
        soundfile.write(path, np.full(samples, (index + 1) / 64, np.float32), 16_000, subtype="FLOAT")
        clips.append(Clip(index, path.name, os.fsencode(path), None, None, None, path.stat().st_size))
    return clips


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode processes are forks, which have all modules: a run's, which ``test_pool.py`` is about, import them."""
    monkeypatch.setattr(decode_process, "CONTEXT", multiprocessing.get_context("fork"))


def make_writer(folder: Path, hop_s: float = 0.96) -> ShardWriter:
    return journaled_writer(folder, make_formats(OutputConfig(), folder, vggish_info(hop_s=hop_s), []))


def run_engine(
    clips: list[Clip],
    folder: Path,
    *,
    workers: int = 1,
    batch: int = 16,
    shard: int = 7,
    options=OPTIONS,
    embed=fake_embed,
    replicas: int = 1,
    threads: int = 1,
    spill: Spill | None = None,
) -> EmbeddingPipeline:
    pool = DecodePool(options, workers)
    pool.open(workers, 2 + threads * replicas, batch)
    writer = make_writer(folder, options.framing.hop_samples / options.preparation.rate)
    engine = EmbeddingPipeline(
        ShardedClips(plan_shards(len(clips), shard), iter(clips)), pool, writer, shutdown_timeout_s=10, spill=spill
    )
    try:
        with clips_table(folder, writer.committed, {}):
            engine.run(
                [Replica(f"replica {n}", lambda windows, copied: embed(windows), threads) for n in range(replicas)]
            )
    finally:
        pool.close()
    return engine


@pytest.mark.parametrize(("workers", "batch", "shard"), [(1, 16, 7), (2, 1, 1), (3, 64, 1000), (2, 5, 4)])
@pytest.mark.usefixtures("forked")
def test_every_row_belongs_to_its_clip_in_any_setting(
    clips: list[Clip], tmp_path: Path, workers: int, batch: int, shard: int
) -> None:
    engine = run_engine(clips, tmp_path, workers=workers, batch=batch, shard=shard)
    ends = pq.read_table(tmp_path / "clips.parquet").to_pylist()
    assert [end["clip"] for end in ends] == [clip.name for clip in clips]
    rows = pq.read_table(tmp_path / "embeddings").to_pylist()
    assert engine.stats.progress.examples == len(rows) == sum(end["examples"] for end in ends)
    for index, (end, samples) in enumerate(zip(ends, LENGTHS, strict=True)):
        own = [row for row in rows if row["clip"] == end["clip"]]
        if samples == 0:
            assert (end["status"], end["reason"], own) == ("skipped", "empty", [])
            continue
        assert [row["example"] for row in own] == list(range(max(1, 1 + (samples - 15_600) // 15_360)))
        assert all(row["embedding"][0] == pytest.approx((index + 1) / 64) for row in own)
        assert end["padded"] == (samples < 15_600) == own[-1]["padded"]
        audible = min(samples, 15_600)
        assert own[-1]["embedding"][1] == pytest.approx(audible * (index + 1) / 64, rel=1e-4)


@pytest.mark.usefixtures("forked")
def test_short_clips_are_skipped_where_that_is_asked_for(clips: list[Clip], tmp_path: Path) -> None:
    run_engine(clips, tmp_path, options=replace(OPTIONS, framing=replace(FRAMING, short_clips="skip")))
    reasons = {end["clip"]: end["reason"] for end in pq.read_table(tmp_path / "clips.parquet").to_pylist()}
    assert reasons["000.wav"] == "too_short"
    assert reasons["001.wav"] is None


@pytest.mark.usefixtures("forked")
def test_a_session_that_fails_fails_the_run_and_hangs_nothing(clips: list[Clip], tmp_path: Path) -> None:
    def broken(windows: np.ndarray) -> np.ndarray:
        raise RuntimeError("the device is gone")

    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="the device is gone"):
        run_engine(clips, tmp_path, embed=broken)
    left = set(threading.enumerate()) - before
    assert not [thread for thread in left if not thread.daemon], left


@pytest.mark.usefixtures("forked")
def test_a_stop_finishes_the_shards_under_way_only(clips: list[Clip], tmp_path: Path) -> None:
    pool = DecodePool(OPTIONS, 1)
    pool.open(1, 2, 8)
    many = [Clip(n, f"{n}.wav", clips[2].path, None, None, None, 320_044) for n in range(40 * len(clips))]
    writer = make_writer(tmp_path)
    # messages of clips end within shards of 7
    engine = EmbeddingPipeline(ShardedClips(plan_shards(len(many), 7), iter(many)), pool, writer, shutdown_timeout_s=30)

    def stop_early(windows: np.ndarray, copied: object) -> np.ndarray:
        engine.stop()
        return fake_embed(windows)

    try:
        engine.run([Replica("replica", stop_early)])
    finally:
        pool.close()
    done = pq.read_table(tmp_path / ".runner" / "clips").num_rows
    assert 0 < done < len(many)
    assert done % 7 == 0
    assert engine.stats.progress.clips == done  # no clip was begun whose shard is not finished
    assert pq.read_table(tmp_path / "embeddings").num_rows == 10 * done


def test_nothing_is_left_in_shared_memory(clips: list[Clip], tmp_path: Path) -> None:
    before = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else set()
    run_engine(clips, tmp_path, workers=2)
    after = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else set()
    assert not {path for path in after - before if path.name.startswith("psm_")}


@pytest.mark.parametrize(("replicas", "threads"), [(1, 3), (2, 1), (3, 2)])
@pytest.mark.usefixtures("forked")
def test_replicas_and_batches_in_flight_change_no_row(
    clips: list[Clip], tmp_path: Path, replicas: int, threads: int
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    run_engine(clips, tmp_path / "one")
    engine = run_engine(clips, tmp_path / "many", workers=2, replicas=replicas, threads=threads)
    for name in ("clips.parquet", "embeddings"):
        assert pq.read_table(tmp_path / "many" / name).equals(pq.read_table(tmp_path / "one" / name))
    assert {timing.replica for timing in engine.stats.timings} <= set(range(replicas))


@pytest.mark.usefixtures("forked")
def test_a_replica_that_fails_hands_its_batch_to_the_others(clips: list[Clip], tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    run_engine(clips, tmp_path / "one")
    pool = DecodePool(OPTIONS, 1)
    pool.open(1, 4, 16)
    engine = EmbeddingPipeline(
        ShardedClips(plan_shards(len(clips), 7), iter(clips)),
        pool,
        make_writer(tmp_path / "two"),
        shutdown_timeout_s=10,
    )
    failed = threading.Event()

    def broken(windows: np.ndarray, copied: object) -> np.ndarray:
        failed.set()
        raise RuntimeError("GPU is lost")

    def sound(windows: np.ndarray, copied: object) -> np.ndarray:
        failed.wait(10)  # so that the broken replica has its turn
        return fake_embed(windows)

    try:
        engine.run([Replica("GPU:0", sound), Replica("GPU:1", broken)])
    finally:
        pool.close()
    assert engine.stats.replica_failures == ["GPU:1: RuntimeError: GPU is lost"]
    rows = pq.read_table(tmp_path / "two" / "embeddings")
    assert rows.equals(pq.read_table(tmp_path / "one" / "embeddings"))


def test_decode_processes_that_are_killed_cost_their_clip_alone(clips: list[Clip], tmp_path: Path) -> None:
    pool = DecodePool(OPTIONS, 2)
    pool.open(2, 3, 4)
    engine = EmbeddingPipeline(
        ShardedClips(plan_shards(len(clips), 7), iter(clips)), pool, make_writer(tmp_path), shutdown_timeout_s=10
    )
    victims: list[int] = []

    def killing(windows: np.ndarray, copied: object) -> np.ndarray:
        if len(victims) < 3:
            victims.append(pool._processes[0].process.pid)
            os.kill(victims[-1], signal.SIGKILL)
            while pool.deaths < len(victims) and pool.outstanding:
                time.sleep(0.01)
        return fake_embed(windows)

    try:
        engine.run([Replica("replica", killing)])
    finally:
        pool.close()
    ends = pq.read_table(tmp_path / ".runner" / "clips").to_pylist()
    assert [end["clip"] for end in ends] == [clip.name for clip in clips]
    assert len(set(victims)) == 3 <= pool.deaths + 1
    died = [end for end in ends if end["reason"] == "decoder_crashed"]
    assert len(died) <= 3
    rows = pq.read_table(tmp_path / "embeddings").num_rows
    assert rows == sum(end["examples"] for end in ends)
    for end, samples in zip(ends, LENGTHS, strict=True):
        assert end["status"] == "embedded" or end["reason"] in ("empty", "decoder_crashed"), (end, samples)


@pytest.mark.slow
def test_a_decoder_without_progress_is_killed(clips: list[Clip], tmp_path: Path) -> None:
    pool = DecodePool(OPTIONS, 1, decode_timeout_s=1.0)
    pool.open(1, 3, 4)
    engine = EmbeddingPipeline(
        ShardedClips(plan_shards(len(clips), 7), iter(clips)), pool, make_writer(tmp_path), shutdown_timeout_s=10
    )

    def freeze() -> None:
        while pool.memory.last_heartbeat(0) is None:
            pass
        os.kill(pool._processes[0].process.pid, signal.SIGSTOP)

    frozen = threading.Thread(target=freeze)
    frozen.start()
    try:
        engine.run([Replica("replica", lambda windows, copied: fake_embed(windows))])
    finally:
        pool.close()
    frozen.join()
    ends = pq.read_table(tmp_path / ".runner" / "clips").to_pylist()
    assert [end["clip"] for end in ends] == [clip.name for clip in clips]
    assert {end["reason"] for end in ends} <= {"timeout", "empty", None}
    assert sum(end["reason"] == "timeout" for end in ends) <= 1
    assert pool.deaths == 1


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_embeddings_that_wait_on_disk_are_the_same(clips: list[Clip], tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    run_engine(clips, tmp_path / "one", shard=1000)
    spill = Spill(tmp_path, 0.05)
    run_engine(clips, tmp_path / "two", shard=1000, workers=2, batch=5, spill=spill)
    assert spill.spilled > 50_000
    for name in ("clips.parquet", "embeddings"):
        assert pq.read_table(tmp_path / "two" / name).equals(pq.read_table(tmp_path / "one" / name))
    assert spill.in_memory == 0


@pytest.mark.parametrize("lost", ["a result", "a row", "a batch twice"])
@pytest.mark.usefixtures("forked")
def test_a_run_that_lost_something_on_the_way_does_not_end_well(
    clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """A fault of our own between decoding and writing, of whatever kind, is told and not written."""
    done = threading.Event()
    add_results, add_embeddings = ClipAssembler.add_results, ClipAssembler.add_embeddings

    def without_one(self: ClipAssembler, results: list) -> list:
        if lost == "a result" and not done.is_set():
            done.set()
            results = results[1:]
        return add_results(self, results)

    def with_other_rows(self: ClipAssembler, segments: list, embeddings: np.ndarray) -> list:
        if lost != "a result" and not done.is_set():
            done.set()
            if lost == "a row":
                return add_embeddings(self, segments[:-1], embeddings[: -segments[-1].windows])
            return add_embeddings(self, segments * 2, np.concatenate([embeddings] * 2))
        return add_embeddings(self, segments, embeddings)

    monkeypatch.setattr(ClipAssembler, "add_results", without_one)
    monkeypatch.setattr(ClipAssembler, "add_embeddings", with_other_rows)
    with pytest.raises(EngineError, match="please report it"):
        run_engine(clips, tmp_path)
    assert done.is_set()
    journal, _ = read_journal(tmp_path / ".runner" / "journal.jsonl")
    for entry in journal.values():
        for name in entry.files:
            if name.startswith("embeddings"):
                assert entry.examples == pq.read_metadata(tmp_path / name).num_rows


@pytest.mark.usefixtures("forked")
def test_embeddings_that_overflow_are_no_embeddings(clips: list[Clip], tmp_path: Path) -> None:
    def overflowing(windows: np.ndarray) -> np.ndarray:
        embeddings = fake_embed(windows)
        embeddings[np.isclose(embeddings[:, 0], 3 / 64), 7] = np.inf  # the third clip's level
        return embeddings

    engine = run_engine(clips, tmp_path, embed=overflowing)
    ends = pq.read_table(tmp_path / "clips.parquet").to_pylist()
    assert [end["clip"] for end in ends if end["reason"] == "non_finite_embedding"] == [clips[2].name]
    assert np.isfinite(np.stack(pq.read_table(tmp_path / "embeddings")["embedding"].to_numpy())).all()
    assert engine.stats.progress.skipped["non_finite_embedding"] == 1


@pytest.mark.usefixtures("forked")
def test_the_part_of_a_long_clip_that_is_decoded_is_known(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(16_000 * 60, np.int16), 16_000)
    pool = DecodePool(OPTIONS, 1)
    pool.open(1, 1, 2)
    parts: list[float] = []

    def looking(windows: np.ndarray, copied: object) -> np.ndarray:
        time.sleep(0.01)
        parts.append(pool.memory.fractions_decoded())
        return fake_embed(windows)

    clip = Clip(0, path.name, os.fsencode(path), None, None, None, path.stat().st_size)
    engine = EmbeddingPipeline(ShardedClips([(0, 1)], iter([clip])), pool, make_writer(tmp_path), shutdown_timeout_s=10)
    try:
        engine.run([Replica("replica", looking)])
        assert pool.memory.fractions_decoded() == 0
    finally:
        pool.close()
    assert parts[0] == 0
    known = [part for part in parts if part]
    assert 0.5 < max(known) <= 1
    assert known == sorted(known)


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_decoders_are_busy_between_none_and_all_of_the_time(clips: list[Clip], tmp_path: Path) -> None:
    pool = DecodePool(OPTIONS, 1)
    pool.open(1, 1, 2)
    seen: list[tuple[float, float]] = []

    def slow(windows: np.ndarray, copied: object) -> np.ndarray:
        time.sleep(0.02)  # the decode process waits for a slot in the middle of its clip
        seen.append((sum(pool.busy_s.values()), time.perf_counter() - engine.stats.started_at))
        return fake_embed(windows)

    engine = EmbeddingPipeline(
        ShardedClips([(0, 1)], iter([clips[5]._replace(number=0)])), pool, make_writer(tmp_path), shutdown_timeout_s=10
    )
    try:
        engine.run([Replica("replica", slow)])
    finally:
        pool.close()
    busy = [busy_s for busy_s, _ in seen]
    assert len(seen) > 20
    assert busy == sorted(busy)
    assert all(0 <= busy_s <= elapsed_s for busy_s, elapsed_s in seen)
    assert engine.stats.examples_done == engine.stats.progress.examples == 71
