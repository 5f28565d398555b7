"""The front ends of FAD tools in whole runs: what reaches the network is what the tool would have given it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from tests.whole_run import make_config, session


def embedded(data: Path, run: Path, *options: str) -> dict[str, np.ndarray]:
    """By clip, the samples 0, 100, … 12,700 of each window, which is what the stand-in for the network gives."""
    result = session(make_config(data, run, "output.formats=[parquet]", *options), run)
    assert not isinstance(result, str), result
    assert result["status"] == "finished"
    table = pq.read_table(run / "embeddings")
    clips = np.array(table["clip"].to_pylist())
    rows = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, 128)
    return {clip: rows[clips == clip] for clip in sorted(set(clips))}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for name, samples in (("long", 70_000), ("second", 16_000), ("short", 15_800)):
        signal = rng.uniform(-0.3, 0.2, (samples, 2 if name == "long" else 1))
        soundfile.write(tmp_path / "data" / f"{name}.wav", signal, 16_000, subtype="PCM_16")
    return tmp_path / "data"


def signal_of(data: Path, name: str) -> np.ndarray:
    samples, _ = soundfile.read(data / name, always_2d=True)
    return samples


def test_google_divides_by_the_peak_and_steps_half_a_second(data: Path, tmp_path: Path) -> None:
    found = embedded(data, tmp_path / "disk" / "run", "frontend=google")
    assert {clip: len(rows) for clip, rows in found.items()} == {"long.wav": 7, "second.wav": 1}
    mono = signal_of(data, "long.wav").mean(axis=1)
    for number, row in enumerate(found["long.wav"]):
        start = 8_000 * number
        np.testing.assert_allclose(row, mono[start : start + 12_800 : 100] / mono.max(), atol=1e-6)


def test_audioldm_takes_the_first_channel_and_pads_to_two_seconds(data: Path, tmp_path: Path) -> None:
    found = embedded(data, tmp_path / "disk" / "run", "frontend=audioldm")
    assert {clip: len(rows) for clip, rows in found.items()} == {"long.wav": 4, "second.wav": 2, "short.wav": 2}
    first = signal_of(data, "long.wav")[:, 0]
    np.testing.assert_allclose(found["long.wav"][1], (first - first.mean())[15_360:28_160:100], atol=1e-6)
    assert not found["short.wav"][1][5:].any()


def test_torchvggish_leaves_out_what_is_too_short(data: Path, tmp_path: Path) -> None:
    soundfile.write(data / "blip.wav", np.full(9_000, 0.1), 16_000)
    found = embedded(data, tmp_path / "disk" / "run", "frontend=torchvggish")
    assert {clip: len(rows) for clip, rows in found.items()} == {"long.wav": 4, "second.wav": 1, "short.wav": 1}
