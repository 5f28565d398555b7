"""Clips of several rates, channels and types, of which some keep their rate as far as the replica."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from runner.audio.framing import Framing, Windows, scaled
from runner.audio.preparation import Preparation
from runner.audio.source_windows import SourceWindows
from runner.config.schema import OutputConfig
from runner.core.model_spec import ModelSpec
from runner.dataset.clips import Clip
from runner.dataset.shards import plan_shards
from runner.output.formats import make_formats
from runner.output.writer import clips_table
from runner.pipeline.decode_pool import DecodePool
from runner.pipeline.messages import DecodeOptions, Replica
from runner.pipeline.pipeline import EmbeddingPipeline, ShardedClips
from tests.vggish_clips import OPTIONS
from tests.writers import journaled_writer, vggish_info

pytestmark = pytest.mark.slow

FILES = [
    ("a.wav", 44_100, 2, "PCM_16"),
    ("b.wav", 44_100, 1, "FLOAT"),
    ("c.flac", 48_000, 2, "PCM_24"),
    ("d.wav", 16_000, 1, "PCM_16"),
    ("e.flac", 22_050, 1, "PCM_16"),
    ("f.wav", 44_056, 2, "PCM_16"),  # resampled by decode processes in any case
    ("g.wav", 8_000, 3, "PCM_16"),
]
SECONDS = [3.0, 0.4, 7.7, 2.2, 1.0]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("kinds")
    random, clips = np.random.default_rng(0), []
    for length in SECONDS:
        for name, rate, channels, subtype in FILES:
            path = folder / f"{len(clips):03d}{name}"
            samples = random.uniform(-0.9, 0.9, (int(length * rate), channels)).astype(np.float32)
            soundfile.write(path, samples, rate, subtype=subtype)
            clips.append(Clip(len(clips), path.name, os.fsencode(path), None, None, None, path.stat().st_size))
    return clips


BIRDS = ModelSpec("birds", 32_000, 160_000, 80_000, (), takes_int16=False)
"""Five seconds every 2.5, of float32 alone."""


def embed(
    clips: list[Clip], folder: Path, options: DecodeOptions = OPTIONS, *, resample: bool, batch: int, spare: int = 3
) -> set[int]:
    """Embed clips as some of their samples; return the rates of the windows that came to the replica."""
    rates = set()

    def some_samples(windows: Windows | SourceWindows, copied: object) -> np.ndarray:
        if isinstance(windows, SourceWindows):
            rates.add(windows.filter.rate)
            windows = windows.filter.apply(windows.windows[: windows.count])
        else:
            rates.add(options.preparation.rate)
            assert options.preparation.takes_int16 or windows.dtype == np.float32
        assert windows.shape[1] == options.framing.window_samples
        return scaled(windows)[:, 4000:4128].copy()

    pool = DecodePool(options, 2)
    pool.open(2, spare, batch, resample=resample)
    writer = journaled_writer(
        folder,
        make_formats(
            OutputConfig(), folder, vggish_info(hop_s=options.framing.hop_samples / options.preparation.rate), []
        ),
    )
    work = ShardedClips(plan_shards(len(clips), 9), iter(clips))
    try:
        with clips_table(folder, writer.committed, {}):
            EmbeddingPipeline(work, pool, writer, shutdown_timeout_s=10).run([Replica("replica", some_samples)])
    finally:
        pool.close()
    return rates


@pytest.mark.parametrize(("batch", "spare"), [(64, 3), (7, 2), (2, 2)])
def test_a_run_is_the_same_whether_decode_processes_or_the_device_resample(
    clips: list[Clip], tmp_path: Path, batch: int, spare: int
) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "device").mkdir()
    assert embed(clips, tmp_path / "host", resample=True, batch=batch) == {16_000}
    rates = embed(clips, tmp_path / "device", resample=False, batch=batch, spare=spare)
    assert rates == ({16_000, 44_100, 48_000, 22_050, 8_000} if batch > 2 else {16_000, 8_000, 22_050})
    assert_same_rows(tmp_path / "host", tmp_path / "device")


def assert_same_rows(*folders: Path) -> None:
    rows, clip_rows = ([pq.read_table(folder / name) for folder in folders] for name in ("embeddings", "clips.parquet"))
    assert clip_rows[0].equals(clip_rows[1])
    assert rows[0].drop_columns("embedding").equals(rows[1].drop_columns("embedding"))
    samples = [np.stack(table["embedding"].to_numpy()) for table in rows]
    np.testing.assert_allclose(*samples, atol=1e-7)  # sums of float64 in another order


@pytest.mark.parametrize(("batch", "spare"), [(16, 3), (3, 2)])
def test_a_model_of_another_rate_and_window_has_its_own_windows(
    clips: list[Clip], tmp_path: Path, batch: int, spare: int
) -> None:
    preparation = Preparation(BIRDS.sample_rate, takes_int16=BIRDS.takes_int16)
    options = DecodeOptions(preparation, Framing.of(BIRDS))
    (tmp_path / "host").mkdir()
    (tmp_path / "device").mkdir()
    assert embed(clips, tmp_path / "host", options, resample=True, batch=batch) == {32_000}
    rates = embed(clips, tmp_path / "device", options, resample=False, batch=batch, spare=spare)
    assert rates == {8_000, 16_000, 22_050, 32_000, 44_100, 48_000}
    assert_same_rows(tmp_path / "host", tmp_path / "device")
    table = pq.read_table(tmp_path / "host" / "clips.parquet")
    seconds = table["seconds"].to_pylist()
    assert table["examples"].to_pylist() == [1 + max(0, int((length - 5) / 2.5)) for length in seconds]
    assert table["padded"].to_pylist() == [length < 5 for length in seconds]


def test_a_clip_too_short_for_a_model_says_so_at_its_rate(clips: list[Clip], tmp_path: Path) -> None:
    options = DecodeOptions(Preparation(BIRDS.sample_rate), Framing.of(BIRDS, short_clips="skip"))
    embed(clips[:1], tmp_path, options, resample=True, batch=4)  # three seconds
    (row,) = pq.read_table(tmp_path / "clips.parquet").to_pylist()
    assert (row["reason"], row["detail"]) == ("too_short", "96000 samples at 32 kHz; one example needs 160000")
