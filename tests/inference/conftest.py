"""What several tests compare with, and which takes seconds to compute."""

from __future__ import annotations

import numpy as np
import pytest

from runner.models.signals import fixed_signals
from tests.reference import reference_log_mel, reference_network


@pytest.fixture(scope="session")
def log_mels() -> np.ndarray:
    """Log-mel of the fixed signals by the formulas, float64 [16, 96, 64]."""
    return np.stack([reference_log_mel(signal.astype(np.float64)) for signal in fixed_signals()])


@pytest.fixture(scope="session")
def forward_pass(weights: dict[str, np.ndarray], log_mels: np.ndarray) -> np.ndarray:
    """Their embeddings by the formulas, float64 [16, 128]."""
    return reference_network(weights, log_mels)
