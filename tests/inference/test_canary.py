"""Canaries: a device that fails in the middle of a run is detected, and the shards since are redone."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from runner.core.errors import ParityError
from runner.core.layout import RunLayout
from runner.dataset.clips import Clip
from runner.dataset.shards import plan_shards
from runner.inference import canary as module
from runner.inference.canary import Canary
from runner.inference.gate import signals_of
from runner.output.state.journal import read_journal
from runner.output.writer import clips_table
from runner.pipeline.decode_pool import DecodePool
from runner.pipeline.messages import Replica
from runner.pipeline.pipeline import EmbeddingPipeline, ShardedClips
from tests.inference.test_gate import ANSWERS, CONFIG, FakeSession
from tests.pipeline.test_engine import OPTIONS, make_writer


def data(rows: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    samples = np.random.default_rng(seed).integers(-9000, 9000, (rows, 15_600)).astype(np.int16)
    return samples if dtype == "int16" else (samples / np.float32(32768)).astype(np.float32)


class Turncoat(FakeSession):
    """Right until ``wrong`` is set; rows that are no signal are told by their first samples."""

    wrong = False

    def answer(self, which: list[int], windows: np.ndarray) -> np.ndarray:
        answers, unknown = super().answer(which, windows), np.array(which) < 0
        answers[unknown] = windows[unknown, :128]
        return np.roll(answers, 1, axis=0) if self.wrong else answers


def canary_of(session: FakeSession, **options) -> Canary:  # type: ignore[no-untyped-def]
    return Canary(session, ANSWERS, CONFIG, ("float32",), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize("rows", [3, 40, 64])
def test_the_datas_own_rows_are_as_without(rows: int, dtype: str) -> None:
    session = Turncoat(fills=False)
    canary, windows = canary_of(session), data(rows, dtype)
    assert np.array_equal(canary._with_signals(windows), windows[:, :128])
    (mixed, own) = [which for _, which, _ in session.asked]
    signals = len(signals_of(session.spec, dtype))
    assert sorted(number for number in mixed if number >= 0) == list(range(signals))
    assert len(mixed) == max(rows, signals)
    assert mixed[0] >= 0
    assert mixed[-1] >= 0
    assert len(own) == min(rows, signals)


def test_the_first_full_batch_of_each_type_has_signals_where_the_gate_saw_none() -> None:
    session = Turncoat(fills=False)
    canary = canary_of(session)
    canary.embed(data(20))
    assert canary.count == 0
    canary.embed(data(64))
    canary.embed(data(64))
    assert canary.count == 1
    canary.embed(data(64, "int16"))
    assert canary.count == 2
    gpu = canary_of(Turncoat())  # whose gate saw full batches
    gpu.embed(data(64))
    assert gpu.count == 0


def test_another_type_than_expected_is_measured_before_its_first_batch() -> None:
    session = Turncoat()
    canary = canary_of(session)
    session.asked.clear()
    canary.embed(data(5, "int16"))
    assert [(kind, len(which)) for kind, which, _ in session.asked[-1:]] == [("int16", 5)]
    assert sorted(len(which) for _, which, _ in session.asked[:-1]) == [1, 41, 64, 64]
    session.wrong = True
    with pytest.raises(ParityError, match="in the middle of the run a GPU"):
        canary_of(session).embed(data(5, "int16"))


def test_a_smaller_batch_after_memory_ran_out_is_looked_at() -> None:
    session = Turncoat()
    canary = canary_of(session)
    canary.embed(data(64))
    session.effective_batch_size = 32
    canary.embed(data(64))
    assert canary.count == 1


def test_one_batch_in_many_and_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 10)
    session = Turncoat()
    canary = canary_of(session)
    for _ in range(25):
        canary.embed(data(64))
    assert canary.count == 2
    session.asked.clear()
    canary.finish()
    canary.finish()  # nothing since
    assert canary.count == 3
    assert [len(which) for _, which, _ in session.asked] == [64]  # the last batch's own rows are known already
    session.wrong = True
    canary.embed(data(64))
    with pytest.raises(ParityError):
        canary.finish()


def test_with_warn_a_miss_is_a_message_and_the_run_continues() -> None:
    session = Turncoat()
    canary = Canary(session, ANSWERS, replace(CONFIG, name="warn"), ("float32",))  # type: ignore[arg-type]
    session.wrong = True
    canary.embed(data(5))
    canary.finish()
    assert "gives other embeddings than the reference" in canary.misses[0]


def make_clips(folder: Path) -> list[Clip]:
    """Twelve clips of four windows each."""
    clips = []
    for number in range(12):
        path = folder / f"{number}.wav"
        soundfile.write(path, data(1, "int16", number)[0].repeat(4), 16_000, subtype="PCM_16")
        clips.append(Clip(number, path.name, os.fsencode(path), None, None, None, path.stat().st_size))
    return clips


def test_shards_since_the_last_good_canary_are_to_be_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVERY", 15)
    session, pool = Turncoat(1, 1, fills=False), DecodePool(OPTIONS, 1)
    pool.open(1, 3, 1)
    writer = make_writer(tmp_path)
    canary = canary_of(session, shards=lambda: len(writer.committed))
    batches = 0

    def embed(windows: np.ndarray, copied=None) -> np.ndarray:  # type: ignore[no-untyped-def]
        nonlocal batches
        batches += 1
        if batches in (12, 25):  # so that shards are written on either side of the good canary at 15
            deadline = time.monotonic() + 60
            while len(writer.committed) <= (canary.trusted if batches == 25 else 0) and time.monotonic() < deadline:
                time.sleep(0.01)
        session.wrong = batches >= 25
        return canary.embed(windows, copied)

    clips = make_clips(tmp_path)
    engine = EmbeddingPipeline(
        ShardedClips(plan_shards(len(clips), 1), iter(clips)), pool, writer, shutdown_timeout_s=10
    )
    try:
        with (
            pytest.raises(ParityError, match="are redone when the run is resumed"),
            clips_table(tmp_path, writer.committed, {}),
        ):
            engine.run([Replica("replica", embed, 1, canary)])
    finally:
        pool.close()
    lines = (tmp_path / RunLayout.journal).read_text().splitlines()
    done, _ = read_journal(tmp_path / RunLayout.journal)
    assert len(done) == canary.trusted > 0
    assert any('"revoked": true' in line for line in lines)
    assert pq.read_table(tmp_path / "clips.parquet").num_rows == len(done)
    assert batches < 48


def test_a_miss_in_one_replica_is_not_made_good_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 3)
    sessions = [Turncoat(1, 1, fills=False), Turncoat(1, 1, fills=False)]
    sessions[1].wrong = True
    pool, clips = DecodePool(OPTIONS, 1), make_clips(tmp_path)
    pool.open(1, 4, 1)
    engine = EmbeddingPipeline(
        ShardedClips(plan_shards(len(clips), 1), iter(clips)), pool, make_writer(tmp_path), shutdown_timeout_s=10
    )
    try:
        with pytest.raises(ParityError):
            engine.run([Replica.watched(session, canary_of(session)) for session in sessions])  # type: ignore[arg-type]
    finally:
        pool.close()
    assert read_journal(tmp_path / RunLayout.journal)[0] == {}
