"""What each stage costs alone: ``python -m benchmarks.stages`` prints × realtime, by wall and by core-second.

Decode, resample, log-mel, network and write, each on the same minutes of audio and in one process; medians of several
interleaved rounds; beside the resampler and the log-mel, what the reference scripts use.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.data import KINDS, SECONDS, make_clips, recording


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=12, help="of ten seconds, a stage")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryDirectory() as folder:
        stages = {
            **_decoding(Path(folder), options.clips),
            **_resampling(),
            **_front_end(options.clips),
            **_network(options.clips),
            **_writing(Path(folder), options.clips),
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in stages}
        for number in range(options.rounds + 1):
            for name, (stage, _) in stages.items():
                start, busy = time.perf_counter(), time.process_time()
                stage()
                if number:  # the first round warms up
                    taken[name].append((time.perf_counter() - start, time.process_time() - busy))
        print(f"{'':34s} {'× realtime':>12s} {'per core-s':>12s}")
        for name, (_, audio_s) in stages.items():
            wall, cpu = (statistics.median(times) for times in zip(*taken[name], strict=True))
            print(f"{name:34s} {audio_s / wall:12,.0f} {audio_s / cpu:12,.0f}")


Stages = dict[str, tuple[Callable[[], object], float]]


def _decoding(folder: Path, clips: int) -> Stages:
    from runner.audio.preparation import Preparation
    from runner.audio.reader import read_clip

    def decode(paths: list[Path]) -> None:
        for path in paths:
            with read_clip(str(path), preparation=Preparation(16_000)) as clip:
                for _ in clip:
                    pass

    found: Stages = {}
    for kind in KINDS:
        paths = make_clips(folder, kind, clips)
        found[f"decode and resample {kind}"] = (lambda paths=paths: decode(paths), SECONDS * clips)
    return found


def _resampling() -> Stages:
    import resampy

    from runner.audio.resample import StreamResampler

    wave = recording(0, 44_100, 1)[:, 0]

    def ours(method: str) -> None:
        stream = StreamResampler(44_100, 16_000, method)
        for block in np.array_split(wave, 10):
            stream.push(block)
        stream.finish()

    return {
        "resample 44.1 kHz, kaiser_best": (lambda: ours("kaiser_best"), SECONDS),
        "resample 44.1 kHz, soxr": (lambda: ours("soxr"), SECONDS),
        "resample 44.1 kHz, resampy itself": (lambda: resampy.resample(wave, 44_100, 16_000), SECONDS),
    }


def _windows(clips: int) -> np.ndarray:
    from runner.audio.framing import Framing, WindowCutter
    from runner.vggish.spec import VGGISH

    return np.concatenate(
        [WindowCutter(Framing.of(VGGISH)).push(recording(number, 16_000, 1)[:, 0]) for number in range(clips)]
    )


def _front_end(clips: int) -> Stages:
    import tensorflow as tf

    from runner.vggish import frontend
    from runner.vggish.reference import reference_log_mel

    tf.config.threading.set_intra_op_parallelism_threads(len(os.sched_getaffinity(0)))
    windows = _windows(clips)
    tensor = tf.constant(windows)
    exact = tf.function(lambda x: frontend.log_mel(x, "float32"), autograph=False)
    folded = tf.function(frontend.folded_log_mel, autograph=False)
    return {
        "log-mel, exact": (lambda: exact(tensor), SECONDS * clips),
        "log-mel, folded (coarse precisions)": (lambda: folded(tensor), SECONDS * clips),
        "log-mel, NumPy": (lambda: reference_log_mel(windows), SECONDS * clips),
    }


def _network(clips: int) -> Stages:
    from runner.vggish.arrays import random_weights
    from tests.reference import make_session

    examples = np.random.default_rng(0).normal(-2, 1.5, (len(_windows(clips)), 96, 64)).astype(np.float32)
    found: Stages = {}
    for precision, conv in (("float32", "direct"), ("float32", "winograd"), ("bfloat16", "direct")):
        session = make_session(random_weights(0), precision, len(examples), conv)
        found[f"network, {precision}, {conv}"] = (
            lambda session=session: session.embed_examples(examples),
            SECONDS * clips,
        )
    return found


def _writing(folder: Path, clips: int) -> Stages:
    from runner.config.schema import OutputConfig
    from runner.output.formats import make_formats
    from runner.output.rows import ClipRow, EmbeddingInfo
    from runner.vggish.spec import VGGISH

    embeddings = np.random.default_rng(0).standard_normal((10, 128), np.float32)
    rows = [
        ClipRow(f"{n}.wav", "embedded", None, None, 10, SECONDS, 16_000, 1, False, "x", 0.0, embeddings)
        for n in range(100 * clips)
    ]
    info = EmbeddingInfo({}, 0.96, VGGISH.outputs)
    (parquet,) = make_formats(OutputConfig(), folder, info, [])
    return {"write Parquet": (lambda: parquet.write(0, rows), SECONDS * len(rows))}


if __name__ == "__main__":
    main()
