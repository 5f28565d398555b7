"""An audio file as the query of a search, embedded by TensorFlow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from runner.cli import search
from runner.core.layout import RunLayout
from runner.inference import api
from runner.inference.session import EmbeddingSession
from runner.output.state.plan_file import StoredPlan, write_plan
from tests.evaluation.test_search import write_run

CHECKSUM = "c0ffee"


@pytest.fixture(autouse=True)
def loaded(vggish: EmbeddingSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the tests' session: a process can configure its devices only once."""
    metadata = replace(vggish.metadata, weights=replace(vggish.metadata.weights, checksum=CHECKSUM))
    monkeypatch.setattr(vggish, "metadata", metadata)
    monkeypatch.setattr(api, "load_session", lambda model, weights, models, request, policy: vggish)


@pytest.fixture
def run(vggish: EmbeddingSession, tmp_path: Path) -> Path:
    """A run of six recordings of two examples each, with the metadata and the plan that a run has."""
    folder, session = tmp_path, vggish
    random, embeddings = np.random.default_rng(0), []
    for number in range(6):
        tones = np.sin(2 * np.pi * (200 + 350 * number) * np.arange(32_000) / 16_000)
        path = folder / f"{number}.wav"
        soundfile.write(path, 0.3 * tones + 0.01 * random.standard_normal(32_000), 16_000)
        embeddings.append(session.embed_file(path))
    write_run(folder / "run", np.concatenate(embeddings), [f"{row // 2}.wav" for row in range(12)])
    shard = folder / "run" / "embeddings" / "part-00000.parquet"
    about = {"weights.source": "random", "weights.checksum": CHECKSUM, "hop_s": "0.96"}
    write_metadata(shard, about)
    RunLayout(folder / "run").state.mkdir()
    write_plan(folder / "run", StoredPlan("run", {"weights.seed": 5}, [], []))
    return folder


def write_metadata(shard: Path, about: dict[str, str]) -> None:
    metadata = {f"vggish_runner.{key}": value for key, value in about.items()}
    pq.write_table(pq.read_table(shard).replace_schema_metadata(metadata), shard)


@pytest.mark.slow
def test_an_audio_file_finds_itself(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search.main([str(run / "run"), str(run / "4.wav"), "--start", "0.96", "--top", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["1.0000", "00:00.96", "00:01.94", "4.wav", "(4)"]


@pytest.mark.slow
def test_the_query_is_slowed_as_the_runs_clips_were(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = run / "run" / "embeddings" / "part-00000.parquet"
    about = {
        "weights.source": "random",
        "weights.checksum": CHECKSUM,
        "frontend.hop_s": "0.96",
        "frontend.speed": "0.1",
    }
    write_metadata(shard, about)
    samples, _ = soundfile.read(run / "4.wav", dtype="int16")
    soundfile.write(run / "bat.wav", samples, 160_000)
    assert search.main([str(run / "run"), str(run / "bat.wav"), "--start", "0.096", "--top", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["1.0000", "00:00.96", "00:01.06", "4.wav", "(4)"]


@pytest.mark.slow
def test_a_run_of_other_weights_is_not_searched(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = run / "run" / "embeddings" / "part-00000.parquet"
    write_metadata(shard, {"weights.source": "random", "weights.checksum": "others", "hop_s": "0.96"})
    assert search.main([str(run / "run"), str(run / "4.wav")]) == 1
    assert "was embedded with other weights" in capsys.readouterr().err
