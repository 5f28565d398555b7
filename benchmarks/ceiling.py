"""This machine's matrix-product ceiling: ``python -m benchmarks.ceiling`` prints GFLOP/s, by wall and by core."""

from __future__ import annotations

import json
import os
import time

_SIZE = 3072
_RUNS = 7


def measure() -> dict[str, dict[str, float]]:
    """GFLOP per wall second and per processor second of a large TensorFlow product, best of a few, by precision."""
    import tensorflow as tf

    found = {}
    for name in ("float32", "bfloat16"):
        matrix = tf.cast(tf.random.normal([_SIZE, _SIZE]), name)
        product = tf.function(lambda x: tf.matmul(x, x), autograph=False)
        wall, cpu = [], []
        for _ in range(_RUNS + 1):
            start, busy = time.perf_counter(), time.process_time()
            product(matrix)
            wall.append(time.perf_counter() - start)
            cpu.append(time.process_time() - busy)
        gflop = 2 * _SIZE**3 / 1e9
        found[name] = {"wall": gflop / min(wall[1:]), "cpu": gflop / min(cpu[1:])}
    return found


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    print(json.dumps(measure()))
