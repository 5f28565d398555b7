"""Weights and signals that several tests of YAMNet take."""

from __future__ import annotations

import numpy as np
import pytest

from runner.models.signals import fixed_signals
from runner.yamnet.arrays import random_weights
from tests.reference import reference_log_mel


@pytest.fixture(scope="session")
def yamnet_arrays() -> dict[str, np.ndarray]:
    return random_weights(7)


@pytest.fixture(scope="session")
def signals() -> np.ndarray:
    return fixed_signals()


@pytest.fixture(scope="session")
def exact_log_mel(signals: np.ndarray) -> np.ndarray:
    """Log-mel of the signals by the formulas alone, float64 [16, 96, 64]."""
    return np.stack([reference_log_mel(signal.astype(np.float64), 0.001) for signal in signals])
