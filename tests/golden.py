"""Golden values: what the fixed signals come to by the published formulas alone, committed as golden.npz.

``python -m tests.golden`` makes them anew with ``tests/reference.py``, float64 NumPy without the runner's code.
They change with the signals or the random weights, and for no other reason: ``tests/vggish/test_golden.py`` holds
front ends,
network and reference to them, so that a fault in what those have in common is seen too.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from runner.models.signals import fixed_signals
from runner.vggish.arrays import random_weights, weights_checksum
from tests.reference import reference_log_mel, reference_network

PATH = Path(__file__).with_name("golden.npz")
SEED = 7
FRAMES = np.array([0, 1, 2, 13, 29, 47, 48, 63, 80, 93, 94, 95])
"""Of each signal's log-mel these are kept."""


def main() -> None:
    """Write the file."""
    weights, signals = random_weights(SEED), fixed_signals()
    log_mel = np.stack([reference_log_mel(signal.astype(np.float64)) for signal in signals])
    np.savez_compressed(
        PATH,
        signals=hashlib.sha256(signals.tobytes()).hexdigest(),
        weights=weights_checksum(weights),
        log_mel=log_mel[:, FRAMES].astype(np.float32),
        embeddings=reference_network(weights, log_mel).astype(np.float32),
    )


def load() -> dict[str, np.ndarray]:
    """The values: ``signals`` and ``weights`` (checksums), ``log_mel`` [16, 12, 64], ``embeddings`` [16, 128]."""
    with np.load(PATH, allow_pickle=False) as found:
        return dict(found)


def moved(signals: np.ndarray, weights: dict[str, np.ndarray]) -> str:
    """Which of the two are no more what the values were made of, in words; nothing if both are."""
    kept = load()
    found = {"signals": hashlib.sha256(signals.tobytes()).hexdigest(), "weights": weights_checksum(weights)}
    return " and ".join(f"the {name} are others" for name, digest in found.items() if digest != str(kept[name]))


def log_mel_error(log_mel: np.ndarray) -> float:
    """How far log-mel of the signals, [16, 96, 64], is from the golden one."""
    return float(np.abs(log_mel[:, FRAMES] - load()["log_mel"]).max())


def embeddings_error(embeddings: np.ndarray, rows: slice = slice(None)) -> float:
    """How far embeddings of the signals (or some), [n, 128], are from the golden ones, over the largest of them."""
    golden = load()["embeddings"][rows]
    return float(np.abs(embeddings - golden).max() / np.abs(golden).max())


if __name__ == "__main__":
    main()
