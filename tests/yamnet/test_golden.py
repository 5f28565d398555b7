"""A few of YAMNet's numbers for seeded weights and the fixed signals, kept from one version to the next."""

from __future__ import annotations

import numpy as np

from runner.models.signals import fixed_signals
from runner.vggish.reference import reference_log_mel
from runner.yamnet.arrays import random_weights, weights_checksum
from runner.yamnet.constants import EMBEDDING_SIZE, LOG_OFFSET
from runner.yamnet.reference import reference_outputs

SIGNALS = [0, 3, 4]
"""A tone, noise and silence."""
CHECKSUM = "071e1b97db821961cefd7899898bca393ea9ceddbdef3044e94b157034a30eb2"
LOG_MEL = [
    [-6.407596141808088, 1.5682355048917687, -6.564366839282534, -6.611785846051023],
    [-0.28743932601903166, 0.959961576063675, 2.595266503788685, 2.9432560763916524],
    [-6.907755278982137] * 4,
]
"""Of the frame 50, every 21st band."""
EMBEDDINGS = [
    [1.7352087497711182, 3.8330111503601074, 1.3292956352233887],
    [0.09130501002073288, 1.4446280002593994, 0.3732989728450775],
    [1.781886100769043, 4.653787612915039, 1.4965091943740845],
]
SCORES = [
    [0.9171838164329529, 0.6517923474311829, 0.10774685442447662],
    [0.6618806719779968, 0.5501281023025513, 0.2538239061832428],
    [0.9005179405212402, 0.6925296783447266, 0.10504882037639618],
]


def test_the_seeded_weights_are_the_kept_ones() -> None:
    assert weights_checksum(random_weights(7)) == CHECKSUM


def test_log_mel_and_outputs_are_the_kept_ones() -> None:
    signals = fixed_signals()[SIGNALS]
    np.testing.assert_allclose(reference_log_mel(signals, LOG_OFFSET)[:, 50, ::21], LOG_MEL, atol=1e-9)
    rows = reference_outputs(random_weights(7), signals)
    np.testing.assert_allclose(rows[:, :EMBEDDING_SIZE:400], EMBEDDINGS, rtol=1e-6)
    np.testing.assert_allclose(rows[:, EMBEDDING_SIZE::200], SCORES, rtol=1e-6)
