"""The exported model: read back in a fresh process that knows nothing of this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runner.cli.export import main
from runner.inference.session import EmbeddingSession
from tests.commands import Done, run_module

pytestmark = pytest.mark.slow

READER = """
import sys
import numpy as np
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
given = np.load(sys.argv[2])
clip = model.signatures["clip"](samples=tf.constant(given["clip"]))["embeddings"]
batch = model.signatures["waveform"](samples=tf.constant(given["batch"]))["embeddings"]
default = model.signatures["serving_default"](samples=tf.constant(given["batch"]))["embeddings"]
short = model.signatures["clip"](samples=tf.constant(given["clip"][:900]))["embeddings"]
examples = model.signatures["examples"](log_mel=tf.constant(given["log_mel"]))["embeddings"]
harmed = model.signatures["waveform"](samples=tf.constant(given["harmed"]))["embeddings"]
empty = model.signatures["clip"](samples=tf.zeros([0]))["embeddings"]
harmed_mel = model.signatures["examples"](log_mel=tf.constant(given["harmed_mel"]))["embeddings"]
assert not [name for name in sys.modules if name.split(".")[0] == "runner"]
np.savez(sys.argv[3], clip=clip, batch=batch, default=default, short=short, examples=examples,
         harmed=harmed, harmed_mel=harmed_mel, empty=empty,
         metadata=np.array(model.metadata().numpy().decode()))
"""


def export(*arguments: str) -> Done:
    """``python -m runner export``, of what it refuses."""
    return run_module("runner", "export", *arguments)


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.shape == expected.shape and bool(np.abs(found - expected).max() <= 5e-6 * np.abs(expected).max())


@pytest.mark.usefixtures("placeable")
def test_a_fresh_process_gets_the_runners_numbers(
    weights: dict[str, np.ndarray],
    vggish: EmbeddingSession,
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from runner.vggish.arrays import weights_checksum
    from runner.vggish.frontend import log_mel

    arguments = ("weights=random", "weights.seed=7", f"paths.models={models}", "frontend.hop_s=0.48")
    assert main([*arguments, f"output.dir={tmp_path / 'model'}"]) == 0
    said = capsys.readouterr()
    assert "tf.saved_model.load" in said.out
    assert "not meaningful" in said.err
    rng = np.random.default_rng(0)
    batch = rng.uniform(-1, 1, (3, 40_000)).astype(np.float32)
    patches = log_mel(batch[:, :15_600]).numpy()
    harmed, harmed_mel = batch.copy(), patches.copy()
    harmed[0, 25_000], harmed[2, 9] = np.nan, 1e18  # in the second and third example; in the first
    harmed_mel[1, 50, 30] = np.inf
    given = {"clip": batch[0], "batch": batch, "log_mel": patches[:1], "harmed": harmed, "harmed_mel": harmed_mel}
    np.savez(tmp_path / "given.npz", **given)
    answer = tmp_path / "answer.npz"
    command = [sys.executable, "-c", READER, str(tmp_path / "model"), str(tmp_path / "given.npz"), str(answer)]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}, check=True, timeout=300)
    found = np.load(answer)
    expected = np.stack([vggish.embed_waveform(row, 16_000, hop_s=0.48) for row in batch])
    assert expected.shape == (3, 4, 128)
    assert close(found["batch"], expected)
    assert close(found["default"], expected)
    assert close(found["clip"], expected[0])
    assert close(found["short"], vggish.embed_waveform(batch[0, :900], 16_000))
    assert close(found["examples"], vggish.embed_examples(patches[:1]))
    no_waveform = np.array([[0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]], bool)[:, :, None]
    assert np.array_equal(np.isnan(found["harmed"]), np.broadcast_to(no_waveform, expected.shape))
    assert close(np.where(no_waveform, 0, found["harmed"]), np.where(no_waveform, 0, expected))
    assert found["empty"].shape == (1, 128)
    assert np.isnan(found["empty"]).all()
    assert np.isnan(found["harmed_mel"]).all(axis=1).tolist() == [False, True, False]
    assert not np.isnan(found["harmed_mel"][[0, 2]]).any()
    metadata = json.loads(str(found["metadata"]))
    assert metadata == json.loads((tmp_path / "model" / "metadata.json").read_text())
    assert metadata["weights"]["checksum"] == weights_checksum(weights)
    assert (metadata["hop_s"], metadata["sample_rate"], metadata["parity"]["passed"]) == (0.48, 16_000, True)
    assert main([*arguments, f"output.dir={tmp_path / 'model'}"]) == 1
    assert "is not an empty folder" in capsys.readouterr().err


def test_what_is_missing_is_said_in_one_line() -> None:
    assert "output.dir is not set" in export("weights=random").err
    other = export("weights=random", "model=yamnet", "output.dir=nowhere")
    assert "model=yamnet can't be exported with its outputs: only VGGish's embedding can" in other.err
    unknown = export("wights=random")
    assert (unknown.status, len(unknown.err.strip().splitlines())) == (1, 1)
    assert "wights" in unknown.err
    assert export("--help").status == 0
    assert "usage" in export("--help").out
