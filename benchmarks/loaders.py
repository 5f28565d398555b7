"""What feeds a device fastest: our decode pool, tf.data, or grain?  ``python -m benchmarks.loaders``.

Ten-second 16 kHz mono WAV files in memory-backed storage to batches of 512 int16 windows that the caller can hand on;
as many processes (threads, for tf.data) as cores.  Each loader is in a process of its own, rounds interleaved, medians
printed.  tf.data gets the simplest work there is: its own C++ operations on headers of 44 bytes, files of one length,
no resampling, no reasons for what can't be read.  grain (``pip install grain``) is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.data import SECONDS
from benchmarks.gpu import make_many
from runner.devices.host import usable_cores

PROJECT = Path(__file__).resolve().parents[1]
ROWS = 512
HEADER = 44
WINDOW, HOP, EXAMPLES = 15_600, 15_360, 10
CLIPS = -(-ROWS // EXAMPLES)


def ours(paths: list[str]) -> int:
    """The decode pool, its slots given back at once."""
    from runner.audio.framing import Framing
    from runner.audio.preparation import Preparation
    from runner.pipeline.decode_pool import DecodePool
    from runner.pipeline.messages import ClipTask, DecodeOptions
    from runner.vggish.spec import VGGISH

    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    pool = DecodePool(DecodeOptions(Preparation(16_000), Framing.of(VGGISH)), usable_cores())
    pool.open(usable_cores(), 8, ROWS)
    rows, waiting = 0, [(ClipTask(n, os.fsencode(path), None, None), 320_044) for n, path in enumerate(paths)]
    while waiting or pool.outstanding:
        while waiting and pool.has_room:
            pool.submit(waiting[:13], last=len(waiting) <= 13)
            del waiting[:13]
        if not waiting:
            pool.no_more()
        for decoded in pool.receive(0.1):
            if decoded.filled is not None:
                rows += len(pool.windows(decoded.filled))
                pool.release(decoded.filled.slot)
    pool.close()
    return rows


def tf_data(paths: list[str]) -> int:
    """tf.data's own operations."""
    import tensorflow as tf

    def windows(path: object) -> object:
        samples = tf.io.decode_raw(tf.strings.substr(tf.io.read_file(path), HEADER, -1), tf.int16)
        return tf.signal.frame(samples, WINDOW, HOP)

    data = tf.data.Dataset.from_tensor_slices(paths).map(windows, tf.data.AUTOTUNE, deterministic=False)
    data = data.batch(CLIPS).prefetch(tf.data.AUTOTUNE)
    return sum(batch.shape[0] * EXAMPLES for batch in data)


def grain(paths: list[str]) -> int:
    """grain's processes, with NumPy in them."""
    import grain.python as pygrain

    def windows(path: str) -> np.ndarray:
        samples = np.fromfile(path, np.int16, offset=HEADER)
        return np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP].copy()

    data = pygrain.MapDataset.source(paths).map(windows).batch(CLIPS).to_iter_dataset()
    data = data.mp_prefetch(pygrain.MultiprocessingOptions(num_workers=usable_cores(), per_worker_buffer_size=4))
    return sum(len(batch) * EXAMPLES for batch in data)


LOADERS: dict[str, Callable[[list[str]], int]] = {"ours": ours, "tf.data": tf_data, "grain": grain}


def main() -> None:
    """Measure all, or with ``--one`` the one named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/vggish-benchmark"))
    parser.add_argument("--one", choices=list(LOADERS))
    options = parser.parse_args()
    paths = sorted(str(path) for path in make_many(options.folder, "wav16", options.clips, 200).rglob("*.wav"))
    if options.one:
        if options.one != "grain":
            LOADERS[options.one](paths[:500])  # imports, and threads that start
        start = time.perf_counter()
        rows = LOADERS[options.one](paths)
        print(json.dumps({"x_realtime": SECONDS * rows / EXAMPLES / (time.perf_counter() - start)}))
        return
    taken: dict[str, list[float]] = {name: [] for name in LOADERS}
    for _ in range(options.rounds):
        for name in LOADERS:
            command = [sys.executable, "-m", "benchmarks.loaders", "--one", name, "--clips", str(options.clips)]
            command += ["--folder", str(options.folder)]
            done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                taken[name].append(json.loads(done.stdout.splitlines()[-1])["x_realtime"])
            else:
                print(f"{name} not measured: {done.stderr.strip().splitlines()[-1][:150]}")
    for name, speeds in taken.items():
        if speeds:
            print(f"{name:10s} {statistics.median(speeds):10,.0f} × realtime on {usable_cores()} cores")


if __name__ == "__main__":
    main()
