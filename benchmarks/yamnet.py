"""YAMNet on the CPU beside Keras: ``python -m benchmarks.yamnet`` prints windows a second, of wall and core time.

The same seeded weights and clips of ten seconds; interleaved rounds, medians.  Keras runs the layers of the release as
a user of it does: ``model.predict`` on log-mel patches, or one clip after another from its waveform.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.data import recording

Stages = dict[str, Callable[[], object]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clips", type=int, default=12, help="of ten seconds")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from runner.yamnet.smoke_test import padded_windows

    clips = [recording(number, 16_000, 1)[:, 0].astype(np.float32) for number in range(options.clips)]
    windows = np.concatenate([padded_windows(clip) for clip in clips])
    stages = _stages(clips, windows)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in stages}
    for number in range(options.rounds + 1):
        for name, stage in stages.items():
            start, busy = time.perf_counter(), time.process_time()
            stage()
            if number:  # the first round warms up
                taken[name].append((time.perf_counter() - start, time.process_time() - busy))
    print(f"{'':52s} {'windows/s':>10s} {'per core-s':>11s}")
    for name, times in taken.items():
        wall, cpu = (statistics.median(seconds) for seconds in zip(*times, strict=True))
        print(f"{name:52s} {len(windows) / wall:10,.0f} {len(windows) / cpu:11,.0f}")


def _stages(clips: list[np.ndarray], windows: np.ndarray) -> Stages:
    import tensorflow as tf

    from runner.yamnet import forward, frontend, network
    from runner.yamnet.arrays import random_weights
    from tests.yamnet.keras_yamnet import keras_yamnet

    arrays = random_weights(0)
    model = keras_yamnet(arrays)
    examples = frontend.log_mel(windows).numpy()

    def compiled(run: Callable[[Any], Any], rows: np.ndarray) -> Callable[[], object]:
        function, tensor = tf.function(run, autograph=False), tf.constant(rows)
        return lambda: function(tensor).numpy()

    def of_examples(precision: str) -> Callable[[], object]:
        weights, dtype = network.variables(arrays, precision), network.dtype_of(precision)
        return compiled(lambda rows: network.embed(weights, rows, dtype), examples)

    def of_windows(precision: str) -> Callable[[], object]:
        weights = network.variables(arrays, precision)
        return compiled(lambda rows: forward.outputs_of_windows(weights, rows, precision, is_cpu=True), windows)

    def by_clip() -> None:
        for clip in clips:
            model(_released_patches(clip))

    return {
        "Keras, model.predict on log-mel, batches of 32": lambda: model.predict(examples, verbose=0),
        "Keras, model.predict on log-mel, one batch": lambda: model.predict(examples, len(examples), verbose=0),
        "ours on log-mel, float32": of_examples("float32"),
        "ours on log-mel, bfloat16": of_examples("bfloat16"),
        "Keras from waveform, clip by clip": by_clip,
        "ours from waveform, float32": of_windows("float32"),
        "ours from waveform, bfloat16": of_windows("bfloat16"),
    }


def _released_patches(clip: np.ndarray) -> Any:
    """Compute the log-mel patches [n, 96, 64] of a padded clip with the operations that the release uses."""
    import tensorflow as tf

    padding = -(len(clip) - 15_600) % 7_680
    spectrum = tf.signal.stft(tf.pad(tf.constant(clip), [[0, padding]]), 400, 160, 512)
    filters = tf.signal.linear_to_mel_weight_matrix(64, 257, 16_000, 125.0, 7500.0)
    return tf.signal.frame(tf.math.log(tf.matmul(tf.abs(spectrum), filters) + 0.001), 96, 48, axis=0)


if __name__ == "__main__":
    main()
